"""BAR0 as a host finds it: how large it is, and what lies where in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmeemu.spec import CQE_SIZE, DOORBELLS, SQE_SIZE
from nvmeemu.testing import Driver, VfioBus
from nvmeemu.testing.client import BAR0, CONFIG, VfioClient
from server.process import Serve

LEAST = 0x4000
MLBAR, MUBAR = 0x10, 0x14


@pytest.mark.parametrize("queues", [1, 64])
def test_bits_13_to_4_of_bar0_read_zero_after_sizing(serve: Serve, disk: Path, path: str, queues: int) -> None:
    """Windows takes them for zero (they are reserved: Base 1.4, 2.1.10), wherever the BAR lies."""
    serve("--disk", disk, "--queues", queues)
    client = VfioClient(path)
    for offset in (MLBAR, MUBAR):
        client.write(CONFIG, offset, b"\xff" * 4)
    low, high = (int.from_bytes(client.read(CONFIG, offset, 4), "little") for offset in (MLBAR, MUBAR))
    assert low & 0x3FF0 == 0
    assert low & 0xF == 0b0100  # memory, 64 bits, not prefetchable
    assert high == 0xFFFFFFFF
    size = client.region_info(BAR0).size
    assert size >= LEAST
    assert size == (1 << 64) - (high << 32 | low & ~0xF)
    client.close()


@pytest.mark.parametrize("doorbells", ["trapped", "mapped"])
def test_what_lies_behind_the_doorbells_reads_zero_and_moves_nothing(
    serve: Serve, disk: Path, path: str, doorbells: str
) -> None:
    serve("--disk", disk, "--doorbells", doorbells)
    with VfioBus(path) as bus:
        driver = Driver(bus)
        driver.enable()
        pair = driver.create_queues(64, 4)
        size = bus.client.region_info(BAR0).size
        for offset in range(DOORBELLS + 0x1000, size, 0x400):
            bus.client.write(BAR0, offset, b"\xff" * 4)
            assert bus.client.read(BAR0, offset, 8) == bytes(8)
        bus.client.write(BAR0, size - 4, b"\1\0\0\0")
        for slba in range(8):  # the doorbells of the last queue are where they were
            driver.write(slba, bytes([slba]) * 512, qid=64)
            assert driver.read(slba, 1, qid=64) == bytes([slba]) * 512
        assert bus.read_memory(pair.sq, SQE_SIZE) != bytes(SQE_SIZE)
        assert bus.read_memory(pair.cq, CQE_SIZE) != bytes(CQE_SIZE)
        assert not driver.status.cfs
