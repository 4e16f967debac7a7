"""What the interception points cost a read where no fault is set: CPU time of the whole process.

    .venv/bin/python bench/taps.py [--engine native] [--rounds 30] [--before REVISION]

One process for each arm: the code as it is, the same once more (A/A: what differs there is noise), the same after a
fault on all I/O queues was set and removed, and with a fault set that no command meets. With the Python path there is
also the code before there were any taps, and the fault that is not met is on the same queue; with the native engine it
is on the admin queue, and the I/O queue stays the engine's. They take turns, in random order; the result is the median
of each round's ratios to "now", and the middle half of the A/A ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "8423687^"  # taps: one interception point for each stage
NOT_MET = {"python": {"opcode": "compare"}, "native": {"opcode": "identify"}}

TIMES = {"python": 1, "native": 16}  # about as long a round


def arm(engine: str, what: str) -> None:
    """A measuring process: for each line that it reads it prints microseconds of CPU for one read."""
    from nvmeemu.backend import Backend, open_backend
    from nvmeemu.testing import Bench

    service_time: Any = importlib.import_module("service_time")  # beside this file
    options: dict[str, Any] = {} if engine == "python" else {"engine": engine}  # there was only one before
    benches: list[Bench] = []

    class Watched(Bench):
        def __init__(self, backend: Backend) -> None:
            super().__init__(backend, **options)
            benches.append(self)
            if engine == "native":  # its threads have done their work before Python looks
                native: Any = self.engine
                controller: Any = self.controller
                run = controller.run
                wait = getattr(native, "wait_until_idle", None) or native.settle  # its name in trees of before

                def settled() -> object:
                    wait()
                    return run()

                controller.run = settled

    service_time.Bench = Watched
    with tempfile.TemporaryDirectory() as folder:
        backend = open_backend(folder + "/disk", create=True, size=service_time.DISK)
        for offset in range(0, service_time.DISK, 1 << 20):
            backend.write(offset, [memoryview(bytes([1]) * (1 << 20))])
        serve = service_time.reader(backend)
        serve()
        set_faults(benches[0], engine, what)
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.process_time()
            for _ in range(TIMES[engine]):
                serve()
            print((time.process_time() - start) / TIMES[engine] / service_time.COMMANDS * 1e6, flush=True)


def set_faults(bench: Any, engine: str, what: str) -> None:
    """``removed``: one that takes the queue, and gives it back. ``set``: one that no command meets."""
    if what == "plain":
        return
    from nvmeemu.faults import Fault, Faults

    faults = Faults(bench.controller)
    if what == "set":
        faults.add(Fault(NOT_MET[engine], do="drop"))
    else:
        fault = faults.add(Fault({"opcode": "compare"}, do="drop"))
        bench.settle()
        assert not bench.controller.state.sqs[1].server.is_engine
        faults.remove(fault)
    bench.settle()
    assert bench.controller.state.sqs[1].server.is_engine == (engine == "native")


class Arm:
    """A process that measures when it is told to."""

    def __init__(self, source: Path, engine: str, what: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(source)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--engine", engine, "--arm", what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("bench/taps.py: a measuring process has died")
        return line

    def cost(self) -> float:
        """Microseconds of CPU for one read."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def check_out(revision: str, folder: Path) -> Path:
    """The package as it was, with today's compiled modules, as far as it had them."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision, "src"], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    for module in (ROOT / "src").rglob("*.so"):
        copy = folder / module.relative_to(ROOT)
        if copy.parent.is_dir():
            copy.write_bytes(module.read_bytes())
    return folder / "src"


def measure(engine: str, rounds: int, before: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        now = ROOT / "src"
        arms = {
            "now": Arm(now, engine, "plain"),
            "again": Arm(now, engine, "plain"),
            "removed": Arm(now, engine, "removed"),
            "set": Arm(now, engine, "set"),
        }
        if engine == "python":
            arms["before"] = Arm(check_out(before, Path(name)), engine, "plain")
        costs: dict[str, list[float]] = {arm: [] for arm in arms}
        try:
            for _ in range(rounds):
                for arm in random.sample(list(arms), len(arms)):
                    costs[arm].append(arms[arm].cost())
        finally:
            for one in arms.values():
                one.close()
    ratios = {arm: [mine / base for mine, base in zip(costs[arm], costs["now"], strict=True)] for arm in arms}
    low, _, high = statistics.quantiles(ratios["again"], n=4)
    return {
        "engine": engine,
        "us_per_read_now": round(statistics.median(costs["now"]), 2),
        "a_a": round(statistics.median(ratios["again"]), 3),
        "a_a_middle_half": [round(low, 3), round(high, 3)],
        "set_and_removed_over_now": round(statistics.median(ratios["removed"]), 3),
        "set_but_not_met_over_now": round(statistics.median(ratios["set"]), 3),
        **({"before_over_now": round(statistics.median(ratios["before"]), 3)} if "before" in ratios else {}),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("python", "native"), default="python")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--before", metavar="REVISION", default=BEFORE)
    parser.add_argument("--arm", choices=("plain", "removed", "set"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        arm(arguments.engine, arguments.arm)
    else:
        print(json.dumps(measure(arguments.engine, arguments.rounds, arguments.before), indent=2))


if __name__ == "__main__":
    main()
