"""Enabling the controller, well and badly. Base 1.4, 3.1.5, 7.6.1 and 9.5."""

from __future__ import annotations

import itertools

import pytest
from _pytest.mark import ParameterSet

from conformance.tools import identify_controller, read_command, write_command
from nvmeemu.spec import AdminQueueAttributes, Configuration, ControllerStatus
from nvmeemu.testing import ACQ, AQA, ASQ, CC, PAGE, Bench, Driver

ABOVE = -1  # CAP.MPSMAX
READY, FATAL = ControllerStatus(rdy=True), ControllerStatus(cfs=True)


def enable(driver: Driver, *, asqs: int = 32, acqs: int = 32, offset: int = 0, **cc: int) -> ControllerStatus:
    """Enable with raw values; the status once the controller is ready or fatal."""
    driver.disable()
    driver.set_reg(AQA, int(AdminQueueAttributes(asqs=asqs, acqs=acqs)))
    align = PAGE << max(cc.get("mps", 0), 1)
    driver.set_reg(ASQ, driver.alloc(2 * PAGE, align), 8)
    driver.set_reg(ACQ, driver.alloc(2 * PAGE, align) + offset, 8)
    driver.set_reg(CC, int(Configuration(None, en=True, **cc)))
    for _ in range(100):
        if driver.status.rdy or driver.status.cfs:
            break
        driver.bus.settle()
    return driver.status


def bad(fault: str, kills: str, **values: int) -> ParameterSet:
    mark = pytest.mark.fact("A11", clause="Base 1.4, 3.1.5 and 3.1.8", kills=(kills,))
    return pytest.param(values, id=fault, marks=mark)


BAD = [
    bad("css", "enables-any-css", css=1),
    bad("ams", "enables-any-ams", ams=2),
    bad("mps", "enables-any-mps", mps=ABOVE),
    bad("asqs", "enables-with-one-entry", asqs=1),
    bad("acqs", "enables-with-one-entry", acqs=1),
    bad("align", "enables-with-crooked-queues", mps=1, offset=PAGE),
]


@pytest.mark.fact("A11", clause="Base 1.4, 3.1.8 and 9.5", kills=("cfs-survives-reset",))
@pytest.mark.parametrize("values", BAD)
def test_a_bad_enable_is_fatal_until_the_next_reset(driver: Driver, values: dict[str, int]) -> None:
    if values.get("mps") == ABOVE:
        values = {"mps": driver.capabilities.mpsmax + 1}
    assert enable(driver, **values) == FATAL
    driver.disable()
    assert not driver.status.cfs
    driver.enable()
    assert identify_controller(driver)


@pytest.mark.fact("A11", clause="Base 1.4, 3.1.5", kills=("enables-any-css",))
def test_each_way_to_enable_ends_ready_or_fatal(fresh: Driver) -> None:
    fields = itertools.product(range(8), (0, 1, 4, 5, 15), (0, 1, 2, 7), ((0, 0), (6, 4), (15, 15)), (1, 2))
    offered = fresh.capabilities
    command_sets = {css for css, bit in ((0, 0), (6, 6), (7, 7)) if offered.css >> bit & 1}
    arbitrations = {0, *(ams for ams, bit in ((1, 0), (7, 1)) if offered.ams >> bit & 1)}
    for register in (ASQ, ACQ):
        fresh.set_reg(register, fresh.alloc(PAGE, PAGE << offered.mpsmax), 8)
    for css, mps, ams, (iosqes, iocqes), entries in fields:
        status = enable_in_place(fresh, entries, css=css, mps=mps, ams=ams, iosqes=iosqes, iocqes=iocqes)
        is_good = css in command_sets and mps <= offered.mpsmax and entries > 1
        may_be_bad = not is_good or ams not in arbitrations  # what another arbitration does is not said
        assert status in ([READY] if is_good else []) + ([FATAL] if may_be_bad else [])


def enable_in_place(driver: Driver, entries: int, **cc: int) -> ControllerStatus:
    driver.set_reg(CC, 0)
    driver.set_reg(AQA, int(AdminQueueAttributes(asqs=entries, acqs=entries)))
    driver.set_reg(CC, int(Configuration(None, en=True, **cc)))
    return driver.status


@pytest.mark.fact("A11", clause="Base 1.4, 3.1.8", kills=("small-admin-queues-refused",))
@pytest.mark.parametrize("entries", [2, 3, 4096])
def test_admin_queues_of_2_to_4096_entries_work_and_wrap(driver: Driver, entries: int) -> None:
    driver.enable(asqs=entries, acqs=entries)
    for _ in range(7):
        assert identify_controller(driver)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("cc-mps-ignored",))
def test_the_page_size_is_what_cc_mps_says(driver: Driver) -> None:
    """A transfer of one larger page needs no PRP2."""
    for mps in range(driver.capabilities.mpsmin, driver.capabilities.mpsmax + 1):
        driver.enable(mps=mps)
        size = PAGE << mps
        pair = driver.create_queues(1)
        place = driver.alloc(size, size)
        data = bytes(range(256)) * (size // 256)
        driver.bus.write_memory(place, data)
        nowhere = 1  # not even aligned: never looked at
        driver.succeed(pair, write_command(place, nowhere, blocks=size // 512))
        driver.bus.write_memory(place, bytes(size))
        driver.succeed(pair, read_command(place, nowhere, blocks=size // 512))
        assert driver.bus.read_memory(place, size) == data


@pytest.mark.fact("A11", clause="Base 1.4, 9.5", kills=("fatal-still-serves",))
def test_a_fatal_controller_serves_nothing(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    place = driver.alloc(2 * PAGE)
    bench.ram.map(1 << 40, PAGE)
    driver.admin.sq = 1 << 40
    driver.set_reg(CC, 0)
    driver.set_reg(ASQ, 1 << 40, 8)
    driver.set_reg(CC, 1)
    bench.unmap(1 << 40)
    driver.set_reg(0x1000, 1)
    bench.clock.advance(2)
    assert driver.status == ControllerStatus(rdy=True, cfs=True)
    bench.map(1 << 40, bytearray(bytes(read_command(place)) * 64))
    before = bench.ram.read(driver.admin.cq, 512)
    driver.set_reg(0x1000, 2)
    assert bench.ram.read(driver.admin.cq, 512) == before
    assert not bench.ram.interrupts
