"""A command on its way: from its fetch to its only completion, and the ways in which a handler may answer.

A handler takes the request. It returns DW0 of the completion (an int) when the command is done, raises
``CommandFailed``, or returns ``Pending`` (a medium has to do something), ``Saving`` (the drive has to remember
something), ``Changing`` (the subsystem changes) or ``Parked`` (somebody will complete it later).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from nvmeemu.controller.state import ControllerState
from nvmeemu.controller.transfer import (
    ContiguousMetadata,
    SglMetadata,
    Transfer,
    scatter,
    transfer_of,
)
from nvmeemu.ports import Changes, Job
from nvmeemu.queues import SubmissionQueue
from nvmeemu.spec import Command, CommandEffect, Csi, Effect, Oacs, Oncs, Psdt
from nvmeemu.subsystem.media import Budget, Media, Operation
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.tables import Table

C = TypeVar("C", bound=Command)
_cid = Command.unpacker("cid")


class Request(Generic[C]):
    """A fetched command. It can be completed once; another attempt does nothing.

    ``stage`` is what runs next. It runs again if guest memory was missing, or its disk had no room.
    """

    # What most commands never need has its value here: a command is made for each entry that is fetched.
    live = True
    job: Job | None = None
    droppable = False  # its job changes nothing that the host could see
    is_abortable = True
    deadline: float | None = None  # of its wait for guest memory
    at_end: dict[object, Callable[[], None]] | None = None  # what is to be done then, and for whom
    layer: Callable[[Namespace], Media] | None = None  # what stands in for the media of namespaces
    tap: RequestTap | None = None  # somebody observes the controller, or stands in its way
    has_begun = False
    is_held = False  # it has waited, and can be found in its queue
    moved = 0  # bytes of its data
    dw0_if_failed = 0
    user: object | None = None  # who it belongs to, where a medium has a sole user
    stage: Stage
    run: Stage  # the handler
    _transfer: Transfer | None = None
    _metadata: Transfer | None = None

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
        self.post = post

    @property
    def cid(self) -> int:
        return _cid(self.entry)[0]

    @property
    def nsid(self) -> int:
        return self.command.nsid

    # --- its data

    @property
    def transfer(self) -> Transfer:
        """Where the data of the command lies in guest memory."""
        if self._transfer is None:
            self._transfer = transfer_of(self.controller.host, self.entry, self.controller.page_size)
        return self._transfer

    @property
    def metadata(self) -> Transfer:
        """Where the metadata of the command lies in guest memory, if its namespace has it apart from the data."""
        if self._metadata is None:
            host, mptr, psdt = self.controller.host, self.command.mptr, self.command.psdt
            if psdt == Psdt.SGL_BOTH:
                self._metadata = SglMetadata(host, mptr)
            else:
                self._metadata = ContiguousMetadata(host, mptr, 4 if psdt == Psdt.PRP else 1)
        return self._metadata

    def places(self, length: int) -> list[memoryview]:
        """The places to which ``length`` bytes for the host go. Raises CommandFailed for bad PRPs or a bad SGL, and
        HostMemoryError."""
        views = self.transfer.views(length, True)
        self.moved = length
        return views if self.tap is None else self.tap.transfer(self, views, True)

    def given(self, length: int) -> list[memoryview]:
        """The places of ``length`` bytes that the host gives. Raises like ``places``."""
        views = self.transfer.views(length, False)
        self.moved = length
        return views if self.tap is None else self.tap.transfer(self, views, False)

    def metadata_places(self, length: int) -> list[memoryview]:
        """The places to which ``length`` bytes of separate metadata for the host go. Raises like ``places``."""
        views = self.metadata.views(length, True)
        return views if self.tap is None else self.tap.transfer_metadata(self, views, True)

    def metadata_given(self, length: int) -> list[memoryview]:
        """The places of ``length`` bytes of separate metadata that the host gives. Raises like ``places``."""
        views = self.metadata.views(length, False)
        return views if self.tap is None else self.tap.transfer_metadata(self, views, False)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Give ``data`` to the host. Raises like ``places``."""
        scatter(self.places(len(data)), data)

    def receive(self, length: int) -> bytes:
        """Take ``length`` bytes from the host. Raises like ``places``."""
        return b"".join(self.given(length))

    # --- its blocks

    def media(self, namespace: Namespace) -> Media:
        """The medium of a namespace, as this command meets it. A handler asks for it before it does anything that must
        not be done twice: where there is no room the handler runs again later. Raises NoRoom."""
        media = namespace.media if self.layer is None else self.layer(namespace)
        budget = media.budget
        if budget.held >= budget.most or budget.sole_user is not None:
            self._find_room(budget)
        return media

    def _find_room(self, budget: Budget) -> None:
        if budget.sole_user is None or budget.sole_user is not self.user:
            raise NoRoom(budget)

    def media_at_once(self, namespace: Namespace) -> Media:
        """The same in the middle of a command, which goes on although there is no room. Raises NoRoom if somebody has
        the medium alone."""
        media = namespace.media if self.layer is None else self.layer(namespace)
        user = media.budget.sole_user
        if user is not None and user is not self.user:
            raise NoRoom(media.budget)
        return media

    # --- its end

    def hold(self) -> None:
        """Let the command wait. From now on it can be found in its queue."""
        self.is_held = True
        self.sq.outstanding.add(self)

    def call_at_end(self, whom: object, call: Callable[[], None]) -> None:
        """Call this when the command has ended in any way, unless ``whom`` is taken out of ``at_end`` before."""
        if self.at_end is None:
            self.at_end = {}
        self.at_end[whom] = call

    def complete(self, dw0: int = 0, field: int = 0) -> None:
        """Post the completion with this DW0 and Status Field (15 bits, without the phase tag)."""
        if self.drop():
            self.post(self, dw0, field)
            self.sq.check_idle()

    def drop(self) -> bool:
        """Give up the right to complete, without a completion (reset). False if it was gone already."""
        was_live, self.live = self.live, False
        self.sq.outstanding.discard(self)
        if self.at_end is not None:
            at_end, self.at_end = self.at_end, None
            for call in at_end.values():
                call()
        return was_live

    def abort(self, status: int) -> bool:
        """Complete the command with ``status`` now, if that is safe. False while its medium may still change."""
        if not self.is_abortable or (self.job is not None and not self.job.cancel() and not self.droppable):
            return False
        self.complete(self.dw0_if_failed, status)
        return True


class NoRoom(Exception):
    """A medium has enough to do. The stage that raises this runs again when there is room."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self.budget = budget


@dataclass(slots=True)
class Pending:
    """A medium carries out an operation, then ``then(result)`` answers like a handler.

    If it fails, ``undo`` is called, and the error decides the status. What has changed the controller already is not
    ``is_abortable``.
    """

    media: Media
    operation: Operation
    then: Callable[[Any], Result] = lambda _: 0
    is_abortable: bool = True
    undo: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Saving:
    """The drive remembers ``changes`` (``ports.SavedState``). When they are durable, ``then()`` answers like a handler.

    If that fails, the command ends with Internal Error. A handler changes nothing before, so there is nothing to undo.
    """

    changes: Changes
    then: Callable[[], Result] = lambda: 0


@dataclass(slots=True)
class Changing:
    """The subsystem changes what it has. ``begin(done)`` begins that; it ends, also if a reset ends the command. Then
    ``then(result)`` answers like a handler, or the error decides the status."""

    begin: Callable[[Callable[[Any, BaseException | None], None]], None]
    then: Callable[[Any], Result]


@dataclass(slots=True)
class Parked:
    """The command waits. ``take`` gives the request to somebody who completes it later."""

    take: Callable[[Request[Any]], None]
    is_abortable: bool = True


Result = int | Pending | Saving | Changing | Parked
Stage = Callable[["Request[Any]"], Result]


@dataclass(slots=True)
class Reply:
    """A completion on its way to its queue. ``field`` is the 15-bit Status Field. ``sqhd`` None means the head of the
    submission queue at the time of the write."""

    request: Request[Any]
    cid: int
    dw0: int
    field: int
    sqhd: int | None = None
    has_wrong_phase: bool = False


class RequestTap(Protocol):
    """Stands beside a command of a controller that is observed."""

    def run(self, request: Request[Any]) -> Result:
        """Run its stage."""
        ...

    def transfer(self, request: Request[Any], views: list[memoryview], to_host: bool) -> list[memoryview]:
        """Its data moves; what stands in for guest memory."""
        ...

    def transfer_metadata(self, request: Request[Any], views: list[memoryview], to_host: bool) -> list[memoryview]:
        """The same for its separate metadata."""
        ...


_NO_EFFECT, _NO_OACS, _NO_ONCS = Effect(0), Oacs(0), Oncs(0)


@dataclass(frozen=True)
class CommandEntry(Generic[C]):
    """One row of a command set: it runs the command *and* says to the host that the command is supported (an
    ``Offer``). ``changes``: what it changes beside the content of blocks, and what it acts on, if that is not the
    namespace for an I/O command and the controller for an admin command."""

    kind: type[C]
    run: Callable[[Request[C]], Result]
    changes: Effect = _NO_EFFECT
    oacs: Oacs = _NO_OACS
    oncs: Oncs = _NO_ONCS
    is_offered: Callable[[ControllerState], bool] = lambda controller: True

    @property
    def number(self) -> int:
        """The opcode."""
        return self.kind.OPCODE

    @property
    def effects(self) -> CommandEffect:
        """Its entry in the Commands Supported and Effects log."""
        found = self.changes | Effect.CSUPP
        if self.kind.CHANGES_MEDIA:
            found |= Effect.LBCC
        return CommandEffect.of(found)


class CommandSet(Table[CommandEntry[Any]]):
    """The commands that a controller can run: those of its admin queue, or those of an I/O command set (``csi``)."""

    def __init__(self, *entries: CommandEntry[Any], csi: Csi | None = None) -> None:
        super().__init__(*entries)
        self.csi = csi
