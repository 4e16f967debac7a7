"""Write Uncorrectable: blocks that cannot be read until they are written. NVM 1.0, 3.2.7."""

from __future__ import annotations

import pytest

from conformance.tools import NewBench, dsm_command, fails, identify_controller, read_command
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import CommandEffectsLog, LogId, NvmOpcode, ReadWrite, Status
from nvmeemu.spec import WriteProtection as State
from nvmeemu.spec.features import FeatureId
from nvmeemu.subsystem.formats import Format, Protection
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
