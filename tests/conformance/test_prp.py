"""PRPs: where the data of a command lies. Base 1.4, 4.3."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.tools import block_size, fails, guarded, is_untouched, largest_transfer, read_command, write_command
from nvmeemu.spec import NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair

SLOTS = PAGE // 8
BLOCK = 512


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def scattered(driver: Driver, number: int) -> list[int]:
    """Pages of guard bytes, no two of them neighbours, in no order."""
    start = guarded(driver, number * 2 * PAGE)
    pages = [start + index * 2 * PAGE for index in range(number)]
    random.Random(number).shuffle(pages)
    return pages


def list_at(driver: Driver, slot: int, entries: list[int]) -> int:
    """A PRP list that begins in this slot of its page, chained where the page is full; its address."""
    page = driver.alloc(PAGE)
    first, room = page + slot * 8, SLOTS - slot
    while len(entries) > room:
        following = driver.alloc(PAGE)
        here, entries = [*entries[: room - 1], following], entries[room - 1 :]
        driver.bus.write_memory(page + PAGE - room * 8, struct.pack(f"<{room}Q", *here))
        page, room = following, SLOTS
    driver.bus.write_memory(page + PAGE - room * 8, struct.pack(f"<{len(entries)}Q", *entries))
    return first


@dataclass
class Layout:
    """``size`` bytes that begin at an offset in the first of these pages."""

    pages: list[int]
    offset: int
    size: int

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """The plain model: (address, bytes), page after page."""
        found, left, offset = [], self.size, self.offset
        for page in self.pages:
            piece = min(left, PAGE - offset)
            found.append((page + offset, piece))
            left, offset = left - piece, 0
        assert left == 0
        return found


def prps(driver: Driver, layout: Layout, slot: int = 0) -> tuple[int, int]:
    first, rest = layout.pages[0] + layout.offset, layout.pages[1:]
    if len(rest) <= 1:
        return first, rest[0] if rest else 0
    return first, list_at(driver, slot, rest)


def gather(driver: Driver, layout: Layout) -> bytes:
    return b"".join(driver.bus.read_memory(place, size) for place, size in layout.pieces)


def spread(driver: Driver, layout: Layout, data: bytes) -> None:
    for place, size in layout.pieces:
        driver.bus.write_memory(place, data[:size])
        data = data[size:]


def nothing_else_is_touched(driver: Driver, layout: Layout) -> None:
    """What lies in the pages before and after the data, and between them."""
    for (place, size), page in zip(layout.pieces, layout.pages, strict=True):
        assert is_untouched(driver, page, place - page)
        assert is_untouched(driver, place + size, page + 2 * PAGE - place - size)


def layout_of(driver: Driver, size: int, offset: int = 0) -> Layout:
    return Layout(scattered(driver, -(-(offset + size) // PAGE)), offset, size)


def round_trip(driver: Driver, queue: QueuePair, out: Layout, back: Layout, slot: int = 0) -> None:
    """Write from one layout and read into another; the model says what must be where."""
    data = pattern(out.size, out.size + out.offset)
    spread(driver, out, data)
    blocks = out.size // block_size(driver)
    driver.succeed(queue, write_command(*prps(driver, out, slot), blocks=blocks))
    assert gather(driver, out) == data
    assert driver.read(0, blocks) == data
    driver.succeed(queue, read_command(*prps(driver, back, slot), blocks=blocks))
    assert gather(driver, back) == data
    nothing_else_is_touched(driver, back)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("two-pages-forget-offset", "prp-list-for-two-pages"))
@pytest.mark.parametrize("pages", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks", [-1, 0, 1])
@pytest.mark.parametrize("offset", [0, BLOCK, 4, PAGE - 4])
def test_around_each_number_of_pages_two_pages_or_a_list_are_told_apart(
    driver: Driver, pages: int, blocks: int, offset: int
) -> None:
    """The same length needs PRP2 as a page or as a list, by the offset of PRP1."""
    size = pages * PAGE + blocks * BLOCK
    queue = driver.create_queues()
    round_trip(driver, queue, layout_of(driver, size, offset), layout_of(driver, size, offset))


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("prp-list-512-entries", "last-slot-always-a-pointer"))
@pytest.mark.fact("B3", clause="Base 1.4, 4.3", kills=("prp-list-512-entries",))
@pytest.mark.fact("B2", clause="Base 1.4, 4.3", kills=("prp-list-one-run",))
@pytest.mark.parametrize("slot", [0, 1, 2, 255, 510, 511])
@pytest.mark.parametrize("entries", [2, 3, 4])
def test_a_list_may_begin_in_any_slot_of_its_page(driver: Driver, slot: int, entries: int) -> None:
    """OpenVMM takes 512 entries from wherever the list starts; SPDK reads on past the page's end."""
    size = (entries + 1) * PAGE
    queue = driver.create_queues()
    round_trip(driver, queue, layout_of(driver, size), layout_of(driver, size), slot)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("last-slot-always-a-pointer",))
@pytest.mark.parametrize("slot", [0, 509, 510, 511])
def test_the_last_slot_is_a_page_if_no_more_is_to_come(driver: Driver, slot: int) -> None:
    """The list ends with its page: the last entry is data, not a pointer."""
    entries = SLOTS - slot
    size = min((entries + 1) * PAGE, largest_transfer(driver))
    if entries == 1:
        size += PAGE  # one entry would be PRP2 itself
    queue = driver.create_queues()
    round_trip(driver, queue, layout_of(driver, size), layout_of(driver, size), slot)


@pytest.mark.fact("A25", clause="Base 1.4, Figure 247, MDTS", kills=("mdts-less-by-a-block",))
@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("prp-list-one-run",))
def test_the_largest_transfer_from_inside_a_page_needs_a_chained_list(driver: Driver) -> None:
    """MDTS of 2 MiB and an offset: 513 pages, so that 512 entries do not suffice without a chain."""
    most = largest_transfer(driver)
    queue = driver.create_queues()
    out, back = layout_of(driver, most, BLOCK), layout_of(driver, most, PAGE - 4)
    assert len(out.pages) == len(back.pages) == most // PAGE + 1
    slot = max(SLOTS - most // PAGE + 1, 0)  # one short of what the page could hold
    round_trip(driver, queue, out, back, slot)


@pytest.mark.fact("A25", clause="Base 1.4, Figure 247, MDTS", kills=("mdts-ignored", "mdts-in-mps-units"))
@pytest.mark.fact("B4", clause="Base 1.4, Figure 247, MDTS", kills=("mdts-in-mps-units",))
@pytest.mark.parametrize("mps", [0, 1])
def test_a_block_more_than_mdts_is_refused(driver: Driver, mps: int) -> None:
    """In units of CAP.MPSMIN: QEMU counts in CC.MPS."""
    driver.enable(mps=mps)
    most = largest_transfer(driver)
    blocks = most // block_size(driver) + 1
    queue = driver.create_queues()
    place = guarded(driver, PAGE)
    for make in (read_command, write_command):
        fails(driver, queue, make(place, driver.prp_list([place] * SLOTS), blocks=blocks), Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("prp2-list-alignment",))
@pytest.mark.fact("B2", clause="Base 1.4, 4.3", kills=("prp2-list-alignment", "list-entry-offset"))
@pytest.mark.parametrize("opcode", [NvmOpcode.READ, NvmOpcode.WRITE])
def test_bad_offsets_are_refused_before_anything_moves(driver: Driver, opcode: NvmOpcode) -> None:
    """SPDK never checks PRP2 and the entries of a list; OpenVMM drops the offsets silently."""
    queue = driver.create_queues()
    pages = scattered(driver, 4)
    good = list_at(driver, 0, pages[1:])

    def run(prp1: int, prp2: int, size: int) -> None:
        command = ReadWrite(opcode=opcode, nsid=1, prp1=prp1, prp2=prp2, nlb=size // block_size(driver))
        fails(driver, queue, command, Status.INVALID_PRP_OFFSET)

    for wrong in (1, 2, 3, 511):
        run(pages[0] + wrong, pages[1], PAGE)  # PRP1 is dword aligned
    for offset in (4, 8, 512, 2048):
        run(pages[0], pages[1] + offset, 2 * PAGE)  # PRP2 as a page
    for wrong in (1, 4, 7):
        run(pages[0], good + wrong, 4 * PAGE)  # PRP2 as a list
    for offset in (4, 512):
        run(pages[0], list_at(driver, 0, [pages[1], pages[2] + offset, pages[3]]), 4 * PAGE)
        run(pages[0], list_at(driver, 0, [pages[1], pages[2], pages[3] + offset]), 4 * PAGE)
    for page in pages:
        assert is_untouched(driver, page, PAGE)
    assert driver.read(0, 4 * PAGE // block_size(driver)) == bytes(4 * PAGE)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("chain-pointer-offset",))
@pytest.mark.fact("B3", clause="Base 1.4, 4.3", kills=("chain-pointer-offset",))
def test_a_chained_list_begins_at_the_start_of_its_page(driver: Driver) -> None:
    queue = driver.create_queues()
    pages = scattered(driver, 4)
    page, following = driver.alloc(PAGE), driver.alloc(2 * PAGE)
    driver.bus.write_memory(following + 8, struct.pack("<2Q", *pages[2:]))
    driver.bus.write_memory(page + PAGE - 16, struct.pack("<2Q", pages[1], following + 8))
    blocks = 4 * PAGE // block_size(driver)
    fails(driver, queue, read_command(pages[0], page + PAGE - 16, blocks=blocks), Status.INVALID_PRP_OFFSET)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("two-pages-forget-offset",))
@pytest.mark.parametrize("size", [2048, PAGE, PAGE + 2048, 2 * PAGE, 64 << 10])
def test_buffers_that_start_in_the_middle_of_a_page(driver: Driver, size: int) -> None:
    """FreeBSD's buffers are aligned to 2 KiB, GEOM's to 512 bytes."""
    queue = driver.create_queues()
    round_trip(driver, queue, layout_of(driver, size, 2048), layout_of(driver, size, 2048))


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("prp2-read-when-unused",))
def test_prp2_is_not_looked_at_where_prp1_suffices(driver: Driver) -> None:
    queue = driver.create_queues()
    place = guarded(driver, PAGE)
    blocks = PAGE // block_size(driver)
    driver.succeed(queue, read_command(place, 0xFFFF_FFFF_FFFF_FFFF, blocks=blocks))
    assert driver.bus.read_memory(place, PAGE) == bytes(PAGE)
    assert is_untouched(driver, place - PAGE, PAGE)
    assert is_untouched(driver, place + PAGE, PAGE)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3 and 3.1.5, MPS", kills=("list-of-4k-pages",))
def test_with_larger_pages_a_list_is_longer_and_its_entries_are_larger(driver: Driver) -> None:
    """Page size is CC.MPS, for the list's own page as well."""
    driver.enable(mps=1)
    queue = driver.create_queues()
    large = 2 * PAGE
    start = guarded(driver, 8 * large, large)
    pages = [start + index * 2 * large for index in (3, 1, 0, 2)]
    slots = driver.alloc(large, large)
    place = slots + (SLOTS - 1) * 8  # its entries lie on both sides of a 4 KiB boundary
    driver.bus.write_memory(place, struct.pack("<3Q", *pages[1:]))
    blocks = 4 * large // block_size(driver)
    data = pattern(4 * large)
    for index, page in enumerate(pages):
        driver.bus.write_memory(page, data[index * large : (index + 1) * large])
    driver.succeed(queue, write_command(pages[0], place, blocks=blocks))
    for page in pages:
        driver.bus.write_memory(page, bytes(large))
    driver.succeed(queue, read_command(pages[0], place, blocks=blocks))
    assert b"".join(driver.bus.read_memory(page, large) for page in pages) == data


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("list-in-another-region",))
def test_a_list_and_its_pages_may_lie_in_different_regions(bench: Bench) -> None:
    """A VMM maps guest memory in pieces, which end wherever it likes: inside a list, between two pages."""
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues()
    base = 0x4000_0000
    for index in range(8):
        bench.ram.map(base + index * PAGE, PAGE)
    driver.bus.write_memory(base + 7 * PAGE, struct.pack("<4Q", *(base + page * PAGE for page in (1, 2, 3, 4))))
    data = pattern(5 * PAGE)
    driver.bus.write_memory(base, data)
    driver.succeed(queue, write_command(base, base + 7 * PAGE, blocks=40))
    driver.bus.write_memory(base, bytes(5 * PAGE))
    driver.succeed(queue, read_command(base, base + 7 * PAGE, blocks=40))
    assert driver.bus.read_memory(base, 5 * PAGE) == data


@pytest.mark.fact(
    "A24", clause="Base 1.4, 4.3", kills=("prp-list-one-run", "prp-list-512-entries", "views-out-of-order")
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    blocks=st.integers(1, 8 * PAGE // BLOCK),
    offset=st.integers(0, PAGE // 4 - 1).map(lambda dword: dword * 4),
    back=st.integers(0, PAGE // 4 - 1).map(lambda dword: dword * 4),
    slot=st.integers(0, SLOTS - 1) | st.integers(SLOTS - 10, SLOTS - 1),
)
def test_any_layout_transfers_what_the_plain_model_says(
    driver: Driver, blocks: int, offset: int, back: int, slot: int
) -> None:
    driver.enable()
    queue = driver.create_queues()
    size = blocks * BLOCK
    with driver.scratch():
        round_trip(driver, queue, layout_of(driver, size, offset), layout_of(driver, size, back), slot)
