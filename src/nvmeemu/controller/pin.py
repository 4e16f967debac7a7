"""INTA#: a level that follows the completion queues, and the events that tell a VMM of it. Base 1.4, 7.5.1.

Over vfio-user the level is told by an event; then the VMM masks the pin, keeps its own line up until the guest touches
BAR0, and sends UNMASK to be told again if the level is still there. That access may be another processor's, while the
guest's handler has yet to consume what the event was about. An event at that moment is one too many: the VMM takes it
up when the handler is done, and its line stays up with no reason until somebody happens to touch BAR0, with as many
interrupts as the guest can take. So nothing is told twice of the same completions until the host had time for them.
"""

from __future__ import annotations

from nvmeemu.controller.state import ControllerState
from nvmeemu.ports import Timer
from nvmeemu.queues import CompletionQueue

# Seconds that the host gets. They are few, because an interrupt can get lost on the VMM's line and only the end of the
# rest tells it again. A rest that was too short (the processors had other things to do) doubles the next one; after
# that the rests get slowly shorter again.
LEAST_REST = 0.001
MOST_REST = 0.016


class Pin:
    """The pin of a controller. Call ``update`` when a queue, a mask or the kind of interrupts has changed."""

    def __init__(self, controller: ControllerState) -> None:
        self.is_asserted = False
        self._controller = controller
        self._is_told = False  # an event has been given since the last UNMASK:
        self._told: dict[CompletionQueue, int] = {}  # the tails of the queues that it was about
        self._is_unmasked = False  # the level is to be told again
        self._rest: Timer | None = None
        self._rest_time = LEAST_REST

    def update(self) -> None:
        """Assert the pin while a queue with interrupts has entries that the host has not consumed, and its vector is
        not masked."""
        pending = self._pending()
        if not pending:
            self._end_rest()
            self._is_unmasked = False
            self._fall()
        elif self._is_unmasked and all(self._is_owed(cq, *place) for cq, place in pending.items()):
            if self._rest is None:  # else one UNMASK after another could put it off for ever
                self._rest = self._controller.clock.call_later(self._rest_time, self._rested)
        elif self._is_unmasked or not self.is_asserted:
            self._assert(pending)

    def unmasked(self) -> None:
        """The VMM masked the pin when it was told of it. Now it asks for the next event."""
        self._is_told = False
        self._is_unmasked = True
        self.update()

    def drop(self) -> None:
        """A reset: lower the pin and forget everything."""
        self._told.clear()
        self._is_told = self._is_unmasked = False
        self._end_rest()
        self._fall()

    def _fall(self) -> None:
        if self.is_asserted:
            self.is_asserted = False
            self._controller.interrupts.drive(False)

    def _pending(self) -> dict[CompletionQueue, tuple[int, int]]:
        """The queues for which the pin is asserted, with their heads and tails."""
        mask = self._controller.interrupt_mask
        places = {cq: cq.server.look() for cq in self._controller.cqs.values()}
        if self._controller.host.msix_enabled:
            return {}
        return {
            cq: (head, tail)
            for cq, (head, tail) in places.items()
            if cq.ien and head != tail and not mask >> cq.vector & 1
        }

    def _is_owed(self, cq: CompletionQueue, head: int, tail: int) -> bool:
        """Whether the host still has entries to consume that it was told of."""
        told = self._told.get(cq)
        if told is None:
            return False
        if (tail - told) % cq.entries < (tail - head) % cq.entries:
            return True
        del self._told[cq]
        return False

    def _assert(self, pending: dict[CompletionQueue, tuple[int, int]]) -> None:
        self._end_rest()
        self._is_unmasked = False
        if not self._is_told:
            self._is_told = True
            self._told = {cq: tail for cq, (_, tail) in pending.items()}
        self.is_asserted = True
        self._controller.interrupts.drive(True)

    def _rested(self) -> None:
        self._rest = None
        self._rest_time = min(2 * self._rest_time, MOST_REST)
        self._told.clear()
        self.update()

    def _end_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            self._rest_time = max(self._rest_time * 31 / 32, LEAST_REST)
