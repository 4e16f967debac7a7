"""``nvmeemu trace diff``: what one boot or driver did differently, command by command, whatever the times."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nvmeemu.arguments import Number
from nvmeemu.regs import ACQ, ASQ
from nvmeemu.trace import words
from nvmeemu.trace.align import align
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.records import (
    ClientAttached,
    ClientLeft,
    Fetch,
    InterruptMode,
    PciChange,
    Record,
    RegisterWrite,
    Reset,
)
from nvmeemu.trace.stats import Statistics
from nvmeemu.trace.terminal import Output, at, heading, with_progress

_DIFF = """\
What two hosts did differently: their commands (by name and fields, without CIDs and addresses), register writes,
resets, interrupt modes and PCI states, aligned with each other, as diff(1) does it with lines; and the commands that
were answered differently (!). Exit status: 0 no difference, 1 some.
"""
Deed = RegisterWrite | Reset | InterruptMode | PciChange | ClientAttached | ClientLeft  # a host's, but for commands
_MARKS = {"-": "bad", "+": "CQ", "!": "BAR0"}


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser."""
    parser = parsers.add_parser("diff", help="what two hosts did differently", description=_DIFF)
    parser.add_argument("a", metavar="A", help="a trace")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--context", metavar="N", type=Number(0, 1 << 30), default=3, help="steps shown around a difference (3)"
    )
    parser.set_defaults(run=run)


@dataclass(slots=True)
class Step:
    """Something that the host did: ``name`` is what is compared; ``answer`` is what a command got."""

    time: int
    name: str
    answer: str = ""

    @property
    def text(self) -> str:
        return f"{self.name} -> {self.answer}" if self.answer else self.name


@dataclass(slots=True)
class Steps:
    """What a host did, in order, and the rest in numbers."""

    name: str
    steps: list[Step] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)


def steps(name: str, records: Iterable[Record]) -> Steps:
    """The steps of a trace."""
    found = Steps(name)
    under_way: dict[int, Step] = {}  # by the id of a Fetch
    for record in records:
        for command in found.statistics.feed(record):
            step = under_way.pop(id(command.fetch))
            if command.completion is not None:
                step.answer = words.completion(command.completion.completion)
            step.answer += words.injections(command.injections)
        if isinstance(record, Fetch):
            queue = "I/O  " if record.sqid else "admin"
            step = Step(record.time, f"{queue} {words.command(record.sqid, record.sqe)}", "no completion")
            found.steps.append(step)
            under_way[id(record)] = step
        elif isinstance(record, Deed):
            found.steps.append(Step(record.time, _step(record)))
    found.statistics.end()
    return found


def _step(record: Deed) -> str:
    """Without what is another one at each run: addresses and process ids."""
    if isinstance(record, ClientAttached):
        return "client attached"
    where, what = words.describe(record)
    if isinstance(record, RegisterWrite) and any(
        one.offset <= record.offset < one.offset + one.size for one in (ASQ, ACQ)
    ):
        what = what.partition(" = ")[0]
    return f"{where:<5} {what}"


@dataclass
class Difference:
    """Two traces side by side: each pair is a step of A and one of B, or one of them alone."""

    pairs: list[tuple[Step | None, Step | None]]

    @classmethod
    def between(cls, a: list[Step], b: list[Step]) -> Difference:
        pairs: list[tuple[Step | None, Step | None]] = []
        done_a = done_b = 0
        same = align([one.name for one in a], [one.name for one in b])
        for at_a, at_b in (*same, (len(a), len(b))):
            pairs += [(one, None) for one in a[done_a:at_a]]
            pairs += [(None, one) for one in b[done_b:at_b]]
            if at_a < len(a) and at_b < len(b):
                pairs.append((a[at_a], b[at_b]))
            done_a, done_b = at_a + 1, at_b + 1
        return cls(pairs)

    def __post_init__(self) -> None:
        self._marks = [self._mark(*pair) for pair in self.pairs]

    def lines(self, context: int) -> Iterator[tuple[str, str]]:
        """(mark, text): - only in A, + only in B, ! answered differently, @ a new place, and some around them."""
        is_near = self._near(context)
        was_shown = False
        for (a, b), mark, is_shown in zip(self.pairs, self._marks, is_near, strict=True):
            if is_shown and not was_shown:
                yield "@", " ".join(f"{name} {at(one.time).strip()} s" for name, one in (("A", a), ("B", b)) if one)
            was_shown = is_shown
            if is_shown:
                yield mark, self._text(a, b)

    def _near(self, context: int) -> list[bool]:
        """Which pairs are a difference or close to one."""
        near = [False] * len(self.pairs)
        for number, mark in enumerate(self._marks):
            if mark != " ":
                first, last = max(0, number - context), min(len(near), number + context + 1)
                near[first:last] = [True] * (last - first)
        return near

    @staticmethod
    def _mark(a: Step | None, b: Step | None) -> str:
        if b is None:
            return "-"
        if a is None:
            return "+"
        return " " if a.answer == b.answer else "!"

    @staticmethod
    def _text(a: Step | None, b: Step | None) -> str:
        if a is not None and b is not None and a.answer != b.answer:
            return f"{a.name} -> A: {a.answer} -> B: {b.answer}"
        one = a or b
        return one.text if one is not None else ""

    def count(self, mark: str) -> int:
        return self._marks.count(mark)


def run(arguments: argparse.Namespace) -> int:
    output = Output()
    both = []
    for name, path in (("A", arguments.a), ("B", arguments.b)):
        with open_trace(path) as reader:
            both.append(steps(name, with_progress(reader, prints=False)))
            output.line(output.styled("dim", f"# {name} is {heading(reader)}"))
    difference = Difference.between(both[0].steps, both[1].steps)
    for mark, text in difference.lines(arguments.context):
        output.line(f"@@ {text}" if mark == "@" else output.styled(_MARKS.get(mark, ""), f"{mark} {text}"))
    same, other, only_a, only_b = (difference.count(mark) for mark in " !-+")
    output.line(f"# {same} the same, {other} answered differently, {only_a} only in A, {only_b} only in B")
    for one in both:
        output.line(f"# {one.name}: {_numbers(one)}")
    return 0 if same == len(difference.pairs) else 1


def _numbers(one: Steps) -> str:
    """What is not compared: how often registers were read and doorbells rung, and interrupts."""
    queues = one.statistics.queues.values()
    doorbells = sum(queue.tails + queue.heads for queue in queues)
    return (
        f"{len(one.steps)} steps in {words.duration(one.statistics.last)}, {one.statistics.reads} register reads, "
        f"{doorbells} doorbells, {one.statistics.interrupts} interrupts"
    )
