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


TRAPPED = "serve with --doorbells mapped"
ONE_FILE = "for SPDK and DPDK: -g (--single-file-segments), or --no-huge -s 256"


@pytest.mark.parametrize(
    ("doorbells", "then", "told"),
    [("trapped", "leave", True), ("trapped", "look", False), ("trapped", "reset", False), ("mapped", "leave", False)],
)
def test_a_host_that_cannot_map_the_doorbells_finds_the_cure_in_the_log(
    folder: Path, disk: Path, serve: Serve, doorbells: str, then: str, told: bool
) -> None:
    """SPDK: version, device and region information, all memory; then it gives up without a word."""
    served = serve("--disk", disk, "--doorbells", doorbells, at=str(folder / "cntrl"))
    memory = SharedMemory(RAM)
    for _ in range(2):  # the second client has forgotten nothing of what the first one did
        with VfioClient(str(folder / "cntrl")) as client:
            client.device_info()
            assert (client.map_region(BAR0) is None) == (doorbells == "trapped")
            client.map(0, RAM, memory.fd)
            if then == "look":
                client.enable_bus_master()
            elif then == "reset":
                client.reset()
    served.expect("detached", 2)
    assert served.log.count(TRAPPED) == 2 * told
    memory.close()


def test_a_host_whose_memory_lies_in_many_files_finds_the_cure_in_the_log(
    folder: Path, disk: Path, serve: Serve
) -> None:
    """SPDK without -g has a file for each huge page, and maps them as one range with the first one's file."""
    served = serve("--disk", disk, at=str(folder / "cntrl"))
    memory = SharedMemory(RAM)
    with VfioClient(str(folder / "cntrl")) as client:
        for code in range(2):
            with pytest.raises(OSError, match="Invalid argument"):
                client.map(code * RAM * 4, RAM * 2, memory.fd)
    served.expect("detached")
    (line,) = [line for line in served.log.splitlines() if "refused" in line]
    assert f"{RAM * 2:#x} bytes: its file ends before" in line
    assert line.endswith(ONE_FILE)
    assert TRAPPED not in served.log
    memory.close()


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
    driver.patience = 1 << 20  # polls: a flush of a busy disk takes longer than a thousand
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
