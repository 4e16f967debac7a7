"""Any two actions in one fault: whatever they do to the drive, it goes on, and it works again without them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import product
from typing import Any

import pytest

from nvmeemu.faults import Fault, FaultError, Faults
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.places import PLACES, At
from nvmeemu.testing import Bench, CommandError

pytestmark = pytest.mark.long

SOME = 40  # of each place's pairs; all of them take half a minute of a core
ARGUMENTS: dict[str, Any] = {
    "status": "internal_error",
    "delay": 0.01,
    "torn": 3,
    "error": "EIO",
    "rdy": 0,
    "slow_rdy": 0.1,
    "smart": {"spare": 1},
    "flood": 3,
}


def written(action: str, at: At) -> dict[str, Any]:
    if action == "set":
        return {"set": {"value": 3} if at in (At.REGISTER, At.DOORBELL) else {"cid": 3}}
    return {action: ARGUMENTS.get(action, True)}


def pairs(at: At) -> Iterator[Fault]:
    """Those that make sense there."""
    for names in product(ACTIONS, repeat=2):
        with suppress(FaultError):
            yield Fault(at=at, do=[written(name, at) for name in names])


def use(bench: Bench) -> Iterator[Callable[[], object]]:
    """What a host does with a drive, and with one that does not answer."""
    nvme = bench.driver
    yield lambda: nvme.write(0, bytes(4096))
    yield lambda: nvme.read(0, 8)
    yield lambda: nvme.identify(1)
    yield lambda: bench.clock.advance(1)
    yield bench.settle
    yield nvme.enable
    yield lambda: nvme.create_queues(1)
    yield lambda: nvme.write(0, bytes(512))
    yield lambda: bench.clock.advance(2)


@pytest.mark.parametrize("at", PLACES)
def test_the_drive_survives_them_and_works_again(at: At) -> None:
    faults = list(pairs(at))
    for fault in random.Random(at).sample(faults, min(SOME, len(faults))):
        with closing(Bench()) as bench:
            bench.driver.enable()
            bench.driver.create_queues(1)
            armed = Faults(bench.controller, seed=1)
            armed.add(fault)
            for act in use(bench):
                with suppress(
                    TimeoutError, CommandError, AssertionError, LookupError
                ):  # the host sees that it is broken
                    act()
            armed.clear()
            bench.controller.reset()  # a fatal error lasts until a reset
            bench.driver.enable()
            bench.driver.create_queues(1)
            bench.driver.write(0, b"w" * 512)
            assert bench.driver.read(0, 1) == b"w" * 512, fault
