"""DMA_UNMAP takes ranges back, as QEMU asks for guests with an IOMMU (found with Linux on s390x)."""

from __future__ import annotations

import pytest

from nvmeemu.testing import Refused, SharedMemory, VfioClient
from transport.conftest import ServedFake

PAGE = 0x1000


@pytest.fixture
def mapped(client: VfioClient, fake: ServedFake, memory: SharedMemory) -> VfioClient:
    """Pages 10h to 17h, each in a region of its own."""
    for page in range(0x10, 0x18):
        client.map(page * PAGE, PAGE, memory.fd, page * PAGE)
        fake.wait_for("memory")
    return client


def is_mapped(client: VfioClient, page: int) -> bool:
    """A page that is mapped cannot be mapped again."""
    try:
        client.map(page * PAGE, PAGE)
    except Refused:
        return True
    client.unmap(page * PAGE, PAGE)
    return False


def test_all_regions_in_the_range_go(mapped: VfioClient, memory: SharedMemory) -> None:
    mapped.unmap(0x12 * PAGE, 4 * PAGE)
    assert [is_mapped(mapped, page) for page in range(0x10, 0x18)] == [True] * 2 + [False] * 4 + [True] * 2
    mapped.map(0x12 * PAGE, 4 * PAGE, memory.fd)


def test_a_range_with_none_is_no_error(mapped: VfioClient) -> None:
    mapped.unmap(0, 0x10 * PAGE)
    mapped.unmap(0x18 * PAGE, 1 << 30)
    mapped.unmap((1 << 64) - PAGE, PAGE)
    assert all(is_mapped(mapped, page) for page in range(0x10, 0x18))


def test_a_region_that_is_only_partly_in_the_range_stays(mapped: VfioClient, memory: SharedMemory) -> None:
    mapped.map(0x20 * PAGE, 4 * PAGE, memory.fd)
    mapped.unmap(0x17 * PAGE, 10 * PAGE)
    assert not is_mapped(mapped, 0x17)
    assert is_mapped(mapped, 0x20)
