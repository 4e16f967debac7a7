"""The Atheris target: coverage-guided programs for ``machine``. Started by ``scripts/fuzz.sh``.

usage: fuzz_controller.py [libFuzzer options] CORPUS...
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

import nvmeemu

# Only the controller is instrumented: its ways are to be explored, not those of the host beside it.
HOST_SIDE = [f"nvmeemu.testing.{path.stem}" for path in (Path(nvmeemu.__path__[0]) / "testing").glob("*.py")]

with atheris.instrument_imports(include=["nvmeemu"], exclude=[*HOST_SIDE, "nvmeemu.spec.layout"]):
    import machine
    import mutate


def custom_mutator(program: bytes, most: int, seed: int) -> bytes:
    dice = random.Random(seed)
    if dice.random() < 0.1:
        return bytes(atheris.Mutate(program, most))
    return mutate.mutate(program, dice)[:most]


def main() -> None:
    atheris.Setup(sys.argv, machine.run_program, custom_mutator=custom_mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
