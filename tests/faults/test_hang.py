"""A hung controller fetches nothing and completes nothing; when it goes on, all is done that was asked of it."""

from __future__ import annotations

from typing import Any

import pytest

from faults.rig import BLOCK, GUARD, NEW, OLD, Rig
from nvmeemu.faults.places import OF_COMMANDS
from nvmeemu.spec import AdminOpcode, Command, NvmOpcode, Status

WRITES = {"opcode": "write"}
READS = {"opcode": "read"}


def flush() -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=1)


def cids(completions: list[Any]) -> list[int]:
    return [one.cid for one in completions]


@pytest.mark.kills("what-is-rung-while-hung-is-lost")
def test_what_is_rung_while_it_hangs_runs_afterwards(rig: Rig) -> None:
    rig.add({"hang": True, "seconds": 5})
    sent = [rig.submit(rig.write()) for _ in range(3)]
    keep_alive = rig.submit(Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST), rig.driver.admin)
    assert rig.later(4.9) == []
    assert rig.disk() == OLD * BLOCK
    assert cids(rig.later(0.1)) == sent
    assert rig.disk() == NEW * BLOCK
    rig.heat()
    assert cids(rig.completions(rig.driver.admin)) == [keep_alive]


@pytest.mark.kills("a-hung-device-goes-on-fetching")
def test_nothing_more_is_fetched_of_what_was_rung_before(rig: Rig) -> None:
    """Three are rung at once, and the first one hangs the device."""
    rig.add({"hang": True, "seconds": 5}, "execute", WRITES, nth=1)
    writes = [rig.driver.submit(rig.queue, rig.write(), ring=False) for _ in range(3)]
    rig.driver.ring_sq(rig.queue)
    rig.bench.settle()
    assert rig.bench.controller.state.sqs[1].server.head == 2  # behind the write before, and this one
    assert rig.completions() == []
    assert cids(rig.later(5)) == writes
    assert rig.bench.controller.state.sqs[1].server.tail == 4


@pytest.mark.parametrize("at", OF_COMMANDS)
@pytest.mark.kills("the-command-that-hangs-it-is-lost", "a-hang-never-goes-on", "a-hung-device-completes")
def test_the_command_that_sets_it_off_goes_on_too(at: str, rig: Rig) -> None:
    fault = rig.add({"hang": True, "seconds": 5}, at, READS, nth=1)
    cid = rig.submit(rig.read())
    assert rig.later(4.9) == []
    (completion,) = rig.later(0.1)
    assert (completion.cid, completion.status, fault.hits) == (cid, Status.SUCCESS, 1)
    assert rig.got() == OLD * BLOCK


@pytest.mark.kills("data-moves-while-hung")
def test_no_data_moves_while_it_hangs(rig: Rig) -> None:
    rig.add("hang", "dma", READS, nth=1)
    rig.submit(rig.read())
    assert rig.got() == GUARD * BLOCK
    rig.faults.clear()
    rig.bench.settle()
    assert len(rig.completions()) == 1
    assert rig.got() == OLD * BLOCK


@pytest.mark.kills("data-moves-while-hung")
def test_what_the_disk_brings_meanwhile_waits(rig: Rig) -> None:
    """The disk answers while the device hangs: a read's data and its completion come afterwards."""
    rig.add({"delay": 0}, "backend", READS)
    rig.bench.is_manual = True
    rig.submit(rig.read())
    rig.bench.clock.advance(0)
    rig.add({"hang": True, "seconds": 5})
    rig.bench.is_manual = False
    assert rig.later(4) == []
    assert rig.got() == GUARD * BLOCK
    assert [one.status for one in rig.later(1)] == [Status.SUCCESS]
    assert rig.got() == OLD * BLOCK


def test_when_the_fault_is_removed_all_goes_on(rig: Rig) -> None:
    fault = rig.add("hang")
    cid = rig.submit(rig.write())
    assert rig.completions() == []
    rig.faults.remove(fault)
    rig.bench.settle()
    assert cids(rig.completions()) == [cid]


def test_of_two_hangs_the_later_end_counts(rig: Rig) -> None:
    for seconds in (2, 5):
        rig.add({"hang": True, "seconds": seconds})
    cid = rig.submit(rig.write())
    assert rig.later(4.9) == []
    assert cids(rig.later(0.1)) == [cid]


@pytest.mark.kills("a-reset-completes-what-was-held")
def test_a_reset_drops_what_waits(rig: Rig) -> None:
    """What is not fetched, what has begun, and a completion."""
    rig.add({"delay": 1}, "completion", {"opcode": "flush"})
    rig.submit(flush())
    rig.add({"hang": True, "seconds": 5}, "execute", WRITES, nth=1)
    for _ in range(3):
        rig.submit(rig.write())
    assert rig.later(1) == []
    before = rig.queue
    rig.driver.enable()
    assert rig.completions(before) == []
    rig.queue = rig.driver.create_queues(1)
    assert rig.run(rig.read()).status == Status.SUCCESS
    assert rig.later(10) == []
    assert rig.disk() == OLD * BLOCK


def test_a_delay_that_ends_meanwhile_is_told_afterwards(rig: Rig) -> None:
    rig.add({"delay": 1}, "completion", {"opcode": "flush"})
    cid = rig.submit(flush())
    rig.add({"hang": True, "seconds": 5})
    assert rig.later(4) == []
    assert cids(rig.later(1)) == [cid]


def test_a_full_queue_that_waits_goes_on(rig: Rig) -> None:
    """More than the queue holds, half of it before the hang."""
    rig.add({"hang": True, "seconds": 5}, "execute", {"opcode": "flush"}, nth=30)
    sent = [rig.driver.submit(rig.queue, flush(), ring=False) for _ in range(60)]
    rig.driver.ring_sq(rig.queue)
    rig.bench.settle()
    got = cids(rig.completions())
    assert got == sent[:29]
    assert got + cids(rig.later(5)) == sent
