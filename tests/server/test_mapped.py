"""A host that takes no messages for doorbells: SPDK's driver, as far as is known what it does (trtype:VFIOUSER).

Its socket is cntrl in a folder that it is told (traddr). It has guest memory where it has it itself, routes no
interrupt, polls, and gives up where the doorbells of BAR0 cannot be mapped.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeemu.spec import BAR0_LEAST, DOORBELLS
from nvmeemu.testing import PAGE, Driver, SharedMemory, VfioClient
from nvmeemu.testing.client import BAR0
from server.process import Serve

RAM = 8 << 20
TRANSFER = 256 << 10


class PollingHost:
    """The driver's ``Bus``: doorbells only in memory, guest addresses are those of the mapping in this process."""

    def __init__(self, folder: Path) -> None:
        self.client = VfioClient(str(folder / "cntrl"))
        shared = self.client.map_region(BAR0)
        assert shared is not None, "the doorbells cannot be mapped"
        self.start, self.doorbells = shared
        self.memory = SharedMemory(RAM)
        self.base = ctypes.addressof(ctypes.c_uint8.from_buffer(self.memory.data))
        self.client.map(self.base, RAM, self.memory.fd)
        self.client.enable_bus_master()
        self.rings = 0

    def read_bar(self, offset: int, size: int) -> bytes:
        return self.client.read(BAR0, offset, size)

    def write_bar(self, offset: int, data: bytes) -> None:
        if offset < DOORBELLS:
            self.client.write(BAR0, offset, data)
            return
        self.rings += 1
        memoryview(self.doorbells).cast("I")[(offset - self.start) // 4] = int.from_bytes(data, "little")

    def read_memory(self, iova: int, size: int) -> bytes:
        return self.memory.data[iova - self.base : iova - self.base + size]

    def write_memory(self, iova: int, data: bytes) -> None:
        self.memory.data[iova - self.base : iova - self.base + len(data)] = data

    def settle(self) -> None:
        """It only polls: a register, so that the driver's patience has a length."""
        self.client.read(BAR0, 0, 8)


@pytest.fixture
def host(folder: Path, serve: Serve) -> Iterator[PollingHost]:
    disk = folder / "disk.raw"
    disk.write_bytes(bytes(16 << 20))
    serve("--disk", disk, "--doorbells", "mapped", at=str(folder / "cntrl"))
    host = PollingHost(folder)
    yield host
    host.client.close()
    host.doorbells.close()


def test_the_doorbells_are_one_sparse_area(host: PollingHost) -> None:
    info = host.client.region_info(BAR0)
    assert info.areas == ((DOORBELLS, PAGE),)
    assert len(host.doorbells) == PAGE
    assert info.size == BAR0_LEAST


def test_what_is_written_without_a_message_is_read_and_on_the_disk(host: PollingHost, folder: Path) -> None:
    driver = Driver(host, heap=host.base)
    driver.enable()
    driver.create_queues(1)
    data = os.urandom(TRANSFER)
    driver.write(8, data)  # longer than two pages: a list
    assert driver.read(8, TRANSFER // 512) == data
    for block in range(200):  # several times round the queues
        place = 4096 + block
        driver.write(place, data[block : block + 512])
        assert driver.read(place, 1) == data[block : block + 512]
    driver.flush()
    content = (folder / "disk.raw").read_bytes()
    assert content[8 * 512 : 8 * 512 + TRANSFER] == data
    assert content[4096 * 512 :][:512] == data[:512]
    assert host.rings >= 2 * 400
