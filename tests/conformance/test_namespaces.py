"""Several namespaces, and NSIDs that are none. Base 1.4, 6.1."""

from __future__ import annotations

import struct

import pytest

from conformance.tools import (
    DriverOf,
    NewBench,
    TellingBackend,
    block_size,
    blocks_of,
    fails,
    flush_command,
    identify_controller,
    identify_namespace,
    read_command,
)
from nvmeemu.spec import BROADCAST, Cns, IndependentNamespace, Status
from nvmeemu.testing import PAGE, Driver

DISKS = {1: (1 << 20, 512), 3: (2 << 20, 4096), 16: (3 << 20, 512)}  # NSID -> bytes, block size


class Telling:
    """A controller of ours with a disk for each of DISKS that tells what was asked of it."""

    def __init__(self, new_bench: NewBench) -> None:
        self.disks = {nsid: TellingBackend(size, is_direct=True) for nsid, (size, _) in DISKS.items()}
        bench = new_bench(self.disks[1])
        for nsid in (3, 16):
            disk = self.disks[nsid]
            disk.identity = f"disk {nsid}"
            bench.namespaces.add(bench.namespace(nsid, disk, DISKS[nsid][1]))
        self.driver = bench.driver
        self.driver.enable()
        self.queue = self.driver.create_queues()


@pytest.fixture
def several(driver_of: DriverOf) -> Driver:
    """An enabled controller with a disk for each of DISKS, and a queue pair."""
    driver = driver_of(DISKS)
    driver.enable()
    driver.create_queues()
    return driver


def active(driver: Driver, after: int = 0) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", driver.identify(Cns.ACTIVE_NAMESPACES, after)) if nsid]


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.3", kills=("active-list-includes-given",))
def test_the_list_has_the_active_namespaces_in_order(several: Driver) -> None:
    assert active(several) == [1, 3, 16]
    assert active(several, 1) == [3, 16]
    assert active(several, 2) == [3, 16]
    assert active(several, 15) == [16]
    assert active(several, 16) == []


@pytest.mark.fact("A21", clause="Base 1.4, Figure 247, NN", kills=("nn-is-a-count",))
def test_nn_bounds_every_nsid_and_is_not_a_count(several: Driver) -> None:
    nn = identify_controller(several).nn
    assert nn >= max(DISKS)
    for nsid in range(1, nn + 1):
        assert any(several.identify(Cns.NAMESPACE, nsid)) == (nsid in DISKS)
        assert any(several.identify(Cns.INDEPENDENT_NAMESPACE, nsid)) == (nsid in DISKS)


@pytest.mark.fact("A23", clause="Base 1.4, 6.1", kills=("io-first-namespace",))
def test_each_namespace_has_its_own_blocks(several: Driver) -> None:
    for nsid, (size, block) in DISKS.items():
        assert (blocks_of(several, nsid), block_size(several, nsid)) == (size // block, block)
        several.write(0, bytes([nsid]) * 4096, nsid=nsid, block_size=block)
    for nsid, (_, block) in DISKS.items():
        assert several.read(0, 4096 // block, nsid=nsid, block_size=block) == bytes([nsid]) * 4096


@pytest.mark.fact("A26", clause="Base 1.4, Figure 127, LBA Out of Range", kills=("io-first-namespace",))
def test_each_namespace_has_its_own_end(several: Driver) -> None:
    page = several.alloc(PAGE)
    for nsid, (size, block) in DISKS.items():
        end = size // block
        several.succeed(several.queues[1], read_command(page, slba=end - 1, nsid=nsid))
        fails(several, several.queues[1], read_command(page, slba=end, nsid=nsid), Status.LBA_OUT_OF_RANGE)


@pytest.mark.fact("A23", clause="Base 1.4, Figure 126", kills=("inactive-is-invalid",))
def test_an_nsid_between_two_namespaces_is_valid_and_inactive(several: Driver) -> None:
    page = several.alloc(PAGE)
    for nsid in (2, 4, 15):
        fails(several, several.queues[1], read_command(page, nsid=nsid), Status.INVALID_FIELD)
        fails(several, several.queues[1], flush_command(nsid), Status.INVALID_FIELD)


@pytest.mark.fact("A19", clause="Base 1.4, 6.8", kills=("flush-broadcast-first-only", "flush-always-all"))
def test_flush_reaches_one_namespace_or_every_one(new_bench: NewBench) -> None:
    several = Telling(new_bench)
    several.driver.succeed(several.queue, flush_command(3))
    assert [disk.names for disk in several.disks.values()] == [[], ["flush"], []]
    several.driver.succeed(several.queue, flush_command(BROADCAST))
    assert [disk.names for disk in several.disks.values()] == [["flush"], ["flush", "flush"], ["flush"]]


@pytest.mark.fact("A21", clause="Base 1.4, 7.10 and 7.11", kills=("identifiers-shared",))
def test_no_two_namespaces_share_an_identifier(several: Driver) -> None:
    nguids = {identify_namespace(several, nsid).nguid for nsid in DISKS}
    assert len(nguids) == len(DISKS)
    pages = {several.identify(Cns.NAMESPACE_DESCRIPTORS, nsid) for nsid in DISKS}
    assert len(pages) == len(DISKS)


@pytest.mark.fact("A21", clause="Base 1.4, 7.10 and 7.11", kills=("identifiers-random",))
def test_a_disk_keeps_its_identifiers(new_bench: NewBench) -> None:
    driver = Telling(new_bench).driver
    for nsid in DISKS:
        before = driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
        assert Telling(new_bench).driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid) == before


@pytest.mark.fact("A21", clause="Base 2.0, 5.17.2.8", kills=("independent-not-ready",))
def test_every_namespace_is_ready(several: Driver) -> None:
    for nsid in DISKS:
        assert IndependentNamespace(several.identify(Cns.INDEPENDENT_NAMESPACE, nsid)).nstat & 1
