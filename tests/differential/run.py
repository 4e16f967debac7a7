"""Runs commands on both data paths and compares all that can be seen: ``run.py --cases 200000 [--seed N]``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from differential.sides import Difference, Pair, table

PAGE_SHIFTS = (0, 0, 1, 2)  # CC.MPS: 4, 8 and 16 KiB pages
ROUND = 2500  # cases with one pair of controllers


def run(cases: int, seed: int) -> Counter[tuple[int, int]]:
    """Compare, and say what was reached: opcode, status. Raises Difference."""
    reached: Counter[tuple[int, int]] = Counter()
    served = done = 0
    print(f"NVMEEMU_SEED={seed}")
    for number in range(-(-cases // ROUND)):
        mps = PAGE_SHIFTS[number % len(PAGE_SHIFTS)]
        with tempfile.TemporaryDirectory() as folder, Pair(Path(folder), seed + number, mps) as pair:
            pair.run(min(ROUND, cases - done))
            reached += pair.reached
            done += pair.cases
            served += pair.served
    print(table(reached))
    print(f"{done} cases, no difference; {served} were served by the engine itself, the others by Python behind it")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the native engine with the Python path.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    try:
        run(arguments.cases, arguments.seed)
    except Difference as difference:
        print(difference)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
