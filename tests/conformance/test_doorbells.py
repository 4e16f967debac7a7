"""Doorbells: what a value may be, and what happens when it may not. Base 1.4, 3.1.24, 3.1.25 and 5.2."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from conformance.tools import aer, flush_command
from nvmeemu.spec import DOORBELLS, SHN_NORMAL, SHST_COMPLETE, Configuration, ErrorEvent, EventType, LogId
from nvmeemu.testing import CC, Bench, Driver, QueuePair

REGISTER = ErrorEvent.INVALID_DOORBELL_REGISTER
VALUE = ErrorEvent.INVALID_DOORBELL_VALUE
ENTRIES = 8


def event(info: ErrorEvent) -> int:
    """DW0 of the Asynchronous Event Request that tells it."""
    return EventType.ERROR | info << 8 | LogId.ERROR_INFORMATION << 16


def ring(driver: Driver, qid: int, is_cq: bool, value: int) -> None:
    driver.set_reg(DOORBELLS + (2 * qid + is_cq) * driver.stride, value)


def events(driver: Driver) -> list[int]:
    return [completion.dw0 for completion in driver.drain(driver.admin)]


def wrong(name: str, kills: str, qid: int, is_cq: bool, value: int, info: ErrorEvent, *facts: str) -> ParameterSet:
    marks = [pytest.mark.fact(fact, clause="Base 1.4, Figure 145", kills=(kills,)) for fact in ("A4", *facts)]
    return pytest.param(qid, is_cq, value, info, id=name, marks=marks)


WRONG = [
    wrong("tail-of-no-queue", "missing-queue-is-silent", 2, False, 1, REGISTER),
    wrong("head-of-no-queue", "missing-queue-is-a-wrong-value", 2, True, 1, REGISTER),
    wrong("tail-beyond-size", "tail-beyond-size", 1, False, ENTRIES, VALUE, "B6"),
    wrong("tail-far-beyond-size", "tail-beyond-size", 1, False, 0xFFFF, VALUE, "B6"),
    wrong("tail-again", "same-tail-is-silent", 1, False, 3, VALUE, "B6"),
    wrong("head-beyond-size", "head-beyond-size", 1, True, ENTRIES + 2, VALUE, "B6"),
    wrong("head-again", "same-head-is-silent", 1, True, 1, VALUE, "B6"),
    wrong("head-beyond-tail", "head-beyond-tail", 1, True, 4, VALUE, "B6"),
]


@pytest.mark.parametrize(("qid", "is_cq", "value", "info"), WRONG)
def test_a_wrong_doorbell_is_told_and_ignored(
    driver: Driver, qid: int, is_cq: bool, value: int, info: ErrorEvent
) -> None:
    """After three commands, one of whose completions has been consumed."""
    pair = driver.create_queues(1, ENTRIES)
    for _ in range(3):
        driver.submit(pair, flush_command())
    for _ in range(20):
        driver.bus.settle()
    assert driver.poll(pair) is not None
    driver.submit(driver.admin, aer())
    assert events(driver) == []
    ring(driver, qid, is_cq, value)
    assert events(driver) == [event(info)]
    assert len(driver.drain(pair)) == 2
    for _ in range(ENTRIES):
        driver.succeed(pair, flush_command())


@pytest.mark.fact("A4", clause="Base 1.4, Figure 145", kills=("tail-overruns-the-head",))
def test_a_tail_that_overruns_the_head_is_told_and_ignored(driver: Driver) -> None:
    """Commands are waiting, because there is no room for their completions."""
    place = driver.create_cq(1, 2)
    pair = QueuePair(1, driver.create_sq(1, ENTRIES), place, ENTRIES, 2)
    driver.submit(driver.admin, aer())
    for _ in range(ENTRIES - 1):
        driver.submit(pair, flush_command())
    ring(driver, 1, False, (pair.sq_tail + 2) % ENTRIES)  # one is free
    assert events(driver) == [event(VALUE)]
    found = []
    while (completion := driver.poll(pair)) is not None:
        found.append(completion.cid)
    assert len(found) == ENTRIES - 1


@pytest.mark.fact("A4", clause="Base 1.4, 5.2", kills=("doorbell-errors-are-kept",))
def test_a_wrong_doorbell_is_told_only_to_a_request_that_waits(driver: Driver) -> None:
    ring(driver, 1, False, 1)
    driver.submit(driver.admin, aer())
    assert events(driver) == []
    ring(driver, 1, False, 1)
    assert events(driver) == [event(REGISTER)]


@pytest.mark.fact("A4", clause="Base 1.4, 9.5", kills=("what-was-posted-is-forgotten",))
@pytest.mark.parametrize("is_fatal", [False, True])
def test_what_was_posted_before_the_end_is_consumed_without_complaint(
    bench: Bench, caplog: pytest.LogCaptureFixture, is_fatal: bool
) -> None:
    """After a shutdown, and after a fatal error of another queue: nothing is served, but the host reads on."""
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, ENTRIES)
    for _ in range(3):
        driver.submit(pair, flush_command())
    if is_fatal:
        bench.controller.fail("a test")
    else:
        driver.set_reg(CC, driver.reg(CC) | int(Configuration(shn=SHN_NORMAL)))
    bench.settle()
    assert driver.status.cfs == is_fatal
    assert is_fatal or driver.status.shst == SHST_COMPLETE
    for queue, tail in ((pair, 4), (driver.admin, driver.admin.sq_tail + 1)):
        driver.drain(queue)  # with its heads
        ring(driver, queue.qid, False, tail)
        bench.settle()
    assert not [record.message for record in caplog.records if "the guest wrote" in record.message]
    ring(driver, 1, True, 3)  # that is where it is
    ring(driver, 1, False, 4)
    bench.settle()
    assert len([record.message for record in caplog.records if record.message.startswith("the guest rang ")]) == 2


@pytest.mark.fact("A4", clause="Base 1.4, 3.1", kills=("an-8-byte-write-rings-one",))
def test_an_8_byte_write_rings_both_doorbells(driver: Driver) -> None:
    pair = driver.create_queues(1, 4)
    for _ in range(3 * pair.sq_entries):
        driver.submit(pair, flush_command(), ring=False)
        driver.set_reg(DOORBELLS + 8, pair.sq_tail | pair.cq_head << 32, 8)
        assert driver.poll(pair, ring=False) is not None
        driver.set_reg(DOORBELLS + 8, pair.sq_tail | pair.cq_head << 32, 8)


@pytest.mark.fact("A4", clause="Base 1.4, 3.1.24", kills=("doorbells-before-ready",))
def test_doorbells_before_the_controller_is_ready_do_nothing(fresh: Driver) -> None:
    for offset in range(DOORBELLS, DOORBELLS + 64, 4):
        fresh.set_reg(offset, 1)
    fresh.enable()
    assert len(fresh.identify(1)) == 4096
    fresh.disable()
    for offset in range(DOORBELLS, DOORBELLS + 64, 4):
        fresh.set_reg(offset, 1)
    assert not fresh.status.cfs
    fresh.enable()
    assert len(fresh.identify(1)) == 4096


@pytest.mark.fact("A4", clause="Base 1.4, 3.1", kills=("crooked-doorbells-ring",))
def test_no_odd_offset_rings_anything(driver: Driver) -> None:
    pair = driver.create_queues(1, ENTRIES)
    driver.submit(pair, flush_command(), ring=False)
    driver.submit(driver.admin, aer())
    for offset in (1, 2, 3):
        driver.set_reg(DOORBELLS + 8 + offset, 1)
    assert events(driver) in ([event(REGISTER)], [])  # such accesses may do anything else (3.1): we tell
    assert driver.poll(pair) is None
    driver.ring_sq(pair)
    assert driver.poll(pair) is not None


@pytest.mark.fact("A4", clause="Base 1.4, 3.1.24", kills=("missing-queue-is-silent",))
def test_each_doorbell_without_a_queue_is_told(driver: Driver) -> None:
    for qid in range(1, driver.io_queues() + 1):
        for is_cq in (False, True):
            driver.submit(driver.admin, aer())
            ring(driver, qid, is_cq, 0)
            assert events(driver) == [event(REGISTER)], (qid, is_cq)
            driver.get_log(LogId.ERROR_INFORMATION, 64)
