"""GuestMemory: from guest addresses to our memory, under a changing map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeemu.ports import HostMemoryError
from nvmeemu.vfio.binding import DmaRegion
from nvmeemu.vfio.memory import GuestMemory

PAGE = 0x1000


def peek(memory: GuestMemory, iova: int, size: int) -> bytes:
    return b"".join(memory.views(iova, size, writable=False))


def region(iova: int, size: int = PAGE, fill: int = 0, readonly: bool = False) -> DmaRegion:
    memory = memoryview(bytearray([fill]) * size)
    return DmaRegion(iova, size, memory.toreadonly() if readonly else memory)


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory()
    for iova, fill in ((0x4000, 4), (0x1000, 1), (0x2000, 2), (0x8000, 8)):
        memory.add(region(iova, fill=fill))
    return memory


def test_a_view_is_writable_bytes_at_the_address(memory: GuestMemory) -> None:
    view = memory.view(0x4010, 4)
    assert (view.format, view.readonly, bytes(view)) == ("B", False, b"\4\4\4\4")
    view[:] = b"abcd"
    assert bytes(memory.view(0x400F, 6)) == b"\4abcd\4"
    assert peek(memory, 0x4010, 4) == b"abcd"


@pytest.mark.kills("a-range-over-the-end-of-its-region")
def test_a_range_in_no_one_region_is_refused(memory: GuestMemory) -> None:
    memory.view(0x1000, PAGE)
    for iova, size in (
        (0, 1),
        (0xFFF, 2),
        (0x1FFF, 2),
        (0x3000, 1),
        (0x4FFF, 2),
        (0x9000, 1),
        (1 << 63, 8),
    ):
        with pytest.raises(HostMemoryError) as caught:
            memory.view(iova, size)
        assert (caught.value.iova, caught.value.size) == (iova, size)


def test_views_join_adjacent_regions(memory: GuestMemory) -> None:
    assert [bytes(piece) for piece in memory.views(0x1FFE, 4)] == [b"\1\1", b"\2\2"]
    assert [len(piece) for piece in memory.views(0x1000, 2 * PAGE)] == [PAGE, PAGE]
    assert len(memory.views(0x1000, PAGE)) == 1
    with pytest.raises(HostMemoryError):
        memory.views(0x2FFF, 2)


@pytest.mark.kills("the-region-used-last-outlives-its-mapping")
def test_a_removed_region_is_gone_and_its_memory_released(memory: GuestMemory) -> None:
    gone = region(0x6000)
    memory.add(gone)
    memory.view(0x6000, 8)
    memory.views(0x6000, 8)
    memory.remove(0x6000)
    for call in (memory.view, memory.views):
        with pytest.raises(HostMemoryError):
            call(0x6000, 8)
    assert gone.memory is not None
    with pytest.raises(ValueError, match="released"):
        gone.memory.tobytes()
    memory.remove(0x6000)  # the library never asks twice; no harm


def test_memory_mapped_anew_in_other_pieces_is_found(memory: GuestMemory) -> None:
    memory.view(0x1800, 8)
    memory.remove(0x1000)
    memory.remove(0x2000)
    memory.add(region(0x1000, 2 * PAGE, fill=9))
    assert bytes(memory.view(0x1FFE, 4)) == b"\x09" * 4


@pytest.mark.kills("read-only-memory-is-written")
def test_read_only_memory_is_only_read(memory: GuestMemory) -> None:
    memory.add(region(0x10000, fill=7, readonly=True))
    assert peek(memory, 0x10000, 2) == b"\7\7"
    for call in (memory.view, memory.views):
        with pytest.raises(HostMemoryError):
            call(0x10000, 2)


def test_memory_without_a_file_is_a_hole_and_is_told_once(
    memory: GuestMemory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.add(DmaRegion(0x100000, 16 << 20, None))
    assert not caplog.records
    for _ in range(2):
        with pytest.raises(HostMemoryError):
            memory.view(0x100000, 4)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_all_private_means_that_no_ram_can_be_written() -> None:
    memory = GuestMemory()
    assert not memory.all_private
    memory.add(DmaRegion(0, 512 << 20, None))
    memory.add(region(0xF0000000, readonly=True))
    assert memory.all_private
    memory.add(region(0xE0000000))
    assert not memory.all_private


@given(st.lists(st.integers(0, 15), unique=True), st.data())
def test_it_finds_what_a_plain_search_finds(pages: list[int], data: st.DataObject) -> None:
    memory = GuestMemory()
    for page in pages:
        memory.add(region(page * PAGE, fill=page))
    for page in data.draw(st.lists(st.sampled_from(pages), unique=True) if pages else st.just([])):
        memory.remove(page * PAGE)
        pages = [other for other in pages if other != page]
    for iova, size in data.draw(st.lists(st.tuples(st.integers(0, 17 * PAGE), st.integers(1, 3 * PAGE)))):
        wanted = list(range(iova // PAGE, (iova + size - 1) // PAGE + 1))
        try:
            found = b"".join(memory.views(iova, size))
        except HostMemoryError:
            assert not set(wanted) <= set(pages)
        else:
            assert len(found) == size
            assert sorted(set(found)) == wanted
        if len(wanted) == 1 and wanted[0] in pages:
            assert bytes(memory.view(iova, size)) == bytes(wanted) * size
            assert peek(memory, iova, size) == bytes(wanted) * size


class Refusing:
    """A mirror that has no memory for one more region."""

    def add_region(self, iova: int, memory: memoryview) -> None:
        raise OSError(12, "Cannot allocate memory")

    def remove_region(self, iova: int) -> None:
        raise AssertionError("it was never added")


def test_a_region_that_the_mirror_refuses_is_not_there(memory: GuestMemory) -> None:
    memory.mirror = Refusing()
    with pytest.raises(OSError, match="Cannot allocate memory"):
        memory.add(region(0x10000))
    assert 0x10000 not in memory
    with pytest.raises(HostMemoryError):
        memory.view(0x10000, 1)
    memory.remove(0x10000)
    assert len(memory) == 4
