"""What faults keep back: until a time, until the next one has passed, or until a hung device goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from nvmeemu.faults.places import At
from nvmeemu.ports import Clock, Timer

MOST_PENDING = 1 << 16
_VOID_AFTER_DROP = (At.DOORBELL, At.FETCH, At.EXECUTE, At.COMPLETION, At.EVENT)
Callback = Callable[[], None]


class Kept:
    """Calls for later. When all commands are dropped, the calls of commands, completions, doorbells and events are
    dropped, too."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._pending: dict[int, tuple[Timer, At]] = {}  # and the place where it was kept back
        self._behind: dict[At, list[Callback]] = {}
        self._held: list[Callback] = []

    def __len__(self) -> int:
        """How many wait for a time."""
        return len(self._pending)

    def later(self, wait: float, at: At, what: Callback) -> None:
        """Call after so many seconds, or at once if too many calls wait."""
        if len(self._pending) >= MOST_PENDING:  # a guest may send without end what a fault keeps back
            what()
            return
        number = next(self._numbers)

        def run() -> None:
            del self._pending[number]
            what()

        self._pending[number] = self._clock.call_later(wait, run), at

    def behind_next(self, at: At, within: float, what: Callback) -> None:
        """Call when the next one has passed this place, or when none has for so long."""
        is_done = False

        def once() -> None:
            nonlocal is_done
            if not is_done:
                is_done = True
                what()

        self._behind.setdefault(at, []).append(once)
        self.later(within, at, once)

    def take_behind(self, at: At) -> list[Callback]:
        """The calls that come behind the one that passes now."""
        return self._behind.pop(at, [])

    @property
    def has_behind(self) -> bool:
        return bool(self._behind)

    def hold(self, what: Callback) -> None:
        """Call when the device goes on."""
        self._held.append(what)

    def go_on(self) -> None:
        """The device goes on."""
        held, self._held = self._held, []
        for what in held:
            what()

    def drop(self) -> None:
        """All commands are dropped."""
        self._held.clear()
        self._behind = {at: held for at, held in self._behind.items() if at not in _VOID_AFTER_DROP}
        for number, (timer, at) in tuple(self._pending.items()):
            if at in _VOID_AFTER_DROP:
                timer.cancel()
                del self._pending[number]
