"""The record of one run, a line of JSON: docs/guests.md's matrix is made from them (see matrix.py)."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# What does not change what is tested: not part of a run's identity. Options with a value, and without.
UNRELATED = ("--peer", "--result-json", "--serial-log", "--screenshot", "--timeout", "--accel", "--qemu")
UNRELATED_FLAGS = ("--keep",)


@dataclass
class Found:
    """What a job has seen so far; the job fills it in, so a failed run's record still tells how far it came."""

    guest: str = ""  # for example "Linux 6.12.107" or "U-Boot 2025.01"
    verified: bool = False  # data written and read back through the drive, and compared with what it must be
    resets: int = 0  # power-offs, reboots and controller resets after which the data was found again


@dataclass(frozen=True)
class Record:
    """One run, as it ended."""

    options: str  # the command line, without what does not change what is tested
    job: str
    drive: str  # "nvmeemu" or the peer's name
    guest: str
    arch: str
    firmware: str
    smp: int
    accel: str
    passed: bool
    boots: int
    verified: bool
    resets: int
    seconds: float
    cpu_seconds: float  # QEMU and the drive
    verdict: str

    def append(self, path: Path) -> None:
        """Append the record to a file."""
        with path.open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def load(path: Path) -> list[Record]:
    """All records of a file."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


def identity(words: Sequence[str]) -> str:
    """The command line without the options that do not change what is tested, files by their names only."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in UNRELATED:
            if not equals:
                next(rest, None)
        elif word not in UNRELATED_FLAGS:
            kept.append(Path(word).name if word.startswith("/") else word)
    return " ".join(kept)


def children_cpu_seconds() -> float:
    """The CPU time, in seconds, of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
