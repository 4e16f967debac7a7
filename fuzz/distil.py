"""Puts into fuzz/corpus what, of other folders of programs, reaches something that the corpus does not.

usage: fuzz/distil.py DIR...

Something: a step from one line of the controller to another, taken once, a few times, or often. Short programs first.
(libFuzzer's own merge starts itself again, which a Python target does not survive.)
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import nvmeemu
from hunt import CORPUS
from machine import run_program

CONTROLLER = str(Path(nvmeemu.__path__[0]))
Step = tuple[str, int, int]


def steps_of(program: bytes) -> set[tuple[Step, int]]:
    """The steps that a program takes, each with a measure of how often. Raises what the program shows."""
    taken: Counter[Step] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(CONTROLLER) or name.endswith("layout.py") or "testing" in name:
            return None
        before = frame.f_lineno

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            taken[name, before, frame.f_lineno] += 1
            before = frame.f_lineno
            return step

        return step

    sys.settrace(trace)
    try:
        run_program(program)
    finally:
        sys.settrace(None)
    return {(step, min(number.bit_length(), 6)) for step, number in taken.items()}


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    kept: set[tuple[Step, int]] = set()
    for path in CORPUS.iterdir():
        kept |= steps_of(path.read_bytes())
    others = [path.read_bytes() for folder in sys.argv[1:] for path in Path(folder).iterdir()]
    for program in sorted(others, key=len):
        news = steps_of(program) - kept
        if news:
            kept |= news
            (CORPUS / hashlib.sha256(program).hexdigest()[:12]).write_bytes(program)


if __name__ == "__main__":
    main()
