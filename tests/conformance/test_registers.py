"""Registers: widths, halves, what is read-only, reserved or fixed while enabled. Base 1.4, 3.1."""

from __future__ import annotations

import logging

import pytest

from conformance.tools import NewBench, identify_controller
from nvmeemu.controller.limits import Limits
from nvmeemu.spec import DOORBELLS, AdminQueueAttributes, CommandEffectsLog, Configuration, ControllerStatus, LogId
from nvmeemu.testing import ACQ, AQA, ASQ, CAP, CC, CSTS, INTMC, INTMS, PAGE, VS, Bench, Driver, QueuePair

NSSR, CRTO = 0x20, 0x68
END = 0x38  # of the registers that every controller has
GONE = 0xFFFFFFFF


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.8 to 3.1.10", kills=("asq-reads-zero-while-enabled",))
@pytest.mark.fact("B5", clause="Base 1.4, 3.1.9", kills=("asq-reads-zero-while-enabled",))
def test_the_admin_queue_registers_read_back_while_the_controller_is_enabled(driver: Driver) -> None:
    aqa = AdminQueueAttributes.of(driver.reg(AQA))
    assert (aqa.asqs, aqa.acqs) == (driver.admin.sq_entries, driver.admin.cq_entries)
    assert driver.reg(ASQ, 8) == driver.admin.sq
    assert driver.reg(ACQ, 8) == driver.admin.cq
    assert Configuration.of(driver.reg(CC)).en


@pytest.mark.fact("A10", clause="Base 1.4, 3.1", kills=("eight-byte-reads-are-cut",))
def test_a_register_reads_the_same_in_4_and_in_8_bytes(driver: Driver) -> None:
    for offset in range(0, END, 8):
        assert driver.reg(offset, 8) == driver.reg(offset) | driver.reg(offset + 4) << 32, hex(offset)


@pytest.mark.fact("B7", clause="Base 1.4, 3.1.9", kills=("queue-base-halves-or-ed",))
@pytest.mark.parametrize("register", [ASQ, ACQ])
def test_either_half_of_a_queue_base_is_replaced_alone(driver: Driver, register: int) -> None:
    """FEMU ORs the high half into what is there."""
    driver.disable()
    driver.set_reg(register, 0x12345678_9ABCD000, 8)
    assert driver.reg(register, 8) == 0x12345678_9ABCD000
    driver.set_reg(register + 4, 0x0F0F0F0F)
    assert driver.reg(register, 8) == 0x0F0F0F0F_9ABCD000
    driver.set_reg(register, 0x05050000)
    assert driver.reg(register, 8) == 0x0F0F0F0F_05050000
    driver.set_reg(register + 4, 0)  # the high half first, then the low one
    driver.set_reg(register, 0x7000)
    assert driver.reg(register, 8) == 0x7000


@pytest.mark.fact("A10", clause="Base 1.4, 3.1", kills=("a-write-reaches-one-register",))
def test_an_8_byte_write_reaches_both_registers_below_it(fresh: Driver) -> None:
    fresh.set_reg(AQA, 0x001F001F | 0xABCDE000 << 32, 8)
    assert fresh.reg(AQA) == 0x001F001F
    assert fresh.reg(ASQ, 8) == 0xABCDE000
    fresh.set_reg(INTMS, 0xFF, 8)  # sets these mask bits, clears none
    assert fresh.reg(INTMS) == 0xFF
    fresh.set_reg(INTMS, 0x0F << 32, 8)
    assert fresh.reg(INTMC) == 0xF0


@pytest.mark.fact("A13", clause="Base 1.4, 3.1.7", kills=("csts-is-writable",))
def test_read_only_registers_keep_their_values(driver: Driver) -> None:
    """A subsystem reset by NSSR is only there if CAP.NSSRS says so."""
    before = [driver.reg(offset) for offset in (CAP, CAP + 4, VS, CSTS)]
    for offset in (CAP, CAP + 4, VS, CSTS):
        for value in (0, GONE):
            driver.set_reg(offset, value)
    if not driver.capabilities.nssrs:
        driver.set_reg(NSSR, 0x4E564D65)
        assert driver.reg(NSSR) == 0
    assert [driver.reg(offset) for offset in (CAP, CAP + 4, VS, CSTS)] == before
    assert driver.status == ControllerStatus(rdy=True)
    assert len(driver.identify(1)) == 4096


@pytest.mark.fact("A10", clause="Base 1.4, 3.1", kills=("reserved-bits-are-stored",))
def test_reserved_bits_cannot_be_set(fresh: Driver) -> None:
    for offset in (AQA, ASQ, ASQ + 4, ACQ, ACQ + 4):
        fresh.set_reg(offset, GONE)
    assert fresh.reg(AQA) == 0x0FFF0FFF
    assert fresh.reg(ASQ, 8) == fresh.reg(ACQ, 8) == 0xFFFFFFFF_FFFFF000
    fresh.set_reg(CC, GONE & ~(1 | 3 << 14))  # neither EN nor SHN
    assert fresh.reg(CC) == int(Configuration(css=7, mps=15, ams=7, iosqes=15, iocqes=15))


@pytest.mark.fact("A4", clause="Base 1.4, 3.1.24", kills=("doorbells-read-back",))
def test_reserved_registers_and_doorbells_read_as_zero(driver: Driver) -> None:
    driver.create_queues(1)
    driver.identify(1)
    for offset in (0x18, *range(0xE20, 0x1000, 4), *range(DOORBELLS, DOORBELLS + 32, 4)):
        assert driver.reg(offset) == 0, hex(offset)
    assert driver.reg(DOORBELLS, 8) == 0


def test_nothing_is_said_of_what_this_controller_does_not_have(driver: Driver) -> None:
    """No controller memory buffer, boot partition, persistent memory region: their registers are zero."""
    for offset in range(END, DOORBELLS, 4):
        driver.set_reg(offset, GONE)
    for offset in range(END, DOORBELLS, 4):
        assert offset == CRTO or driver.reg(offset) == 0, hex(offset)


def test_an_access_of_nothing_or_past_the_end_does_nothing(bench: Bench) -> None:
    """No bus sends them; a VMM may."""
    bench.driver.enable()
    end = bench.controller.bar0_size
    assert bench.controller.read(end - 4, 8) == bytes(8)
    for offset in (CC, DOORBELLS, end - 4, end - 1):
        bench.write_bar(offset, b"")
    bench.write_bar(end - 4, GONE.to_bytes(8, "little"))
    assert bench.driver.status == ControllerStatus(rdy=True)


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.8 to 3.1.10", kills=("asq-moves-the-queue-at-once",))
def test_the_admin_queues_stay_where_they_were_at_the_enable(driver: Driver) -> None:
    """Whatever is written meanwhile reads back; nvme2k writes zeros there at each warm start."""
    for value in (0, 0x01100000):
        for offset in (AQA, ASQ, ASQ + 4, ACQ, ACQ + 4):
            driver.set_reg(offset, value)
        assert driver.reg(AQA) == value
        for offset in (ASQ, ACQ):
            assert driver.reg(offset, 8) == value << 32 | value
        for _ in range(driver.admin.sq_entries + 1):
            assert len(driver.identify(1)) == 4096
    driver.create_queues(1)


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.8 to 3.1.10", kills=("asq-is-dropped-while-enabled",))
def test_admin_queues_given_while_enabled_are_those_of_the_next_enable(driver: Driver) -> None:
    """SerenityOS writes them while what its firmware left is still enabled, and clears EN then."""
    entries, cc = 16, driver.reg(CC)
    sq, cq = driver.alloc(PAGE), driver.alloc(PAGE)
    driver.set_reg(AQA, int(AdminQueueAttributes(asqs=entries, acqs=entries)))
    for register, place in ((ASQ, sq), (ACQ, cq)):
        driver.set_reg(register, place & 0xFFFFFFFF)
        driver.set_reg(register + 4, place >> 32)
    driver.disable()
    driver.admin = QueuePair(0, sq, cq, entries, entries)
    driver.set_reg(CC, cc)
    for _ in range(100):
        driver.bus.settle()
    assert driver.status == ControllerStatus(rdy=True)
    for _ in range(entries + 1):
        assert len(driver.identify(1)) == 4096


def test_admin_queues_given_while_enabled_are_noted_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    driver = bench.driver
    for times in (1, 2):
        driver.enable()
        for _ in range(3):
            for offset in (AQA, ASQ, ASQ + 4, ACQ, ACQ + 4):
                driver.set_reg(offset, 0)
        notes = [one for one in caplog.records if "it takes effect at the next enable" in one.getMessage()]
        assert [one.levelname for one in notes] == ["INFO"] * times


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.5", kills=("cc-fields-taken-while-enabled",))
def test_page_size_command_set_and_arbitration_cannot_be_changed_while_enabled(driver: Driver) -> None:
    before = driver.reg(CC)
    driver.set_reg(CC, before | int(Configuration(mps=1, css=1, ams=1)))
    assert driver.reg(CC) == before
    assert driver.status == ControllerStatus(rdy=True)


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.5", kills=("entry-sizes-frozen-by-enable",), is_less=True)
def test_entry_sizes_may_be_given_after_enabling(driver: Driver) -> None:
    """The fact says that only EN and SHN may be written; the specification forbids to change IOSQES and IOCQES only
    once I/O queues exist, and is right."""
    driver.enable(iosqes=5, iocqes=5)
    driver.set_reg(CC, int(Configuration(en=True, iosqes=6, iocqes=4)))
    driver.create_queues(1)


@pytest.mark.fact("A10", clause="Base 1.4, 3.1.5", kills=("entry-sizes-change-under-queues",))
def test_entry_sizes_stay_while_io_queues_exist(driver: Driver) -> None:
    driver.create_cq(1)
    before = driver.reg(CC)
    driver.set_reg(CC, before & ~int(Configuration(iosqes=15, iocqes=15)))
    assert driver.reg(CC) == before


@pytest.mark.fact("A13", clause="Base 1.4, 3.1.1", kills=("cap-to-is-zero",))
def test_the_time_to_become_ready_is_told(driver: Driver) -> None:
    """In CAP.TO, and with CAP.CRMS (Base 2.0) in CRTO, too."""
    has_crms = driver.reg(CAP, 8) >> 59 & 3
    assert driver.capabilities.to
    assert not has_crms or driver.reg(CRTO)
    assert not has_crms or driver.reg(VS) >= 0x20000


@pytest.mark.fact("A13", clause="Base 2.0, 3.1.3.1, CRMS", kills=("crto-is-zero", "crto-is-not-cap-to", "no-crms"))
@pytest.mark.parametrize("timeout", [1, 60, 255])
def test_base_2_tells_the_time_to_become_ready_in_crto(new_bench: NewBench, timeout: int) -> None:
    """Controller Ready With Media is the way that each controller of Base 2.0 has; Linux calls a CRTO of 0 bogus."""
    driver = new_bench(limits=Limits(timeout=timeout)).driver
    assert driver.reg(VS) == 0x20000
    assert driver.reg(CAP, 8) >> 59 & 3 == 0b01
    assert driver.reg(CRTO) == timeout == driver.capabilities.to


@pytest.mark.fact("A13", clause="Base 2.0, 3.1.3.2", kills=("vs-is-fixed", "crms-of-any-version"))
@pytest.mark.parametrize(("version", "vs"), [("1.2", 0x10200), ("1.3", 0x10300), ("1.4", 0x10400), ("2.0", 0x20000)])
def test_an_older_version_can_be_stated(new_bench: NewBench, version: str, vs: int) -> None:
    driver = new_bench(limits=Limits(version=version)).driver
    driver.enable()
    assert driver.reg(VS) == vs == identify_controller(driver).ver
    is_new = version == "2.0"
    assert (driver.reg(CAP, 8) >> 59 & 3, driver.reg(CRTO)) == ((1, 60) if is_new else (0, 0))
    effects = CommandEffectsLog(driver.get_log(LogId.COMMAND_EFFECTS, CommandEffectsLog.SIZE))
    assert any(one.csp for one in effects.admin) == any(one.csp for one in effects.io) == is_new


@pytest.mark.fact("A13", clause="Base 1.4, 7.3.2", kills=("flr-keeps-the-admin-queue",))
def test_a_function_reset_clears_every_register(bench: Bench) -> None:
    """Unlike a Controller Reset, which keeps AQA, ASQ and ACQ."""
    driver = bench.driver
    fresh = bench.controller.read(0, DOORBELLS)
    driver.enable()
    driver.set_reg(INTMS, 5)
    bench.controller.reset()
    assert bench.controller.read(0, DOORBELLS) == fresh
    driver.enable()
    assert len(driver.identify(1)) == 4096


@pytest.mark.fact("A14", clause="PCI Express Base, 2.3.2", kills=("fatal-reads-as-gone",))
def test_no_state_looks_like_a_device_that_is_gone(fresh: Driver) -> None:
    """Drivers take CSTS FFFFFFFFh for a removed device; reserved bits must be zero in every state."""
    seen = {fresh.reg(CSTS)}
    fresh.enable()
    seen.add(fresh.reg(CSTS))
    fresh.set_reg(CC, fresh.reg(CC) | 1 << 14)
    seen.add(fresh.reg(CSTS))
    fresh.disable()
    fresh.set_reg(AQA, 0)
    fresh.set_reg(CC, 1)
    seen.add(fresh.reg(CSTS))
    assert seen == {0, 0b0001, 0b1001, 0b0010}  # fresh, ready, shut down, fatal
