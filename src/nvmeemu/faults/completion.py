"""Faults of completions: an error status, and fields that a host must not trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from nvmeemu.faults.action import NOTHING_PASSES, Action, Go
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target
from nvmeemu.faults.words import FaultError, flag, named, number
from nvmeemu.spec import DNR, MORE, Status
from nvmeemu.spec.errors import CommandFailed


class SetStatus(Action):
    """The command completes with this status: without being executed (execute), when its data should move (dma), or
    after it was executed (completion). ``dnr`` is Do Not Retry, by default set where another attempt would meet the
    same. ``more`` is More, at completion; a refused command has it, because the error is in the log."""

    name = "status"
    example = "write_fault"
    places = (At.EXECUTE, At.COMPLETION, At.DMA)
    reasons: ClassVar = {
        At.FETCH: "a command that is refused unexecuted: status at execute",
        At.BACKEND: 'a disk knows no statuses: give error, for example error = "EIO", or status at execute',
        At.INTERRUPT: "an interrupt has no status",
        At.DOORBELL: "a doorbell has no status: set another value, and the guest is told of a bad one by an event",
        At.REGISTER: "registers have no status",
        At.EVENT: "an event has no status",
        At.NOW: NOTHING_PASSES,
    }
    options = ("dnr", "more")
    ends = True

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.status = named(argument, "do.status", Status, 0x7FF)
        if self.status == Status.SUCCESS and options.get("dnr"):
            raise FaultError("do.status: success is not retried: leave out dnr")
        self.dnr = flag(options["dnr"], "do.dnr") if "dnr" in options else None
        self.more = flag(options.get("more", False), "do.more")

    def check(self, at: At, matched: Mapping[str, Any]) -> None:
        if self.more and at != At.COMPLETION:
            raise FaultError("do.more: only at completion: a command that is refused always has it")

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        (reply,) = payload
        field = ForcedStatus(self.status, self.dnr).field | (MORE if self.more else 0)
        go(replace(reply, dw0=0, field=field))

    def plan(self, target: Target, plan: Plan) -> None:
        if plan.at == At.DMA:
            plan.fail_transfer(lambda: ForcedStatus(self.status, self.dnr))
        else:
            plan.fail(lambda: ForcedStatus(self.status, self.dnr))


class ForcedStatus(CommandFailed):
    """Fails a command with any status, also one that the device itself never gives."""

    def __init__(self, number: int, dnr: bool | None) -> None:
        is_known = number in _STATUSES
        super().__init__(Status(number) if is_known else Status.INTERNAL_ERROR, dnr=dnr)
        self._number = number

    @property
    def field(self) -> int:
        return self._number | (DNR if self.dnr else 0)


_STATUSES = frozenset(Status)


class UnknownCid(Action):
    """The completion has the identifier of no command: FFFFh, or the one given."""

    name = "unknown_cid"
    places = (At.COMPLETION,)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.cid = 0xFFFF if argument is True else number(argument, "do.unknown_cid", 0, 0xFFFF)

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        (reply,) = payload
        go(replace(reply, cid=self.cid))


class WrongPhase(Action):
    """The completion has the phase tag of the round before, so that the host does not see it."""

    name = "wrong_phase"
    places = (At.COMPLETION,)

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        (reply,) = payload
        go(replace(reply, has_wrong_phase=not reply.has_wrong_phase))


class WrongSqhd(Action):
    """The completion names another submission queue head: half a queue further, or the one given."""

    name = "wrong_sqhd"
    places = (At.COMPLETION,)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.head = None if argument is True else number(argument, "do.wrong_sqhd", 0, 0xFFFF)

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        (reply,) = payload
        sq = reply.request.sq
        head = (sq.server.head + sq.entries // 2) % sq.entries if self.head is None else self.head
        go(replace(reply, sqhd=head))
