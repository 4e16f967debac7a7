"""A command on its way: the right to complete it once, and the ways in which a handler may answer.

A handler returns DW0 of the completion (an int) when the command is done, raises ``CommandFailed``, or returns
``Background`` (finish on a worker thread) or ``Parked`` (somebody will complete it later).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvmeemu.ports import Job
from nvmeemu.spec import Command, CommandEffect, Status

if TYPE_CHECKING:
    from nvmeemu.queues import SubmissionQueue


class Request:
    """A fetched command that has not been completed. It can be completed once; whoever comes later does nothing."""

    __slots__ = ("_post", "command", "deadline", "droppable", "is_abortable", "job", "live", "on_end", "sq")

    def __init__(self, sq: SubmissionQueue, command: Command, post: Callable[[Request, int, int], None]) -> None:
        self.sq = sq
        self.command = command
        self.live = True
        self.job: Job | None = None
        self.droppable = False
        self.is_abortable = True
        self.deadline: float | None = None  # of its wait for guest memory
        self.on_end: Callable[[], None] | None = None
        self._post = post
        sq.outstanding.add(self)

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

    def abort(self, status: Status) -> bool:
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

    take: Callable[[Request], None]
    is_abortable: bool = True


Result = int | Background | Parked
Stage = Callable[[], Result]


@dataclass(frozen=True)
class CommandEntry:
    """One row of a dispatch table: it runs the command *and* says to the host that the command is supported.

    ``effects`` goes into the Commands Supported and Effects log, ``advertised`` into OACS or ONCS; both only while
    ``is_offered`` to this device's host.
    """

    kind: type[Command]
    run: Callable[[Any, Any], Result]
    effects: CommandEffect
    advertised: int = 0
    is_offered: Callable[[Any], bool] = lambda device: True
