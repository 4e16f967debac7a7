"""How a server ends: the signals that it obeys, and the sync of its disks."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from nvmeemu.app.disks import Disks
from nvmeemu.app.signals import MEANINGLESS, WISHES
from nvmeemu.subsystem.media import FlushMedia, Media, MediaError
from nvmeemu.vfio import Loop

if TYPE_CHECKING:
    from nvmeemu.state.file import StateFile

log = logging.getLogger(__name__)

SAY_SO_AFTER = 1.0  # seconds of syncing
SAME_WISH = 1.0  # seconds in which one wish to end may come as several signals, of timeout(1) or of a wrapper, say


class Ending:
    """Signals, and the sync at the end. The first signal stops the loop. A signal more than SAME_WISH seconds later
    ends the process at once, after a call of ``give_up``."""

    def __init__(self, loop: Loop) -> None:
        self.disks: list[Disks] = []  # of each drive
        self.states: list[StateFile] = []  # of each drive that has one
        self.give_up: Callable[[], None] = lambda: None
        self._unsynced: list[tuple[str, Media]] = []
        self._loop = loop
        self._heard_at = math.inf  # when the first signal came

    def __enter__(self) -> Ending:
        has_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heeded = [number for number in WISHES if not (has_nohup and number == signal.SIGHUP)]
        self._before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in heeded}
        self._before |= {number: signal.signal(number, signal.SIG_IGN) for number in MEANINGLESS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        self._heard_at = min(self._heard_at, now)
        self._loop.request_stop()
        if now - self._heard_at <= SAME_WISH:
            return
        disks = ", ".join(name for name, _ in self._unsynced or self._all())
        os.write(2, f"nvmeemu serve: ended by a second signal: not synced: {disks}\n".encode())
        self.give_up()
        os._exit(1)

    def _all(self) -> list[tuple[str, Media]]:
        return [one for disks in self.disks for one in disks.in_use.items()]

    def sync(self) -> list[str]:
        """Make all written data durable. Returns a line for each disk that failed, with the reason.

        The loop goes on meanwhile, because signals must be heard and a medium may need it for its answer. The disks are
        synced at the same time, because one of them may never answer.
        """
        for disks in self.disks:
            disks.keep_open()
        todo = [(name, media) for name, media in self._all() if media.volatile_cache]
        self._unsynced = list(todo)
        failures: dict[int, str] = {}

        def ended(index: int, _: object, error: BaseException | None) -> None:
            name, media = todo[index]
            if error is not None:
                failures[index] = f"{name}: {error.why if isinstance(error, MediaError) else error}"
            self._unsynced.remove((name, media))

        for index, (_, media) in enumerate(todo):
            media.start(FlushMedia(), partial(ended, index))
        self._loop.call_later(SAY_SO_AFTER, self._say_so)
        self._loop.run_until(lambda: not self._unsynced and not any(state.is_busy for state in self.states))
        return [failures[index] for index in sorted(failures)]

    @staticmethod
    def state_ended(error: BaseException | None) -> None:
        """The last change of a saved state was made, or failed."""
        if error is not None:
            log.error("the counters of the drive were not saved: %s", error)

    def _say_so(self) -> None:
        if names := ", ".join(name for name, _ in self._unsynced):
            log.info("syncing %s; a second signal ends without", names)
