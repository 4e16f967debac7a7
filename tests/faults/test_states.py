"""Faults of the device as a whole that overlap: whatever the order in which they end, the drive is as before then."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from faults.rig import Rig
from nvmeemu.spec import Status
from nvmeemu.testing import INTMS

OVERLAPPING: list[list[Any]] = [
    [{"smart": {"temperature": 360}}, {"smart": {"temperature": 350, "spare": 5}}, {"smart": {"degraded": True}}],
    [{"shrink": 1, "blocks": 16}, {"shrink": 1, "blocks": 8}, {"shrink": 1}],
    [{"shrink": 1, "blocks": 8}, {"vanish": 1}, {"vanish": 1}],
    [{"read_only": 1}, {"read_only": 1}, {"vanish": 1}],
]


def state(rig: Rig) -> tuple[Any, ...]:
    """All that these faults change."""
    device = rig.bench.controller.state
    namespaces = [(one.nsid, one.blocks, one.read_only) for one in device.namespaces]
    health = device.subsystem.health
    return health.temperature, health.spare, health.is_degraded, namespaces


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("actions", OVERLAPPING)
@pytest.mark.kills("a-removed-fault-leaves-its-state")
def test_the_drive_is_as_before_in_the_end(rig: Rig, actions: list[Any], order: tuple[int, ...]) -> None:
    before = state(rig)
    faults = [rig.add(action) for action in actions]
    assert state(rig) != before
    for number in order:
        assert state(rig) != before
        rig.faults.remove(faults[number])
    assert state(rig) == before


@pytest.mark.kills("the-oldest-temperature-counts", "layers-end-in-reverse-order")
def test_the_ones_that_are_left_still_work(rig: Rig) -> None:
    health = rig.bench.subsystem.health
    hot = rig.add({"smart": {"temperature": 360}})
    rig.add({"smart": {"temperature": 350}})
    assert health.temperature == 350  # the newest counts
    rig.faults.remove(hot)
    assert health.temperature == 350
    one = rig.add({"read_only": 1})
    rig.add({"read_only": 1, "seconds": 5})
    rig.faults.remove(one)
    assert rig.run(rig.write()).status == Status.NAMESPACE_WRITE_PROTECTED
    rig.bench.clock.advance(5)
    assert rig.run(rig.write()).status == Status.SUCCESS
    small = rig.add({"shrink": 1, "blocks": 1})
    rig.add({"shrink": 1, "blocks": 2})
    assert rig.run(rig.read(2)).status == Status.LBA_OUT_OF_RANGE
    rig.faults.remove(small)
    assert rig.run(rig.read(2)).status == Status.SUCCESS
    assert rig.run(rig.read(3)).status == Status.LBA_OUT_OF_RANGE


@pytest.mark.kills("layers-undo-what-a-user-did")
def test_what_a_user_changes_meanwhile_stays(rig: Rig) -> None:
    device = rig.bench.controller.state
    fault = rig.add({"shrink": 1, "blocks": 8})
    device.subsystem.resize(1, 100)
    rig.faults.remove(fault)
    assert device.namespaces.by_nsid[1].blocks == 100


def test_read_only_is_about_the_disk_also_while_a_fault_stands_before_it(rig: Rig) -> None:
    rig.add({"delay": 0}, "backend", {"opcode": "read"})
    fault = rig.add({"read_only": 1}, "dma", {"opcode": "read"})
    rig.submit(rig.read())
    rig.later()
    assert rig.run(rig.write()).status == Status.NAMESPACE_WRITE_PROTECTED
    rig.faults.remove(fault)
    assert rig.run(rig.write()).status == Status.SUCCESS


@pytest.mark.parametrize("actions", [["remove", "cfs"], ["cfs", "remove"]])
@pytest.mark.kills("a-pulled-drive-remembers")
def test_a_drive_that_was_pulled_comes_back_as_after_power_on(rig: Rig, actions: list[str]) -> None:
    rig.add(actions, "execute", {"queue": "io"})
    rig.submit(rig.write())
    rig.faults.clear()
    assert not rig.driver.status.cfs
    rig.driver.enable()
    rig.driver.create_queues(1)
    rig.driver.write(0, bytes(512))


@pytest.mark.kills("a-pulled-drive-hears")
def test_nothing_reaches_a_drive_that_was_pulled(rig: Rig) -> None:
    rig.add("remove")
    others = [rig.add("drop", at) for at in ("register", "doorbell", "interrupt")]
    rig.driver.set_reg(INTMS, 1)
    rig.driver.set_reg(0x1008, 1)
    rig.bench.settle()
    assert [fault.seen for fault in others] == [0, 0, 0]
    assert rig.driver.reg(INTMS) == 0xFFFFFFFF


@pytest.mark.parametrize("actions", [["cfs", {"status": "internal_error"}], [{"status": "internal_error"}, "cfs"]])
@pytest.mark.kills("a-fatal-controller-completes")
def test_a_fatal_controller_completes_nothing(rig: Rig, actions: list[Any]) -> None:
    """Not even the command that would have failed for another reason."""
    rig.add(actions, "execute", {"queue": "io"})
    rig.submit(rig.write())
    assert rig.completions() == []
    assert rig.driver.status.cfs
