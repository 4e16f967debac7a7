"""The tables of docs/performance.md: over queue depth, loads, disks, doorbells, queues; after idleness; over time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import service_time
from bench.polled import PAGE, Load
from bench.quick import DISK, idle_percents, measured
from bench.rounds import Case
from bench.target import MIB, FloorTarget, ServedTarget, Target, fill, has_mapped
from nvmeemu.spec import NvmOpcode

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
FEW_DEPTHS = (1, 32, 128)
QUEUES = (1, 2, 4, 8)
REST_SECONDS = 0.2
WAKES = 20
SOAK_PARTS = 10

NATIVE, PYTHON = ("--engine", "native"), ("--engine", "python")
MAPPED = (*NATIVE, "--doorbells", "mapped")


class Kind(NamedTuple):
    """A server, and which doorbells the host uses."""

    name: str
    arguments: Sequence[str]
    doorbells: str


class Workload(NamedTuple):
    name: str
    opcode: NvmOpcode
    pages: int
    is_random: bool


WORKLOADS = (
    Workload("4k random read", NvmOpcode.READ, 1, True),
    Workload("4k random write", NvmOpcode.WRITE, 1, True),
    Workload("128k sequential read", NvmOpcode.READ, 32, False),
    Workload("128k sequential write", NvmOpcode.WRITE, 32, False),
)


def kinds() -> list[Kind]:
    """All that this build has."""
    mapped = [Kind("mapped", MAPPED, "mapped")] if has_mapped() else []
    return [
        Kind("native", NATIVE, "shadow"),
        *mapped,
        Kind("native-socket", NATIVE, "socket"),
        Kind("python", PYTHON, "shadow"),
        Kind("python-socket", PYTHON, "socket"),
    ]


@contextmanager
def served(disk: str, wanted: Sequence[Kind], queues: int = 1) -> Iterator[list[ServedTarget]]:
    """Servers of these kinds, each on a disk of its own that is written once as a whole; ``disk`` is mem or file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder, targets = Path(name), []
        for kind in wanted:
            arguments = list(kind.arguments)
            spec = f"mem:{DISK}"
            if disk == "file":
                spec = str(folder / f"{kind.name}.img")
                arguments += ["--create", "--size", str(DISK)]
            target = ServedTarget(kind.name, folder, spec, arguments, doorbells=kind.doorbells, queues=queues)
            targets.append(stack.enter_context(target))
            fill(target, DISK // PAGE)
        yield targets


def tables() -> dict[str, object]:
    """All of them. Raises BenchError, GuestError, OSError."""
    found: dict[str, object] = {"depths": curve()}
    for disk in ("mem", "file"):
        found[disk] = loads(disk)
    found["queues"] = many_queues()
    found["idle"] = resting()
    print("the Python path in this process, over a plain preadv:")
    found["service_time"] = service_time.measure(15)
    print(found["service_time"])
    return found


def _by_name(cases: dict[str, Case], title: str) -> dict[str, dict[str, float]]:
    print(f"\n{title}", flush=True)
    return {name: summary.as_json() for name, summary in measured(cases).items()}


def curve() -> dict[str, dict[str, float]]:
    """4 KiB random reads from memory over the queue depth."""
    with served("mem", [kind for kind in kinds() if "socket" not in kind.name]) as servers:
        floor = FloorTarget(DISK)
        fill(floor, DISK // PAGE)
        targets: list[Target] = [floor, *servers]
        cases = {f"{target.name} qd{depth}": Case(target, depth) for depth in DEPTHS for target in targets}
        return _by_name(cases, "4 KiB random reads, memory, over the queue depth")


def loads(disk: str) -> dict[str, dict[str, float]]:
    """Each workload on each kind of server."""
    with served(disk, kinds()) as targets:
        cases = {
            f"{target.name} {work.name} qd{depth}": Case(target, depth, work.opcode, work.pages, work.is_random)
            for work in WORKLOADS
            for depth in FEW_DEPTHS
            for target in targets
        }
        return _by_name(cases, f"disk: {disk}")


def many_queues() -> dict[str, dict[str, float]]:
    """4 KiB random reads with 32 commands in each of several queues, one thread of the engine against two."""
    both = [Kind(f"{count}-thread", (*NATIVE, "--io-threads", str(count)), "shadow") for count in (1, 2)]
    with served("mem", both, max(QUEUES)) as targets:
        cases = {
            f"{target.name} {queues} queues": Case(target, 32, queues=queues) for queues in QUEUES for target in targets
        }
        return _by_name(cases, "several queues, one host thread")


def resting() -> dict[str, dict[str, float]]:
    """What a server costs while nothing is asked of it, and how long the first command then takes."""
    found = {}
    print(f"\nidle: CPU, and the latency of the first command after {REST_SECONDS:g} s")
    with served("mem", kinds()) as targets:
        for target, percent in zip(targets, idle_percents(targets), strict=True):
            latencies = [_first_command(target) for _ in range(WAKES)]
            first = statistics.median(latencies)
            print(f"{target.name:<24} {percent:6.3f} %, {first:8.1f} us (worst {max(latencies):.1f} us)", flush=True)
            found[target.name] = {"cpu_percent": percent, "first_us": round(first, 1)}
    return found


def _first_command(target: Target) -> float:
    """Microseconds."""
    time.sleep(REST_SECONDS)
    load = Load(disk_pages=DISK // PAGE, seed=1, opcode=NvmOpcode.READ, pages=1, depth=1, commands=1, room=1)
    return target.run(load).p50 / 1000


def soak(commands: int) -> dict[str, object]:
    """So many 4 KiB reads and writes, 32 at once: does the server grow?"""
    print(f"\n{commands} commands:")
    sizes = []
    begin = time.monotonic()
    with served("mem", [Kind("native", NATIVE, "shadow")]) as (target,):
        for part in range(SOAK_PARTS):
            opcode = NvmOpcode.WRITE if part % 2 else NvmOpcode.READ
            share = commands // SOAK_PARTS
            load = Load(disk_pages=DISK // PAGE, seed=part + 1, opcode=opcode, pages=1, depth=32, commands=share)
            target.run(load)
            memory = target.memory()
            sizes.append(memory["VmRSS"] - memory["RssShmem"])
            print(f"{(part + 1) * share:>12} commands, {sizes[-1] / MIB:8.2f} MiB", flush=True)
    growth = (sizes[-1] - sizes[0]) // 1024
    return {"soak_commands": commands, "soak_growth_kib": growth, "soak_seconds": round(time.monotonic() - begin)}
