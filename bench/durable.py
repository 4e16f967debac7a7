"""What makes data last, and what takes it away: writes with Force Unit Access, Flush, Write Zeroes, deallocation.

    .venv/bin/python -m bench.durable [--rounds 10] [--folder DIR] [--json FILE]

On a memory disk all of them are compared with plain writes of the same size, in the same run. On a file, in DIR, they
are compared with the system calls that they come to, made by a thread that does nothing else; two servers and two such
threads of the same kind (A/A) say what is noise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.marks import Mark
from bench.polled import PAGE, Load
from bench.quick import measured
from bench.rounds import Case
from bench.tables import MAPPED, NATIVE
from bench.target import MIB, CallsTarget, Result, ServedTarget, Target, fill, has_mapped
from nvmeemu.spec import NvmOpcode, ReadWrite

DISK = 64 * MIB
DEPTHS = (1, 32)

Found = dict[str, dict[str, float]]


class Synced:
    """A target whose disk has nothing to write back when a load begins."""

    queues = 1

    def __init__(self, target: Target) -> None:
        self.name = target.name
        self._target = target

    def run(self, load: Load, count: int = 1) -> Result:
        first = Load(disk_pages=load.disk_pages, seed=1, opcode=NvmOpcode.FLUSH, pages=1, depth=1, commands=1)
        self._target.run(first)
        return self._target.run(load, count)


class Kind(NamedTuple):
    name: str
    opcode: NvmOpcode
    cdw12: int = 0
    every: int = 0  # on a file: what has to be synced, or is to be zeroed, has to be written before


KINDS = (
    Kind("write", NvmOpcode.WRITE),
    Kind("FUA write", NvmOpcode.WRITE, ReadWrite(fua=True).cdw12),
    Kind("Flush", NvmOpcode.FLUSH, every=2),
    Kind("Write Zeroes", NvmOpcode.WRITE_ZEROES, every=2),
    Kind("deallocation", NvmOpcode.DATASET_MANAGEMENT, every=2),
)
PYTHONS = Kind("Verify (by Python)", NvmOpcode.VERIFY)  # it shares a CPU with a lane that looks for more work

MARKS = {
    "durable_least_over_write": Mark(0.8, is_least=True),  # memory, depth 1: the speed of the slowest of them
    "durable_most_cpu_over_calls": Mark(1.3),  # a file, depth 1
}


def measure(rounds: int | None = None, folder: Path = Path("/var/tmp")) -> dict[str, object]:
    """All of it, printed. Raises BenchError, CalledProcessError, GuestError, OSError."""
    memory, file = _memory(rounds), _file(rounds, folder)
    slowest = min(memory["native write qd1"]["p50_us"] / memory[f"native {kind.name} qd1"]["p50_us"] for kind in KINDS)
    most = max(_over_calls(file, kind.name) for kind in KINDS[1:])
    return {
        "durable_mem": memory,
        "durable_file": file,
        "durable_least_over_write": round(slowest, 3),
        "durable_most_cpu_over_calls": round(most, 3),
    }


def _over_calls(found: Found, kind: str) -> float:
    """The CPU time of the server's process over that of the calls, at depth 1."""
    ours, theirs = (
        [found[f"{name} {kind} qd1"]["process_ns"] for name in names] for names in (("native", "again"), CALLS)
    )
    return sum(ours) / sum(theirs)


CALLS = ("calls", "calls again")


def _memory(rounds: int | None) -> Found:
    print("\nwrites and what makes them last, or takes them away, on a memory disk", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder, disk = Path(name), f"mem:{DISK}"
        targets = [stack.enter_context(ServedTarget("native", folder, disk, NATIVE, doorbells="shadow"))]
        if has_mapped():
            targets.append(stack.enter_context(ServedTarget("mapped", folder, disk, MAPPED, doorbells="mapped")))
        for target in targets:
            fill(target, DISK // PAGE)
        cases = {
            f"{target.name} {kind.name} qd{depth}": Case(target, depth, kind.opcode, cdw12=kind.cdw12)
            for depth in DEPTHS
            for kind in (*KINDS, PYTHONS)
            for target in targets
        }
        return {name: summary.as_json() for name, summary in measured(cases, DISK, rounds).items()}


def _file(rounds: int | None, place: Path) -> Found:
    print("\nthe same on a file; of two commands one is a plain write, but for FUA", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as name, ExitStack() as stack:
        folder = Path(name)
        arguments = [*NATIVE, "--create", "--size", str(DISK)]
        targets: list[Target] = []
        for server in ("native", "again"):
            disk = str(folder / f"{server}.img")
            targets.append(stack.enter_context(ServedTarget(server, folder, disk, arguments, doorbells="shadow")))
            fill(targets[-1], DISK // PAGE)
        for calls in CALLS:
            targets.append(stack.enter_context(CallsTarget(calls, folder / f"{calls}.img", DISK)))
            fill(targets[-1], DISK // PAGE)
        targets = [Synced(target) for target in targets]
        cases = {
            f"{target.name} {kind.name} qd{depth}": Case(target, depth, kind.opcode, cdw12=kind.cdw12, every=kind.every)
            for depth in DEPTHS
            for kind in KINDS
            for target in targets
            if depth == 1 or target.name == "native"
        }
        return {name: summary.as_json() for name, summary in measured(cases, DISK, rounds).items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.durable", allow_abbrev=False)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), metavar="DIR")  # /tmp may be in memory
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.folder)
    print()
    for name, mark in MARKS.items():
        value = found[name]
        assert isinstance(value, float)
        print(f"{name:<34} {value:>8}  {mark!s:<8} {'met' if mark.is_met(value) else 'not met'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
