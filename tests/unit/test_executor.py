"""What the executor promises beyond the specification: bounds on memory, time and patience."""

from __future__ import annotations

import pytest

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.executor import BATCH_BYTES
from nvmeemu.spec import Abort, AdminOpcode, DeleteQueue, FeatureId, NvmOpcode, ReadWrite, Status
from nvmeemu.subsystem.media import MOST_HELD
from nvmeemu.subsystem.namespace import Namespaces
from nvmeemu.testing import Bench, CommandError, Driver, QueuePair

MIB = 1 << 20
LENGTH = 2 * MIB


class SlowDisk(MemoryBackend):
    """Nothing can be had without waiting."""

    volatile_cache = True
    fails = False

    def read_now(self, offset: int, views: object) -> bool:
        return False

    def write_now(self, offset: int, views: object) -> bool:
        return False

    def flush(self) -> None:
        if self.fails:
            raise OSError(5, "an error")


def slow() -> tuple[Bench, Driver, QueuePair]:
    bench = Bench(SlowDisk(16 * MIB), manual=True)
    bench.driver.enable()
    return bench, bench.driver, bench.driver.create_queues(1, 64)


def transfer(driver: Driver, opcode: NvmOpcode, place: int, length: int = LENGTH) -> ReadWrite:
    prp1, prp2 = driver.prps(place, length)
    return ReadWrite(opcode=opcode, nsid=1, prp1=prp1, prp2=prp2, slba=0, nlb=length // 512)


@pytest.mark.kills("64-mib-are-no-bound", "all-disks-hold-what-one-may")
def test_what_commands_may_hold_is_64_mib_a_disk_and_1_gib_in_all() -> None:
    assert [Namespaces(nn).most_held // MIB for nn in (1, 16, 64, 255)] == [64, 64, 16, 4]


@pytest.mark.kills("no-bound-on-what-workers-hold")
def test_workers_hold_a_bounded_amount_of_memory_and_the_queue_goes_on_when_there_is_room() -> None:
    bench, driver, queue = slow()
    place = driver.alloc(LENGTH)
    for _ in range(60):
        driver.submit(queue, transfer(driver, NvmOpcode.WRITE, place))
    assert len(bench.worker.tasks) == MOST_HELD // LENGTH
    done = 0
    while bench.worker.tasks:
        bench.worker.tasks[0].finish()
        bench.settle()
        assert len(bench.worker.tasks) <= MOST_HELD // LENGTH
        done += len(driver.drain(queue))
    assert done == 60


def test_what_was_read_and_waits_for_guest_memory_counts_as_held() -> None:
    bench, driver, queue = slow()
    place = 0x10000000
    bench.map(place, bytearray(LENGTH))
    for _ in range(60):
        driver.submit(queue, transfer(driver, NvmOpcode.READ, place))
    bench.unmap(place)
    begun = len(bench.worker.tasks)
    bench.worker.finish_all()
    bench.settle()
    assert begun == MOST_HELD // LENGTH
    assert not bench.worker.tasks  # nothing more was begun
    bench.clock.advance(1.0)
    bench.settle()
    assert driver.drain(queue)  # they failed, and made room


def test_the_patience_with_missing_memory_does_not_begin_anew_at_each_change_of_the_map() -> None:
    bench, driver, queue = slow()
    driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=0xDEAD0000, slba=0, nlb=1))
    for _ in range(10):
        bench.clock.advance(0.05)
        bench.map(0x40000000, bytearray(4096))
        bench.unmap(0x40000000)
        bench.settle()
    assert [one.status for one in driver.drain(queue)] == [Status.DATA_TRANSFER_ERROR]


def test_a_deletion_that_waits_cannot_be_aborted() -> None:
    """The queue is gone already: "aborted" would be a lie."""
    bench, driver, queue = slow()
    driver.submit(queue, transfer(driver, NvmOpcode.WRITE, driver.alloc(512), 512))
    bench.worker.tasks[0].run()
    cid = driver.submit(driver.admin, DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=1))
    answer = driver.execute(driver.admin, Abort(opcode=AdminOpcode.ABORT, sqid=0, target_cid=cid))
    assert answer.dw0 == 1
    bench.worker.finish_all()
    bench.settle()
    assert [(one.cid, one.status) for one in driver.drain(driver.admin)] == [(cid, Status.SUCCESS)]


def test_a_write_cache_that_cannot_be_flushed_stays_on() -> None:
    backend = SlowDisk(16 * MIB)
    bench = Bench(backend)
    driver = bench.driver
    driver.enable()
    backend.fails = True
    with pytest.raises(CommandError, match="WRITE_FAULT"):
        driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    assert driver.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 1
    backend.fails = False
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    assert driver.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 0


def test_a_batch_moves_a_bounded_amount_and_the_admin_queue_does_not_wait_for_the_others() -> None:
    bench = Bench(MemoryBackend(16 * MIB), ram=32 * MIB)
    driver = bench.driver
    driver.enable()
    pairs = [driver.create_queues(qid, 32) for qid in range(1, 5)]
    place = driver.alloc(LENGTH)
    for pair in pairs:
        for _ in range(20):
            driver.submit(pair, transfer(driver, NvmOpcode.READ, place), ring=False)
    for pair in pairs:
        bench.controller.write(0x1000 + 8 * pair.qid, pair.sq_tail.to_bytes(4, "little"))
    batches = 0
    while bench.controller.run():
        batches += 1
    assert batches >= 80 * LENGTH // (BATCH_BYTES + LENGTH)
    assert sum(len(driver.drain(pair)) for pair in pairs) == 80
