"""What a picture of a trace needs of it, in arrays: when, where and how long commands were, and what came between."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from nvmeemu import spec
from nvmeemu.spec import AdminOpcode, NvmOpcode, Status
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand
from nvmeemu.trace.filters import SECOND
from nvmeemu.trace.phases import Phase, Phases
from nvmeemu.trace.records import Fetch, Injection, Interrupt, Record, RegisterRead, RegisterWrite, Reset, Signal


class Kind(IntEnum):
    """Of a command, for its colour."""

    READ = 0
    WRITE = 1
    OTHER = 2
    ADMIN = 3


class Outcome(IntEnum):
    """How a command ended."""

    SUCCESS = 0
    ERROR = 1
    NO_ANSWER = 2


_KINDS: dict[int, Kind] = {NvmOpcode.READ: Kind.READ, NvmOpcode.WRITE: Kind.WRITE}


def _floats() -> array[float]:
    return array("d")


def _small() -> array[int]:
    return array("B")


def _numbers() -> array[int]:
    return array("I")


@dataclass
class Activity:
    """Times in seconds. The first group has an item for each command but Asynchronous Event Requests, which wait for
    what may never come; the second one for each Read and Write of blocks that are there."""

    start: array[float] = field(default_factory=_floats)
    end: array[float] = field(default_factory=_floats)
    sqid: array[int] = field(default_factory=_numbers)
    kind: array[int] = field(default_factory=_small)
    outcome: array[int] = field(default_factory=_small)

    block_time: array[float] = field(default_factory=_floats)
    block_kind: array[int] = field(default_factory=_small)
    nsid: array[int] = field(default_factory=_numbers)
    slba: array[float] = field(default_factory=_floats)
    nlb: array[float] = field(default_factory=_floats)

    interrupts: array[float] = field(default_factory=_floats)
    registers: array[float] = field(default_factory=_floats)
    resets: array[float] = field(default_factory=_floats)
    faults: array[float] = field(default_factory=_floats)  # on purpose
    phases: list[Phase] = field(default_factory=list)
    last: int = 0  # the time of the last record of all, in nanoseconds


def activity(records: Iterable[Record], start: int = 0, end: int | None = None) -> Activity:
    """What happened between two times (ns); commands count if they were fetched there."""
    found, matcher, phases, last = Activity(), Matcher(), Phases(), 0

    def keep(command: TracedCommand, ended: int) -> None:
        if start <= command.fetch.time and (end is None or command.fetch.time <= end):
            _add(found, command, ended)

    for record in records:
        last = record.time
        phases.feed(record)
        for command in matcher.feed(record):
            keep(command, last)
        if start <= last and (end is None or last <= end):
            _add_event(found, record)
    for command in matcher.end():
        keep(command, last)
    found.last = last
    found.phases = phases.end(last)
    return found


def _add_event(found: Activity, record: Record) -> None:
    time = record.time / SECOND
    if isinstance(record, Interrupt):
        if record.signal != Signal.PIN_DOWN:
            found.interrupts.append(time)
    elif isinstance(record, (RegisterRead, RegisterWrite)):
        found.registers.append(time)
    elif isinstance(record, Reset):
        found.resets.append(time)
    elif isinstance(record, Injection):
        found.faults.append(time)


def _add(found: Activity, command: TracedCommand, ended: int) -> None:
    fetch, done = command.fetch, command.completion
    if not fetch.sqid and fetch.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
        return
    kind = _kind(fetch)
    start = fetch.time / SECOND
    found.start.append(start)
    found.end.append(max(start, ended / SECOND))
    found.sqid.append(fetch.sqid)
    found.kind.append(kind)
    if done is None:
        found.outcome.append(Outcome.NO_ANSWER)
    else:
        found.outcome.append(Outcome.SUCCESS if done.status == Status.SUCCESS else Outcome.ERROR)
    if done is not None and done.status == Status.LBA_OUT_OF_RANGE:
        return
    entry = words.command_of(fetch.sqid, fetch.sqe)
    if kind in (Kind.READ, Kind.WRITE) and isinstance(entry, spec.ReadWrite):
        found.block_time.append(start)
        found.block_kind.append(kind)
        found.nsid.append(entry.nsid)
        found.slba.append(entry.slba)
        found.nlb.append(entry.nlb)


def _kind(fetch: Fetch) -> Kind:
    return _KINDS.get(fetch.opcode, Kind.OTHER) if fetch.sqid else Kind.ADMIN
