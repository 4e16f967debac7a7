"""Commands of one controller at their media: what has begun there, what waits until a medium has room, and what becomes
of an operation that fails.

Bounds are a medium's own (``Budget``): one that stalls keeps what it has been given, and nothing that is for another
one waits for it. A command that waits here was fetched and holds nothing but its entry, so that those behind it in its
queue go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from nvmeemu.controller.media_status import STATUS_OF
from nvmeemu.controller.request import NoRoom, Pending, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.ports import Job
from nvmeemu.spec import Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.media import Budget, ErrorKind, MediaError

log = logging.getLogger(__name__)

_OF_HOSTS = (ErrorKind.DEALLOCATED, ErrorKind.UNCORRECTABLE, ErrorKind.FORMATTING)  # errors that a host has asked for


class MediaAccess:
    """``go_on`` runs a request's stage, if the request still lives. ``on_progress`` is called when a medium has
    finished with a command."""

    def __init__(
        self, controller: ControllerState, go_on: Callable[[Request[Any]], None], on_progress: Callable[[], None]
    ) -> None:
        self._controller = controller
        self._go_on = go_on
        self._on_progress = on_progress
        self._under_way: set[_UnderWay] = set()
        self._finished: deque[tuple[_UnderWay, Any, BaseException | None]] = deque()
        self._is_finishing = False
        self._waiting: dict[Budget, dict[Request[Any], None]] = {}
        self._told: set[tuple[ErrorKind, str, int | None]] = set()  # what the user knows of

    # --- what has begun

    def begin(self, request: Request[Any], pending: Pending) -> None:
        """Have a medium carry out an operation of a command; the command goes on when it has ended."""
        under_way = _UnderWay(self, request, pending)
        self._under_way.add(under_way)
        under_way.begin()

    @property
    def is_busy(self) -> bool:
        """A medium has something to do, or a command waits for room."""
        return bool(self._under_way or self._waiting)

    @property
    def is_changing(self) -> bool:
        """An operation may still change a medium, also for a command that nobody waits for any more."""
        return any(one.pending.operation.is_changing for one in self._under_way)

    def uses(self, budget: Budget) -> bool:
        """Whether an operation is under way at the medium with this budget."""
        return any(one.pending.media.budget is budget for one in self._under_way)

    @property
    def requests(self) -> set[Request[Any]]:
        """The requests that have begun something."""
        return {one.request for one in self._under_way}

    def finished(self, under_way: _UnderWay, value: Any, error: BaseException | None) -> None:
        """An operation has ended, perhaps before its medium has let go of the one who began it. So this is a loop: a
        command may have many operations, one after the other."""
        self._finished.append((under_way, value, error))
        if self._is_finishing:
            return
        self._is_finishing = True
        try:
            while self._finished:
                under_way, value, error = self._finished.popleft()
                under_way.request.job = None
                self.conclude(under_way, value, error)
                self.ended(under_way)
        finally:
            self._is_finishing = False

    def ended(self, under_way: _UnderWay) -> None:
        """A medium has finished with a command."""
        self._under_way.discard(under_way)
        request = under_way.request
        if request.live and request.job is None:  # what was read waits for guest memory
            request.call_at_end(under_way, under_way.give_back)
        else:
            under_way.give_back()
        self._on_progress()

    def conclude(self, under_way: _UnderWay, value: Any, error: BaseException | None) -> None:
        """Continue a command from where its medium has brought it."""
        request = under_way.request
        request.stage = lambda _: self._outcome(under_way.pending, value, error)
        self._go_on(request)

    def _outcome(self, pending: Pending, value: Any, error: BaseException | None) -> Result:
        if error is not None:
            pending.undo()
        if isinstance(error, MediaError):
            status = STATUS_OF[error.kind]
            self._complain(status, error)
            if error.kind is not ErrorKind.FORMATTING:  # nothing is wrong with it
                self._controller.subsystem.health.media_errors += 1
            raise CommandFailed(status, dnr=error.is_lasting, lba=error.lba)
        if error is not None:
            raise error
        return pending.then(value)

    def _complain(self, status: Status, error: MediaError) -> None:
        """Tell the user, once for each disk and kind of failure."""
        if error.kind in _OF_HOSTS:
            return
        what = error.kind, error.disk, None if error.cause is None else error.cause.errno
        if what not in self._told:
            self._told.add(what)
            log.error("disk %s failed: %s: the guest gets %s (logged once)", error.disk, error.why, status.name)

    # --- what waits for room

    @property
    def is_waited_for(self) -> bool:
        """Whether a command waits for room."""
        return bool(self._waiting)

    def wait(self, request: Request[Any], full: NoRoom) -> None:
        """Keep a command whose stage has met a medium without room, as long as it lives."""
        budget = full.budget
        request.hold()
        self._waiting.setdefault(budget, {})[request] = None
        request.deadline = None  # it does not wait for guest memory meanwhile
        request.call_at_end(self, lambda: self._forget(request, budget))

    @property
    def has_ready(self) -> bool:
        """Whether ``ready`` has something to give."""
        return any(self._is_ready(budget) for budget in self._waiting)

    def ready(self) -> Iterator[Request[Any]]:
        """The commands that need not wait any more, in order: their medium has room, or is gone. Run each before you
        take the next."""
        for budget in tuple(self._waiting):
            while budget in self._waiting and self._is_ready(budget):
                request = next(iter(self._waiting[budget]))
                if request.at_end is not None:
                    request.at_end.pop(self)
                self._forget(request, budget)
                yield request

    def _is_ready(self, budget: Budget) -> bool:
        return not budget.is_full or all(one.media.budget is not budget for one in self._controller.namespaces)

    def _forget(self, request: Request[Any], budget: Budget) -> None:
        waiting = self._waiting[budget]
        del waiting[request]
        if not waiting:
            del self._waiting[budget]

    # --- its end

    def drop(self) -> None:
        """Drop the commands that wait, without completions. An operation that a medium has begun ends, and its result
        is dropped."""
        for waiting in tuple(self._waiting.values()):
            for request in tuple(waiting):
                request.drop()
        for under_way in tuple(self._under_way):
            under_way.cancel()


class _UnderWay:
    """An operation of a command; the request's job."""

    def __init__(self, access: MediaAccess, request: Request[Any], pending: Pending) -> None:
        self.request = request
        self.pending = pending
        self._access = access
        self._held = pending.operation.held(pending.media.format)
        self._job: Job | None = None

    def begin(self) -> None:
        request, pending = self.request, self.pending
        request.job = self
        request.droppable = not pending.operation.is_changing
        request.is_abortable = pending.is_abortable
        request.deadline = None
        pending.media.budget.take(self._held)
        self._job = pending.media.start(pending.operation, self._done)

    def _done(self, value: Any, error: BaseException | None) -> None:
        self._access.finished(self, value, error)

    def give_back(self) -> None:
        """It holds no memory any more."""
        self.pending.media.budget.give_back(self._held)

    def cancel(self) -> bool:
        if self._job is None or not self._job.cancel():
            return False
        self._access.ended(self)
        return True
