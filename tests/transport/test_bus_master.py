"""Without Bus Master Enable, or in another power state than D0, the function reaches no memory and sends no message."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nvmeemu.spec import Completion, NvmOpcode, ReadWrite
from nvmeemu.testing import CSTS, PAGE, Driver, SharedMemory, VfioBus, VfioClient
from nvmeemu.testing.client import BAR0, COMMAND, CONFIG, MSIX
from nvmeemu.vfio.pci import MSIX as MSIX_CAPABILITY
from nvmeemu.vfio.pci import PM
from transport.conftest import ServedFake
from transport.fake import DATA, DATA_SIZE, FETCH, INTERRUPT, STORE
from transport.served import PATIENCE, ServedDisk

PATTERN = bytes(range(256))


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def take_away(client: VfioClient, how: str) -> None:
    if how == "D3hot":
        client.write(CONFIG, PM + 4, b"\x03\x00")
    else:
        client.write(CONFIG, COMMAND, b"\x02\x00")


def give_back(client: VfioClient) -> None:
    client.write(CONFIG, PM + 4, b"\x00\x00")
    client.enable_bus_master()


def outcome(fake: ServedFake) -> list[Any]:
    """What has become of the next transfer."""
    while (report := fake.next_event())[0] not in ("no memory", "stored"):
        pass
    return report


@pytest.mark.kills("memory-without-bus-master")
@pytest.mark.parametrize("how", ["no bus master", "D3hot"])
def test_it_reaches_no_memory(fake: ServedFake, client: VfioClient, memory: SharedMemory, how: str) -> None:
    client.map(0x1000, 0x1000, memory.fd)
    take_away(client, how)
    client.write(BAR0, DATA, PATTERN)
    for register in (STORE, FETCH, STORE):
        client.write(BAR0, register, number(0x1000))
        assert outcome(fake) == ["no memory", 0x1000]
    client.map(0x4000, 0x1000, memory.fd, offset=0x1000)
    client.write(BAR0, STORE, number(0x4000))
    assert outcome(fake) == ["no memory", 0x4000]
    assert memory.data[:0x2000] == bytes(0x2000)
    assert "Bus Master" not in fake.read_log()  # a VMM takes it away at each reset of its machine
    give_back(client)
    for iova in (0x1000, 0x4000):
        client.write(BAR0, STORE, number(iova))
        assert outcome(fake) == ["stored", 1]
    assert memory.data[:DATA_SIZE] == memory.data[0x1000 : 0x1000 + DATA_SIZE] == PATTERN


@pytest.mark.kills("a-device-reset-keeps-the-configuration")
def test_every_reset_takes_it_away(fake: ServedFake, client: VfioClient, memory: SharedMemory) -> None:
    client.map(0x1000, 0x1000, memory.fd)
    for reset in (client.reset, lambda: client.write(CONFIG, 0x58, b"\x00\x80")):  # the latter: Initiate FLR
        reset()
        client.write(BAR0, STORE, number(0x1000))
        assert outcome(fake) == ["no memory", 0x1000]
        client.enable_bus_master()
        client.write(BAR0, STORE, number(0x1000))
        assert outcome(fake) == ["stored", 1]


@pytest.mark.kills("messages-without-bus-master")
@pytest.mark.parametrize("how", ["no bus master", "D3hot"])
def test_its_messages_wait(client: VfioClient, how: str) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        client.write(CONFIG, MSIX_CAPABILITY + 2, b"\x00\x80")
        client.set_interrupts(MSIX, 0, [eventfd])
        take_away(client, how)
        client.write(BAR0, INTERRUPT, number(0))
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)
        give_back(client)
        assert os.eventfd_read(eventfd) == 1
    finally:
        os.close(eventfd)


TOLD = "the guest uses the drive, but has not set Bus Master Enable (bit 2 of the PCI Command register): no command"
ASLEEP = "the guest uses the drive, but has put it into power state D3: no command can work"


@pytest.mark.parametrize("options", [("python",), ("native",), ("native", "--doorbells", "mapped")], ids=" ".join)
def test_a_guest_that_uses_the_drive_without_it_is_told_each_time(path: str, options: tuple[str, ...]) -> None:
    served = ServedDisk(path, "mem:1M", "--engine", *options)
    with VfioBus(path, ram=4 << 20) as bus:

        def rings_in_vain(text: str, times: int, qid: int = 0) -> None:
            tail = driver.queues[1].sq_tail if qid else driver.admin.sq_tail
            bus.write_bar(0x1000 + 8 * qid, (tail + 1).to_bytes(4, "little"))
            deadline = time.monotonic() + PATIENCE
            while served.log.count(text) < times:
                assert time.monotonic() < deadline, served.log
                bus.settle()
            while not driver.status.cfs:  # what it waits for does not come
                assert time.monotonic() < deadline
                bus.settle()
            assert served.log.count(text) == times
            assert f"the memory of a queue is gone: {text.partition(', but ')[0][:9]}" in served.log

        driver = Driver(bus)
        take_away(bus.client, "never set")
        driver.enable()
        rings_in_vain(TOLD, 1)
        bus.client.enable_bus_master()
        driver.enable()
        driver.identify(1)
        take_away(bus.client, "cleared again")
        rings_in_vain(TOLD, 2)
        bus.client.reset()  # which clears it
        driver.enable()
        rings_in_vain(TOLD, 3)
        bus.client.enable_bus_master()
        driver.enable()
        driver.create_queues()
        take_away(bus.client, "D3hot")
        rings_in_vain(ASLEEP, 1, qid=1)
        assert served.log.count(TOLD) == 3
    assert served.stop() == 0


def test_a_machine_that_is_reset_in_the_middle_of_things_is_no_news(path: str) -> None:
    """A VMM takes it away first, and resets the function a moment later."""
    served = ServedDisk(path, "mem:1M")
    for _ in range(5):
        with VfioBus(path, ram=4 << 20) as bus:
            driver = Driver(bus)
            driver.enable()
            queue = driver.create_queues()
            for _ in range(20):
                driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8))
            take_away(bus.client, "no bus master")
            bus.client.reset()
            bus.client.enable_bus_master()
            driver = Driver(bus)
            driver.enable()
            driver.identify(1)
    assert "Bus Master" not in served.log
    assert served.stop() == 0


@pytest.fixture(params=["python", "native"])
def bus(request: pytest.FixtureRequest, path: str) -> Iterator[VfioBus]:
    served = ServedDisk(path, "mem:1M", "--engine", request.param)
    with VfioBus(path, ram=4 << 20) as bus:
        yield bus
    assert served.stop() == 0


def test_what_is_in_flight_stops_and_a_reset_makes_all_well(bus: VfioBus) -> None:
    """As at Linux's kexec: the memory is another kernel's from the moment on when the old one has cleared the bit."""
    driver = Driver(bus)
    driver.enable()
    queue = driver.create_queues()
    driver.write(0, PATTERN * 16)
    place = driver.alloc(PAGE)
    take_away(bus.client, "no bus master")
    for _ in range(50):
        driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
    before = bus.memory.data[:]
    bus.wait_for_interrupt(0)
    driver.ring_sq(queue)
    deadline = time.monotonic() + PATIENCE
    while not driver.status.cfs:  # the controller cannot go on without its queues
        assert time.monotonic() < deadline
        bus.wait_for_interrupt(10)
    assert bus.memory.data[:] == before
    bus.client.enable_bus_master()
    driver.enable()
    driver.create_queues()
    assert driver.read(0, 8) == PATTERN * 16


def test_a_short_while_without_it_is_survived(bus: VfioBus) -> None:
    driver = Driver(bus)
    driver.enable()
    queue = driver.create_queues()
    for _ in range(20):
        place = driver.alloc(PAGE)
        cids = [
            driver.submit(queue, ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=place, nlb=8), ring=False)
            for _ in range(10)
        ]
        bus.write_bar(0x1008, queue.sq_tail.to_bytes(4, "little"))
        take_away(bus.client, "D3hot")
        give_back(bus.client)
        found: list[Completion] = []
        deadline = time.monotonic() + PATIENCE
        while len(found) < len(cids):
            assert time.monotonic() < deadline
            found += driver.drain(queue)
            bus.settle()
        assert sorted(completion.cid for completion in found) == sorted(cids)
    assert bus.read_bar(CSTS, 4) == b"\x01\x00\x00\x00"
