"""A client attaches and finds the function: regions, configuration space, registers, guest memory."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import tempfile

import pytest

from nvmeemu.testing.client import BAR0, BAR4, CONFIG, INTX, MSIX, READABLE, Refused, SharedMemory, VfioClient
from transport.conftest import ServedFake
from transport.fake import BAR0_SIZE, DATA, DATA_SIZE, FAIL, FETCH, IDENTITY, STORE

PATTERN = bytes(range(256))


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_the_device_has_two_bars_a_config_space_and_both_kinds_of_interrupts(client: VfioClient) -> None:
    assert client.version == (0, 1)
    regions, interrupts = client.device_info()
    assert regions >= 9
    assert interrupts >= 3
    assert client.region_info(BAR0).size == BAR0_SIZE
    assert client.region_info(BAR4).size == 0x2000
    assert client.region_info(CONFIG).size == 4096
    assert client.interrupt_count(INTX) == 1
    assert client.interrupt_count(MSIX) == 5


def test_config_space_says_who_it_is(client: VfioClient) -> None:
    vendor, device = struct.unpack("<HH", client.read(CONFIG, 0, 4))
    assert (vendor, device) == (IDENTITY.vendor_id, IDENTITY.device_id)
    assert client.read(CONFIG, 8, 4) == bytes([IDENTITY.revision, 0x02, 0x08, 0x01])


def test_registers_take_posted_writes_and_accesses_of_any_size(client: VfioClient) -> None:
    client.post(BAR0, 0x1000, b"\x01\x02\x03\x04")
    client.write(BAR0, 0x1004, b"\x05")
    assert client.read(BAR0, 0x1000, 8) == b"\x01\x02\x03\x04\x05\0\0\0"
    assert client.read(BAR0, 0x1001, 3) == b"\x02\x03\x04"
    client.write(BAR0, 0, bytes(BAR0_SIZE)[:0x100])
    assert client.read(BAR0, 0, BAR0_SIZE) == bytes(0x1000) + b"\x01\x02\x03\x04\x05" + bytes(BAR0_SIZE - 0x1005)


def test_accesses_outside_of_a_region_are_refused(client: VfioClient) -> None:
    for region, offset, size in (
        (BAR0, BAR0_SIZE - 2, 4),
        (CONFIG, 4095, 2),
        (1, 0, 4),
        (99, 0, 4),
        (BAR0, 1 << 63, 4),
    ):
        with pytest.raises(Refused):
            client.read(region, offset, size)
    assert client.read(BAR4, 0x1000, 8) == bytes(8)  # the pending bits


def test_guest_memory_is_seen_both_ways(fake: ServedFake, client: VfioClient, memory: SharedMemory) -> None:
    client.map(0x10_0000, 0x10000, memory.fd)
    assert fake.wait_for("memory") == ["memory", 1]
    memory.data[0x1234 : 0x1234 + DATA_SIZE] = PATTERN
    client.write(BAR0, FETCH, number(0x10_1234))
    assert client.read(BAR0, DATA, DATA_SIZE) == PATTERN
    client.write(BAR0, STORE, number(0x10_5678))
    assert memory.data[0x5678 : 0x5678 + DATA_SIZE] == PATTERN


def test_a_range_over_adjacent_regions_comes_in_pieces(
    fake: ServedFake, client: VfioClient, memory: SharedMemory
) -> None:
    client.map(0x1000, 0x1000, memory.fd, offset=0x4000)
    client.map(0x2000, 0x1000, memory.fd, offset=0x2000)
    client.write(BAR0, DATA, PATTERN)
    client.write(BAR0, STORE, number(0x2000 - 0x10))
    assert fake.wait_for("stored") == ["stored", 2]
    assert memory.data[0x4FF0:0x5000] + memory.data[0x2000:0x20F0] == PATTERN


def test_unmapped_memory_is_gone(fake: ServedFake, client: VfioClient, memory: SharedMemory) -> None:
    client.map(0x1000, 0x1000, memory.fd)
    client.map(0x8000, 0x1000, memory.fd)
    client.unmap(0x1000, 0x1000)
    client.write(BAR0, STORE, number(0x1000))
    assert fake.wait_for("no memory") == ["no memory", 0x1000]
    client.unmap_all()
    client.write(BAR0, STORE, number(0x8000))
    assert fake.wait_for("no memory") == ["no memory", 0x8000]


def test_read_only_memory_is_read_and_not_written(fake: ServedFake, client: VfioClient, memory: SharedMemory) -> None:
    client.map(0, 0x1000, memory.fd, flags=READABLE)
    memory.data[:DATA_SIZE] = PATTERN
    client.write(BAR0, FETCH, number(0))
    assert client.read(BAR0, DATA, DATA_SIZE) == PATTERN
    client.write(BAR0, STORE, number(0x100))
    assert fake.wait_for("no memory") == ["no memory", 0x100]


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_memory_that_is_not_shared_is_refused_with_its_cure(fake: ServedFake, client: VfioClient, kind: str) -> None:
    """QEMU without share=on: what its guest writes never gets into the file."""
    size = 0x10000
    with tempfile.TemporaryFile() as file:
        fd = os.memfd_create("private") if kind == "memfd" else file.fileno()
        os.ftruncate(fd, size)
        client.map(0x10_0000, size, fd)  # nobody has it mapped: nothing is known
        with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE):
            with pytest.raises(Refused) as refused:
                client.map(0x20_0000, size, fd)
            assert refused.value.errno == errno.EINVAL
            with pytest.raises(Refused):
                client.map(0x20_0000, 0x1000, fd, offset=0x4000)
            client.map(0x20_0000, size, fd, flags=READABLE)  # a ROM
            with mmap.mmap(fd, size // 2):
                client.map(0x30_0000, size // 2, fd)
                client.map(0x40_0000, 0x1000, fd, offset=0x1000)
                with pytest.raises(Refused):
                    client.map(0x50_0000, 0x1000, fd, offset=size // 2)
        if kind == "memfd":
            os.close(fd)
    log = fake.read_log()
    assert log.count("it has mapped its file for itself alone (MAP_PRIVATE)") == 1
    assert "give each of its memory backends share=on" in log


def test_memory_without_a_file_is_ignored_and_named_in_the_log(fake: ServedFake, client: VfioClient) -> None:
    client.map(0, 64 << 20)
    client.write(BAR0, FETCH, number(0x1000))
    fake.wait_for("no memory")
    assert "share=on" in fake.read_log()
    assert "WARNING the guest uses memory at 0x0 to 0x3ffffff that" in fake.read_log()


def test_thousands_of_regions_can_be_mapped(fake: ServedFake, client: VfioClient, memory: SharedMemory) -> None:
    """The library's own limit is 16 regions; a guest with an IOMMU maps page by page."""
    pages = 3000
    for page in range(pages):
        client.map(page * 0x2000, 0x1000, memory.fd, offset=page % 256 * 0x1000)
    while fake.wait_for("memory") != ["memory", pages]:
        pass
    client.write(BAR0, DATA, PATTERN)
    client.write(BAR0, STORE, number(2999 * 0x2000 + 0x800))
    fake.wait_for("stored")
    assert memory.data[2999 % 256 * 0x1000 + 0x800 :][:DATA_SIZE] == PATTERN


def test_a_fault_in_the_device_ends_the_server_with_its_traceback(fake: ServedFake, client: VfioClient) -> None:
    """An exception in a callback must not vanish in C."""
    with pytest.raises((Refused, EOFError, ConnectionResetError)):
        client.write(BAR0, FAIL, number(1))
    assert fake.wait() != 0
    assert "RuntimeError: a fault in the device" in fake.read_log()
