"""``nvmeemu check --coverage``: which parts of the device a host has used, and which it has not."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from nvmeemu import regs, spec
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.records import Record, RegisterRead, RegisterWrite
from nvmeemu.trace.terminal import Output, heading, with_progress

_CHECK = """\
What a host has used of the device, by its trace: opcodes, Identify structures, features, log pages, registers, and the
statuses it has met; and what there is that it has never used.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = _CHECK
    parser.add_argument("--coverage", metavar="FILE", required=True, help="a trace, compressed or not; -: stdin")
    parser.set_defaults(run=run)


@dataclass
class Area:
    """One kind of things. ``kinds`` are those that the device knows, and ``used`` counts them by number."""

    title: str
    kinds: dict[int, str]
    used: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, title: str, kind: Iterable[IntEnum]) -> Area:
        return cls(title, {int(one): words.words(one) for one in kind})

    def name(self, number: int) -> str:
        return self.kinds.get(number, f"{number:02X}h, not known")

    @property
    def unused(self) -> list[str]:
        return [name for number, name in self.kinds.items() if number not in self.used]


class Coverage:
    """What a trace has used; give it all records, then call ``end``."""

    def __init__(self) -> None:
        self._matcher = Matcher()
        self.admin = Area.of("Admin commands", spec.ADMIN_COMMANDS.names)
        self.io = Area.of("I/O commands", spec.NVM_COMMANDS.names)
        self.cns = Area.of("Identify", spec.CNS_NAMES)
        self.set = Area.of("Set Features", spec.FEATURE_NAMES)
        self.get = Area.of("Get Features", spec.FEATURE_NAMES)
        self.logs = Area.of("Log pages", spec.LOG_NAMES)
        self.read = Area("Registers read", {one.offset: one.name for one in regs.REGISTERS})
        self.written = Area("Registers written", {one.offset: one.name for one in regs.REGISTERS if one.writable})
        self.statuses = Area.of("Statuses", spec.STATUSES)

    @property
    def areas(self) -> tuple[Area, ...]:
        return (
            *(self.admin, self.io, self.cns, self.set, self.get),
            *(self.logs, self.read, self.written, self.statuses),
        )

    def feed(self, record: Record) -> None:
        for command in self._matcher.feed(record):
            self._add(command)
        if isinstance(record, RegisterRead | RegisterWrite):
            area = self.read if isinstance(record, RegisterRead) else self.written
            for one in regs.REGISTERS:
                if one.offset < record.offset + len(record.data) and record.offset < one.offset + one.size:
                    area.used[one.offset] += 1

    def end(self) -> None:
        for command in self._matcher.end():
            self._add(command)

    def _add(self, command: TracedCommand) -> None:
        fetch = command.fetch
        (self.io if fetch.sqid else self.admin).used[fetch.opcode] += 1
        entry = words.command_of(fetch.sqid, fetch.sqe)
        if isinstance(entry, spec.Identify):
            self.cns.used[entry.cns] += 1
        elif isinstance(entry, spec.SetFeatures):
            self.set.used[entry.fid] += 1
        elif isinstance(entry, spec.GetFeatures):
            self.get.used[entry.fid] += 1
        elif isinstance(entry, spec.GetLogPage):
            self.logs.used[entry.lid] += 1
        if command.completion is not None:
            self.statuses.used[command.completion.status] += 1


def coverage(records: Iterable[Record]) -> Coverage:
    found = Coverage()
    for record in records:
        found.feed(record)
    found.end()
    return found


def run(arguments: argparse.Namespace) -> int:
    output = Output()
    with open_trace(arguments.coverage) as reader:
        found = coverage(with_progress(reader, prints=False))
        output.line(f"# {heading(reader)}")
    for area in found.areas:
        known = sum(number in area.kinds for number in area.used)
        output.line(output.styled("title", f"{area.title}: {known} of {len(area.kinds)}"))
        if area.used:
            output.line(f"  used      {', '.join(_used(area))}")
        if area.unused and area is not found.statuses:
            output.line(output.styled("dim", f"  not used  {', '.join(area.unused)}"))
    return 0


def _used(area: Area) -> Iterator[str]:
    for number, times in sorted(area.used.items()):
        yield f"{area.name(number)} ({times})"
