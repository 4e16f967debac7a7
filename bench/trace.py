"""What a trace costs the native engine: 4 KiB random reads of a file, 32 at once.

    .venv/bin/python -m bench.trace [--rounds 40] [--json FILE]

Four servers take turns, in random order: one with ``--trace``; one without; the same once more (A/A: what differs
there is noise); and one whose engine was built without the places that ask whether there is a trace. The results are
medians of the rounds' ratios, of the less disturbed half of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from bench.marks import Mark
from bench.polled import PAGE
from bench.quick import DISK
from bench.rounds import SECONDS, Case
from bench.target import BenchError, Result, ServedTarget, fill
from nvmeemu.trace import Lost, open_trace

ROOT = Path(__file__).parents[1]
ROUNDS = 40
DEPTH = 32
HOOK = re.compile(r"if \((?:queue->)?lane->trace\b")

MARKS = {
    "trace_off_over_aa": Mark(1),  # how far from 1 the engine's time is, over how far it is for two of the same kind
    "trace_on_over_off": Mark(0.7, is_least=True),  # IOPS
}

Round = Mapping[str, Result]


def measure(rounds: int = ROUNDS) -> dict[str, object]:
    """All of it, printed. Raises BenchError, CalledProcessError, GuestError, OSError."""
    print(f"\n4 KiB random reads of a file, {DEPTH} at once, with a trace and without", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        unhooked = build_without_hooks(folder)
        with ExitStack() as stack:
            targets = {arm: stack.enter_context(_server(folder, arm, unhooked)) for arm in _ARGUMENTS}
            for target in targets.values():
                fill(target, DISK // PAGE)
            found = least_disturbed(_rounds(targets, rounds))
        with open_trace(folder / "on.trace") as reader:
            lost = sum(record.records for record in reader if isinstance(record, Lost))
    arms = {arm: _typical([each[arm] for each in found]) for arm in _ARGUMENTS}
    for arm, numbers in arms.items():
        print(f"{arm:<10} {', '.join(f'{name} {value}' for name, value in numbers.items())}", flush=True)
    return {"trace_arms": arms, "trace_rounds": len(found), "trace_lost_records": lost, **ratios(found)}


_ARGUMENTS: Mapping[str, tuple[str, ...]] = {"without": (), "off": (), "again": (), "on": ("--trace",)}


def _server(folder: Path, arm: str, unhooked: Path) -> ServedTarget:
    arguments = ["--engine", "native", "--create", "--size", str(DISK)]
    arguments += [*_ARGUMENTS[arm], str(folder / f"{arm}.trace")] if _ARGUMENTS[arm] else []
    environment = {"PYTHONPATH": str(unhooked)} if arm == "without" else {}
    disk = str(folder / f"{arm}.img")
    return ServedTarget(arm, folder, disk, arguments, doorbells="shadow", environment=environment)


def build_without_hooks(folder: Path) -> Path:
    """A copy of the package with such an engine: the folder to import it from."""
    copy = folder / "copy"
    shutil.copytree(ROOT / "src", copy / "src")
    shutil.copy(ROOT / "setup.py", copy)
    hooks = 0
    for source in (copy / "src/nvmeemu/engine/native").glob("*.c"):
        text, number = HOOK.subn("if (false", source.read_text())
        source.write_text(text)
        hooks += number
    if not hooks:
        raise BenchError("the engine's sources do not say 'if (lane->trace' any more: bench/trace.py has to follow")
    options = [f"--build-lib={copy / 'src'}", f"--build-temp={copy / 'build'}"]
    environment = os.environ | {"LIBVFIO_USER_SRC": "none"}  # only the engine is built anew
    command = [sys.executable, "setup.py", "-q", "build_ext", *options]
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True)
    return copy / "src"


def _rounds(targets: Mapping[str, ServedTarget], rounds: int) -> list[Round]:
    cases = {arm: Case(target, DEPTH) for arm, target in targets.items()}
    found: list[Round] = []
    for number in range(-1, rounds):  # the first one warms
        results = {}
        for arm in random.sample(list(cases), len(cases)):
            results[arm] = targets[arm].run(cases[arm].load(DISK // PAGE, SECONDS))
        if number >= 0:
            found.append(results)
    return found


def least_disturbed(rounds: list[Round]) -> list[Round]:
    """The half of them in which threads waited least for CPUs that others had."""

    def disturbance(one: Round) -> float:
        return max(float(result.disturbance / result.load.elapsed) for result in one.values())

    return sorted(rounds, key=disturbance)[: (len(rounds) + 1) // 2]


def _iops(result: Result) -> float:
    return float(result.load.done / result.load.elapsed * 1e9)


def _engine(result: Result) -> float:
    """Nanoseconds of the engine for a command."""
    return float(result.engine / result.load.done)


def _typical(results: list[Result]) -> dict[str, float]:
    return {
        "iops": round(median(_iops(one) for one in results)),
        "p50_us": round(median(one.p50 for one in results) / 1000, 2),
        "engine_us": round(median(_engine(one) for one in results) / 1000, 3),
        "process_us": round(median(one.process / one.load.done for one in results) / 1000, 3),
    }


def ratios(rounds: list[Round]) -> dict[str, float]:
    """What the marks are about, and where it comes from."""

    def of(value: Callable[[Result], float], one: str, other: str) -> list[float]:
        return [value(each[one]) / value(each[other]) for each in rounds]

    low, _, high = quantiles(of(_engine, "again", "off"), n=4)
    noise = max(abs(low - 1), abs(high - 1))
    off = median(of(_engine, "off", "without"))
    return {
        "trace_off_over_aa": round(abs(off - 1) / noise, 3),
        "trace_on_over_off": round(median(of(_iops, "on", "off")), 3),
        "trace_off_cpu_over_without": round(off, 3),
        "trace_aa_noise": round(noise, 3),
        "trace_on_cpu_over_off": round(median(of(_engine, "on", "off")), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.rounds), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
