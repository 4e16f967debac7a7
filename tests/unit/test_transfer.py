"""Where the data and separate metadata of a command lie: pointers of all kinds, without a controller around them."""

from __future__ import annotations

import struct

import pytest

from nvmeemu import io
from nvmeemu.controller import sgl
from nvmeemu.controller.request import CommandEntry, Request
from nvmeemu.controller.taps import Observer
from nvmeemu.controller.transfer import ContiguousMetadata, SglMetadata, Transfer
from nvmeemu.spec import Command, Opcode, Psdt, SglDescriptor, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.testing import Bench, Driver
from nvmeemu.testing.ports import Ram
from nvmeemu.testing.sgl import bit_bucket, data_block, point, segment
from nvmeemu.testing.sgl import sgl as sgl_of

SIZE = SglDescriptor.SIZE


class Vendor(Opcode):
    SWAP = 0x83  # both ways


class Swap(Command):
    OPCODE = Vendor.SWAP


def test_a_descriptor_is_laid_out_as_it_must_be() -> None:
    """The host's helpers and the controller use the same declaration: here stand the bytes."""
    assert bytes(data_block(0x1122334455667788, 0xAABBCCDD)) == struct.pack("<QI3xB", 0x1122334455667788, 0xAABBCCDD, 0)
    assert bytes(bit_bucket(16))[15] == 0x10
    assert bytes(segment(0, 2, is_last=False))[8:] == struct.pack("<I3xB", 32, 0x20)
    assert bytes(segment(0, 1))[15] == 0x30
    command = Command()
    point(command, data_block(1, 2), metadata=3)
    assert (command.sgl1, command.mptr, command.flags) == (bytes(data_block(1, 2)), 3, 0x80)


@pytest.fixture
def ram() -> Ram:
    memory = Ram()
    memory.map(0x1000, 0x4000)
    return memory


def failure(transfer: Transfer, length: int = 64) -> tuple[int, tuple[int, int] | None]:
    with pytest.raises(CommandFailed) as failed:
        transfer.views(length, True)
    return failed.value.field & 0x7FF, failed.value.location


@pytest.mark.kills("metadata-at-any-byte-with-prps", "metadata-at-dwords-with-sgls")
def test_contiguous_metadata_begins_at_a_dword_unless_the_data_is_an_sgl(ram: Ram) -> None:
    """SGLS bit 17. Base 1.4, Figure 104, MPTR."""
    ram.write(0x1001, bytes(range(64)))
    (view,) = ContiguousMetadata(ram, 0x1001, 1).views(64, False)
    assert bytes(view) == bytes(range(64))
    del view
    for at in (0x1001, 0x1002, 0x1003):
        assert failure(ContiguousMetadata(ram, at, 4)) == (Status.INVALID_FIELD, (16, 0))
    assert ContiguousMetadata(ram, 0x1004, 4).views(64, True)


@pytest.mark.kills("metadata-sgl-at-any-byte", "metadata-sgl-has-the-status-of-data")
def test_metadata_by_an_sgl_has_a_status_of_its_own(ram: Ram) -> None:
    ram.write(0x1000, bytes(data_block(0x2000, 63)))
    assert failure(SglMetadata(ram, 0x1000)) == (Status.INVALID_METADATA_SGL_LENGTH, (16, 0))
    assert failure(SglMetadata(ram, 0x1004)) == (Status.INVALID_FIELD, (16, 0))
    ram.write(0x1000, bytes(segment(0x1800, 3)))
    ram.write(0x1800, bytes(data_block(0x2003, 5)) + bytes(bit_bucket(9)) + bytes(data_block(0x2008, 50)))
    transfer = SglMetadata(ram, 0x1000)
    places = transfer.views(64, True)
    assert list(map(len, places)) == [5, 9, 50]
    assert transfer.runs == [(0x2003, 5), (None, 9), (0x2008, 50)]
    assert transfer.has_list


@pytest.mark.kills("sgl-runs-are-not-joined")
def test_neighbours_are_one_run(ram: Ram) -> None:
    blocks = (data_block(0x2000, 5), data_block(0x2005, 7), bit_bucket(1), bit_bucket(2), data_block(0x200C, 99))
    ram.write(0x1000, b"".join(map(bytes, blocks)))
    found = sgl.runs(ram, bytes(segment(0x1000, len(blocks))), 20, True)
    assert found == [(0x2000, 12), (None, 3), (0x200C, 5)]


@pytest.mark.kills("sgl-is-walked-again")
def test_a_list_is_walked_once(ram: Ram) -> None:
    """The host writes into it, between a check and the use of it."""
    request_list = bytes(data_block(0x2000, 16)) + bytes(data_block(0x2100, 16))
    ram.write(0x1000, bytes(segment(0x1800, 2)))
    ram.write(0x1800, request_list)
    transfer = SglMetadata(ram, 0x1000)
    transfer.views(32, False)
    ram.write(0x1800, bytes(2 * SIZE))
    transfer.views(32, False)
    assert transfer.runs == [(0x2000, 16), (0x2100, 16)]


class Told(Observer):
    """What is told of data, and of metadata."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, bool]] = []

    def transferred(self, request: Request[Command], views: list[memoryview], to_host: bool) -> None:
        self.seen.append(("data", b"".join(views), to_host))

    def metadata_transferred(self, request: Request[Command], views: list[memoryview], to_host: bool) -> None:
        self.seen.append(("metadata", b"".join(views), to_host))


def swap(request: Request[Swap]) -> int:
    """Data and metadata change places, turned round."""
    data = b"".join(request.given(64))
    metadata = b"".join(request.metadata_given(64))
    request.send(metadata[::-1])
    start = 0
    for place in request.metadata_places(64):
        place[:] = data[::-1][start : start + len(place)]
        start += len(place)
    return 0


def point_all(driver: Driver, command: Command, psdt: Psdt, data: int, metadata: int) -> None:
    if psdt == Psdt.PRP:
        command.prp1, command.mptr = data, metadata
        return
    first = sgl_of(driver, [(data, 9), (data + 9, 55)])
    place = metadata
    if psdt == Psdt.SGL_BOTH:
        place = driver.alloc(SIZE)
        driver.bus.write_memory(place, bytes(sgl_of(driver, [(metadata, 60), (metadata + 60, 4)])))
    point(command, first)
    command.psdt, command.mptr = psdt, place


@pytest.mark.kills("metadata-is-not-told")
@pytest.mark.parametrize("psdt", [Psdt.PRP, Psdt.SGL, Psdt.SGL_BOTH])
def test_a_command_moves_data_and_metadata_by_the_pointers_that_it_has(psdt: Psdt) -> None:
    bench, told = Bench(), Told()
    with io.COMMANDS.extended(CommandEntry(Swap, swap)):
        bench.controller.observe(told)
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues()
        told.seen.clear()
        one, other = bytes(range(64)), bytes(range(64, 128))
        data, metadata = driver.alloc(64), driver.alloc(64)
        bench.write_memory(data, one)
        bench.write_memory(metadata, other)
        command = Swap(nsid=1)
        point_all(driver, command, psdt, data, metadata)
        driver.succeed(queue, command)
        assert bench.read_memory(data, 64) == other[::-1]
        assert bench.read_memory(metadata, 64) == one[::-1]
    assert [(what, to_host) for what, _, to_host in told.seen] == [
        ("data", False),
        ("metadata", False),
        ("data", True),
        ("metadata", True),
    ]
    assert [moved for _, moved, to_host in told.seen if to_host] == [other[::-1], one[::-1]]
