"""How many threads the native engine gets: what --io-threads says, or half of the CPUs that the server may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmeemu.app.arguments import MOST_IO_THREADS
from nvmeemu.app.engines import usual_io_threads
from server.process import Serve, run

pytestmark = pytest.mark.long


def threads(serve: Serve, folder: Path, *options: object, **process: object) -> int:
    """Of a server that nobody has connected to."""
    served = serve("--disk", "mem:1M", *options, at=str(folder / f"s{len(list(folder.iterdir()))}"), **process)
    return len(os.listdir(f"/proc/{served.pid}/task"))


@pytest.mark.parametrize("number", [1, 2, 5, MOST_IO_THREADS])
def test_io_threads_are_as_many_as_asked_for(serve: Serve, folder: Path, number: int) -> None:
    without = threads(serve, folder, "--engine", "python")
    assert threads(serve, folder, "--engine", "native", "--io-threads", number) == without + number


def test_by_default_only_the_cpus_that_it_may_use_count(serve: Serve, folder: Path) -> None:
    without = threads(serve, folder, "--engine", "python")
    one_cpu = {min(os.sched_getaffinity(0))}
    assert threads(serve, folder, preexec_fn=lambda: os.sched_setaffinity(0, one_cpu)) == without + 1
    assert threads(serve, folder) == without + usual_io_threads()


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (31, 15), (128, 16), (1024, 16)])
def test_the_default_is_half_of_them_within_bounds(monkeypatch: pytest.MonkeyPatch, cpus: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4 * cpus)
    assert usual_io_threads() == expected


@pytest.mark.parametrize("number", [0, MOST_IO_THREADS + 1])
def test_other_numbers_are_refused(folder: Path, number: int) -> None:
    ended = run("--socket", folder / "s", "--disk", "mem:1M", "--io-threads", number)
    assert ended.returncode == 2
    assert f"is not a number from 1 to {MOST_IO_THREADS}" in ended.stderr
    assert ended.stderr.count("\n") == 1
