"""SGLs: where the data of I/O commands lies, by descriptors of any address and length. Base 1.4, 4.4."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.tools import (
    GUARD,
    NewBench,
    block_size,
    fails,
    guarded,
    identify_controller,
    is_untouched,
    largest_transfer,
)
from nvmeemu.controller.limits import Limits
from nvmeemu.spec import (
    AdminOpcode,
    Command,
    Compare,
    DatasetManagement,
    DsmRange,
    Psdt,
    Read,
    ReadWrite,
    SglDescriptor,
    Sgls,
    SglType,
    Status,
    Write,
)
from nvmeemu.testing import PAGE, Driver, QueuePair
from nvmeemu.testing.sgl import Piece, bit_bucket, data_block, point, put, segment, sgl

SIZE = SglDescriptor.SIZE
BLOCKS = 8  # of a transfer here
HOLE = 0x7F_0000_0000
Bad = Callable[[Driver, int], SglDescriptor]  # the first descriptor of an SGL, for data at this address


def sgls(driver: Driver) -> Sgls:
    return Sgls.of(identify_controller(driver).sgls)


def length(driver: Driver) -> int:
    return BLOCKS * block_size(driver)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def run(
    driver: Driver,
    queue: QueuePair,
    kind: type[ReadWrite],
    first: SglDescriptor,
    *,
    blocks: int = BLOCKS,
    slba: int = 0,
) -> None:
    driver.succeed(queue, transfer(kind, first, blocks=blocks, slba=slba))


def transfer(kind: type[ReadWrite], first: SglDescriptor, *, blocks: int = BLOCKS, slba: int = 0) -> ReadWrite:
    command = kind(nsid=1, slba=slba, nlb=blocks)
    point(command, first)
    return command


def cut(size: int, *ends: int) -> list[int]:
    """The lengths of the pieces of ``size`` bytes that end there."""
    edges = [0, *ends, size]
    return [end - start for start, end in pairwise(edges)]


def scattered(driver: Driver, sizes: list[int], step: int) -> list[tuple[int, int]]:
    """Places for pieces of these sizes in guarded memory, in no order, with ``step`` odd bytes between them."""
    start = guarded(driver, sum(sizes) + step * (len(sizes) + 1))
    order = list(range(len(sizes)))
    random.Random(len(sizes)).shuffle(order)
    found: dict[int, tuple[int, int]] = {}
    at = start + step
    for index in order:
        found[index] = at, sizes[index]
        at += sizes[index] + step
    return [found[index] for index in range(len(sizes))]


def spread(driver: Driver, places: list[tuple[int, int]], data: bytes) -> None:
    for place, size in places:
        driver.bus.write_memory(place, data[:size])
        data = data[size:]


def gather(driver: Driver, places: list[tuple[int, int]]) -> bytes:
    return b"".join(driver.bus.read_memory(place, size) for place, size in places)


def gaps_are_untouched(driver: Driver, places: list[tuple[int, int]], step: int) -> None:
    for place, size in places:
        assert is_untouched(driver, place - step, step)
        assert is_untouched(driver, place + size, step)


@pytest.mark.fact("F306", clause="Base 1.4, Figure 247, SGLS", kills=("sgls-not-offered", "oversize-not-offered"))
def test_sgls_are_offered_with_all_that_works(driver: Driver) -> None:
    """Any address and length; bit buckets; MPTR at any byte or as an SGL; SGLs that are longer than the data. Nothing
    of fabrics."""
    found = sgls(driver)
    assert found.support == 1
    assert not any((found.keyed, found.offset, found.transport))
    assert found.longer_than_data
    if found.bit_bucket:
        assert found.mptr_any_byte
        assert found.mptr_is_sgl


@pytest.mark.fact("F302", clause="Base 1.4, Figure 118 to 120", kills=("sgl-one-run", "sgl-chains-end"))
@pytest.mark.fact("F301", clause="Base 1.4, Figure 114", kills=("sgl-one-run",))
@pytest.mark.parametrize("most", [2, 3, 256])
@pytest.mark.parametrize(
    "ends", [(), (2048,), (512, 1024), (1, 2, 3, 511, 2049), (4, 4, 4095), (3, 700, 701, 702, 1500, 4000)], ids=str
)
def test_data_goes_where_the_descriptors_say(driver: Driver, ends: tuple[int, ...], most: int) -> None:
    """A data block, a last segment, chains of segments; of any length, at any byte."""
    queue, size = driver.create_queues(), length(driver)
    sizes = cut(size, *ends)
    data = pattern(size, len(ends))
    out, back = scattered(driver, sizes, 5), scattered(driver, sizes[::-1], 3)
    spread(driver, out, data)
    run(driver, queue, Write, sgl(driver, out, most=most))
    assert driver.read(0, BLOCKS) == data
    run(driver, queue, Compare, sgl(driver, out, most=most))
    run(driver, queue, Read, sgl(driver, back, most=most))
    assert gather(driver, back) == data
    gaps_are_untouched(driver, back, 3)


@pytest.mark.fact("F302", clause="Base 1.4, Figure 120", kills=("segment-one-page",))
def test_the_largest_transfer_by_blocks_of_a_page(driver: Driver) -> None:
    """More descriptors than a page of them has, in one segment: Linux sends it so."""
    queue, size = driver.create_queues(), largest_transfer(driver)
    place = guarded(driver, size)
    data = pattern(size)
    driver.bus.write_memory(place, data)
    pages: list[Piece] = [(place + start, PAGE) for start in range(0, size, PAGE)]
    blocks = size // block_size(driver)
    for most in (len(pages), 7):
        driver.write(0, bytes(PAGE))
        run(driver, queue, Write, sgl(driver, pages, most=most), blocks=blocks)
        assert driver.read(0, blocks) == data
    back = guarded(driver, 2 * size)
    pages = [(back + start, PAGE) for start in range(0, 2 * size, 2 * PAGE)]
    run(driver, queue, Read, sgl(driver, pages, most=len(pages)), blocks=blocks)
    assert b"".join(driver.bus.read_memory(page or 0, PAGE) for page, _ in pages) == data


@pytest.mark.fact("F302", clause="Base 1.4, Figure 363", kills=("sgls-taken-for-prps",))
def test_dataset_management_takes_its_ranges_by_an_sgl(driver: Driver) -> None:
    queue, size = driver.create_queues(), block_size(driver)
    driver.write(0, b"\x55" * 4 * size)
    ranges = bytes(DsmRange(slba=0, length=1)) + bytes(DsmRange(slba=2, length=1))
    places = scattered(driver, cut(len(ranges), 3, 17), 1)
    spread(driver, places, ranges)
    command = DatasetManagement(nsid=1, nr=2, ad=True)
    point(command, sgl(driver, places))
    driver.succeed(queue, command)
    found = driver.read(0, 4)
    assert found[size : 2 * size] == found[3 * size :] == b"\x55" * size
    assert found[:size] == found[2 * size : 3 * size] == bytes(size)


def _bad(*descriptors: Callable[[int], SglDescriptor], is_last: bool = True, size: int | None = None) -> Bad:
    """A segment of these descriptors, in a list that says it has ``size`` bytes."""

    def make(driver: Driver, place: int) -> SglDescriptor:
        listed = [descriptor(place) for descriptor in descriptors]
        first = segment(put(driver, listed), len(listed), is_last=is_last)
        if size is not None:
            first.length = size
        return first

    return make


def _alone(**fields: int) -> Bad:
    values: dict[str, Any] = fields
    return lambda driver, place: SglDescriptor(**{"address": place, "length": PAGE} | values)


def half(place: int) -> SglDescriptor:
    return data_block(place, PAGE // 2)


BAD: dict[str, tuple[Status, Bad]] = {
    **{
        f"type-{kind:X}": (Status.INVALID_SGL_TYPE, _alone(kind=kind))
        for kind in (SglType.KEYED_DATA_BLOCK, SglType.TRANSPORT_DATA_BLOCK, 0x6, 0xE, SglType.VENDOR)
    },
    **{f"subtype-{kind:X}": (Status.INVALID_SGL_TYPE, _alone(subtype=kind)) for kind in (0x1, 0xA, 0xF)},
    "segment-of-subtype-1": (Status.INVALID_SGL_TYPE, _alone(kind=SglType.LAST_SEGMENT, subtype=1, length=SIZE)),
    "type-in-a-list": (Status.INVALID_SGL_TYPE, _bad(half, lambda place: SglDescriptor(kind=SglType.KEYED_DATA_BLOCK))),
    "pointer-in-a-last-segment": (Status.INVALID_SGL_SEGMENT, _bad(half, lambda place: segment(place, 1))),
    "pointer-first-in-a-last-segment": (
        Status.INVALID_SGL_SEGMENT,
        _bad(lambda place: segment(place, 1, is_last=False), half, half),
    ),
    "pointer-in-the-middle": (
        Status.INVALID_SGL_COUNT,
        _bad(half, lambda place: segment(place, 1), half, is_last=False),
    ),
    "last-segment-of-0": (Status.INVALID_SGL_SEGMENT, _bad(half, half, size=0)),
    "segment-of-0": (Status.INVALID_SGL_SEGMENT, _bad(half, half, size=0, is_last=False)),
    "segment-of-17": (Status.INVALID_SGL_SEGMENT, _bad(half, half, size=17)),
    "segment-of-8": (Status.INVALID_SGL_SEGMENT, _bad(half, half, size=8)),
    "block-too-short": (Status.INVALID_DATA_SGL_LENGTH, _alone(length=PAGE - 1)),
    "list-too-short": (Status.INVALID_DATA_SGL_LENGTH, _bad(half, lambda place: data_block(place, PAGE // 2 - 1))),
    "segment-without-a-pointer": (Status.INVALID_DATA_SGL_LENGTH, _bad(half, is_last=False)),
    "nothing": (Status.INVALID_DATA_SGL_LENGTH, lambda driver, place: SglDescriptor()),
    "beyond-all-addresses": (Status.INVALID_DATA_SGL_LENGTH, _alone(address=(1 << 64) - PAGE // 2)),
    "beyond-all-addresses-in-a-list": (
        Status.INVALID_DATA_SGL_LENGTH,
        _bad(half, lambda place: data_block((1 << 64) - 4, PAGE)),
    ),
    "segment-beyond-all-addresses": (
        Status.INVALID_SGL_SEGMENT,
        _alone(kind=SglType.LAST_SEGMENT, address=(1 << 64) - SIZE, length=2 * SIZE),
    ),
}


def _with(status: Status) -> list[str]:
    return [name for name, (expected, _) in BAD.items() if expected == status]


def _refused(driver: Driver, name: str, kind: type[ReadWrite]) -> None:
    """Whatever was moved before is allowed; the disk is not written, and nothing around the data is."""
    status, make = BAD[name]
    queue = driver.create_queues()
    place = guarded(driver, PAGE)
    blocks = PAGE // block_size(driver)
    fails(driver, queue, transfer(kind, make(driver, place), blocks=blocks), status)
    assert is_untouched(driver, place - PAGE, PAGE)
    assert is_untouched(driver, place + PAGE, PAGE)
    assert driver.read(0, blocks) == bytes(PAGE)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124 and 4.4", kills=("sgl-any-type", "sgl-any-subtype"))
@pytest.mark.parametrize("kind", [Read, Write])
@pytest.mark.parametrize("name", _with(Status.INVALID_SGL_TYPE))
def test_types_that_are_not_of_pcie_are_refused(driver: Driver, name: str, kind: type[ReadWrite]) -> None:
    _refused(driver, name, kind)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124 and 4.4", kills=("pointer-anywhere",))
@pytest.mark.parametrize("kind", [Read, Write])
@pytest.mark.parametrize("name", _with(Status.INVALID_SGL_COUNT))
def test_a_pointer_stands_only_at_the_end_of_its_segment(driver: Driver, name: str, kind: type[ReadWrite]) -> None:
    _refused(driver, name, kind)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124 and 4.4")
@pytest.mark.parametrize("kind", [Read, Write])
@pytest.mark.parametrize("name", _with(Status.INVALID_SGL_SEGMENT))
def test_segments_are_one_or_more_whole_descriptors_and_the_last_is_the_last(
    driver: Driver, name: str, kind: type[ReadWrite]
) -> None:
    _refused(driver, name, kind)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124 and 4.4")
@pytest.mark.parametrize("kind", [Read, Write])
@pytest.mark.parametrize("name", _with(Status.INVALID_DATA_SGL_LENGTH))
def test_a_list_that_is_too_short_is_refused(driver: Driver, name: str, kind: type[ReadWrite]) -> None:
    _refused(driver, name, kind)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124", kills=("last-segment-goes-on",))
def test_a_pointer_in_a_last_segment_is_not_followed(driver: Driver) -> None:
    _refused(driver, "pointer-in-a-last-segment", Read)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124", kills=("empty-segments",))
def test_a_segment_of_no_bytes_is_refused(driver: Driver) -> None:
    _refused(driver, "last-segment-of-0", Read)


@pytest.mark.fact("F303", clause="Base 1.4, Figure 124", kills=("sgl-too-short-is-enough",))
def test_a_byte_too_few_is_too_few(driver: Driver) -> None:
    _refused(driver, "list-too-short", Write)


@pytest.mark.fact("F303", clause="Base 1.4, 4.4", kills=("sgl-addresses-wrap",))
def test_addresses_do_not_wrap(driver: Driver) -> None:
    _refused(driver, "beyond-all-addresses", Write)


@pytest.mark.fact("F304", clause="Base 1.4, Figure 247, SGLS bit 18", kills=("oversize-refused", "oversize-is-used"))
@pytest.mark.parametrize("kind", [Read, Write])
def test_an_sgl_may_be_longer_than_the_data(driver: Driver, kind: type[ReadWrite]) -> None:
    """What is behind the data is not touched, and not even looked at."""
    queue, size = driver.create_queues(), length(driver)
    place = guarded(driver, size)
    data = pattern(size)
    for first in (
        data_block(place, size + 64),
        data_block(place, 0xFFFFFFFF),
        sgl(driver, [(place, 1000), (place + 1000, size)]),
        sgl(driver, [(place, 1000), (place + 1000, size - 1000), (HOLE, 4096)]),
        segment(put(driver, [data_block(place, size), SglDescriptor(kind=SglType.VENDOR)]), 2),
        segment(put(driver, [data_block(place, size)]), 0xFFFFFFF0 // SIZE),
    ):
        driver.write(0, data if kind is Read else bytes(size))
        driver.bus.write_memory(place, GUARD * size if kind is Read else data)
        run(driver, queue, kind, first)
        assert driver.read(0, BLOCKS) == data
        assert driver.bus.read_memory(place, size) == data
        assert is_untouched(driver, place + size, PAGE)


@pytest.mark.fact("F304", clause="Base 1.4, Figure 116", kills=("sgls-taken-for-prps",))
@pytest.mark.parametrize("kind", [Read, Write])
def test_data_blocks_of_no_bytes_are_passed_over(driver: Driver, kind: type[ReadWrite]) -> None:
    """A descriptor of zeros is one of them. Their address means nothing."""
    queue, size = driver.create_queues(), length(driver)
    place, data = guarded(driver, size), pattern(size)
    none = [SglDescriptor(), data_block(HOLE, 0), data_block((1 << 64) - 1, 0)]
    blocks = [*none, data_block(place, 700), *none, data_block(place + 700, size - 700), *none]
    first = segment(put(driver, blocks), len(blocks))
    driver.write(0, data if kind is Read else bytes(size))
    driver.bus.write_memory(place, GUARD * size if kind is Read else data)
    run(driver, queue, kind, first)
    assert driver.read(0, BLOCKS) == driver.bus.read_memory(place, size) == data


@pytest.mark.fact("F305", clause="Base 1.4, Figure 117", kills=("bit-bucket-refused", "bit-bucket-takes-nothing"))
def test_bit_buckets_take_what_the_host_does_not_want(driver: Driver) -> None:
    """At the beginning, in the middle, at the end, and of all of it."""
    if not sgls(driver).bit_bucket:
        pytest.skip("this controller has no bit buckets")
    queue, size = driver.create_queues(), length(driver)
    data = pattern(size)
    driver.write(0, data)
    for start, end in ((0, 512), (512, 1024), (700, 1701), (size - 512, size)):
        place = guarded(driver, size)
        pieces: list[Piece] = [(place, start), (None, end - start), (place + end, size - end)]
        run(driver, queue, Read, sgl(driver, [piece for piece in pieces if piece[1]]))
        assert driver.bus.read_memory(place, size) == data[:start] + GUARD * (end - start) + data[end:]
        assert is_untouched(driver, place + size, PAGE)
    run(driver, queue, Read, bit_bucket(size))
    fails(driver, queue, transfer(Read, bit_bucket(size - 1)), Status.INVALID_DATA_SGL_LENGTH)


@pytest.mark.fact("F305", clause="Base 1.4, Figure 117", kills=("bit-bucket-counts-in-writes",))
@pytest.mark.parametrize("kind", [Write, Compare])
def test_bit_buckets_are_nothing_in_data_for_the_controller(driver: Driver, kind: type[ReadWrite]) -> None:
    if not sgls(driver).bit_bucket:
        pytest.skip("this controller has no bit buckets")
    queue, size = driver.create_queues(), length(driver)
    place, data = guarded(driver, size), pattern(size)
    driver.bus.write_memory(place, data)
    driver.write(0, bytes(size) if kind is Write else data)
    run(driver, queue, kind, sgl(driver, [(None, 512), (place, 700), (None, size), (place + 700, size - 700)]))
    assert driver.read(0, BLOCKS) == data
    short = sgl(driver, [(place, size - 512), (None, 512)])
    fails(driver, queue, transfer(kind, short), Status.INVALID_DATA_SGL_LENGTH)


@pytest.mark.fact("F301", clause="Base 1.4, Figure 104, PSDT", kills=("admin-sgls",))
@pytest.mark.parametrize("psdt", [Psdt.SGL, Psdt.SGL_BOTH, Psdt.RESERVED])
def test_admin_commands_have_no_sgls(driver: Driver, psdt: Psdt) -> None:
    """Over PCIe; over fabrics they have."""
    place = guarded(driver, PAGE)
    command = Command(opcode=AdminOpcode.IDENTIFY, cdw10=1)
    point(command, data_block(place, PAGE))
    command.psdt = psdt
    fails(driver, driver.admin, command, Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("F301", clause="Base 1.4, Figure 104, PSDT", kills=("psdt-reserved",))
def test_the_reserved_psdt_is_refused(driver: Driver) -> None:
    queue, place = driver.create_queues(), guarded(driver, PAGE)
    command = transfer(Read, data_block(place, PAGE))
    command.psdt = Psdt.RESERVED
    fails(driver, queue, command, Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("F203", clause="Base 1.4, Figure 104, PSDT", kills=("psdt-10b-refused",))
@pytest.mark.parametrize("psdt", [Psdt.PRP, Psdt.SGL, Psdt.SGL_BOTH])
@pytest.mark.parametrize("mptr", [1, HOLE, (1 << 64) - 1])
def test_the_metadata_pointer_is_nothing_where_there_is_no_metadata(driver: Driver, psdt: Psdt, mptr: int) -> None:
    queue, size = driver.create_queues(), length(driver)
    place, data = guarded(driver, size), pattern(size)
    driver.write(0, data)
    command = Read(nsid=1, nlb=BLOCKS)
    if psdt == Psdt.PRP:
        command.prp1, command.prp2 = driver.prps(place, size)
    else:
        point(command, data_block(place, size))
    command.psdt, command.mptr = psdt, mptr
    driver.succeed(queue, command)
    assert driver.bus.read_memory(place, size) == data


@pytest.mark.fact("F308", clause="Base 1.4, 4.4", kills=("sgl-segments-without-end",))
def test_a_list_without_an_end_ends(driver: Driver) -> None:
    """A chain to itself goes round until the data is there. One that has no data is refused."""
    queue, size = driver.create_queues(), length(driver)
    piece = 512
    place = guarded(driver, size)
    at = driver.alloc(PAGE)

    def round_of(*blocks: SglDescriptor) -> SglDescriptor:
        again = segment(at, len(blocks) + 1, is_last=False)
        driver.bus.write_memory(at, b"".join(map(bytes, (*blocks, again))))
        return again

    data = pattern(piece)
    driver.bus.write_memory(place, data)
    run(driver, queue, Write, round_of(data_block(place, piece)))
    assert driver.read(0, BLOCKS) == data * (size // piece)
    for blocks in ((), (SglDescriptor(),) * 8, (SglDescriptor(),) * 200):
        fails(driver, queue, transfer(Write, round_of(*blocks)), Status.INVALID_SGL_COUNT)


@pytest.mark.fact("F308", clause="Base 1.4, 4.4", kills=("sgl-descriptors-without-end",))
def test_a_long_list_of_nothing_is_refused(driver: Driver) -> None:
    queue = driver.create_queues()
    count = 1 << 15
    at = driver.alloc(count * SIZE)
    fails(driver, queue, transfer(Read, segment(at, count)), Status.INVALID_SGL_COUNT)


@pytest.mark.fact("F308", clause="Base 1.4, Figure 247, MDTS", kills=("mdts-ignored",))
def test_mdts_counts_the_blocks_and_not_the_sgl(driver: Driver) -> None:
    queue, most = driver.create_queues(), largest_transfer(driver)
    place = guarded(driver, PAGE)
    blocks = most // block_size(driver)
    long: list[Piece] = [(place, PAGE)] * 4
    fails(driver, queue, transfer(Read, sgl(driver, long), blocks=blocks + 1), Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)
    run(driver, queue, Read, data_block(place, 2 * most), blocks=1)


@pytest.mark.fact("F303", clause="Base 1.4, 4.4", kills=("sgls-taken-for-prps",))
@pytest.mark.parametrize("kind", [Read, Write])
def test_memory_that_is_missing_is_a_data_transfer_error(new_bench: NewBench, kind: type[ReadWrite]) -> None:
    """Of a data block, and of a segment. As with PRPs, it is waited for first."""
    bench = new_bench()
    driver = bench.driver
    driver.enable()
    queue, place = driver.create_queues(), guarded(driver, PAGE)
    blocks = PAGE // block_size(driver)
    for first in (
        data_block(HOLE, PAGE),
        sgl(driver, [(place, 512), (HOLE, PAGE)]),
        segment(HOLE, 2),
        segment(put(driver, [half(place), segment(HOLE, 1)]), 2, is_last=False),
    ):
        driver.submit(queue, transfer(kind, first, blocks=blocks))
        assert driver.poll(queue) is None
        bench.clock.advance(1)
        bench.settle()
        completion = driver.poll(queue)
        assert completion is not None
        assert completion.status == Status.DATA_TRANSFER_ERROR
    assert driver.read(0, blocks) == bytes(PAGE)


@pytest.mark.fact("F306", clause="Base 1.4, Figure 247, SGLS", kills=("flags-ignored", "sgls-always-on"))
@pytest.mark.parametrize("kind", [Read, Write])
@pytest.mark.parametrize("psdt", [Psdt.SGL, Psdt.SGL_BOTH, Psdt.RESERVED])
def test_without_sgls_none_is_taken(new_bench: NewBench, kind: type[ReadWrite], psdt: Psdt) -> None:
    """The limit ``sgls``, for drivers that want none."""
    driver = new_bench(limits=Limits(sgls="off")).driver
    driver.enable()
    assert not identify_controller(driver).sgls
    queue, place = driver.create_queues(), guarded(driver, PAGE)
    command = transfer(kind, data_block(place, PAGE))
    command.psdt = psdt
    fails(driver, queue, command, Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)
    assert driver.read(0, 1) == bytes(512)


@pytest.mark.fact("F302", clause="Base 1.4, 4.4", kills=("sgl-one-run", "sgl-chains-end"))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_list_of_any_pieces(driver: Driver, data: st.DataObject) -> None:
    """Against a plain model, in both directions."""
    driver.enable()
    queue, size = driver.create_queues(), length(driver)
    with driver.scratch():
        ends = sorted(data.draw(st.lists(st.integers(0, size), max_size=12)))
        sizes = [one for one in cut(size, *ends) if one]
        step = data.draw(st.sampled_from((1, 2, 16)))
        out, back = scattered(driver, sizes, step), scattered(driver, sizes, step)
        most = data.draw(st.sampled_from((2, 3, 5, 256)))
        text = pattern(size, data.draw(st.integers(0, 9)))
        spread(driver, out, text)
        run(driver, queue, Write, sgl(driver, out, most=most))
        run(driver, queue, Read, sgl(driver, back, most=most))
        assert gather(driver, back) == text
        gaps_are_untouched(driver, back, step)
