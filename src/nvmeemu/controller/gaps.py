"""Guest memory that is gone for a moment, or for good: what waits for it, and for how long.

A VMM unmaps guest RAM and maps it again in other pieces while the controller is enabled. So at first a gap means
nothing. After a while a command that waits fails, and a controller without its queues cannot go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from nvmeemu.controller.request import Request
from nvmeemu.ports import Clock, Host, HostMemoryError, Timer
from nvmeemu.queues import CompletionQueue, SubmissionQueue

log = logging.getLogger(__name__)

COMMAND_PATIENCE = 0.1  # seconds that a command waits for its memory to come back
QUEUE_PATIENCE = 1.0  # seconds that a queue does


class Gaps:
    """Commands and queues that wait for guest memory. The stages of these commands run again.

    ``on_late`` is called for a command that has waited too long, with what it has waited for. ``on_lost`` is called
    when a queue has waited too long, and ``on_look`` whenever one of them may have.
    """

    def __init__(
        self,
        clock: Clock,
        host: Callable[[], Host],
        on_late: Callable[[Request[Any], str], None],
        on_lost: Callable[[], None],
        on_look: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._host = host
        self._on_late = on_late
        self._on_lost = on_lost
        self._on_look = on_look
        self._held: list[tuple[Request[Any], str]] = []  # and what is missing; an exception would keep views alive
        self._queues: dict[SubmissionQueue | CompletionQueue, float] = {}  # and when they are lost
        self._timer: Timer | None = None
        self._is_told = False

    @property
    def holds_commands(self) -> bool:
        """Whether a command waits."""
        return any(request.live for request, _ in self._held)

    def hold(self, request: Request[Any], gap: HostMemoryError) -> None:
        """Let a command wait: it cannot continue its stage."""
        log.debug("SQ %d #%04x waits: %s", request.sq.qid, request.command.cid, gap)
        if request.deadline is None:  # otherwise it has waited before: its patience does not begin anew
            request.deadline = self._clock.now() + COMMAND_PATIENCE
        request.hold()
        self._held.append((request, str(gap)))
        self._watch()

    def miss(self, queue: SubmissionQueue | CompletionQueue) -> None:
        """The memory that the queue needs next is missing."""
        self._queues.setdefault(queue, self._clock.now() + QUEUE_PATIENCE)
        self._watch()

    def take(self) -> Iterator[Request[Any]]:
        """Take the commands that wait, to run them again. (The turn of one may end another.)"""
        held, self._held = self._held, []
        return (request for request, _ in held if request.live)

    def forget(self) -> None:
        """Let nothing wait any more."""
        self._held.clear()
        self._queues.clear()
        self._is_told = False

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(COMMAND_PATIENCE, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now()
        self._tell(now)
        held, self._held = self._held, []
        for request, gap in held:
            if not request.live:
                continue
            if request.deadline is not None and now < request.deadline:
                self._held.append((request, gap))
            else:
                self._on_late(request, gap)
        self._queues = {queue: deadline for queue, deadline in self._queues.items() if not queue.server.find_memory()}
        if any(deadline <= now for deadline in self._queues.values()):
            self._on_lost()
        if self._held or self._queues:
            self._watch()
        else:
            self._is_told = False
        self._on_look()

    def _tell(self, now: float) -> None:
        """Log once that something waits in vain. A short wait means nothing, because a VMM takes all memory away when
        it resets its machine."""
        obstacle = self._host().obstacle
        waiting_since = [
            deadline - QUEUE_PATIENCE for queue, deadline in self._queues.items() if not queue.server.find_memory()
        ]
        waiting_since += [(request.deadline or 0) - COMMAND_PATIENCE for request, _ in self._held if request.live]
        if obstacle and not self._is_told and any(now - since >= COMMAND_PATIENCE for since in waiting_since):
            self._is_told = True
            log.warning("the guest uses the drive, but %s: no command can work", obstacle)
