"""Write Zeroes and Dataset Management. Base 1.4, 6.16 and 6.7."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    block_size,
    blocks_of,
    dsm_command,
    fails,
    guarded,
    identify_controller,
    identify_namespace,
    is_untouched,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.backend.raw import RawBackend, create_image
from nvmeemu.spec import Cns, DatasetManagement, NvmController, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Driver

MIB = 1 << 20


def zeroes(slba: int, blocks: int, *, deac: bool = False, fua: bool = False) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=slba, nlb=blocks, deac=deac, fua=fua)


def fill(driver: Driver, slba: int, blocks: int) -> None:
    driver.write(slba, b"\x77" * blocks * block_size(driver))


def is_full(driver: Driver, slba: int, blocks: int) -> bool:
    return driver.read(slba, blocks) == b"\x77" * blocks * block_size(driver)


def is_zero(driver: Driver, slba: int, blocks: int) -> bool:
    return not any(driver.read(slba, blocks))


@pytest.mark.fact("A29", clause="Base 1.4, 6.16", kills=("write-zeroes-does-nothing", "write-zeroes-one-more"))
@pytest.mark.fact("B6", clause="Base 1.4, 6.16", kills=("write-zeroes-does-nothing",))
@pytest.mark.parametrize("deac", [False, True])
@pytest.mark.parametrize(("slba", "blocks"), [(0, 1), (1, 7), (8, 8), (3, 20), (5, 1)])
def test_write_zeroes_zeroes_its_blocks_and_no_other(driver: Driver, slba: int, blocks: int, deac: bool) -> None:
    """bhyve says success and writes nothing."""
    queue = driver.create_queues()
    fill(driver, 0, 32)
    driver.succeed(queue, zeroes(slba, blocks, deac=deac))
    assert is_zero(driver, slba, blocks)
    assert slba == 0 or is_full(driver, 0, slba)
    assert is_full(driver, slba + blocks, 32 - slba - blocks)


@pytest.mark.fact("A25", clause="Base 1.4, Figure 247, MDTS", kills=("write-zeroes-bound-by-mdts",))
def test_write_zeroes_and_deallocate_may_be_longer_than_mdts(driver: Driver) -> None:
    queue = driver.create_queues()
    size = block_size(driver)
    blocks = min(blocks_of(driver), 0x10000)
    assert blocks * size > PAGE << identify_controller(driver).mdts
    for command in (zeroes(0, blocks), dsm_command(driver, [(0, blocks)])):
        fill(driver, 0, 1)
        fill(driver, blocks - 1, 1)
        driver.succeed(queue, command)
        assert is_zero(driver, 0, 1)
        assert is_zero(driver, blocks - 1, 1)


@pytest.mark.fact("A29", clause="Base 1.4, 6.16, DEAC", kills=("deac-ignored", "deac-always"))
def test_deac_asks_the_disk_to_deallocate(new_bench: NewBench) -> None:
    """What the engine does about it is seen on a file: tests/native/test_media.py."""
    disk = TellingBackend()
    driver = new_bench(disk).driver
    driver.enable()
    queue = driver.create_queues()
    driver.succeed(queue, zeroes(8, 8))
    driver.succeed(queue, zeroes(16, 8, deac=True))
    assert disk.calls == [("zero", 4096, 4096), ("zero deallocate", 8192, 4096)]


@pytest.mark.fact("A29", clause="Base 1.4, Figure 245, DLFEAT", kills=("dlfeat-unsaid", "deallocate-does-nothing"))
def test_deallocated_blocks_read_as_dlfeat_says(driver: Driver) -> None:
    queue = driver.create_queues()
    dlfeat = identify_namespace(driver).dlfeat & 7
    fill(driver, 0, 24)
    driver.succeed(queue, dsm_command(driver, [(8, 8)]))
    assert is_full(driver, 0, 8)
    assert is_full(driver, 16, 8)
    expected = {1: b"\0", 2: b"\xff"}
    assert dlfeat in expected, "DLFEAT does not say what deallocated blocks read as"
    assert driver.read(8, 8) == expected[dlfeat] * 8 * block_size(driver)


@pytest.mark.fact("A29", clause="Base 1.4, 6.7, NR", kills=("dsm-nr-off-by-one",))
@pytest.mark.parametrize("number", [1, 2, 255, 256])
def test_up_to_256_ranges_are_taken(driver: Driver, number: int) -> None:
    """NR is 0's based: 0 means one range. Its dwords by hand."""
    queue = driver.create_queues()
    fill(driver, 0, 2 * number + 2)
    place = driver.alloc(PAGE)
    for index in range(min(number + 1, 256)):  # one more lies behind
        driver.bus.write_memory(place + index * 16, struct.pack("<IIQ", 0, 1, 2 * index))
    command = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=place, cdw10=number - 1, cdw11=1 << 2)
    driver.succeed(queue, command)
    data = driver.read(0, 2 * number + 2)
    size = block_size(driver)
    for slba in range(2 * number + 2):
        block = data[slba * size : (slba + 1) * size]
        is_deallocated = slba % 2 == 0 and slba < 2 * number
        assert block == (b"\0" if is_deallocated else b"\x77") * size


@pytest.mark.fact("A29", clause="Base 1.4, 6.7, AD", kills=("dsm-hints-deallocate", "dsm-hints-refused"))
def test_hints_without_deallocate_succeed_and_change_nothing(driver: Driver) -> None:
    queue = driver.create_queues()
    fill(driver, 0, 16)
    hints = dsm_command(driver, [(0, 8), (8, 8)], ad=False)
    hints.cdw11 |= 0b11  # IDR, IDW
    driver.succeed(queue, hints)
    assert is_full(driver, 0, 16)


@pytest.mark.fact("A29", clause="Base 1.4, 6.7", kills=("dsm-range-unchecked", "dsm-before-it-is-checked"))
@pytest.mark.parametrize("past", [0, 1, 1 << 40, (1 << 64) - 4])
def test_a_range_past_the_end_is_refused_and_no_range_deallocated(driver: Driver, past: int) -> None:
    queue = driver.create_queues()
    end = blocks_of(driver)
    slba = past if past > end else end - 3 + past
    fill(driver, 0, 8)
    fails(driver, queue, dsm_command(driver, [(0, 8), (slba, 4 if past else 8)]), Status.LBA_OUT_OF_RANGE)
    assert is_full(driver, 0, 8)


@pytest.mark.fact("A29", clause="Base 1.4, 6.7", kills=("dsm-empty-range",))
def test_an_empty_range_deallocates_nothing(new_bench: NewBench) -> None:
    for is_direct in (False, True):
        disk = TellingBackend(is_direct=is_direct)
        driver = new_bench(disk).driver
        driver.enable()
        queue = driver.create_queues()
        fill(driver, 0, blocks_of(driver))
        driver.succeed(queue, dsm_command(driver, [(0, 0), (8, 8), (blocks_of(driver), 0)]))
        deallocated = [call[1:] for call in disk.calls if call[0] == "deallocate"]
        assert deallocated == [(4096, 4096)] or (is_direct and not deallocated)  # not told where the engine does it
        assert is_full(driver, 0, 8)
        assert is_zero(driver, 8, 8)
        assert is_full(driver, 16, blocks_of(driver) - 16)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("dsm-list-contiguous",))
def test_the_list_of_ranges_may_cross_a_page(driver: Driver) -> None:
    queue = driver.create_queues()
    fill(driver, 0, 24)
    first, second = guarded(driver, PAGE), guarded(driver, PAGE)
    driver.bus.write_memory(first + PAGE - 24, struct.pack("<IIQII", 0, 2, 4, 0, 2))
    driver.bus.write_memory(second, struct.pack("<Q", 12))  # the SLBA of the second range
    command = DatasetManagement(
        opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=first + PAGE - 24, prp2=second, nr=2, ad=True
    )
    driver.succeed(queue, command)
    zero = [slba for slba in range(24) if is_zero(driver, slba, 1)]
    assert zero == [4, 5, 12, 13]
    assert is_untouched(driver, first + PAGE, PAGE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    create_image(str(path), 8 * MIB)
    return path


def storage(path: Path) -> int:
    """Bytes that the file takes on its disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_blocks * 512


@pytest.mark.fact("A29", clause="Base 1.4, 6.7 and 6.16", kills=("raw-no-holes",))
@pytest.mark.parametrize("how", ["deallocate", "zeroes"])
def test_storage_is_really_given_back(new_bench: NewBench, image: Path, how: str) -> None:
    driver = new_bench(RawBackend(str(image))).driver
    driver.enable()
    queue = driver.create_queues()
    for start in range(0, 8, 2):
        fill(driver, start * MIB // 512, 2 * MIB // 512)
    full = storage(image)
    assert full >= 8 * MIB
    start, blocks = 2 * MIB // 512, 4 * MIB // 512
    driver.succeed(queue, dsm_command(driver, [(start, blocks)]) if how == "deallocate" else _deac(start, blocks))
    assert storage(image) <= full - 4 * MIB
    assert is_zero(driver, start, 4096)
    assert is_full(driver, 0, 4096)
    assert is_full(driver, 6 * MIB // 512, 4096)
    assert image.stat().st_size == 8 * MIB


def _deac(slba: int, blocks: int) -> ReadWrite:
    return zeroes(slba, blocks, deac=True)


@pytest.mark.fact("A29", clause="Base 1.4, 6.16", kills=("raw-zeroes-punch",))
def test_zeroes_without_deac_keep_their_storage(new_bench: NewBench, image: Path) -> None:
    """A host that zeroes without DEAC wants the room: writing there later cannot meet a full disk."""
    driver = new_bench(RawBackend(str(image))).driver
    driver.enable()
    queue = driver.create_queues()
    fill(driver, 0, 2 * MIB // 512)
    full = storage(image)
    driver.succeed(queue, zeroes(0, 2 * MIB // 512))
    assert storage(image) >= full
    assert is_zero(driver, 0, 2 * MIB // 512)


@pytest.mark.fact("F324", clause="NVM 1.0, Figure 101", kills=("limit-promised", "write-zeroes-bound-by-mdts"))
@pytest.mark.fact("F323", clause="NVM 1.0, Figure 101", kills=("limit-promised",))
def test_what_transfers_nothing_has_no_limit_but_its_fields(new_bench: NewBench) -> None:
    """Identify says so, and it is so for the most that a command can ask for."""
    most = 0x10000
    driver = new_bench(MemoryBackend(most * 512), has_block_map=True).driver
    driver.enable()
    queue = driver.create_queues()
    page = NvmController(driver.identify(Cns.CSI_CONTROLLER))
    assert (page.vsl, page.wzsl, page.wusl, page.dmrl, page.dmrsl, page.dmsl) == (0,) * 6
    fill(driver, most - 8, 8)
    driver.succeed(queue, ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, slba=0, nlb=most))
    driver.succeed(queue, ReadWrite(opcode=NvmOpcode.WRITE_UNCORRECTABLE, nsid=1, slba=0, nlb=most))
    driver.succeed(queue, zeroes(0, most))
    assert is_zero(driver, most - 8, 8)
    fill(driver, most - 8, 8)
    driver.succeed(queue, dsm_command(driver, [(0, most)] * 256))
    assert is_zero(driver, most - 8, 8)


@pytest.mark.fact("F327", clause="Base 1.4, 6.9, 6.15 and 6.7", kills=("hints-refused",))
def test_hints_are_taken_and_change_nothing(driver: Driver) -> None:
    """Of each kind: of the dataset, of the retries, and of a command extension that there is not."""
    queue = driver.create_queues()
    fill(driver, 0, 1)
    place = driver.alloc(PAGE)
    for cdw12, cdw13 in ((1 << 31, 0), (0, 0xFF), (0, 1 << 7 | 1 << 6 | 0x3F), (1 << 31, 0x55)):
        for opcode in (NvmOpcode.READ, NvmOpcode.WRITE):
            command = ReadWrite(opcode=opcode, nsid=1, slba=0, nlb=1, prp1=place)
            command.cdw12, command.cdw13 = command.cdw12 | cdw12, cdw13
            driver.succeed(queue, command)
            assert is_full(driver, 0, 1)
