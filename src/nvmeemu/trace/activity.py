"""The data of a picture of a trace, in arrays: when, where and how long commands were, and what happened between."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from nvmeemu import spec
from nvmeemu.spec import Status
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand
from nvmeemu.trace.filters import SECOND
from nvmeemu.trace.phases import Phase, Phases
from nvmeemu.trace.records import (
    ClientLeft,
    Completion,
    Doorbell,
    Fetch,
    Injection,
    Interrupt,
    PciChange,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
    Signal,
)
from nvmeemu.trace.rings import Rings


class CommandKind(IntEnum):
    """Of a command, for its colour."""

    READ = 0
    WRITE = 1
    OTHER = 2
    ADMIN = 3


class CommandOutcome(IntEnum):
    """How a command ended."""

    SUCCESS = 0
    ERROR = 1
    NO_ANSWER = 2


_KINDS: dict[type[spec.Command], CommandKind] = {spec.Read: CommandKind.READ, spec.Write: CommandKind.WRITE}


Span = tuple[float, float]  # from, to


def _floats() -> array[float]:
    return array("d")


def _small() -> array[int]:
    return array("B")


def _numbers() -> array[int]:
    return array("I")


@dataclass
class Activity:
    """Times are in seconds. The first group of arrays has an item for each command, without Asynchronous Event
    Requests, which wait for something that may never happen. The second group has an item for each Read and Write of
    valid blocks."""

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
    block_outcome: array[int] = field(default_factory=_small)

    doorbells: array[float] = field(default_factory=_floats)
    interrupts: array[float] = field(default_factory=_floats)
    registers: array[float] = field(default_factory=_floats)
    resets: array[float] = field(default_factory=_floats)
    faults: array[float] = field(default_factory=_floats)  # on purpose
    held_up: list[Span] = field(default_factory=list)  # commands waited for room in a completion queue
    barred: list[Span] = field(default_factory=list)  # doorbells were rung, but the function reached no memory (PCI)
    phases: list[Phase] = field(default_factory=list)
    first: int | None = None  # the time of the host's first access in that time, in nanoseconds
    last: int = 0  # the time of the last record of all, in nanoseconds


def activity(records: Iterable[Record], start: int = 0, end: int | None = None) -> Activity:
    """What happened between two times (ns). A command counts if it was fetched there."""
    found, matcher, phases, last = Activity(), Matcher(), Phases(), 0
    states = _States(found)

    def keep(command: TracedCommand, ended: int) -> None:
        if start <= command.fetch.time and (end is None or command.fetch.time <= end):
            _add(found, command, ended)

    for record in records:
        last = record.time
        phases.feed(record)
        states.feed(record)
        for command in matcher.feed(record):
            keep(command, last)
        if start <= last and (end is None or last <= end):
            _add_event(found, record)
    for command in matcher.end():
        keep(command, last)
    states.end(last)
    found.last = last
    found.phases = phases.end(last)
    return found


class _States:
    """What lasts, and is not a command's."""

    def __init__(self, found: Activity) -> None:
        self._found = found
        self._rings = Rings()
        self._held_since: float | None = None
        self._barred_since: float | None = None
        self._has_rung = False

    def feed(self, record: Record) -> None:
        time = record.time / SECOND
        self._rings.feed(record)
        if isinstance(record, (Doorbell, Fetch, Completion, RegisterWrite, Reset, ClientLeft)):
            is_held_up = self._rings.is_held_up()
            if is_held_up or self._held_since is not None:
                self._held_since = _follow(self._found.held_up, self._held_since, is_held_up, time)
            self._has_rung |= isinstance(record, Doorbell)
        if isinstance(record, PciChange):
            self._bar(not record.state.reaches_memory, time)
        elif isinstance(record, ClientLeft):
            self._bar(False, time)

    def _bar(self, is_barred: bool, time: float) -> None:
        if self._barred_since is None:
            self._has_rung = False
        spans = self._found.barred if self._has_rung else []
        self._barred_since = _follow(spans, self._barred_since, is_barred, time)

    def end(self, last: int) -> None:
        _follow(self._found.held_up, self._held_since, False, last / SECOND)
        self._bar(False, last / SECOND)


def _follow(spans: list[Span], since: float | None, is_so: bool, time: float) -> float | None:
    """Since when it is so, from that time on; when it ceases to be a span is added."""
    if is_so:
        return time if since is None else since
    if since is not None:
        spans.append((since, time))
    return None


def _add_event(found: Activity, record: Record) -> None:
    time = record.time / SECOND
    if found.first is None and isinstance(record, (RegisterRead, RegisterWrite, Doorbell, Fetch)):
        found.first = record.time
    if isinstance(record, Doorbell):
        found.doorbells.append(time)
    elif isinstance(record, Interrupt):
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
    command_kind = spec.commands_of(fetch.sqid).of(fetch.opcode)
    if command_kind is spec.AsyncEventRequest:
        return
    kind = _KINDS.get(command_kind, CommandKind.OTHER) if fetch.sqid else CommandKind.ADMIN
    start = fetch.time / SECOND
    found.start.append(start)
    found.end.append(max(start, ended / SECOND))
    found.sqid.append(fetch.sqid)
    found.kind.append(kind)
    if done is None:
        found.outcome.append(CommandOutcome.NO_ANSWER)
    else:
        found.outcome.append(CommandOutcome.SUCCESS if done.status == Status.SUCCESS else CommandOutcome.ERROR)
    if done is not None and done.status == Status.LBA_OUT_OF_RANGE:
        return
    entry = words.command_of(fetch.sqid, fetch.sqe)
    if kind in (CommandKind.READ, CommandKind.WRITE) and isinstance(entry, spec.ReadWrite):
        found.block_time.append(start)
        found.block_kind.append(kind)
        found.nsid.append(entry.nsid)
        found.slba.append(entry.slba)
        found.nlb.append(entry.nlb)
        found.block_outcome.append(found.outcome[-1])
