"""CPU time that protection information costs: to make and to check that of a block of 4096 bytes, for each guard.

    .venv/bin/python bench/protection.py [--rounds 15] [--json FILE]

Thread CPU time in microseconds for one block, the median of the rounds: of commands with 1 block and with 32 (128 KiB),
called from Python as handlers do it. One copy of the data (`memcpy`) stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.protection import Checks, Tags, check, generate, is_available

BLOCK = 4096
COUNTS = (1, 32)  # blocks of a command
BLOCKS = 4096  # in a round
SMALLEST_STORAGE_TAG = {guard: guard.storage_tag_sizes.start for guard in Guard}


def ways(guard: Guard, count: int) -> dict[str, Callable[[], object]]:
    """What is measured, by its name: for one command of so many blocks."""
    of = Protection(1, guard, SMALLEST_STORAGE_TAG[guard])
    format = Format(BLOCK, guard.size, protection=of)
    data, metadata = os.urandom(count * BLOCK), bytearray(count * guard.size)
    copy = bytearray(len(data))
    tags, checks = Tags(0), Checks(guard=True, application=True, reference=True, storage=True)
    generate(format, data, metadata, tags)

    def copied() -> None:
        copy[:] = data

    return {
        "generate": lambda: generate(format, data, metadata, tags),
        "check": lambda: check(format, data, metadata, tags, checks),
        "copy": copied,
    }


def microseconds(call: Callable[[], object], count: int) -> float:
    """For one block, in one round."""
    begin = time.thread_time()
    for _ in range(BLOCKS // count):
        call()
    return (time.thread_time() - begin) / BLOCKS * 1e6


def measure(rounds: int) -> dict[str, float]:
    """The medians, by guard, blocks and way: "CRC16 32 check"."""
    calls = {
        f"{guard.name} {count} {way}": (call, count)
        for guard in Guard
        for count in COUNTS
        for way, call in ways(guard, count).items()
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):  # in turns: a busy machine shifts all of them
        for name, (call, count) in calls.items():
            found[name].append(microseconds(call, count))
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time of protection information, for a block of 4096 bytes.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds takes a number of at least 1")
    if not is_available():
        print("protection: nvmeemu was built without a C compiler: run scripts/setup.sh base", file=sys.stderr)
        return 1
    found = measure(arguments.rounds)
    print(f"{'us for a block':<14}  {'blocks':>6}  {'generate':>8}  {'check':>8}  {'copy':>8}")
    for guard in Guard:
        for count in COUNTS:
            times = "  ".join(f"{found[f'{guard.name} {count} {way}']:8.3f}" for way in ("generate", "check", "copy"))
            print(f"{guard.name:<14}  {count:>6}  {times}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
