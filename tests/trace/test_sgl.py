"""SGLs in traces: where data and metadata went, replayed to the same places; and faults that are about them."""

from __future__ import annotations

import random
from typing import Any
from zlib import crc32

import pytest

from nvmeemu import io, trace
from nvmeemu.controller.request import CommandEntry, Request
from nvmeemu.faults import Fault, Faults
from nvmeemu.replay import replay
from nvmeemu.spec import Command, Opcode, Psdt, Read, SglDescriptor, Status, Write
from nvmeemu.testing import PAGE
from nvmeemu.testing.sgl import Piece, bit_bucket, data_block, point, put, segment, sgl
from nvmeemu.trace import words
from nvmeemu.trace.commands import commands
from tracing import Traced, ready


class Vendor(Opcode):
    ECHO = 0x81


class Echo(Command):
    OPCODE = Vendor.ECHO


def echo(request: Request[Command]) -> int:
    """Takes 64 bytes of data and as much metadata."""
    request.receive(64)
    request.metadata_given(64)
    return 0


def send(bench: Traced, command: Any, first: SglDescriptor) -> None:
    point(command, first)
    bench.driver.succeed(bench.driver.queues[1], command)


def again(bench: Traced, **options: Any) -> list[str]:
    return [one.what for one in replay(bench.memory.reader(), **options).differences]


@pytest.mark.kills("an-sgl-is-not-told", "a-bit-bucket-has-an-address")
def test_the_runs_of_an_sgl_are_told_with_its_bit_buckets() -> None:
    bench = ready()
    place = bench.driver.alloc(PAGE)
    pieces: list[Piece] = [(place, 100), (place + 100, 100), (None, 56), (place + 301, 256)]
    send(bench, Read(nsid=1, nlb=1), sgl(bench.driver, pieces))
    assert [one.runs for one in bench.of(trace.Sgl)] == [((place, 200), (None, 56), (place + 301, 256))]
    (told,) = bench.of(trace.Sgl)
    (command,) = [one for one in commands(bench.records) if one.sgls]
    assert command.sgls == [told]
    assert words.describe(told)[1].endswith("SGL: 512 bytes in 3 runs")
    whole = words.describe(told, is_whole=True)[1]
    assert f"{place:#x} 200 bytes, bit bucket 56 bytes, {place + 301:#x} 256 bytes" in whole
    fetch = words.describe(command.fetch)[1]
    assert "psdt=1" in fetch
    assert "sgl1=last_segment(" in fetch


def test_a_lone_data_block_is_in_the_command_and_needs_no_record() -> None:
    bench = ready()
    data = bytes(range(256)) * 2
    place = bench.driver.alloc(PAGE)
    bench.ram.write(place, data)
    send(bench, Write(nsid=1, nlb=1), data_block(place, 512))
    assert not bench.of(trace.Sgl)
    assert bench.of(trace.Digest)[-1].crc == crc32(data)


@pytest.mark.kills("runs-beyond-the-first-record")
def test_very_many_runs_are_cut_into_records() -> None:
    """A record has 64 KiB at most."""
    bench = ready(ram=64 << 20)
    size = 24 * 512
    place = bench.driver.alloc(2 * size)
    send(
        bench, Read(nsid=1, nlb=24), sgl(bench.driver, [(place + 2 * index, 1) for index in range(size)], most=1 << 14)
    )
    found = bench.of(trace.Sgl)
    assert len(found) == 3
    assert [run for one in found for run in one.runs] == [(place + 2 * index, 1) for index in range(size)]
    assert again(bench, data=True) == []


@pytest.mark.kills("a-replay-without-sgls")
@pytest.mark.parametrize("most", [2, 7, 1000])
def test_a_replay_has_the_lists_again(most: int) -> None:
    bench = ready(payload=True, ram=64 << 20)
    driver = bench.driver
    place = driver.alloc(300 * PAGE)
    pieces: list[Piece] = [(place + PAGE * index, 512) for index in range(300)]
    random.Random(most).shuffle(pieces)
    for address, size in pieces:
        bench.ram.write(address or 0, random.Random(address).randbytes(size))
    send(bench, Write(nsid=1, nlb=300), sgl(driver, pieces, most=most))
    pieces[7] = None, 512
    send(bench, Read(nsid=1, nlb=300), sgl(driver, pieces, most=most))
    assert again(bench, data=True) == []
    played = [one.runs for one in replay(bench.memory.reader()).trace if isinstance(one, trace.Sgl)]
    assert played == [one.runs for one in bench.of(trace.Sgl)]
    assert len(played) == 2


@pytest.mark.kills("metadata-is-told-as-data")
@pytest.mark.parametrize("psdt", [Psdt.SGL, Psdt.SGL_BOTH])
def test_metadata_is_told_beside_the_data_and_replayed(psdt: Psdt) -> None:
    bench = ready()
    driver = bench.driver
    with io.COMMANDS.extended(CommandEntry(Echo, echo)):
        data, metadata = driver.alloc(64), driver.alloc(64)
        bench.ram.write(data, b"d" * 64)
        bench.ram.write(metadata, b"m" * 64)
        command = Echo(nsid=1)
        point(command, sgl(driver, [(data, 60), (data + 60, 4)]))
        if psdt == Psdt.SGL_BOTH:
            point(
                command, SglDescriptor(command.sgl1), put(driver, [sgl(driver, [(metadata + 32, 32), (metadata, 32)])])
            )
        else:
            command.mptr = metadata
        driver.succeed(driver.queues[1], command)
        (told,) = [one for one in commands(bench.records) if one.fetch.opcode == Vendor.ECHO]
        assert [(type(one), one.crc) for one in told.digests] == [
            (trace.Digest, crc32(b"d" * 64)),
            (trace.MetadataDigest, crc32(b"m" * 64)),
        ]
        runs = {one.of_metadata: one.runs for one in told.sgls}
        assert runs[False] == ((data, 64),)
        assert runs.get(True) == (((metadata + 32, 32), (metadata, 32)) if psdt == Psdt.SGL_BOTH else None)
        assert words.describe(told.digests[1])[1].startswith(f"#{told.fetch.cid:04x} 64 bytes of metadata to the contr")
        assert again(bench) == []


def test_a_fault_may_be_about_sgls() -> None:
    bench = ready()
    driver = bench.driver
    Faults(bench.controller, seed=1).add(Fault(match={"psdt": 1}, do={"status": "write_fault"}, at="execute"))
    place = driver.alloc(PAGE)
    driver.succeed(driver.queues[1], Read(nsid=1, nlb=1, prp1=place))
    command = Read(nsid=1, nlb=1)
    point(command, segment(put(driver, [bit_bucket(512)]), 1))
    assert driver.execute(driver.queues[1], command).status == Status.WRITE_FAULT
