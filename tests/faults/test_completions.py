"""Faults of completions: with a wrong queue, in a full queue, or with the identifier of another command."""

from __future__ import annotations

from typing import Any

import pytest

from faults.rig import BLOCK, OLD, Rig
from nvmeemu.spec import Command, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import QueuePair

FLUSH = {"opcode": "flush"}
READS = {"opcode": "read"}


def flush() -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=1)


def small(rig: Rig) -> QueuePair:
    """Queue 3: its completion queue has room for three."""
    cq = rig.driver.create_cq(3, 4, vector=1)
    rig.driver.queues[3] = QueuePair(3, rig.driver.create_sq(3, 16), cq, 16, 4)
    return rig.driver.queues[3]


def overfill(rig: Rig, queue: QueuePair) -> list[int]:
    """Six commands that are all under way before the first one ends: three completions find no room."""
    rig.add({"delay": 1}, "execute", {**FLUSH, "queue": 3})
    sent = [rig.submit(flush(), queue) for _ in range(6)]
    rig.later()
    return sent


@pytest.mark.parametrize("do", [{"wrong_sqhd": 9}, {"set": {"sqhd": 9}}])
def test_the_wrong_head_is_told_by_those_that_wait_too(do: Any, rig: Rig) -> None:
    queue = small(rig)
    rig.add(do, "completion", FLUSH)
    sent = overfill(rig, queue)
    found = rig.completions(queue)
    rig.bench.settle()
    found += rig.completions(queue)
    assert [(one.cid, one.sqhd, one.sqid) for one in found] == [(cid, 9, 3) for cid in sent]


@pytest.mark.parametrize("do", [{"wrong_sqhd": 9}, {"set": {"sqhd": 9}}, {"set": {"dw0": 9}}, "duplicate"])
@pytest.mark.kills("completions-of-a-deleted-queue")
def test_nothing_of_a_deleted_queue_waits_for_room(do: Any, rig: Rig) -> None:
    queue = small(rig)
    rig.add(do, "completion", {**FLUSH, "queue": 3})
    overfill(rig, queue)
    assert rig.driver.delete_sq(3).status == Status.SUCCESS
    assert len(rig.completions(queue)) == 3
    rig.bench.settle()
    assert rig.completions(queue) == []


@pytest.mark.parametrize("do", [{"delay": 1}, {"reorder": True, "within": 1}])
@pytest.mark.kills("late-completions-of-a-deleted-queue")
def test_what_is_late_of_a_deleted_queue_is_void(do: Any, rig: Rig) -> None:
    rig.add(do, "completion", FLUSH)
    rig.submit(flush())
    assert rig.driver.delete_sq(1).status == Status.SUCCESS
    assert rig.later() == []
    queue = rig.queue
    queue.sq, queue.sq_tail = rig.driver.create_sq(1), 0
    rig.faults.clear()
    cid = rig.submit(flush(), queue)
    assert [one.cid for one in rig.completions()] == [cid]


@pytest.mark.parametrize("do", [{"corrupt": "ones"}, {"torn": 100}, "drop"])
def test_two_commands_with_one_cid_each_have_their_faults(do: Any, rig: Rig) -> None:
    """A hit is one that the host sees, whatever it does with its identifiers."""
    fault = rig.add(do, "dma", READS)
    rig.add({"delay": 1}, "backend", READS)  # both are under way at once
    places = [rig.driver.alloc(4096) for _ in range(2)]
    for place in places:
        rig.driver.bus.write_memory(place, b"g" * BLOCK)
        rig.submit(ReadWrite(opcode=NvmOpcode.READ, cid=77, nsid=1, prp1=place, slba=0, nlb=1))
    assert [one.cid for one in rig.later()] == [77, 77]
    assert fault.hits == 2
    found = [rig.driver.bus.read_memory(place, BLOCK) for place in places]
    assert found[0] == found[1] != OLD * BLOCK


def test_a_completion_is_that_of_its_command(rig: Rig) -> None:
    """Of two with one CID, the fault is about the first one, which ends last."""
    fault = rig.add({"status": "internal_error"}, "completion", READS)
    rig.add({"delay": 1}, "execute", READS)
    read, other = rig.read(), flush()
    read.cid = other.cid = 77
    rig.submit(read)
    assert rig.run(other).status == Status.SUCCESS
    assert fault.hits == 0
    assert [one.status for one in rig.later()] == [Status.INTERNAL_ERROR]
    assert fault.hits == 1


def test_faults_of_commands_that_had_begun_before(rig: Rig) -> None:
    """A fault that is added meets what completes from then on."""
    rig.add({"delay": 1}, "execute", READS)
    rig.submit(rig.read())
    rig.faults.add({"match": READS, "at": "completion", "do": {"status": "internal_error"}})
    assert [one.status for one in rig.later()] == [Status.INTERNAL_ERROR]
