"""Asynchronous events: what happened, and the parked requests that tell the host. Base 1.4, 5.2."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nvmeemu.controller.outstanding import Outstanding
from nvmeemu.spec import EventType, LogId

_MOST_PENDING = 64


@dataclass(frozen=True)
class Event:
    """What a completed Asynchronous Event Request says in DW0. Base 1.4, Figure 144."""

    type: EventType
    info: int
    log: LogId

    @property
    def dw0(self) -> int:
        return self.type | self.info << 8 | self.log << 16


Tap = Callable[[Callable[[Event], None], Event], None]  # called with what follows, and an event


class Events:
    """Brings events and parked requests together. An event masks its type until the log page was read with RAE=0. An
    event passes ``tap`` first."""

    def __init__(self, tap: Tap | None = None) -> None:
        self.tap = tap
        self.parked: deque[Outstanding] = deque()
        self._pending: deque[Event] = deque(maxlen=_MOST_PENDING)
        self._masked_by: dict[EventType, LogId] = {}

    @property
    def outstanding(self) -> int:
        """How many requests are parked and not aborted."""
        return sum(request.live for request in self.parked)

    def park(self, request: Outstanding) -> None:
        self.parked = deque(other for other in self.parked if other.live)  # a host may abort what it parks, for ever
        self.parked.append(request)
        self._deliver()

    def report(self, event: Event, *, keep: bool = True) -> None:
        """Report an event. Without ``keep`` it is dropped unless a request is parked and its type is not masked."""
        if self.tap is not None:
            self.tap(partial(self._report, keep), event)
        else:
            self._report(keep, event)

    def _report(self, keep: bool, event: Event) -> None:
        if event not in self._pending and (keep or (self.outstanding and event.type not in self._masked_by)):
            self._pending.append(event)
        self._deliver()

    def was_read(self, log: int) -> None:
        """The host has read this log page with RAE=0. Events that the page tells need not be told any more, and the
        types that the host cleared may be told again."""
        self._masked_by = {kind: other for kind, other in self._masked_by.items() if other != log}
        self._pending = deque((event for event in self._pending if event.log != log), _MOST_PENDING)
        self._deliver()

    def _deliver(self) -> None:
        for event in tuple(self._pending):
            if event.type in self._masked_by:
                continue
            while self.parked and not self.parked[0].live:
                self.parked.popleft()
            if not self.parked:
                return
            self._pending.remove(event)
            self._masked_by[event.type] = event.log
            self.parked.popleft().complete(event.dw0)
