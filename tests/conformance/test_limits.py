"""Limits that are not the usual ones: what CAP and Identify tell is what is kept. Base 1.4, 3.1.1 and Figure 247."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.queue_commands import new_cq, new_sq
from conformance.tools import NewBench, aer, fails, flush_command, identify_controller, read_command
from nvmeemu.controller.limits import Limits
from nvmeemu.spec import DOORBELLS, AdminOpcode, Configuration, ControllerStatus, DoorbellBufferConfig, Status
from nvmeemu.testing import ACQ, ASQ, CC, PAGE, Driver

BLOCK = 512


def enabled(new_bench: NewBench, ram: int = 16 << 20, **limits: Any) -> Driver:
    driver: Driver = new_bench(limits=Limits(**limits), ram=ram).driver
    driver.enable()
    return driver


def works(driver: Driver, qid: int = 1) -> None:
    """Two rounds through both queues."""
    for number in range(2 * driver.queues[qid].sq_entries + 1):
        data = bytes([number % 256]) * BLOCK
        driver.write(number, data, qid=qid)
        assert driver.read(number, 1, qid=qid) == data


@pytest.mark.fact("A1", clause="Base 1.4, 3.1.1, MQES", kills=("queue-beyond-mqes",))
@pytest.mark.parametrize("mqes", [2, 3, 128, 1 << 16])
def test_no_queue_is_longer_than_mqes(new_bench: NewBench, mqes: int) -> None:
    driver = enabled(new_bench, 64 << 20, entries=mqes)
    assert driver.capabilities.mqes == mqes
    if mqes < 1 << 16:
        fails(driver, driver.admin, new_cq(driver, qsize=mqes + 1), Status.INVALID_QUEUE_SIZE)
    pair = driver.create_queues(1, mqes)
    if mqes < 1 << 16:
        fails(driver, driver.admin, new_sq(driver, qid=2, qsize=mqes + 1), Status.INVALID_QUEUE_SIZE)
    for _ in range(min(2 * mqes + 1, 300)):
        driver.succeed(pair, flush_command())


@pytest.mark.parametrize("start", [0, (1 << 16) - 5])
def test_a_queue_of_65536_entries_wraps(new_bench: NewBench, start: int) -> None:
    """Its tail and head fill their 16 bits."""
    driver = enabled(new_bench, 64 << 20, entries=1 << 16)
    pair = driver.create_queues(1, 1 << 16)
    while pair.sq_tail < start:
        for _ in range(min(2048, start - pair.sq_tail)):
            driver.submit(pair, flush_command(), ring=False)
        driver.ring_sq(pair)
        while len(pair.outstanding):
            driver.bus.settle()
            driver.drain(pair)
    for number in range(10):
        driver.write(number, bytes([number]) * BLOCK)
        assert driver.read(number, 1) == bytes([number]) * BLOCK


@pytest.mark.fact("A24", clause="Base 1.4, Figure 247, MDTS", kills=("mdts-of-4-kib-pages",))
@pytest.mark.parametrize(("mdts", "shift"), [(1, 0), (5, 0), (9, 0), (1, 4), (5, 4)])
def test_mdts_counts_the_smallest_pages(new_bench: NewBench, mdts: int, shift: int) -> None:
    driver = enabled(new_bench, mdts=mdts, min_page_shift=shift)
    assert identify_controller(driver).mdts == mdts
    pair = driver.create_queues(1)
    most = (PAGE << shift) << mdts
    place = driver.alloc(most + PAGE)
    for size, status in ((most, Status.SUCCESS), (most + BLOCK, Status.INVALID_FIELD)):
        command = read_command(*driver.prps(place, size), blocks=size // BLOCK)
        assert driver.execute(pair, command).status == status


@pytest.mark.parametrize("aerl", [1, 4, 256])
def test_as_many_requests_wait_as_aerl_says(new_bench: NewBench, aerl: int) -> None:
    driver: Driver = new_bench(limits=Limits(aerl=aerl)).driver
    driver.enable(asqs=512, acqs=512)
    assert identify_controller(driver).aerl == aerl
    for _ in range(aerl):
        driver.submit(driver.admin, aer())
    assert driver.drain(driver.admin) == []
    fails(driver, driver.admin, aer(), Status.AER_LIMIT_EXCEEDED, dnr=None)


@pytest.mark.fact("A11", clause="Base 1.4, 3.1.5, MPS", kills=("enables-below-mpsmin", "enables-any-mps"))
@pytest.mark.parametrize(("least", "most"), [(0, 0), (1, 1), (2, 4), (4, 4)])
def test_pages_are_from_mpsmin_to_mpsmax(new_bench: NewBench, least: int, most: int) -> None:
    driver = enabled(new_bench, min_page_shift=least, max_page_shift=most, mdts=5)
    assert (driver.capabilities.mpsmin, driver.capabilities.mpsmax) == (least, most)
    driver.disable()
    for register in (ASQ, ACQ):
        driver.set_reg(register, 0, 8)  # aligned for any page
    for mps in range(16):
        driver.set_reg(CC, 0)
        driver.set_reg(CC, int(Configuration(en=True, mps=mps, iosqes=6, iocqes=4)))
        is_good = least <= mps <= most
        assert driver.status == ControllerStatus(rdy=is_good, cfs=not is_good)
    for mps in range(least, most + 1):
        driver.enable(mps=mps)
        driver.create_queues(1, 8)
        works(driver)


@pytest.mark.fact("A4", clause="Base 1.4, 3.1.24", kills=("dstrd-of-registers-ignored",))
@pytest.mark.parametrize("dstrd", [0, 1, 4, 10, 15])
def test_doorbells_lie_as_far_apart_as_dstrd_says(new_bench: NewBench, dstrd: int) -> None:
    driver = enabled(new_bench, dstrd=dstrd)
    assert driver.capabilities.dstrd == dstrd
    for qid in (1, 64):
        driver.create_queues(qid, 8)
        works(driver, qid)
    pair = driver.queues[1]
    driver.submit(driver.admin, aer())
    driver.submit(pair, flush_command(), ring=False)
    for offset in range(4, 4 << dstrd, 4 << max(dstrd - 3, 0)):
        driver.set_reg(DOORBELLS + 2 * (4 << dstrd) + offset, pair.sq_tail)  # between this one and the next
    driver.bus.settle()
    assert driver.poll(pair) is None
    assert [one.dw0 for one in driver.drain(driver.admin)] == [0x010000] * (dstrd > 0)  # a doorbell of no queue
    driver.ring_sq(pair)
    driver.bus.settle()
    assert driver.poll(pair) is not None


@pytest.mark.fact("A4", clause="Base 1.4, 5.7 and B.5", kills=("dstrd-of-shadows-ignored",))
@pytest.mark.parametrize("dstrd", [0, 2])
def test_shadow_doorbells_lie_as_the_real_ones(new_bench: NewBench, dstrd: int) -> None:
    """EventIdx is at its place, and nothing beside it was written."""
    driver = enabled(new_bench, dstrd=dstrd)
    driver.create_queues(1, 8)
    shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
    driver.bus.write_memory(event, b"\xee" * PAGE)
    config = DoorbellBufferConfig(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)
    driver.succeed(driver.admin, config)
    content = driver.bus.read_memory(event, PAGE)
    written = {place for place in range(0, PAGE, 4) if content[place : place + 4] != b"\xee" * 4}
    assert written == {number * (4 << dstrd) for number in range(4)}


@pytest.mark.parametrize("namespaces", [1, 2, 255])
def test_nsids_end_with_nn(new_bench: NewBench, namespaces: int) -> None:
    driver = enabled(new_bench, namespaces=namespaces)
    assert identify_controller(driver).nn == namespaces
    driver.create_queues(1)
    for nsid in range(2, namespaces + 1):
        assert driver.identify(0, nsid) == bytes(PAGE)
        assert driver.execute(driver.queues[1], flush_command(nsid)).status == Status.INVALID_FIELD
    assert driver.execute(driver.queues[1], flush_command(namespaces + 1)).status == Status.INVALID_NAMESPACE


def test_the_time_to_become_ready_is_cap_to(new_bench: NewBench) -> None:
    assert enabled(new_bench, timeout=255).capabilities.to == 255
