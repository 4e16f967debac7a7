"""The fuzzer without coverage or other packages: mutates the corpus for a while, and says what it finds.

usage: fuzz/hunt.py [--seconds 60] [--programs N] [--seed N] [--out DIR] [--shorten FILE]

Exit status 1 if there is a finding. It is made short and written to a file; ``--shorten`` does that for a program of
Atheris, and shows what happens step by step.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from machine import WIDTH, outcome_of, run_program
from mutate import generate, minimise, mutate

CORPUS = Path(__file__).parent / "corpus"


def read_corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def hunt(seed: int, seconds: float, programs: int) -> tuple[int, bytes, str]:
    """Programs run, and the first one that fails with what it fails with, or nothing."""
    dice = random.Random(seed)
    corpus = read_corpus()
    end = time.monotonic() + seconds
    for number in range(programs):
        program = generate(dice) if dice.random() < 0.3 else mutate(dice.choice(corpus), dice)
        if outcome := outcome_of(program):
            return number + 1, program, outcome
        if time.monotonic() >= end:
            break
    return number + 1, b"", ""


def report(program: bytes, outcome: str, out: Path) -> None:
    """Make a finding short, show it, keep it."""
    short = minimise(program, outcome)
    path = out / f"short-{hashlib.sha256(short).hexdigest()[:12]}"
    path.write_bytes(short)
    with suppress(Exception):
        run_program(short, tell=print)
    print(f"{outcome}\n{path}: {len(short) // WIDTH - 1} instructions")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--programs", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--shorten", type=Path)
    options = parser.parse_args()
    if options.shorten:
        program = options.shorten.read_bytes()
        outcome, number = outcome_of(program), 1
    else:
        number, program, outcome = hunt(options.seed, options.seconds, options.programs)
        print(f"seed {options.seed}: {number} programs")
    if outcome:
        report(program, outcome, options.out)
    else:
        print("nothing found")
    return int(bool(outcome))


if __name__ == "__main__":
    sys.exit(main())
