"""``nvmeemu trace diff``: what one boot or driver did differently, command by command; times do not matter."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nvmeemu.app.arguments import BoundedNumber
from nvmeemu.trace import words
from nvmeemu.trace.align import align
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.filters import CommandFilter, add_command_options, check_times
from nvmeemu.trace.host_steps import HostStep, HostSteps, Part, steps
from nvmeemu.trace.terminal import Output, at, heading, with_progress

_DIFF = """\
What two hosts did differently: their commands (by name and fields, without CIDs and addresses), register writes,
resets, interrupt modes and PCI states, aligned with each other, as diff(1) does it with lines; and the commands that
were answered differently (!). What firmware did is never taken for what an operating system's driver did. With a
filter by queue, opcode or NSID: only the commands that match. --from and --to are times of each trace.
Exit status: 0 no difference, 1 some.
"""
_MOST_PARTS = 200  # of drivers in a trace that are told apart: a host may reset for ever
_MARKS = {"-": "bad", "+": "CQ", "!": "BAR0"}


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser."""
    parser = parsers.add_parser("diff", help="what two hosts did differently", description=_DIFF)
    parser.add_argument("a", metavar="A", help="a trace; -: stdin")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--context", metavar="N", type=BoundedNumber(0, 1 << 30), default=3, help="steps shown around a difference (3)"
    )
    add_command_options(parser)
    parser.set_defaults(run=run)


@dataclass
class Comparison:
    """Two traces side by side: each pair is a step of A and one of B, or one of them alone."""

    pairs: list[tuple[HostStep | None, HostStep | None]]

    @classmethod
    def between(cls, a: list[Part], b: list[Part]) -> Comparison:
        pairs: list[tuple[HostStep | None, HostStep | None]] = []
        done_a = done_b = 0
        for at_a, at_b in (*_counterparts(a, b), (len(a), len(b))):
            pairs += [(step, None) for part in a[done_a:at_a] for step in part.steps]
            pairs += [(None, step) for part in b[done_b:at_b] for step in part.steps]
            if at_a < len(a) and at_b < len(b):
                pairs += cls._of_part(a[at_a].steps, b[at_b].steps)
            done_a, done_b = at_a + 1, at_b + 1
        return cls(pairs)

    @staticmethod
    def _of_part(a: list[HostStep], b: list[HostStep]) -> Iterator[tuple[HostStep | None, HostStep | None]]:
        done_a = done_b = 0
        same = align([one.name for one in a], [one.name for one in b])
        for at_a, at_b in (*same, (len(a), len(b))):
            yield from ((one, None) for one in a[done_a:at_a])
            yield from ((None, one) for one in b[done_b:at_b])
            if at_a < len(a) and at_b < len(b):
                yield a[at_a], b[at_b]
            done_a, done_b = at_a + 1, at_b + 1

    def __post_init__(self) -> None:
        self._marks = [self._mark(*pair) for pair in self.pairs]

    def lines(self, context: int) -> Iterator[tuple[str, str]]:
        """(mark, text). - is only in A, + only in B, ! was answered differently, @ is a new place. Some lines around
        each difference are there, too."""
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
    def _mark(a: HostStep | None, b: HostStep | None) -> str:
        if b is None:
            return "-"
        if a is None:
            return "+"
        return " " if a.answer == b.answer else "!"

    @staticmethod
    def _text(a: HostStep | None, b: HostStep | None) -> str:
        if a is not None and b is not None and a.answer != b.answer:
            return f"{a.name} -> A: {a.answer} -> B: {b.answer}"
        one = a or b
        return one.text if one is not None else ""

    def count(self, mark: str) -> int:
        return self._marks.count(mark)


def _counterparts(a: Sequence[Part], b: Sequence[Part]) -> list[tuple[int, int]]:
    """Which part of A is which of B, in order: parts that have most steps in common, and of equal ones those of the
    same driver."""
    if max(len(a), len(b)) > _MOST_PARTS:
        return list(zip(range(len(a)), range(len(b)), strict=False))
    names = [[Counter(step.name for step in part.steps) for part in parts] for parts in (a, b)]
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]  # what the parts from here on have in common at most
    common = [[(one & other).total() for other in names[1]] for one in names[0]]
    for at_a in reversed(range(len(a))):
        for at_b in reversed(range(len(b))):
            common[at_a][at_b] *= 1 + (a[at_a].who == b[at_b].who)
            both = common[at_a][at_b] + best[at_a + 1][at_b + 1]
            best[at_a][at_b] = max(both, best[at_a + 1][at_b], best[at_a][at_b + 1])
    found = []
    at_a = at_b = 0
    while at_a < len(a) and at_b < len(b):
        if common[at_a][at_b] and best[at_a][at_b] == common[at_a][at_b] + best[at_a + 1][at_b + 1]:
            found.append((at_a, at_b))
            at_a, at_b = at_a + 1, at_b + 1
        elif best[at_a][at_b] == best[at_a + 1][at_b]:
            at_a += 1
        else:
            at_b += 1
    return found


def run(arguments: argparse.Namespace) -> int:
    output = Output()
    wanted = CommandFilter.of(arguments)
    both = []
    for name, path in (("A", arguments.a), ("B", arguments.b)):
        with open_trace(path) as reader:
            both.append(steps(name, with_progress(reader, prints=False), wanted))
            check_times(path, wanted.start, wanted.end, both[-1].statistics.ends)
            output.line(output.styled("dim", f"# {name} is {heading(reader)}"))
    difference = Comparison.between(both[0].parts, both[1].parts)
    for mark, text in difference.lines(arguments.context):
        output.line(f"@@ {text}" if mark == "@" else output.styled(_MARKS.get(mark, ""), f"{mark} {text}"))
    same, other, only_a, only_b = (difference.count(mark) for mark in " !-+")
    output.line(f"# {same} the same, {other} answered differently, {only_a} only in A, {only_b} only in B")
    for one in both:
        output.line(f"# {one.name}: {_numbers(one)}")
    return 0 if same == len(difference.pairs) else 1


def _numbers(one: HostSteps) -> str:
    """What is not compared: how often registers were read and doorbells rung, and interrupts."""
    queues = one.statistics.queues.values()
    doorbells = sum(queue.tails + queue.heads for queue in queues)
    return (
        f"{one.number} steps in {words.duration(one.statistics.last)}, {one.statistics.reads} register reads, "
        f"{doorbells} doorbells, {one.statistics.interrupts} interrupts"
    )
