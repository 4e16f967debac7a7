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
from dataclasses import asdict, dataclass
from statistics import median

from bench.polled import Load
from bench.target import Result, Target
from nvmeemu.spec import NvmOpcode

ROUNDS = 10
SECONDS = 0.05  # of a round
TRIES = 3  # times the rounds wanted, at the most
MOST_DISTURBED = 0.02  # of a round's time
SAMPLES = 1 << 19


@dataclass(frozen=True)
class Case:
    """A load on a target."""

    target: Target
    depth: int
    opcode: int = NvmOpcode.READ
    pages: int = 1  # of each command
    is_random: bool = True
    queues: int = 1

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


def measure(cases: Sequence[Case], pages: int, *, rounds: int | None = None, tries: int | None = None) -> list[Summary]:
    """Rounds of all cases in turns, on disks of ``pages`` pages. Raises BenchError."""
    rounds, tries, seconds = rounds or ROUNDS, tries or TRIES, SECONDS
    good: list[list[Result]] = [[] for _ in cases]
    bad: list[list[Result]] = [[] for _ in cases]
    for case in cases:  # warm
        case.target.run(case.load(pages, seconds / 5), case.queues)
    for _ in range(rounds * tries):
        for index, case in enumerate(cases):
            is_hopeless = not good[index] and len(bad[index]) >= rounds
            if len(good[index]) < rounds and not is_hopeless:
                result = case.target.run(case.load(pages, seconds), case.queues)
                is_good = result.disturbance < MOST_DISTURBED * result.load.elapsed
                (good if is_good else bad)[index].append(result)
    return [_summary(good[index], bad[index], rounds) for index in range(len(cases))]


def _summary(good: list[Result], bad: list[Result], rounds: int) -> Summary:
    bad.sort(key=lambda result: result.disturbance / result.load.elapsed)
    disturbed = bad[: rounds - len(good)]
    kept = good + disturbed

    def typical(of: Callable[[Result], float]) -> float:
        return _weighted_median([(of(result), result.load.done) for result in kept])

    return Summary(
        iops=round(median(result.load.done / result.load.elapsed * 1e9 for result in kept)),
        p50_us=typical(lambda result: result.p50) / 1000,
        p99_us=typical(lambda result: result.p99) / 1000,
        engine_ns=round(typical(lambda result: result.engine / result.load.done)),
        process_ns=round(typical(lambda result: result.process / result.load.done)),
        messages=round(typical(lambda result: result.load.messages / result.load.done), 4),
        kept=len(kept),
        dropped=len(bad) - len(disturbed),
        disturbed=len(disturbed),
    )


def _weighted_median(values: list[tuple[float, int]]) -> float:
    """Of values and their weights: half of the weight is below it, or above."""
    values.sort()
    sums = list(itertools.accumulate(weight for _, weight in values))
    return values[bisect_left(sums, sums[-1] / 2)][0]
