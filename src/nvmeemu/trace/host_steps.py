"""What a host did, step by step. The words are the same in each run, and the steps are cut into the parts of the
host's drivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from nvmeemu.regs import ACQ, ASQ, INTMC, INTMS
from nvmeemu.trace import words
from nvmeemu.trace.filters import CommandFilter
from nvmeemu.trace.phases import Name, Phases
from nvmeemu.trace.records import (
    ClientAttached,
    ClientLeft,
    Completion,
    Data,
    Digest,
    Doorbell,
    Fetch,
    Interrupt,
    InterruptMode,
    PciChange,
    Prp,
    Record,
    RegisterWrite,
    Reset,
)
from nvmeemu.trace.stats import Statistics

HostRecord = (
    RegisterWrite | Reset | InterruptMode | PciChange | ClientAttached | ClientLeft
)  # a host's, but for commands
_MASKS = (INTMS.offset, INTMC.offset)
_QUIET = {Doorbell, Interrupt, Prp, Digest, Data}  # no steps, nor where a part begins; and most records


@dataclass(slots=True)
class HostStep:
    """Something that the host did. ``name`` is compared with another trace; ``answer`` is what a command got."""

    time: int
    name: str
    answer: str = ""

    @property
    def is_drivers(self) -> bool:
        """Whether this is a command or a register access, which only a driver makes."""
        return self.name.startswith(("BAR0", "admin", "I/O"))

    @property
    def text(self) -> str:
        return f"{self.name} -> {self.answer}" if self.answer else self.name


class Who(Enum):
    """MACHINE: before any driver. FIRMWARE: the firmware's driver, also when a loader asks it. SYSTEM: the driver of
    the operating system."""

    MACHINE = 0
    FIRMWARE = 1
    SYSTEM = 2


@dataclass(slots=True)
class Part:
    """What one driver did in one boot."""

    who: Who
    steps: list[HostStep] = field(default_factory=list)


@dataclass(slots=True)
class HostSteps:
    """The steps of a host, and statistics of the rest."""

    name: str
    parts: list[Part]
    statistics: Statistics

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(len(part.steps) for part in self.parts)


class _Cutter:
    """Cuts ``steps`` into parts: call ``feed`` with each record before its step is added, and ``added`` after that."""

    def __init__(self) -> None:
        self.steps: list[HostStep] = []
        self._phases = Phases()
        self._cuts: list[tuple[Who, int]] = [(Who.MACHINE, 0)]  # with the number of the first step
        self._quiet: int | None = None  # how many steps there were when this boot's last command was given or ended

    def feed(self, record: Record) -> None:
        before = self._phases.current
        self._phases.feed(record)
        now = self._phases.current
        who = self._cuts[-1][0]
        if now == Name.FIRMWARE and (before != now or (who != Who.MACHINE and isinstance(record, Reset))):
            self._cuts.append((Who.MACHINE, len(self.steps)))
            self._quiet = None
        elif now == Name.KERNEL and who != Who.SYSTEM:
            self._cuts.append((Who.SYSTEM, len(self.steps) if self._quiet is None else self._quiet))

    def added(self, record: Record) -> None:
        if isinstance(record, (Fetch, Completion)):
            self._quiet = len(self.steps)
        who, start = self._cuts[-1]
        if who == Who.MACHINE and len(self.steps) > start and self.steps[-1].is_drivers:
            self._cuts.append((Who.FIRMWARE, len(self.steps) - 1))
        elif who == Who.FIRMWARE and isinstance(record, RegisterWrite) and record.offset in _MASKS:
            self._cuts[-1] = Who.SYSTEM, start  # firmware looks for its completions; the first driver was this one

    def parts(self) -> list[Part]:
        """Those that have steps."""
        ends = [start for _, start in self._cuts[1:]] + [len(self.steps)]
        found = [Part(who, self.steps[start:end]) for (who, start), end in zip(self._cuts, ends, strict=True)]
        return [part for part in found if part.steps]


def steps(name: str, records: Iterable[Record], wanted: CommandFilter) -> HostSteps:
    """The steps of a trace. If ``wanted`` has tests, only the commands that match them."""
    statistics, cutter = Statistics(wanted.start, wanted.end), _Cutter()
    found = cutter.steps
    under_way: dict[int, HostStep] = {}  # by the id of a Fetch
    for record in records:
        is_quiet = type(record) in _QUIET
        if not is_quiet:
            cutter.feed(record)
        for command in statistics.feed(record):
            step = under_way.pop(id(command.fetch), None)
            if step is not None:
                if command.completion is not None:
                    step.answer = words.completion(command.completion.completion)
                step.answer += words.injections(command.injections)
        if is_quiet:
            continue
        newest = statistics.matcher.newest
        if isinstance(record, Fetch) and newest is not None and wanted.matches(newest):
            queue = "I/O  " if record.sqid else "admin"
            step = HostStep(record.time, f"{queue} {words.command(record.sqid, record.sqe)}", "no completion")
            found.append(step)
            under_way[id(record)] = step
        elif isinstance(record, HostRecord) and not wanted.tests and wanted.is_in_time(record.time):
            found.append(HostStep(record.time, _words(record)))
        cutter.added(record)
    for command in statistics.matcher.under_way():
        if (step := under_way.get(id(command.fetch))) is not None:
            step.answer += words.injections(command.injections)
    statistics.end()
    return HostSteps(name, cutter.parts(), statistics)


def _words(record: HostRecord) -> str:
    """The record in words, without addresses and process ids, which differ in each run."""
    if isinstance(record, ClientAttached):
        return "client attached"
    where, what = words.describe(record)
    if isinstance(record, RegisterWrite) and any(
        one.offset <= record.offset < one.offset + one.size for one in (ASQ, ACQ)
    ):
        what = what.partition(" = ")[0]
    return f"{where:<5} {what}"
