"""What the fuzzer (``fuzz/``) has found: hosts that are hasty, wrong or malicious, and guests whose memory moves."""

from __future__ import annotations

import pytest

from conformance.tools import Advance, flush_command, read_command
from nvmeemu.controller.executor import MOST_OUTSTANDING
from nvmeemu.spec import (
    SHST_COMPLETE,
    SHST_NORMAL,
    AdminOpcode,
    Command,
    Configuration,
    DeleteQueue,
    GetFeatures,
    Status,
)
from nvmeemu.testing import CC, Bench, CommandError, Driver


@pytest.fixture
def slow(slow: Bench) -> Bench:
    """With one queue pair."""
    slow.driver.create_queues(1)
    return slow


def shut_down(driver: Driver, shn: int) -> None:
    driver.set_reg(CC, int(Configuration.of(driver.reg(CC))) & ~0xC000 | shn << 14)


def test_the_admin_queue_goes_on_when_its_completion_queue_has_room_again(driver: Driver) -> None:
    """No doorbell of the submission queue follows: the head of the completion queue must wake it."""
    driver.enable(asqs=16, acqs=2)
    for _ in range(5):
        driver.submit(driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=7), ring=False)
    driver.ring_sq(driver.admin)
    for _ in range(5):
        assert driver.poll(driver.admin) is not None


def test_a_shutdown_while_disabled_does_not_stand_in_the_way_of_the_next(fresh: Driver) -> None:
    for shn in (1, 2):
        fresh.disable()
        shut_down(fresh, shn)
        assert fresh.status.shst == SHST_COMPLETE
        fresh.enable()
        assert fresh.status.shst == SHST_NORMAL
        shut_down(fresh, shn)
        assert fresh.status.shst == SHST_COMPLETE


def test_nothing_completes_after_a_shutdown(driver: Driver, advance: Advance) -> None:
    """Completions that waited for room are dropped: the host may have given the memory away."""
    driver.enable(acqs=2)
    gone = 1 << 40
    # Waits for its memory, while the next command takes the only free entry.
    driver.submit(driver.admin, Command(opcode=AdminOpcode.IDENTIFY, prp1=gone, cdw10=1))
    driver.submit(driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=7))
    shut_down(driver, 1)
    advance(0.2)
    assert driver.status.shst == SHST_COMPLETE
    before = driver.bus.read_memory(driver.admin.cq, 32)
    driver.poll(driver.admin)
    assert driver.bus.read_memory(driver.admin.cq, 32) == before


def test_the_pin_takes_over_when_msix_is_turned_off(bench: Bench) -> None:
    """A completion that the host has not consumed asserts it, though its message was sent (Base 1.4, 7.5.1)."""
    driver = bench.driver
    driver.enable()
    driver.submit(driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=7))
    assert bench.ram.interrupts == [0]
    bench.ram.msix_enabled = False
    bench.settle()
    assert bench.ram.pin_level
    bench.ram.msix_enabled = True
    bench.settle()
    assert not bench.ram.pin_level


@pytest.mark.parametrize("end", ["reset", "disable", "delete"])
def test_no_view_of_a_queue_outlives_it(slow: Bench, end: str) -> None:
    """A worker may keep the queue's last commands for long; the VMM may unmap its memory meanwhile."""
    driver = slow.driver
    driver.submit(driver.queues[1], read_command(driver.alloc(4096)))
    slow.worker.tasks[0].run()
    task = slow.worker.tasks[0]
    if end == "reset":
        slow.controller.reset()
    elif end == "disable":
        driver.set_reg(CC, 0)
    else:
        assert driver.delete_sq(1).status == Status.SUCCESS
        assert driver.delete_cq(1).status == Status.SUCCESS
    slow.controller.quiesce()
    slow.ram.unmap(0)  # BufferError if there is a view
    slow.controller.memory_changed()
    task.finish()


def test_a_completion_queue_stays_while_the_deletion_of_its_submission_queue_waits(slow: Bench) -> None:
    """A Flush that the disk has begun ends after the Delete was submitted, and its completion goes into the queue."""
    driver = slow.driver
    driver.submit(driver.queues[1], flush_command())
    slow.worker.tasks[0].run()
    driver.submit(driver.admin, DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=1))
    assert driver.poll(driver.admin) is None
    assert driver.delete_cq(1).status == Status.INVALID_QUEUE_DELETION
    with pytest.raises(CommandError, match="INVALID_QUEUE_ID"):
        driver.create_sq(1)
    slow.worker.tasks[0].finish()
    slow.settle()
    assert driver.poll(driver.queues[1]) is not None
    deleted = driver.poll(driver.admin)
    assert deleted is not None
    assert deleted.status == Status.SUCCESS
    assert driver.delete_cq(1).status == Status.SUCCESS


def test_a_host_cannot_make_the_controller_hold_commands_without_end(slow: Bench) -> None:
    """The disk does not answer, and the host submits on and on: the rest stays in the queue, and is done later."""
    driver, number = slow.driver, MOST_OUTSTANDING + 32
    queue = driver.queues[1]
    for _ in range(number // 32):
        for _ in range(32):
            driver.submit(queue, flush_command(), ring=False)
        driver.ring_sq(queue)
    assert len(slow.worker.tasks) == MOST_OUTSTANDING
    done = 0
    while slow.worker.tasks:
        slow.worker.finish_all()
        slow.settle()
        done += len(driver.drain(queue))
        slow.settle()
    assert done == number
