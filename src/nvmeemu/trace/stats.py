"""``nvmeemu trace stats``: counts and latencies for each opcode and queue, doorbells and interrupts for each I/O."""

from __future__ import annotations

import argparse
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

from rich.table import Table

from nvmeemu.spec import CreateCq, DeleteCq, Status
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand, is_reset
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.filters import SECOND, add_times, check_times
from nvmeemu.trace.records import (
    Completion,
    Doorbell,
    Injection,
    Interrupt,
    Lost,
    PciChange,
    Record,
    RegisterRead,
    RegisterWrite,
    Signal,
)
from nvmeemu.trace.terminal import Output, heading, table, with_progress

_STATS = """\
How often each opcode came on each queue, how it ended and how long it took from fetch to completion; and what each
queue took of doorbells and interrupts for a command. Latencies include what the device waited for. An interrupt counts
for each queue of its vector that has got completions since the vector's last one. With --from and --to: the commands
that were fetched in that time.
"""
PERCENTILES = (50, 90, 99)


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser."""
    parser = parsers.add_parser("stats", help="counts and latencies, doorbells and interrupts", description=_STATS)
    parser.add_argument("file", metavar="FILE", help="a trace, compressed or not; -: stdin")
    add_times(parser)
    parser.set_defaults(run=run)


def percentile(values: Sequence[int], percent: float) -> int:
    """The smallest of these sorted values that ``percent`` of them do not exceed (nearest rank)."""
    return values[max(0, ceil(len(values) * percent / 100) - 1)]


@dataclass
class OpcodeStats:
    """One opcode on one queue. Latencies in nanoseconds."""

    commands: int = 0
    errors: int = 0
    unanswered: int = 0
    bytes: int = 0
    latencies: array[int] = field(default_factory=lambda: array("Q"))


@dataclass
class Queue:
    """A submission queue with its completion queue, or a completion queue alone."""

    commands: int = 0
    completions: int = 0  # of its commands
    tails: int = 0  # doorbells
    heads: int = 0
    shadows: int = 0  # values found in the shadow doorbell buffer
    interrupts: int = 0


@dataclass
class Injected:
    """A fault on purpose, and when it fired (ns)."""

    hits: int = 0
    first: int = 0
    last: int = 0


class Statistics:
    """What happened between two times (nanoseconds), in numbers. Give it all records in order, then call ``end``."""

    def __init__(self, start: int = 0, end: int | None = None) -> None:
        self.start, self.until = start, end
        self.opcodes: defaultdict[tuple[int, int], OpcodeStats] = defaultdict(OpcodeStats)  # by (SQID, opcode)
        self.queues: defaultdict[int, Queue] = defaultdict(Queue)
        self.statuses: Counter[int] = Counter()
        self.faults: defaultdict[tuple[int, str], Injected] = defaultdict(Injected)  # by number and words
        self.records = self.lost = self.reads = self.writes = self.interrupts = 0
        self.last = self.ends = 0  # when the last record was, in that time and of all
        self.barred = 0  # tail doorbells rung while the function reached no memory, as far as the trace tells
        self._is_barred = False
        self.matcher = Matcher()
        self._vectors = _Vectors()

    def _is_in_time(self, time: int) -> bool:
        return self.start <= time and (self.until is None or time <= self.until)

    def feed(self, record: Record) -> list[TracedCommand]:
        """Take one record; returns the commands that end with it."""
        ended = self.matcher.feed(record)
        for command in ended:
            self._add(command)
        interrupted = self._vectors.feed(record)
        if isinstance(record, PciChange):
            self._is_barred = not record.state.reaches_memory
        self.ends = record.time
        if self._is_in_time(record.time):
            self._count(record, interrupted)
        return ended

    def _count(self, record: Record, interrupted: Sequence[int]) -> None:
        self.records += 1
        self.last = record.time
        if isinstance(record, Doorbell):
            self._ring(record)
        elif isinstance(record, Interrupt):
            self.interrupts += record.signal != Signal.PIN_DOWN
            for cqid in interrupted:
                self.queues[cqid].interrupts += 1
        elif isinstance(record, RegisterRead):
            self.reads += 1
        elif isinstance(record, RegisterWrite):
            self.writes += 1
        elif isinstance(record, Lost):
            self.lost += record.records
        elif isinstance(record, Injection):
            self._inject(record)

    def end(self) -> None:
        """Count what is still under way as not completed."""
        for command in self.matcher.end():
            self._add(command)

    def _inject(self, record: Injection) -> None:
        found = self.faults[record.fault, words.injection(record).partition(" ")[2]]
        found.first = record.time if not found.hits else found.first
        found.last = record.time
        found.hits += 1

    def _ring(self, record: Doorbell) -> None:
        queue = self.queues[record.qid]
        if record.is_shadow:
            queue.shadows += 1
        elif record.is_cq:
            queue.heads += 1
        else:
            queue.tails += 1
            self.barred += self._is_barred

    def _add(self, command: TracedCommand) -> None:
        fetch, done = command.fetch, command.completion
        if done is not None:
            self._vectors.completed(command)
        if not self._is_in_time(fetch.time):
            return
        found = self.opcodes[fetch.sqid, fetch.opcode]
        found.commands += 1
        found.bytes += max((one.length for one in command.digests), default=0)
        self.queues[fetch.sqid].commands += 1
        if done is None:
            found.unanswered += 1
            return
        found.latencies.append(done.time - fetch.time)
        self.queues[done.cqid].completions += 1
        self.statuses[done.status] += 1
        if done.status != Status.SUCCESS:
            found.errors += 1


class _Vectors:
    """Which completion queues an interrupt is for."""

    def __init__(self) -> None:
        self._cqs: dict[int, set[int]] = {0: {0}}  # by vector
        self._waiting: set[int] = set()  # queues that have got an entry since their vector's last interrupt

    def feed(self, record: Record) -> list[int]:
        """Take a record; the queues that it tells of, if it is an interrupt."""
        if isinstance(record, Completion):
            self._waiting.add(record.cqid)
        elif isinstance(record, Interrupt):
            cqs = self._cqs.get(record.vector, set()) & self._waiting
            self._waiting -= cqs
            return [] if record.signal == Signal.PIN_DOWN else sorted(cqs)
        elif is_reset(record):
            self._cqs, self._waiting = {0: {0}}, set()
        return []

    def completed(self, command: TracedCommand) -> None:
        """Completion queues come and go with admin commands."""
        fetch, done = command.fetch, command.completion
        if fetch.sqid or done is None or done.status != Status.SUCCESS:
            return
        entry = words.command_of(0, fetch.sqe)
        if isinstance(entry, CreateCq | DeleteCq):
            for cqs in self._cqs.values():
                cqs.discard(entry.qid)
        if isinstance(entry, CreateCq) and entry.ien:
            self._cqs.setdefault(entry.iv, set()).add(entry.qid)


def statistics(records: Iterable[Record], start: int = 0, end: int | None = None) -> Statistics:
    found = Statistics(start, end)
    for record in records:
        found.feed(record)
    found.end()
    return found


def run(arguments: argparse.Namespace) -> int:
    output = Output()
    with open_trace(arguments.file) as reader:
        found = statistics(with_progress(reader, prints=False), arguments.start, arguments.end)
        check_times(arguments.file, arguments.start, arguments.end, found.ends)
        output.line(f"# {heading(reader)}")
    time = words.duration(max(0, found.last - found.start))
    output.line(
        f"{found.records} records in {time}; register reads {found.reads}, writes {found.writes}; "
        f"interrupts {found.interrupts}" + (f"; {found.lost} records are missing" if found.lost else "")
    )
    if found.barred:
        told = f"{found.barred} tail doorbells while Bus Master Enable was off, or not in D0: in vain"
        output.line(output.styled("bad", told))
    output.tables(_commands_table(found), _queues_table(found))
    if set(found.statuses) - {Status.SUCCESS}:
        output.tables(_statuses_table(found))
    if found.faults:
        output.tables(_faults_table(found))
    return 0


def _commands_table(found: Statistics) -> Table:
    right = ("count", "errors", "no answer", "data", "min", *(f"p{percent}" for percent in PERCENTILES), "max")
    made = table("Commands", ("queue", "command"), right)
    for (sqid, number), one in sorted(found.opcodes.items()):
        latencies = sorted(one.latencies)
        times = (
            [latencies[0], *(percentile(latencies, each) for each in PERCENTILES), latencies[-1]] if latencies else []
        )
        counts = (one.commands, one.errors or "", one.unanswered or "")
        made.add_row(
            f"SQ {sqid}",
            words.opcode(sqid, number),
            *map(str, counts),
            _bytes(one.bytes),
            *(words.duration(each) for each in times),
        )
    return made


def _bytes(number: int) -> str:
    """Rounded, for a table; nothing if there are none."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}" if number else ""


def _queues_table(found: Statistics) -> Table:
    right = ("commands", "tail doorbells", "per command", "head doorbells", "per command", "shadow", "interrupts")
    made = table("Queues", ("queue",), (*right, "per command"))
    for qid, one in sorted(found.queues.items()):
        done = one.completions or one.commands
        made.add_row(
            str(qid),
            str(one.commands),
            str(one.tails),
            _ratio(one.tails, one.commands),
            str(one.heads),
            _ratio(one.heads, done),
            str(one.shadows or ""),
            str(one.interrupts),
            _ratio(one.interrupts, done),
        )
    return made


def _ratio(number: int, of: int) -> str:
    return f"{number / of:.2f}" if of else ""


def _statuses_table(found: Statistics) -> Table:
    made = table("Statuses", ("status",), ("count",))
    for number, times in sorted(found.statuses.items()):
        made.add_row(words.status(number), str(times))
    return made


def _faults_table(found: Statistics) -> Table:
    made = table("Faults on purpose", ("fault",), ("fired", "first", "last"))
    for (_, said), one in sorted(found.faults.items()):
        made.add_row(said, str(one.hits), f"{one.first / SECOND:.6f} s", f"{one.last / SECOND:.6f} s")
    return made
