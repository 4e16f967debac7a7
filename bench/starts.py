"""What a start of `nvmeemu serve` costs: CPU seconds of the process, all its threads, until it says that it listens.

    .venv/bin/python -m bench.starts [--rounds 15] [--before COMMIT]

With --before, that commit is checked out and set up, too. The trees take turns: this one, the same once more (A/A: what
differs there is noise) and the one before, in random order. The results are medians.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.target import BenchError

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 15


def cpu_seconds(tree: Path) -> float:
    """Of one start with a plain disk. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [
            str(tree / ".venv/bin/python"),
            "-m",
            "nvmeemu",
            "serve",
            "--socket",
            f"{folder}/s",
            "--disk",
            "mem:1G",
        ]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            try:
                assert server.stdout is not None
                if not server.stdout.readline():
                    raise BenchError(f"{tree}: nvmeemu serve does not start")
                tasks = Path(f"/proc/{server.pid}/task").iterdir()
                return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
            finally:
                server.kill()


def medians(trees: Mapping[str, Path], rounds: int) -> dict[str, float]:
    """CPU seconds by what the trees are called; they take turns. Raises BenchError."""
    for tree in trees.values():
        compileall.compile_dir(tree / "src", quiet=1)  # as pip does when it installs
        cpu_seconds(tree)
    times: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name in random.sample(list(trees), len(trees)):
            times[name].append(cpu_seconds(trees[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A tree of ours as it was, set up. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            subprocess.run([tree / "scripts/setup.sh", "base"], check=True, stdout=sys.stderr)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(rounds: int | None = None) -> dict[str, float]:
    """Raises BenchError."""
    return {"cpu_seconds_now": round(medians({"now": ROOT}, rounds or ROUNDS)["now"], 3)}


def compare(before: Path, rounds: int) -> dict[str, float]:
    found = medians({"now": ROOT, "again": ROOT, "before": before}, rounds)
    return {
        "cpu_seconds_now": round(found["now"], 3),
        "cpu_seconds_before": round(found["before"], 3),
        "a_a": round(found["again"] / found["now"], 3),
        "now_over_before": round(found["now"] / found["before"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--before", metavar="COMMIT", help="or the folder of a tree that is set up")
    arguments = parser.parse_args()
    if arguments.before is None:
        found = measure(arguments.rounds)
    elif os.path.isdir(arguments.before):
        found = compare(Path(arguments.before), arguments.rounds)
    else:
        with checked_out(arguments.before) as before:
            found = compare(before, arguments.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
