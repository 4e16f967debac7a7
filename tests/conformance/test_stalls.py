"""A disk that stalls holds up its own commands and nothing else, whatever queue they are in. Base 1.4, 4.1: commands of
one queue may be executed in any order."""

from __future__ import annotations

import pytest

from conformance.tools import NewBench, TellingBackend, read_command, write_command
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import Abort, AdminOpcode, DeleteQueue, NvmOpcode, ReadWrite, Status
from nvmeemu.subsystem.media import MOST_HELD
from nvmeemu.testing import Bench, Driver, QueuePair

MIB = 1 << 20
LENGTH = 2 * MIB
FIT = MOST_HELD // LENGTH  # commands that a disk has at once
WAITING = 8  # and more
STALLED, MEMORY, OTHER = 1, 2, 3  # namespaces


@pytest.fixture
def stalled(new_bench: NewBench) -> Bench:
    """Namespace 1 does not answer, and has more than it is given at once, all in one queue."""
    bench = new_bench(TellingBackend(16 * MIB), manual=True, ram=32 * MIB)
    bench.namespaces.add(bench.namespace(MEMORY, MemoryBackend(MIB), identity="memory"))
    bench.namespaces.add(bench.namespace(OTHER, TellingBackend(16 * MIB), identity="other"))
    driver = bench.driver
    driver.enable()
    send(driver, driver.create_queues(1, 256), STALLED)
    return bench


def send(driver: Driver, queue: QueuePair, nsid: int, opcode: NvmOpcode = NvmOpcode.WRITE) -> list[int]:
    prp1, prp2 = driver.prps(driver.alloc(LENGTH), LENGTH)
    commands = [
        ReadWrite(opcode=opcode, nsid=nsid, prp1=prp1, prp2=prp2, nlb=LENGTH // 512) for _ in range(FIT + WAITING)
    ]
    cids = [driver.submit(queue, command, ring=False) for command in commands]
    driver.ring_sq(queue)
    driver.bus.settle()
    return cids


@pytest.mark.fact("A17", clause="Base 1.4, 4.1", kills=("one-budget-for-all-disks",))
def test_what_is_for_other_disks_goes_on_behind_it_in_the_same_queue(stalled: Bench) -> None:
    driver, queue = stalled.driver, stalled.driver.queues[1]
    assert len(stalled.worker.tasks) == FIT
    for slba in range(20):
        driver.write(slba, bytes([slba]) * 512, nsid=MEMORY)
        assert driver.read(slba, 1, nsid=MEMORY) == bytes([slba]) * 512
    others = set(send(driver, queue, OTHER))
    assert len(stalled.worker.tasks) == 2 * FIT  # as many as if there were no other
    while len(stalled.worker.tasks) > FIT:
        stalled.worker.tasks[-1].finish()
        stalled.settle()
    assert {completion.cid for completion in driver.drain(queue)} == others
    stalled.worker.finish_all()
    stalled.settle()
    stalled.worker.finish_all()
    stalled.settle()
    assert [completion.status for completion in driver.drain(queue)] == [Status.SUCCESS] * (FIT + WAITING)
    assert not stalled.controller.is_busy


@pytest.mark.parametrize("has_msix", [True, False])
def test_the_interrupt_of_other_disks_comes(stalled: Bench, has_msix: bool) -> None:
    driver = stalled.driver
    queue = driver.create_queues(2, vector=2)
    stalled.ram.msix_enabled = has_msix
    stalled.controller.interrupts_changed()
    stalled.settle()
    driver.drain(driver.admin)
    stalled.settle()
    stalled.ram.interrupts.clear()
    assert not stalled.ram.pin_level
    driver.submit(queue, read_command(driver.alloc(512), nsid=MEMORY))
    stalled.settle()
    assert stalled.ram.pin_level != has_msix
    assert stalled.ram.interrupts == ([2] if has_msix else [])
    assert driver.poll(queue) is not None
    stalled.settle()
    assert not stalled.ram.pin_level


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("what-waits-for-a-disk-is-kept",))
def test_the_admin_queue_goes_on_and_aborts_what_waits(stalled: Bench) -> None:
    driver, queue = stalled.driver, stalled.driver.queues[1]
    assert len(driver.identify(1)) == 4096
    last = max(queue.outstanding)
    for cid in range(last - WAITING + 1, last + 1):
        assert driver.succeed(driver.admin, Abort(opcode=AdminOpcode.ABORT, sqid=1, target_cid=cid)).dw0 == 0
    completions = driver.drain(queue)
    assert len(completions) == WAITING
    assert {completion.status for completion in completions} == {Status.ABORT_REQUESTED}
    stalled.worker.finish_all()
    stalled.settle()
    assert not stalled.worker.tasks
    assert len(driver.drain(queue)) == FIT
    assert isinstance(stalled.backend, TellingBackend)
    assert stalled.backend.names == ["write"] * FIT


def test_what_waits_for_a_namespace_that_is_taken_away_fails(stalled: Bench) -> None:
    """And what is for its successor of the same NSID does not wait for the disk that is gone."""
    driver, queue = stalled.driver, stalled.driver.queues[1]
    stalled.controller.state.subsystem.remove(STALLED)
    stalled.settle()
    completions = driver.drain(queue)
    assert [completion.status for completion in completions] == [Status.INVALID_FIELD] * WAITING
    new = stalled.namespace(STALLED, TellingBackend(16 * MIB), identity="new")
    stalled.controller.state.subsystem.add(new)
    send(driver, queue, STALLED)
    assert len(stalled.worker.tasks) == 2 * FIT
    stalled.worker.finish_all()
    stalled.settle()
    stalled.worker.finish_all()
    stalled.settle()
    assert [completion.status for completion in driver.drain(queue)] == [Status.SUCCESS] * (2 * FIT + WAITING)


@pytest.mark.parametrize("end", ["reset", "deletion"])
def test_what_waits_is_not_begun_after_the_end_of_its_queue(stalled: Bench, end: str) -> None:
    driver, queue = stalled.driver, stalled.driver.queues[1]
    running = stalled.worker.tasks[0]
    running.run()
    if end == "reset":
        stalled.controller.reset()
    else:
        driver.submit(driver.admin, DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=1))
    running.finish()
    stalled.settle()
    assert not stalled.worker.tasks
    assert isinstance(stalled.backend, TellingBackend)
    assert stalled.backend.names == ["write"]
    if end == "deletion":
        aborted = [one for one in driver.drain(queue) if one.status == Status.ABORTED_SQ_DELETION]
        assert len(aborted) == FIT + WAITING - 1
    driver.enable()
    driver.succeed(driver.create_queues(1), write_command(driver.alloc(512), nsid=MEMORY))
