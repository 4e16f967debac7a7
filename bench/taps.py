"""What the interception points cost a read in the Python path: CPU time, against the commit before there were any.

    .venv/bin/python bench/taps.py [--rounds 30] [--before REVISION]

One process for each of: the code before, the code now, the same once more (A/A: what differs there is noise), the
code now after a fault was set and removed, and with a fault set that no command meets. They take turns, in random
order; the result is the median of each round's ratios to "now", and the middle half of the A/A ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "8423687^"  # taps: one interception point for each stage

ARM = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
import service_time
from nvmeemu.backend import open_backend
import nvmeemu.testing.bench as module
made = []
original = module.Controller
module.Controller = lambda *a, **k: made.append(original(*a, **k)) or made[-1]
with tempfile.TemporaryDirectory() as folder:
    backend = open_backend(folder + "/disk", create=True, size=service_time.DISK)
    for offset in range(0, service_time.DISK, 1 << 20):
        backend.write(offset, [memoryview(bytes([1]) * (1 << 20))])
    serve = service_time.reader(backend)
    if sys.argv[2] != "plain":
        from nvmeemu.faults import Fault, Faults
        faults = Faults(made[0])
        fault = faults.add(Fault({"opcode": "compare"}, do="drop"))
        if sys.argv[2] == "removed":
            faults.remove(fault)
    print("ready", flush=True)
    for line in sys.stdin:
        print(service_time.cost(serve), flush=True)
"""


class Arm:
    """A process that measures when it is told to."""

    def __init__(self, source: Path, what: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(source)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ARM, str(ROOT / "bench"), what],
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


def measure(rounds: int, before: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        now = ROOT / "src"
        arms = {
            "before": Arm(check_out(before, Path(name)), "plain"),
            "now": Arm(now, "plain"),
            "again": Arm(now, "plain"),
            "removed": Arm(now, "removed"),
            "set": Arm(now, "set"),
        }
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
        "us_per_read_now": round(statistics.median(costs["now"]), 2),
        "before_over_now": round(statistics.median(ratios["before"]), 3),
        "a_a": round(statistics.median(ratios["again"]), 3),
        "a_a_middle_half": [round(low, 3), round(high, 3)],
        "set_and_removed_over_now": round(statistics.median(ratios["removed"]), 3),
        "set_but_not_met_over_now": round(statistics.median(ratios["set"]), 3),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--before", metavar="REVISION", default=BEFORE)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.rounds, arguments.before), indent=2))


if __name__ == "__main__":
    main()
