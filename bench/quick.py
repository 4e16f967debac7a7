"""The numbers that say at a glance whether the server is as fast and as small as it should be."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import cpu, starts
from bench.marks import Mark
from bench.polled import PAGE
from bench.rounds import Case, Summary, measure
from bench.target import MIB, FloorTarget, ServedTarget, Target, fill, has_mapped
from nvmeemu.app import process, serving
from nvmeemu.testing import VfioClient

DISK = 256 * MIB
STARTS = 10
IDLE_SECONDS = 4.0
SETTLE_SECONDS = 0.5  # until a polling engine has gone to sleep


MARKS = {
    "native_cpu_over_floor": Mark(1.5),
    "native_over_floor_qd1_p50": Mark(1.3),
    "native_over_python_qd32": Mark(3, is_least=True),
    "idle_cpu_percent": Mark(0.5, is_inclusive=False),
    "idle_cpu_percent_mapped": Mark(1, is_inclusive=False),
    "startup_seconds": Mark(0.5, is_inclusive=False),
    "startup_cpu_seconds": Mark(0.12),
    "rss_mib": Mark(64, is_inclusive=False),
}


def quick() -> dict[str, object]:
    """Measure them; prints the cases that they come from, and has them, too. Raises BenchError, GuestError, OSError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        started = startup(folder)
        startup_cpu = starts.measure()["cpu_seconds_now"]
        disk = f"mem:{DISK}"
        native = stack.enter_context(ServedTarget("native", folder, disk, ["--engine", "native"], doorbells="shadow"))
        python = stack.enter_context(ServedTarget("python", folder, disk, ["--engine", "python"], doorbells="shadow"))
        floor = FloorTarget(DISK)
        targets: list[Target] = [native, python, floor]
        polling = native
        if has_mapped():
            arguments = ["--engine", "native", "--doorbells", "mapped"]
            polling = stack.enter_context(ServedTarget("mapped", folder, disk, arguments, doorbells="mapped"))
            targets.append(polling)
        idle, idle_mapped = idle_percents([native, polling])
        for target in targets:
            fill(target, DISK // PAGE)
        cases = {
            **{f"{target.name} qd1": Case(target, 1) for target in (floor, polling)},
            **{f"{target.name} qd32": Case(target, 32) for target in targets},
        }
        found = measured(cases)
        rss = own_memory(native, DISK)
    return {
        "native_cpu_over_floor": round(found["native qd32"].engine_ns / found["floor qd32"].engine_ns, 3),
        "native_over_floor_qd1_p50": round(found[f"{polling.name} qd1"].p50_us / found["floor qd1"].p50_us, 3),
        "native_over_python_qd32": round(found["native qd32"].iops / found["python qd32"].iops, 2),
        "idle_cpu_percent": idle,
        "idle_cpu_percent_mapped": idle_mapped,
        "startup_seconds": round(started, 3),
        "startup_cpu_seconds": startup_cpu,
        "rss_mib": round(rss / MIB, 1),
        "quick": {name: summary.as_json() for name, summary in found.items()},
    }


def measured(cases: Mapping[str, Case], disk: int | None = None, rounds: int | None = None) -> dict[str, Summary]:
    """All cases in turns, printed, by their names."""
    found = dict(zip(cases, measure(list(cases.values()), (disk or DISK) // PAGE, rounds=rounds), strict=True))
    for name, summary in found.items():
        print(f"{name:<24} {summary}", flush=True)
    return found


def startup(folder: Path) -> float:
    """Seconds from the start of a server to its first client's agreement on a version; the median of several."""
    times = []
    for number in range(STARTS):
        socket = folder / f"start-{number}.sock"
        begin = time.monotonic()
        server = serving.start(socket, ["--disk", "mem:1G", "--engine", "native"], folder / "start.log")
        try:
            VfioClient(str(socket)).close()
            times.append(time.monotonic() - begin)
        finally:
            process.end(server)
    return statistics.median(times)


def idle_percents(targets: Sequence[ServedTarget]) -> list[float]:
    """Of one CPU: what each server takes while its client is there and does nothing."""
    time.sleep(SETTLE_SECONDS)
    return cpu.percents([target.pid for target in targets], IDLE_SECONDS)


def own_memory(target: ServedTarget, disk: int) -> int:
    """Bytes in memory without the guest's, which are shared, and without a memory disk that was written as a whole."""
    memory = target.memory()
    return memory["VmRSS"] - memory["RssShmem"] - disk
