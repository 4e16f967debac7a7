"""Write Uncorrectable: blocks that cannot be read until they are written. NVM 1.0, 3.2.7."""

from __future__ import annotations

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    aer,
    dsm_command,
    fails,
    flush_command,
    identify_controller,
    identify_namespace,
    read_command,
    write_command,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import CommandEffectsLog, FormatNvm, LogId, Notice, NsFeat, NvmOpcode, ReadWrite, Status
from nvmeemu.spec import WriteProtection as State
from nvmeemu.spec.features import FeatureId
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pairing import Pairing
from nvmeemu.testing import PAGE, Bench, Driver

BLOCK = 512


@pytest.fixture
def mapped(new_bench: NewBench) -> Bench:
    """An enabled controller with a namespace whose blocks have states."""
    bench = new_bench(MemoryBackend(1 << 20), has_block_map=True)
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


def uncorrectable(slba: int, blocks: int, nsid: int = 1) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.WRITE_UNCORRECTABLE, nsid=nsid, slba=slba, nlb=blocks)


def unreadable(driver: Driver, slba: int, blocks: int) -> None:
    """No command that reads reads them."""
    queue, place = driver.queues[1], driver.alloc(2 * PAGE)
    for opcode in (NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY):
        command = ReadWrite(opcode=opcode, nsid=1, slba=slba, nlb=blocks, prp1=place)
        fails(driver, queue, command, Status.UNRECOVERED_READ_ERROR)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("uncorrectable-is-readable", "uncorrectable-of-one-block"))
def test_uncorrectable_blocks_cannot_be_read_until_they_are_written(mapped: Bench) -> None:
    """Each by itself; those beside them can be read all the time. nvme-cli's own test does this."""
    driver, queue = mapped.driver, mapped.driver.queues[1]
    driver.write(0, b"x" * 6 * BLOCK)
    driver.succeed(queue, uncorrectable(2, 3))
    for slba, blocks in ((2, 1), (3, 1), (4, 1), (0, 6), (4, 2)):
        unreadable(driver, slba, blocks)
    assert driver.read(0, 2) == b"x" * 2 * BLOCK
    assert driver.read(5, 1) == b"x" * BLOCK
    assert int.from_bytes(driver.get_log(LogId.ERROR_INFORMATION, 64)[16:24], "little") == 4, "the block that it met"
    driver.write(2, b"y" * BLOCK)
    driver.succeed(queue, ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=3, nlb=1))
    assert driver.read(2, 2) == b"y" * BLOCK + bytes(BLOCK)
    unreadable(driver, 4, 1)
    driver.succeed(queue, dsm_command(driver, [(4, 1)]))
    assert driver.read(4, 1) == bytes(BLOCK)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("uncorrectable-ends-with-a-reset",))
def test_a_reset_does_not_mend_them(mapped: Bench) -> None:
    driver = mapped.driver
    driver.write(0, b"x" * BLOCK)
    driver.succeed(driver.queues[1], uncorrectable(0, 1))
    mapped.controller.reset()
    driver.enable()
    driver.create_queues(1)
    unreadable(driver, 0, 1)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("uncorrectable-beyond-the-end", "uncorrectable-protected"))
def test_it_is_checked_like_a_write(mapped: Bench) -> None:
    driver, queue = mapped.driver, mapped.driver.queues[1]
    blocks = mapped.controller.state.namespaces[1].blocks
    fails(driver, queue, uncorrectable(blocks, 1), Status.LBA_OUT_OF_RANGE)
    fails(driver, queue, uncorrectable(blocks - 1, 2), Status.LBA_OUT_OF_RANGE)
    fails(driver, queue, uncorrectable(0, 1, nsid=9), Status.INVALID_FIELD)
    driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, State.PROTECTED, nsid=1)
    fails(driver, queue, uncorrectable(0, 1), Status.NAMESPACE_WRITE_PROTECTED)
    assert driver.read(0, 1) == bytes(BLOCK)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7; 5.2.1", kills=("uncorrectable-is-readable",))
def test_metadata_are_uncorrectable_too(new_bench: NewBench) -> None:
    """Whatever is checked, and whether the host wants metadata or not."""
    bench = new_bench(MemoryBackend(1 << 20), format=Format(512, 8, protection=Protection(1)))
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    driver.succeed(queue, uncorrectable(3, 2))
    for bits in (0, 1 << 29, 7 << 26):
        command = read_command(driver.alloc(PAGE), slba=3)
        command.mptr, command.cdw14 = driver.alloc(PAGE), 3
        command.cdw12 |= bits
        fails(driver, queue, command, Status.UNRECOVERED_READ_ERROR)


@pytest.mark.fact("F317", clause="Base 1.4, Figure 247, ONCS", kills=("uncorrectable-is-always-promised",))
def test_it_is_offered_where_blocks_have_states(mapped: Bench, new_bench: NewBench) -> None:
    plain = new_bench(MemoryBackend(1 << 20))
    plain.driver.enable()
    plain.driver.create_queues(1)
    for bench, is_there in ((mapped, True), (plain, False)):
        driver = bench.driver
        assert bool(identify_controller(driver).oncs & 1 << 1) == is_there
        effects = CommandEffectsLog(driver.get_log(LogId.COMMAND_EFFECTS, 4096)).io[NvmOpcode.WRITE_UNCORRECTABLE]
        assert (effects.csupp, effects.lbcc) == (is_there, is_there)
    fails(plain.driver, plain.driver.queues[1], uncorrectable(0, 1), Status.INVALID_OPCODE)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("pairing-keeps-the-old-medium", "pairing-untold"))
def test_a_plain_disk_gets_states_when_a_host_needs_them(new_bench: NewBench) -> None:
    """What it holds stays. From then on the namespace says that it knows which blocks are deallocated."""
    bench = new_bench(MemoryBackend(1 << 20), can_be_paired=True, can_be_formatted=True)
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    assert identify_controller(driver).oncs & 1 << 1
    assert not identify_namespace(driver).nsfeat & NsFeat.DULBE
    driver.write(0, b"x" * 8 * BLOCK)
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, Notice.NAMESPACE_ATTRIBUTE)
    driver.submit(driver.admin, aer())
    driver.succeed(queue, uncorrectable(2, 3))
    assert [one.dw0 >> 16 for one in driver.drain(driver.admin)] == [LogId.CHANGED_NAMESPACE_LIST]
    page = identify_namespace(driver)
    assert page.nsfeat & NsFeat.DULBE
    assert page.nuse == page.nsze
    unreadable(driver, 2, 3)
    driver.write(3, b"y" * BLOCK)
    assert driver.read(0, 2) + driver.read(5, 3) == b"x" * 5 * BLOCK
    assert driver.read(3, 1) == b"y" * BLOCK
    unreadable(driver, 4, 1)
    driver.succeed(driver.admin, FormatNvm(nsid=1))
    assert driver.read(0, 8) == bytes(8 * BLOCK)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("pairing-under-commands", "pairing-loses-what-waits"))
def test_commands_wait_while_the_disk_gets_them(new_bench: NewBench) -> None:
    bench = new_bench(TellingBackend(), can_be_paired=True, can_be_formatted=True, manual=True)
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    place = driver.alloc(PAGE)
    driver.bus.write_memory(place, b"z" * PAGE)
    driver.submit(queue, write_command(place, blocks=8))
    bench.settle()
    for command in (uncorrectable(1, 1), uncorrectable(2, 1), write_command(place, slba=1), flush_command()):
        driver.submit(queue, command)
    bench.settle()
    bench.clock.advance(0.1)
    bench.settle()
    assert isinstance(bench.namespaces.by_nsid[1].media, Pairing)
    assert len(bench.worker.tasks) == 1, "the first write alone has begun"
    fails(driver, driver.admin, FormatNvm(nsid=1), Status.NAMESPACE_NOT_READY, dnr=False)
    for _ in range(4):
        bench.worker.finish_all()
        bench.clock.advance(0.1)
        bench.settle()
    assert [one.status for one in driver.drain(queue)] == [Status.SUCCESS] * 5
    assert isinstance(bench.namespaces.by_nsid[1].media, PairedMedia)
    bench.is_manual = False
    unreadable(driver, 2, 1)


@pytest.mark.fact("F317", clause="NVM 1.0, 3.2.7", kills=("failed-pairing-succeeds",))
def test_where_none_can_be_made_all_goes_on(new_bench: NewBench) -> None:
    """The next attempt may succeed. A command that a reset has ended does nothing."""
    bench = new_bench(MemoryBackend(1 << 20), can_be_paired=True)
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    driver.write(0, b"x" * BLOCK)
    pairer = bench.namespaces.by_nsid[1].pairer
    assert pairer is not None
    make = pairer._make
    pairer._make = lambda: open("/nowhere/at/all", "wb")  # type: ignore[assignment, return-value]  # noqa: SIM115
    fails(driver, queue, uncorrectable(0, 1), Status.WRITE_FAULT, dnr=False)
    assert driver.read(0, 1) == b"x" * BLOCK
    pairer._make = make
    bench.is_manual = True
    driver.submit(queue, uncorrectable(0, 1))
    bench.settle()
    bench.controller.reset()
    bench.is_manual = False
    bench.settle()
    driver.enable()
    queue = driver.create_queues(1)
    assert driver.read(0, 1) == b"x" * BLOCK
    driver.succeed(queue, uncorrectable(0, 1))
    unreadable(driver, 0, 1)
