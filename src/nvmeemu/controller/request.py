"""A command on its way: from its fetch to its only completion, and the ways in which a handler may answer.

A handler takes the request. It returns DW0 of the completion (an int) when the command is done, raises
``CommandFailed``, or returns ``Background`` (finish on a worker thread) or ``Parked`` (somebody will complete it
later).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from nvmeemu.controller.state import ControllerState
from nvmeemu.controller.transfer import Transfer, scatter
from nvmeemu.ports import Job
from nvmeemu.queues import SubmissionQueue
from nvmeemu.spec import Command, CommandEffect, Status

C = TypeVar("C", bound=Command)
_cid = Command.unpacker("cid")
_prps = Command.unpacker("prp1", "prp2")


class Request(Generic[C]):
    """One fetched command. It can be completed once; whoever comes later does nothing.

    ``stage`` is what runs next. It runs again when guest memory was missing, or its disk had no room.
    """

    # What most commands never need has its value here: a command is made for each entry that is fetched.
    live = True
    job: Job | None = None
    droppable = False  # its work changes nothing outside
    is_abortable = True
    deadline: float | None = None  # of its wait for guest memory
    on_end: Callable[[], None] | None = None
    tap: RequestTap | None = None  # somebody observes the controller, or stands in its way
    has_begun = False
    is_held = False  # it has waited, and can be found in its queue
    moved = 0  # bytes of its data
    stage: Stage
    run: Stage  # the handler
    _transfer: Transfer | None = None

    def __init__(
        self,
        controller: ControllerState,
        sq: SubmissionQueue,
        entry: bytes,
        command: C,
        post: Callable[[Request[C], int, int], None],
    ) -> None:
        self.controller = controller
        self.sq = sq
        self.entry = entry
        self.command = command
        self._post = post

    @property
    def cid(self) -> int:
        return _cid(self.entry)[0]

    # --- its data

    @property
    def transfer(self) -> Transfer:
        """Where its data lies in guest memory."""
        if self._transfer is None:
            prp1, prp2 = _prps(self.entry)
            self._transfer = Transfer(self.controller.host, prp1, prp2, self.controller.page_size)
        return self._transfer

    def places(self, length: int) -> list[memoryview]:
        """Where the host wants ``length`` bytes. Raises CommandFailed(INVALID_PRP_OFFSET) and HostMemoryError."""
        views = self.transfer.views(length, True)
        self.moved = length
        return views if self.tap is None else self.tap.transfer(self, views, True)

    def given(self, length: int) -> list[memoryview]:
        """``length`` bytes that the host gives. Raises like ``places``."""
        views = self.transfer.views(length, False)
        self.moved = length
        return views if self.tap is None else self.tap.transfer(self, views, False)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Give the host ``data``. Raises like ``places``."""
        scatter(self.places(len(data)), data)

    def receive(self, length: int) -> bytes:
        """Take ``length`` bytes from the host. Raises like ``places``."""
        return b"".join(self.given(length))

    # --- its end

    def hold(self) -> None:
        """It waits: from now on it can be found in its queue."""
        self.is_held = True
        self.sq.outstanding.add(self)

    def complete(self, dw0: int = 0, field: int = 0) -> None:
        """Post the completion with this DW0 and Status Field (15 bits, without the phase tag)."""
        if self.drop():
            self._post(self, dw0, field)
            self.sq.settled()

    def drop(self) -> bool:
        """Give the right away without a completion (reset); False if it was gone already."""
        was_live, self.live = self.live, False
        self.sq.outstanding.discard(self)
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()
        return was_live

    def abort(self, status: int) -> bool:
        """Complete it with ``status`` now, if that is safe: False while a worker may still change the media."""
        if not self.is_abortable or (self.job is not None and not self.job.cancel() and not self.droppable):
            return False
        self.complete(0, status)
        return True


@dataclass(slots=True)
class Background:
    """Run ``work`` on a worker thread, then ``then(result)`` on the controller's thread, which answers like a handler.

    ``disk``: the one that it may have to wait for; None: several. ``failure`` is the status for an OSError of ``work``,
    after which ``undo`` is called. ``size``: bytes of memory that the command holds until it ends. ``droppable``:
    nothing outside is changed by ``work``, so an abort or a reset need not wait for it. What has changed the controller
    already is not ``is_abortable``.
    """

    disk: object
    work: Callable[[], Any]
    then: Callable[[Any], Result] = lambda _: 0
    failure: Status = Status.INTERNAL_ERROR
    size: int = 0
    droppable: bool = False
    is_abortable: bool = True
    undo: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Parked:
    """The command completes when whoever ``take`` gives the request to says so."""

    take: Callable[[Request[Any]], None]
    is_abortable: bool = True


Result = int | Background | Parked
Stage = Callable[["Request[Any]"], Result]


@dataclass(slots=True)
class Reply:
    """A completion on its way to its queue. ``field``: the 15-bit Status Field; ``sqhd`` None: the head of the
    submission queue when it is written."""

    request: Request[Any]
    cid: int
    dw0: int
    field: int
    sqhd: int | None = None
    has_wrong_phase: bool = False


class RequestTap(Protocol):
    """Stands beside one command whose controller is observed."""

    def run(self, request: Request[Any]) -> Result:
        """Run its stage."""
        ...

    def transfer(self, request: Request[Any], views: list[memoryview], to_host: bool) -> list[memoryview]:
        """Its data moves; what stands in for guest memory."""
        ...


@dataclass(frozen=True)
class CommandEntry(Generic[C]):
    """One row of a dispatch table: it runs the command *and* says to the host that the command is supported (an
    ``Offer``)."""

    kind: type[C]
    run: Callable[[Request[C]], Result]
    effects: CommandEffect
    advertised: int = 0
    is_offered: Callable[[ControllerState], bool] = lambda controller: True
