"""Fused operations: Compare and Write of the same blocks, as one. Base 1.4, 4.12 and 6.2; NVM 1.0, 2.1.

Both stand next to each other in a submission queue. When both have come they get the medium for themselves, then each
runs as usual, the Write only if the Compare has succeeded. So nothing else happens to the blocks between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from nvmeemu.controller.limits import FUSED_BLOCKS
from nvmeemu.controller.request import Parked, Request, Result, Stage
from nvmeemu.controller.state import ControllerState
from nvmeemu.queues import SubmissionQueue
from nvmeemu.spec import Compare, Fuse, ReadWrite, Status, Write
from nvmeemu.spec.errors import CommandFailed

GoOn = Callable[[Request[Any]], None]


class Fusing:
    """The fused operations of one controller. ``go_on`` runs a request's stage, if the request still lives."""

    def __init__(self, controller: ControllerState, go_on: GoOn) -> None:
        self.controller = controller
        self.go_on = go_on
        self.under_way: set[_Pair] = set()
        self._open: WeakKeyDictionary[SubmissionQueue, _Pair] = WeakKeyDictionary()  # that want their second command

    def is_open(self, sq: SubmissionQueue) -> bool:
        """Whether what comes next in this queue counts, whatever it is."""
        return sq in self._open

    def fetched(self, request: Request[Any], is_next: bool) -> None:
        """A command has come. ``is_next``: no other one was between it and the last one of its queue that came here."""
        fuse = request.command.fuse
        pair = self._open.pop(request.sq, None) if is_next else None
        if fuse == Fuse.SECOND and pair is not None:
            pair.add(request)
            return
        if pair is not None:
            pair.miss()
        if fuse == Fuse.FIRST:
            self._open[request.sq] = _Pair(self, request)
        elif fuse == Fuse.SECOND:
            request.stage = _missing

    def stands_in(self, request: Request[Any], another: Request[Any]) -> None:
        """A fault has changed an entry, or has it come once more."""
        if isinstance(request.user, _Pair):
            request.user.replace(request, another)

    def drop(self) -> None:
        """All commands were dropped. What has begun at a medium ends before others may go on there."""
        self._open.clear()
        for pair in self.under_way:
            self.controller.subsystem.sole_use.end_when_unused(pair)
        self.under_way.clear()


class _Pair:
    def __init__(self, fusing: Fusing, first: Request[Any]) -> None:
        self._fusing = fusing
        self._first = first
        self._second: Request[Any] | None = None
        self._is_missing = False
        self._has_begun = False
        self._second_status = Status.FAILED_FUSED  # if the first one fails
        self._here: set[Request[Any]] = set()  # whose turn has come
        self._hook(first, self._first_ended)

    def _hook(self, request: Request[Any], ended: Callable[[int], None]) -> None:
        """Have ``ended`` told the Status Field when it is completed."""
        post = request.post

        def hooked(request: Request[Any], dw0: int, field: int) -> None:
            post(request, dw0, field)
            ended(field)

        request.post = hooked
        request.user = self
        request.stage = self._wait

    def add(self, second: Request[Any]) -> None:
        """The second command has come."""
        self._second = second
        self._hook(second, self._second_ended)

    def replace(self, request: Request[Any], another: Request[Any]) -> None:
        """One of them has changed before its turn came. What comes once more belongs to nothing."""
        if request in self._here:
            another.stage = _missing
        elif request is self._first:
            self._first = another
            self._hook(another, self._first_ended)
        else:
            self._second = another
            self._hook(another, self._second_ended)

    def miss(self) -> None:
        """Another command has come in its place."""
        self._is_missing = True
        if self._first in self._here:
            self._run(self._first, _missing)

    def _wait(self, request: Request[Any]) -> Result:
        """The stage of each of them, until both are here."""
        request.hold()
        if self._is_missing:
            return _missing(request)
        return Parked(self._came)

    def _came(self, request: Request[Any]) -> None:
        self._here.add(request)
        first, second = self._first, self._second
        if second not in self._here:
            return
        assert second is not None
        if not first.live or not second.live:
            self._run(second, _failed)
            self._run(first, _failed)
        elif first in self._here:
            self._begin(first, second)

    def _begin(self, first: Request[Any], second: Request[Any]) -> None:
        self._has_begun = True
        if not _fit(first.command, second.command):
            self._fail(Status.INVALID_FIELD, Status.INVALID_FIELD)
            return
        namespace = self._fusing.controller.namespaces.by_nsid.get(first.nsid)
        if first.command.nlb > FUSED_BLOCKS:
            self._fail(Status.ATOMIC_WRITE_UNIT_EXCEEDED, Status.FAILED_FUSED)
        elif namespace is None:
            self._run(first, first.run)  # which says what is wrong
        else:
            self._fusing.under_way.add(self)
            sole_use = self._fusing.controller.subsystem.sole_use
            sole_use.ask(namespace, self, lambda: self._run(first, first.run))

    def _fail(self, first: Status, second: Status) -> None:
        self._second_status = second
        self._run(self._first, _failing(first))

    def _run(self, request: Request[Any], stage: Stage) -> None:
        request.stage = stage
        self._fusing.go_on(request)

    def _first_ended(self, field: int) -> None:
        second = self._second
        if second is not None and second in self._here:
            self._run(second, _failing(self._second_status) if field else second.run)

    def _second_ended(self, field: int) -> None:
        if not self._has_begun:
            self._run(self._first, _failed)
        if self in self._fusing.under_way:
            self._fusing.under_way.discard(self)
            self._fusing.controller.subsystem.sole_use.end(self)


def _fit(first: ReadWrite, second: ReadWrite) -> bool:
    """Whether they are a Compare and a Write of the same blocks."""
    if not isinstance(first, Compare) or not isinstance(second, Write):
        return False
    return (first.nsid, first.slba, first.nlb) == (second.nsid, second.slba, second.nlb)


def _failing(status: Status) -> Stage:
    def fail(request: Request[Any]) -> Result:
        raise CommandFailed(status, location=(1, 0))

    return fail


_missing = _failing(Status.MISSING_FUSED)
_failed = _failing(Status.FAILED_FUSED)
