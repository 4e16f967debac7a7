"""Read, Write, Compare, Verify. Base 1.4, 6.4, 6.9, 6.15; NVM 1.0, 3.2.6."""

from __future__ import annotations

import random

import pytest

from conformance.tools import (
    DriverOf,
    NewBench,
    TellingBackend,
    block_size,
    blocks_of,
    dsm_command,
    fails,
    flush_command,
    guarded,
    identify_controller,
    identify_namespace,
    is_untouched,
    read_command,
    write_command,
)
from nvmeemu.spec import BROADCAST, Cns, NvmController, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Driver

TRANSFERS = (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE)
RANGES = (*TRANSFERS, NvmOpcode.VERIFY, NvmOpcode.WRITE_ZEROES)


def blocks_at(opcode: int, slba: int, blocks: int, *, nsid: int = 1, prp1: int = 0) -> ReadWrite:
    return ReadWrite(opcode=opcode, nsid=nsid, slba=slba, nlb=blocks, prp1=prp1)


def must_be_offered(driver: Driver, opcode: int) -> None:
    """Skip the test if ONCS does not have an optional command."""
    bits = {NvmOpcode.COMPARE: 0, NvmOpcode.WRITE_ZEROES: 3, NvmOpcode.VERIFY: 7}
    if opcode in bits and not identify_controller(driver).oncs >> bits[NvmOpcode(opcode)] & 1:
        pytest.skip(f"this controller has no {NvmOpcode(opcode).name}")


@pytest.mark.fact("A26", clause="Base 1.4, 6.9 and 6.15, NLB", kills=("nlb-not-zero-based", "blocks-shifted"))
def test_exactly_the_named_blocks_are_transferred(driver: Driver) -> None:
    """NLB is 0's based: 0 means one block."""
    queue = driver.create_queues()
    size = block_size(driver)
    data = random.Random(26).randbytes(4 * size)
    driver.write(8, data)
    place = guarded(driver, PAGE)
    command = read_command(place, slba=9)
    command.cdw12 = 0
    driver.succeed(queue, command)
    assert driver.bus.read_memory(place, size) == data[size : 2 * size]
    assert is_untouched(driver, place + size, PAGE - size)
    assert driver.read(7, 6) == bytes(size) + data + bytes(size)


@pytest.mark.fact("A26", clause="Base 1.4, 6.9 and 6.15", kills=("slba-32-bits",))
def test_the_first_and_the_last_block_are_there(driver: Driver) -> None:
    driver.create_queues()
    last, size = blocks_of(driver) - 1, block_size(driver)
    driver.write(0, b"\x11" * size)
    driver.write(last, b"\x22" * size)
    assert driver.read(0, 1) == b"\x11" * size
    assert driver.read(last, 1) == b"\x22" * size
    fails(driver, driver.queues[1], read_command(driver.alloc(PAGE), slba=last | 1 << 32), Status.LBA_OUT_OF_RANGE)


@pytest.mark.fact(
    "A26", clause="Base 1.4, Figure 127, LBA Out of Range", kills=("last-block-plus-one", "slba-overflow")
)
@pytest.mark.parametrize("opcode", RANGES)
def test_blocks_past_the_end_are_refused_and_nothing_moves(driver: Driver, opcode: int) -> None:
    """64-bit overflow included: SLBA + NLB may come back to the beginning."""
    must_be_offered(driver, opcode)
    queue = driver.create_queues()
    end, size = blocks_of(driver), block_size(driver)
    driver.write(0, b"\x33" * 8 * size)
    driver.write(end - 8, b"\x44" * 8 * size)
    place = guarded(driver, PAGE)
    for slba, blocks in ((end, 1), (end - 1, 2), (end - 7, 8), ((1 << 64) - 1, 1), ((1 << 64) - 4, 8), (1 << 63, 1)):
        fails(driver, queue, blocks_at(opcode, slba, blocks, prp1=place), Status.LBA_OUT_OF_RANGE)
    assert is_untouched(driver, place, PAGE)
    assert driver.read(0, 8) == b"\x33" * 8 * size
    assert driver.read(end - 8, 8) == b"\x44" * 8 * size


@pytest.mark.fact("A23", clause="Base 1.4, 6.1.2 and Figure 126", kills=("io-any-nsid", "inactive-is-invalid"))
@pytest.mark.parametrize("opcode", RANGES)
def test_a_namespace_that_is_not_there_is_refused(driver: Driver, opcode: int) -> None:
    must_be_offered(driver, opcode)
    queue = driver.create_queues()
    nn = identify_controller(driver).nn
    inactive = next(nsid for nsid in range(2, nn + 1) if not any(driver.identify(0, nsid)))
    place = guarded(driver, PAGE)
    for nsid in (0, nn + 1, 0xFFFFFFFE, BROADCAST):
        fails(driver, queue, blocks_at(opcode, 0, 1, nsid=nsid, prp1=place), Status.INVALID_NAMESPACE)
    fails(driver, queue, blocks_at(opcode, 0, 1, nsid=inactive, prp1=place), Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)
    assert driver.read(0, 1) == bytes(512)


@pytest.mark.fact("A23", clause="Base 1.4, 6.8 and 6.7", kills=("io-any-nsid",))
def test_flush_and_deallocate_need_a_namespace_too(driver: Driver) -> None:
    queue = driver.create_queues()
    nn = identify_controller(driver).nn
    for nsid in (0, nn + 1):
        fails(driver, queue, flush_command(nsid), Status.INVALID_NAMESPACE)
        fails(driver, queue, dsm_command(driver, [(0, 1)], nsid=nsid), Status.INVALID_NAMESPACE)
    fails(driver, queue, dsm_command(driver, [(0, 1)], nsid=BROADCAST), Status.INVALID_NAMESPACE)


@pytest.mark.fact("A27", clause="Base 1.4, 6.4", kills=("compare-always-equal", "compare-first-bytes"))
def test_compare_tells_one_different_byte(driver: Driver) -> None:
    queue = driver.create_queues()
    data = random.Random(27).randbytes(8 * block_size(driver))
    driver.write(0, data)
    place = driver.alloc(len(data))
    prp1, prp2 = driver.prps(place, len(data))

    def compare(spoiled: int | None) -> ReadWrite:
        other = bytearray(data)
        if spoiled is not None:
            other[spoiled] ^= 0x80
        driver.bus.write_memory(place, bytes(other))
        return ReadWrite(opcode=NvmOpcode.COMPARE, nsid=1, prp1=prp1, prp2=prp2, nlb=8)

    assert driver.execute(queue, compare(None)).status == Status.SUCCESS
    for spoiled in (0, 1, len(data) // 2, len(data) - 1):
        fails(driver, queue, compare(spoiled), Status.COMPARE_FAILURE, dnr=None)
    assert driver.read(0, 8) == data


@pytest.mark.fact("A26", clause="NVM 1.0, 3.2.6", kills=("verify-transfers", "verify-bound-by-mdts"))
def test_verify_transfers_nothing_and_may_be_longer_than_mdts(driver: Driver) -> None:
    queue = driver.create_queues()
    place = guarded(driver, PAGE)
    blocks = min(blocks_of(driver), 0x10000)
    mdts = identify_controller(driver).mdts
    vsl = NvmController(driver.identify(Cns.CSI_CONTROLLER)).vsl  # its own limit, if it has one
    if vsl:
        blocks = min(blocks, (PAGE << vsl) // block_size(driver))
    assert vsl or blocks * block_size(driver) > PAGE << mdts
    driver.succeed(queue, blocks_at(NvmOpcode.VERIFY, 0, blocks, prp1=place))
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("A26", clause="Base 1.4, Figure 246, LBADS", kills=("block-size-fixed",))
def test_blocks_of_4096_bytes(driver_of: DriverOf) -> None:
    driver = driver_of({1: (1 << 20, 4096)})
    driver.enable()
    queue = driver.create_queues()
    assert (block_size(driver), blocks_of(driver)) == (4096, 256)
    data = random.Random(4096).randbytes(3 * 4096)
    driver.write(2, data, block_size=4096)
    assert driver.read(2, 3, block_size=4096) == data
    assert driver.read(0, 256) == (bytes(8192) + data).ljust(1 << 20, b"\0")
    page = driver.alloc(PAGE)
    driver.succeed(queue, read_command(page, slba=255))
    fails(driver, queue, read_command(page, slba=256), Status.LBA_OUT_OF_RANGE)
    driver.succeed(queue, blocks_at(NvmOpcode.WRITE_ZEROES, 2, 1))
    driver.succeed(queue, dsm_command(driver, [(4, 1)]))
    assert driver.read(2, 3, block_size=4096) == bytes(4096) + data[4096:8192] + bytes(4096)


@pytest.mark.fact("A27", clause="Base 1.4, Figure 126, Namespace is Write Protected", kills=("read-only-written",))
def test_a_read_only_disk_is_never_written(new_bench: NewBench) -> None:
    """On one that the engine reads itself."""
    disk = TellingBackend(is_direct=True)
    content = random.Random(27).randbytes(disk.size)
    disk.write(0, [memoryview(content)])
    del disk.calls[:]
    disk.read_only = True
    driver = new_bench(disk).driver
    driver.enable()
    queue = driver.create_queues()
    page = driver.alloc(PAGE)
    for command in (
        write_command(page),
        blocks_at(NvmOpcode.WRITE_ZEROES, 0, 8),
        dsm_command(driver, [(0, 8)]),
    ):
        fails(driver, queue, command, Status.NAMESPACE_WRITE_PROTECTED)
    assert disk.calls == []
    assert driver.read(0, disk.size // 512) == content


@pytest.mark.fact("A27", clause="Base 1.4, Figure 245, NSATTR", kills=("write-protection-unsaid",))
def test_a_read_only_disk_says_so(new_bench: NewBench) -> None:
    for read_only in (False, True):
        driver = new_bench(TellingBackend(read_only=read_only)).driver
        driver.enable()
        assert identify_namespace(driver).nsattr & 1 == read_only


@pytest.mark.fact("A26", clause="Base 1.4, 6.9 and 6.15", kills=("blocks-shifted",))
def test_a_disk_keeps_what_is_written_to_it(driver: Driver) -> None:
    """Many writes of all lengths, beside a plain model of the disk."""
    seed = 1326
    print("seed", seed)
    random_ = random.Random(seed)
    driver.create_queues()
    size = block_size(driver)
    blocks = min(blocks_of(driver), 512)
    model = bytearray(blocks * size)
    for _ in range(40):
        number = random_.randint(1, 24)
        slba = random_.randrange(blocks - number)
        data = random_.randbytes(number * size)
        driver.write(slba, data)
        model[slba * size : (slba + number) * size] = data
    assert driver.read(0, blocks) == model
