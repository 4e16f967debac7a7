"""Many short rounds of several cases in turns, and their medians: what else the machine does shifts all alike.

A round in which a thread had to wait for a CPU that others had is dropped. Where a busy machine leaves too few, the
least disturbed ones are taken, too, and counted; what is said of a command is a median in which rounds weigh as much as
they have commands, so that a round that hardly got on says little.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Generic, TypeVar

from bench.polled import Load
from bench.target import Result, Target
from nvmeemu.spec import NvmOpcode

ROUNDS = 10
SECONDS = 0.05  # of a round
TRIES = 3  # times the rounds wanted, at the most
MOST_DISTURBED = 0.02  # of a round's time
SAMPLES = 1 << 19

Round = TypeVar("Round")


@dataclass(frozen=True)
class Case:
    """A load on a target."""

    target: Target
    depth: int
    opcode: int = NvmOpcode.READ
    pages: int = 1  # of each command
    is_random: bool = True
    queues: int = 1
    cdw12: int = 0  # bits of each command's: Force Unit Access, ...
    block: int = 512  # bytes
    has_metadata: bool = False  # separate, of two pages' commands at most
    has_sgl: bool = False
    every: int = 0  # every so many-th command is of this kind, those between are plain writes

    def load(self, pages: int, seconds: float) -> Load:
        """For a disk of so many pages."""
        seed = random.getrandbits(64) | 1 if self.is_random else 0
        return Load(
            disk_pages=pages,
            seed=seed,
            cursor=random.randrange(pages // self.pages) * self.pages,
            opcode=self.opcode,
            pages=self.pages,
            depth=self.depth,
            cdw12=self.cdw12,
            block=self.block,
            has_metadata=self.has_metadata,
            has_sgl=self.has_sgl,
            every=self.every,
            time=int(seconds * 1e9),
            room=SAMPLES,
        )


@dataclass(frozen=True)
class Summary:
    """Medians of a case's rounds."""

    iops: int
    p50_us: float
    p99_us: float
    engine_ns: int  # CPU time for a command: of the threads that serve the queues
    process_ns: int  # and of the whole server
    messages: float  # doorbells sent to the socket, for a command
    kept: int  # rounds
    dropped: int
    disturbed: int  # of those kept, because too few were left

    def __str__(self) -> str:
        text = f"{self.iops:>9} IOPS, p50 {self.p50_us:8.2f} us, p99 {self.p99_us:8.1f} us, "
        text += f"CPU {self.engine_ns / 1000:6.2f} / {self.process_ns / 1000:6.2f} us, {self.messages:5.3f} messages"
        return f"{text}; {self.kept} rounds, {self.dropped} dropped, {self.disturbed} disturbed"

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass
class Chosen(Generic[Round]):
    """The rounds of a case: those that nobody disturbed, and of the others the least disturbed, if these are too few.

    A round's disturbance is a part of its time, however that was found out.
    """

    wanted: int
    most: float = MOST_DISTURBED  # the disturbance of a good round
    _good: list[Round] = field(default_factory=list)
    _bad: list[tuple[float, int, Round]] = field(default_factory=list)  # with their number: rounds have no order

    def add(self, disturbance: float, result: Round) -> None:
        if disturbance < self.most:
            self._good.append(result)
        else:
            self._bad.append((disturbance, len(self._bad), result))

    @property
    def is_done(self) -> bool:
        """There are enough, or it is hopeless."""
        return len(self._good) >= self.wanted or (not self._good and len(self._bad) >= self.wanted)

    @property
    def kept(self) -> list[Round]:
        return self._good + [result for _, _, result in sorted(self._bad)[: self.disturbed]]

    @property
    def disturbed(self) -> int:
        """How many of those kept are, because too few were left."""
        return min(max(self.wanted - len(self._good), 0), len(self._bad))

    def counts(self) -> dict[str, int]:
        dropped = len(self._bad) - self.disturbed
        return {"kept": len(self._good) + self.disturbed, "dropped": dropped, "disturbed": self.disturbed}


def measure(cases: Sequence[Case], pages: int, *, rounds: int | None = None, tries: int | None = None) -> list[Summary]:
    """Rounds of all cases in turns, on disks of ``pages`` pages. Raises BenchError."""
    rounds, tries, seconds = rounds or ROUNDS, tries or TRIES, SECONDS
    found: list[Chosen[Result]] = [Chosen(rounds) for _ in cases]
    for case in cases:  # warm
        case.target.run(case.load(pages, seconds / 5), case.queues)
    for _ in range(rounds * tries):
        for case, chosen in zip(cases, found, strict=True):
            if not chosen.is_done:
                result = case.target.run(case.load(pages, seconds), case.queues)
                chosen.add(result.disturbance / result.load.elapsed, result)
    return [_summary(chosen) for chosen in found]


def _summary(chosen: Chosen[Result]) -> Summary:
    kept = chosen.kept

    def typical(of: Callable[[Result], float]) -> float:
        return _weighted_median([(of(result), result.load.done) for result in kept])

    return Summary(
        iops=round(median(result.load.done / result.load.elapsed * 1e9 for result in kept)),
        p50_us=typical(lambda result: result.p50) / 1000,
        p99_us=typical(lambda result: result.p99) / 1000,
        engine_ns=round(typical(lambda result: result.engine / result.load.done)),
        process_ns=round(typical(lambda result: result.process / result.load.done)),
        messages=round(typical(lambda result: result.load.messages / result.load.done), 4),
        **chosen.counts(),
    )


def _weighted_median(values: list[tuple[float, int]]) -> float:
    """Of values and their weights: half of the weight is below it, or above."""
    values.sort()
    sums = list(itertools.accumulate(weight for _, weight in values))
    return values[bisect_left(sums, sums[-1] / 2)][0]
