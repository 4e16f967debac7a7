"""What the commands that read a trace take of a processor, for a million records.

    .venv/bin/python -m bench.reading [--records 1000000]

The trace is made up: Reads and Writes of 4 KiB on four queues, each with doorbells, digest, completion and interrupt.
Seconds are those of the processor, so that others on the machine matter little. ``walk`` is a loop in Python that only
goes from record to record: it tells how fast the machine is, and the others are given in multiples of it, too.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from nvmeemu.spec import NvmOpcode, ReadWrite
from nvmeemu.trace import Completion, Description, Digest, Doorbell, Fetch, Interrupt, Record, Writer

RECORDS = 1_000_000
QUEUES, ENTRIES, BLOCKS = 4, 1024, 1 << 20
NVMEEMU = (sys.executable, "-m", "nvmeemu")
WALKS = 20  # it is quick: once would be lost in what Python takes to start
WALK = f"""
import sys
from nvmeemu.trace.records import split
for _ in range({WALKS}):
    for _ in split(open(sys.argv[1], 'rb').read()):
        pass
"""
_CQE = Struct("<IIHHHH")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "walk": (sys.executable, "-c", WALK, "{walk}"),
    "trace show": (*NVMEEMU, "trace", "show", "{a}"),
    "trace grep": (*NVMEEMU, "trace", "grep", "{a}", "77 nlb"),
    "trace stats": (*NVMEEMU, "trace", "stats", "{a}"),
    "trace diff": (*NVMEEMU, "trace", "diff", "{a}", "{b}"),
    "trace export": (*NVMEEMU, "trace", "export", "--perfetto", "{a}", "-o", "{out}.pftrace"),
    "trace plot": (*NVMEEMU, "trace", "plot", "{a}", "-o", "{out}.png"),
    "check --coverage": (*NVMEEMU, "check", "--coverage", "{a}"),
}

JUDGES = ("trace grep", "trace diff")  # whose exit status 1 is an answer


class Cost(NamedTuple):
    """Of one command: seconds of the processor, and the most memory that it had."""

    seconds: float
    mebibytes: float


def records(number: int, seed: int) -> Iterator[Record]:
    """About so many of them, in order of time."""
    chance = random.Random(seed)
    for command in range(number // 6):
        turn, queue = divmod(command, QUEUES)
        slot, time, queue = turn % ENTRIES, 2000 * command, queue + 1
        opcode = NvmOpcode.READ if chance.random() < 0.7 else NvmOpcode.WRITE
        slba, latency = chance.randrange(BLOCKS), chance.randrange(100, 1000)
        entry = ReadWrite(opcode=opcode, cid=slot, nsid=1, prp1=4096 * (slot + 1), slba=slba, nlb=8)
        tail = (slot + 1) % ENTRIES
        yield Doorbell(time, 0, queue, False, False, tail)
        yield Fetch(time + 200, 1, queue, slot, bytes(entry))
        yield Digest(time + 250, 1, queue, slot, opcode == NvmOpcode.READ, 4096, chance.getrandbits(32))
        yield Completion(time + 300 + latency, 1, queue, slot, _CQE.pack(0, 0, tail, queue, slot, 1))
        yield Interrupt(time + 1400, 1, queue, 0)
        yield Doorbell(time + 1500, 0, queue, True, False, tail)


def make(path: Path, number: int, seed: int, *, header: bool = True) -> Path:
    """A file of them."""
    with path.open("wb") as file:
        writer = Writer(file, Description(comment="made up"))
        if not header:
            file.seek(0)
            file.truncate()
        for record in records(number, seed):
            writer.write(record)
    return path


def measure(number: int) -> dict[str, Cost]:
    """Every command. Raises CalledProcessError for one that fails."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        files = {
            "a": make(folder / "a", number, 1),
            "b": make(folder / "b", number, 2),
            "walk": make(folder / "walk", number, 1, header=False),
            "out": folder / "out",
        }
        costs = {
            command: _cost([word.format(**files) for word in words], (0, 1) if command in JUDGES else (0,))
            for command, words in COMMANDS.items()
        }
        walk = costs["walk"]
        return costs | {"walk": walk._replace(seconds=walk.seconds / WALKS)}


def _cost(words: list[str], statuses: tuple[int, ...]) -> Cost:
    """Run it in a process of its own, below one that has no other child: usage is told of children as a whole."""
    watch = (
        "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    told = subprocess.run([sys.executable, "-c", watch, *words], capture_output=True, text=True, check=True)
    ended, seconds, mebibytes = told.stdout.split()
    if int(ended) not in statuses:
        raise subprocess.CalledProcessError(int(ended), words, stderr=told.stderr)
    return Cost(float(seconds), float(mebibytes))


def table(costs: Mapping[str, Cost]) -> str:
    """As docs/trace.md has it."""
    lines = ["| command | CPU seconds | of `walk` | memory |", "|---|---|---|---|"]
    for name, cost in costs.items():
        times = cost.seconds / costs["walk"].seconds
        lines.append(f"| `{name}` | {cost.seconds:.1f} | {times:.0f} | {cost.mebibytes:.0f} MiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=RECORDS)
    print(table(measure(parser.parse_args().records)))


if __name__ == "__main__":
    main()
