"""Several namespaces, and NSIDs that are none. Base 1.4, 6.1."""

from __future__ import annotations

import struct

import pytest

from conformance.tools import (
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
from nvmeemu.namespace import Namespace
from nvmeemu.spec import BROADCAST, Cns, Status
from nvmeemu.structures import IndependentNamespace
from nvmeemu.testing import PAGE, Driver

DISKS = {1: (1 << 20, 512), 3: (2 << 20, 4096), 16: (3 << 20, 512)}  # NSID -> bytes, block size


class Several:
    """A controller with a disk for each of DISKS."""

    def __init__(self, new_bench: NewBench) -> None:
        self.disks = {nsid: TellingBackend(size, is_direct=True) for nsid, (size, _) in DISKS.items()}
        bench = new_bench(self.disks[1])
        for nsid in (3, 16):
            disk = self.disks[nsid]
            disk.identity = f"disk {nsid}"
            bench.namespaces.add(Namespace(nsid, disk, DISKS[nsid][1]))
        self.driver = bench.driver
        self.driver.enable()
        self.queue = self.driver.create_queues()


@pytest.fixture
def several(new_bench: NewBench) -> Several:
    return Several(new_bench)


def active(driver: Driver, after: int = 0) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", driver.identify(Cns.ACTIVE_NAMESPACES, after)) if nsid]


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.3", kills=("active-list-includes-given",))
def test_the_list_has_the_active_namespaces_in_order(several: Several) -> None:
    assert active(several.driver) == [1, 3, 16]
    assert active(several.driver, 1) == [3, 16]
    assert active(several.driver, 2) == [3, 16]
    assert active(several.driver, 15) == [16]
    assert active(several.driver, 16) == []


@pytest.mark.fact("A21", clause="Base 1.4, Figure 247, NN", kills=("nn-is-a-count",))
def test_nn_bounds_every_nsid_and_is_not_a_count(several: Several) -> None:
    nn = identify_controller(several.driver).nn
    assert nn >= max(DISKS)
    for nsid in range(1, nn + 1):
        assert any(several.driver.identify(Cns.NAMESPACE, nsid)) == (nsid in DISKS)
        assert any(several.driver.identify(Cns.INDEPENDENT_NAMESPACE, nsid)) == (nsid in DISKS)


@pytest.mark.fact("A23", clause="Base 1.4, 6.1", kills=("io-first-namespace",))
def test_each_namespace_has_its_own_blocks(several: Several) -> None:
    driver = several.driver
    for nsid, (size, block) in DISKS.items():
        assert (blocks_of(driver, nsid), block_size(driver, nsid)) == (size // block, block)
        driver.write(0, bytes([nsid]) * 4096, nsid=nsid, block_size=block)
    for nsid, (_, block) in DISKS.items():
        assert driver.read(0, 4096 // block, nsid=nsid, block_size=block) == bytes([nsid]) * 4096
        at_its_disk = bytearray(4096)
        several.disks[nsid].read(0, [memoryview(at_its_disk)])
        assert at_its_disk == bytes([nsid]) * 4096


@pytest.mark.fact("A26", clause="Base 1.4, Figure 127, LBA Out of Range", kills=("io-first-namespace",))
def test_each_namespace_has_its_own_end(several: Several) -> None:
    page = several.driver.alloc(PAGE)
    for nsid, (size, block) in DISKS.items():
        end = size // block
        several.driver.succeed(several.queue, read_command(page, slba=end - 1, nsid=nsid))
        fails(several.driver, several.queue, read_command(page, slba=end, nsid=nsid), Status.LBA_OUT_OF_RANGE)


@pytest.mark.fact("A23", clause="Base 1.4, Figure 126", kills=("inactive-is-invalid",))
def test_an_nsid_between_two_namespaces_is_valid_and_inactive(several: Several) -> None:
    page = several.driver.alloc(PAGE)
    for nsid in (2, 4, 15):
        fails(several.driver, several.queue, read_command(page, nsid=nsid), Status.INVALID_FIELD)
        fails(several.driver, several.queue, flush_command(nsid), Status.INVALID_FIELD)


@pytest.mark.fact("A19", clause="Base 1.4, 6.8", kills=("flush-broadcast-first-only", "flush-always-all"))
def test_flush_reaches_one_namespace_or_every_one(several: Several) -> None:
    several.driver.succeed(several.queue, flush_command(3))
    assert [disk.names for disk in several.disks.values()] == [[], ["flush"], []]
    several.driver.succeed(several.queue, flush_command(BROADCAST))
    assert [disk.names for disk in several.disks.values()] == [["flush"], ["flush", "flush"], ["flush"]]


@pytest.mark.fact("A21", clause="Base 1.4, 7.10 and 7.11", kills=("identifiers-shared",))
def test_no_two_namespaces_share_an_identifier(several: Several) -> None:
    nguids = {identify_namespace(several.driver, nsid).nguid for nsid in DISKS}
    assert len(nguids) == len(DISKS)
    pages = {several.driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid) for nsid in DISKS}
    assert len(pages) == len(DISKS)


@pytest.mark.fact("A21", clause="Base 1.4, 7.10 and 7.11", kills=("identifiers-random",))
def test_a_disk_keeps_its_identifiers(several: Several, new_bench: NewBench) -> None:
    for nsid in DISKS:
        before = several.driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
        assert Several(new_bench).driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid) == before


@pytest.mark.fact("A21", clause="Base 2.0, 5.17.2.8", kills=("independent-not-ready",))
def test_every_namespace_is_ready(several: Several) -> None:
    for nsid in DISKS:
        assert IndependentNamespace(several.driver.identify(Cns.INDEPENDENT_NAMESPACE, nsid)).nstat & 1
