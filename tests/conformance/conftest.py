"""The controller under test, reached through BAR0 and guest memory only."""

from __future__ import annotations

import pytest

from nvmeemu.testing import Bench, Driver


@pytest.fixture
def bench() -> Bench:
    """Our controller on virtual ports: for what a plain bus cannot do (time, slow disks, memory that goes away)."""
    return Bench()


@pytest.fixture
def manual() -> Bench:
    """The same with a disk whose work the test begins and finishes by hand (``manual.worker.tasks``)."""
    return Bench(manual=True)


@pytest.fixture
def driver(bench: Bench) -> Driver:
    """A driver of an enabled controller, without I/O queues."""
    bench.driver.enable()
    return bench.driver
