"""The controller under test, reached through BAR0 and guest memory only.

``pytest tests/conformance --judge`` runs the tests that need nothing else against QEMU's own controller: it judges
our tests. What it does otherwise is in judge.toml, each with who is right; anything else that fails there is news.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance.judge import QemuNvme
from conformance.tools import Advance, Disks, DriverOf, NewBench, TellingBackend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.namespace import Namespace
from nvmeemu.taps import Interceptor, Observer
from nvmeemu.testing import Bench, Bus, Driver

DISK = 16 << 20
RINGING = (
    "abort",
    "doorbells",
    "enable",
    "events",
    "interrupts",
    "memory",
    "queue_creation",
    "queues",
    "reset",
    "shadow",
    "shutdown",
)
HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tapped", action="store_true", help="with an observer and an interceptor that do nothing")
    parser.addoption("--judge", action="store_true", help="test QEMU's own NVMe controller (tests/conformance)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--judge", default=False):
        return
    differences = {entry["test"]: entry for entry in tomllib.loads((HERE / "judge.toml").read_text())["difference"]}
    known = {name.partition("[")[0] for name in differences}
    kept = []
    for item in items:
        if not isinstance(item, pytest.Function) or not is_judged(item):
            continue
        name = f"{item.path.name}::{item.name}"
        entry = differences.get(name) or differences.get(name.partition("[")[0])
        if entry is not None:
            item.add_marker(pytest.mark.xfail(reason=entry["why"], strict="[" in entry["test"] or "[" not in name))
        kept.append(item)
    missing = known - {f"{item.path.name}::{item.name.partition('[')[0]}" for item in kept}
    if missing and len(items) > len(kept) > 100:
        raise pytest.UsageError(f"judge.toml names tests that are not there: {', '.join(sorted(missing))}")
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def is_judged(item: pytest.Function) -> bool:
    """Whether the test needs nothing but what every controller has: its fixtures are made of ``driver_of``, and it
    takes no controller of ours beside."""
    return "driver_of" in item.fixturenames and "new_bench" not in item.fixturenames


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of our controller runs on both data paths, and where doorbells matter with mapped ones, too."""
    chosen = any(mark.args[0] == "engine" for mark in metafunc.definition.iter_markers("parametrize"))
    if "engine" in metafunc.fixturenames and not chosen and not metafunc.config.getoption("--judge", default=False):
        engines = [
            "python",
            "native",
            *(["mapped"] if metafunc.module.__name__.rpartition("test_")[2] in RINGING else []),
        ]
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """Who serves reads and writes: ``python``, ``native``, or ``mapped``: native, with mapped doorbells."""
    return str(getattr(request, "param", "python"))


@pytest.fixture
def new_bench(engine: str, request: pytest.FixtureRequest) -> Iterator[NewBench]:
    """Makes our controller on virtual ports, as ``Bench`` does; it ends with the test."""
    with ExitStack() as stack:

        def make(*arguments: Any, **named: Any) -> Bench:
            bench = stack.enter_context(Bench(*arguments, engine=engine, **named))
            _tap(bench, request)
            return bench

        yield make


@pytest.fixture
def bench(new_bench: NewBench) -> Bench:
    """The usual one: for what a plain bus cannot do (time, memory that goes away)."""
    return new_bench()


@pytest.fixture
def slow(new_bench: NewBench) -> Bench:
    """An enabled controller on a disk whose work the test begins and finishes by hand (``slow.worker.tasks``)."""
    bench = new_bench(TellingBackend(), manual=True)
    bench.driver.enable()
    return bench


def _tap(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Let everything pass through taps that change nothing, if that is wanted."""
    if request.config.getoption("--tapped", default=False):
        bench.controller.observe(Observer())
        bench.controller.intercept(Interceptor())
        bench.controller.serve_in_python(lambda qid: True)


@pytest.fixture
def driver_of(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> Iterator[DriverOf]:
    """Makes a driver of a controller with these disks, NSID 1 among them, that has never been enabled."""

    def qemu(disks: Disks) -> Bus:
        images = {}
        for nsid, (size, block_size) in disks.items():
            image = tmp_path / f"disk{nsid}"
            image.touch()
            os.truncate(image, size)
            images[nsid] = (image, block_size)
        return stack.enter_context(QemuNvme(images))

    def ours(disks: Disks) -> Bus:
        size, block_size = disks[1]
        bench: Bench = request.getfixturevalue("new_bench")(MemoryBackend(size), block_size=block_size)
        for nsid in disks.keys() - {1}:
            size, block_size = disks[nsid]
            bench.namespaces.add(Namespace(nsid, MemoryBackend(size), block_size, identity=f"disk {nsid}"))
        return bench

    with ExitStack() as stack:
        make = qemu if request.config.getoption("--judge", default=False) else ours
        yield lambda disks: Driver(make(disks))


@pytest.fixture
def fresh(request: pytest.FixtureRequest, driver_of: DriverOf) -> Driver:
    """A driver of a controller that has never been enabled. Ours is the one of ``bench``, if a test takes both."""
    if request.config.getoption("--judge", default=False):
        return driver_of({1: (DISK, 512)})
    bench: Bench = request.getfixturevalue("bench")
    return bench.driver


@pytest.fixture
def driver(fresh: Driver) -> Driver:
    """A driver of an enabled controller, without I/O queues."""
    fresh.enable()
    return fresh


@pytest.fixture
def advance(fresh: Driver) -> Advance:
    """Lets seconds of virtual time pass for the controller of ``fresh`` and ``driver``."""
    bus = fresh.bus
    if isinstance(bus, QemuNvme):
        return bus.advance
    assert isinstance(bus, Bench)

    def ours(seconds: float) -> None:
        bus.clock.advance(seconds)
        bus.settle()

    return ours
