"""A guest behind an IOMMU: its VMM maps page by page, tens of thousands of regions."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from nvmeemu.spec import NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Refused, VfioBus
from nvmeemu.testing.client import DMA_MAP, MAP, NO_REPLY
from nvmeemu.vfio.memory import most_regions
from transport.load import Load
from transport.served import Footprint, ServedDisk

pytestmark = pytest.mark.long

REGIONS = 32768
RAM = 256 << 20  # so that every region is a page of its own; only what is used takes memory


@pytest.fixture
def served(path: str) -> Iterator[ServedDisk]:
    served = ServedDisk(path, "mem:64M")
    yield served
    assert served.stop() == 0


def map_pages(bus: VfioBus, pages: range) -> None:
    """Each to the page of RAM with the same number; every 64th with a reply, so that the server keeps up."""
    for number in pages:
        body = MAP.pack(MAP.size, 3, number * PAGE, number * PAGE, PAGE)
        if number % 64:
            bus.client.send(DMA_MAP, body, [bus.memory.fd], NO_REPLY)
        else:
            bus.client.call(DMA_MAP, body, [bus.memory.fd])


def footprint_after(served: ServedDisk, regions: int) -> Footprint:
    """Once so many were mapped: tables that have grown stay, but need not grow again."""
    with VfioBus(served.path, ram=RAM) as bus:
        bus.client.unmap_all()
        map_pages(bus, range(regions))
        bus.client.unmap(0, regions * PAGE)
    return served.footprint()


def test_thirty_two_thousand_regions_serve_commands(served: ServedDisk) -> None:
    before = footprint_after(served, REGIONS)
    with VfioBus(served.path, ram=RAM) as bus:
        load = Load(bus, seed=1)
        load.start()
        bus.client.unmap_all()
        map_pages(bus, range(REGIONS))
        use(load)
        place = load.driver.alloc(PAGE)  # the last page of all
        assert place < (REGIONS - 1) * PAGE
        load.buffers = [(REGIONS - 2 * number - 2) * PAGE for number in range(16)]
        use(load)
        assert len(os.listdir(f"/proc/{served.process.pid}/fd")) < 100
        for page in random.Random(1).sample(range(REGIONS // 2, REGIONS), 100):
            bus.client.unmap(page * PAGE, PAGE)
        bus.client.unmap(0, REGIONS * PAGE)
        bus.remap()
        use(load)
    served.check(before)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_region_too_many_is_refused_and_said_once(served: ServedDisk) -> None:
    """The real limit: 61,434 by default. All goes on with what there is, and is well again when there is room."""
    most = most_regions()
    assert most >= REGIONS
    print(f"at most {most} regions")
    before = footprint_after(served, most)
    with VfioBus(served.path, ram=(most + 10) * PAGE) as bus:
        load = Load(bus, seed=1)
        load.start()
        bus.client.unmap_all()
        map_pages(bus, range(most))
        for number in range(most, most + 5):
            with pytest.raises(Refused, match="No space"):
                bus.client.map(number * PAGE, PAGE, bus.memory.fd, number * PAGE)
        load.buffers = [(most - 2 * number - 2) * PAGE for number in range(16)]
        use(load)
        refused = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=(most - 1) * PAGE, prp2=most * PAGE, nlb=16)
        assert load.driver.execute(load.queue, refused).status == Status.DATA_TRANSFER_ERROR
        use(load)

        bus.client.unmap(0, PAGE)
        bus.client.map(most * PAGE, PAGE, bus.memory.fd, most * PAGE)
        assert load.driver.execute(load.queue, refused).status == Status.SUCCESS
        with pytest.raises(Refused, match="No space"):
            bus.client.map(0, PAGE, bus.memory.fd, 0)
        bus.client.unmap(REGIONS * PAGE, (most + 1 - REGIONS) * PAGE)
        map_pages(bus, range(REGIONS, most))
        use(load)
        bus.remap()
        use(load)
    assert served.log.count("WARNING refused ") == 1
    assert f"it has {most} regions already, the most there can be" in served.log
    served.check(before)


def use(load: Load) -> None:
    """Some rounds of verified I/O, all of it successful."""
    for _ in range(10):
        load.submit()
        load.collect()
    assert load.statuses == {Status.SUCCESS}
