"""The controller under test, reached through BAR0 and guest memory only.

``pytest tests/conformance --judge`` runs the tests that need nothing else against QEMU's own controller: it judges
our tests. What it does otherwise is in judge.toml, each with who is right; anything else that fails there is news. A
test skips itself, with the reason, where a controller lacks what it is about: what QEMU's lacks is in judge.toml, too.

Every other run has all tests of our controller on both data paths: the parameter ``engine`` of ``new_bench``, of which
the other fixtures are made. Where a test looks at the disk's work or holds it up, the disk is one that the engine does
not reach (``tools.TellingBackend``): the engine fetches the commands and posts their completions, Python executes them.
The few tests for one path are in ONE_PATH; any other cannot be collected.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conformance.judge import QemuNvme
from conformance.tools import Advance, Disks, DriverOf, NewBench, TellingBackend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.taps import Interceptor, Observer
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
    "stalls",
)
HERE = Path(__file__).parent
ABSENT = pytest.StashKey[set[str]]()  # the cases that are about what QEMU's controller does not have


class OnePath(NamedTuple):
    why: str
    instead: str  # the test of the other path, below tests/; empty: it is about no path


ONE_PATH = {
    "test_shadow.py::test_a_tail_that_moves_just_before_the_question_is_seen": OnePath(
        "the host acts in the controller's barrier, which is no call in C",
        "conformance/test_shadow.py::test_no_wake_up_is_lost_in_any_order_of_accesses",
    ),
    "test_namespace_management.py::test_more_changes_than_the_list_holds": OnePath(
        "thousands of namespaces; the list is built and read by the admin queue, which is Python's with every engine",
        "conformance/test_namespace_management.py::test_attach_and_detach_are_told_to_those_whose_list_changes",
    ),
    "test_mutants.py::test_every_mutant_is_killed_by_every_test_that_names_it": OnePath(
        "mutants of the Python code", "native/test_mutants.py::test_every_mutant_of_the_engine_is_killed"
    ),
    "test_mutants.py::test_the_runner_tells_what_is_wrong": OnePath("a tool", ""),
    "test_judge.py::test_qemus_own_controller_passes_but_for_the_differences_that_are_listed": OnePath(
        "another controller", ""
    ),
    "test_judge.py::test_the_page_of_differences_is_up_to_date": OnePath("a document", ""),
    "test_paths.py::test_what_is_listed_and_what_stands_for_it_is_there": OnePath("this table", ""),
    "test_paths.py::test_no_test_makes_its_controller_itself": OnePath("this table", ""),
    "test_paths.py::test_a_test_for_one_path_cannot_be_collected_unless_it_is_listed": OnePath("this table", ""),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tapped", action="store_true", help="with an observer and an interceptor that do nothing")
    parser.addoption("--judge", action="store_true", help="test QEMU's own NVMe controller (tests/conformance)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--judge", default=False):
        return
    listed = tomllib.loads((HERE / "judge.toml").read_text())
    differences = {entry["test"]: entry for entry in listed["difference"]}
    config.stash[ABSENT] = {name for entry in listed["absent"] for name in entry["tests"]}
    kept = []
    for item in items:
        if not isinstance(item, pytest.Function) or not is_judged(item):
            continue
        name = f"{item.path.name}::{item.name}"
        entry = differences.get(name) or differences.get(name.partition("[")[0])
        if entry is not None:
            item.add_marker(pytest.mark.xfail(reason=entry["why"], strict=True))
        kept.append(item)
    files = {item.path.name for item in items}
    here = {name for name in (*differences, *config.stash[ABSENT]) if name.partition("::")[0] in files}
    names = {f"{item.path.name}::{item.name}" for item in kept}
    missing = here - names - {name.partition("[")[0] for name in names}
    if missing and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"judge.toml names tests that are not there: {', '.join(sorted(missing))}")
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What QEMU's controller lacks is as listed: no other test skips itself there, and none that is listed passes."""
    report = yield
    absent = item.config.stash.get(ABSENT, None)
    if absent is not None and report.when == "call":
        is_skipped = report.skipped and not hasattr(report, "wasxfail")
        if is_skipped != (f"{item.path.name}::{item.name}" in absent):
            why = f"skipped ({report.longrepr})" if is_skipped else "judged"
            report.outcome, report.longrepr = "failed", f"it was {why}, and judge.toml says otherwise ([[absent]])"
    return report


def is_judged(item: pytest.Function) -> bool:
    """Whether the test needs nothing but what every controller has: its fixtures are made of ``driver_of``, and it
    takes no controller of ours beside. Our data paths are nothing to QEMU: one case of them is enough."""
    is_first = not hasattr(item, "callspec") or item.callspec.params.get("engine", "python") == "python"
    return is_first and "driver_of" in item.fixturenames and "new_bench" not in item.fixturenames


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of our controller runs on both data paths, and where doorbells matter with mapped ones, too."""
    if metafunc.config.getoption("--judge", default=False):
        return
    chosen = [mark.args[1] for mark in metafunc.definition.iter_markers("parametrize") if mark.args[0] == "engine"]
    if "engine" in metafunc.fixturenames and not chosen:
        has_mapped = metafunc.module.__name__.rpartition("test_")[2] in RINGING
        metafunc.parametrize("engine", ["python", "native", *(["mapped"] if has_mapped else [])], indirect=True)
    is_on_both = "engine" in metafunc.fixturenames and all({"python", "native"} <= set(engines) for engines in chosen)
    name = f"{metafunc.definition.path.name}::{metafunc.function.__name__}"
    if is_on_both == (name in ONE_PATH):
        where = "both paths, and is in ONE_PATH" if is_on_both else "one path: take new_bench, or list it in ONE_PATH"
        pytest.fail(f"{name} runs on {where} (tests/conformance/conftest.py)", pytrace=False)


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
            bench.namespaces.add(bench.namespace(nsid, MemoryBackend(size), block_size, identity=f"disk {nsid}"))
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
