"""The native engine's own records: what they say, in the format of every trace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from nvmeemu.backend import open_backend
from nvmeemu.controller import prp
from nvmeemu.spec import AdminOpcode, DoorbellBufferConfig, NvmOpcode, Read, ReadWrite, Write
from nvmeemu.testing import PAGE, Bench, QueuePair
from nvmeemu.testing.sgl import Piece, data_block, point, sgl
from nvmeemu.trace import records
from nvmeemu.trace.records import Completion, Digest, Doorbell, Fetch, Interrupt, Lost, Prp, Record, Sgl

MIB = 1 << 20


class Traced:
    """A bench, and the records of its engine."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._data = b""
        assert bench.engine is not None
        self.engine = bench.engine
        self.engine.trace(self._put)

    def _put(self, data: bytes) -> None:
        self._data += data

    def take(self) -> list[Record]:
        self.bench.settle()
        return self._decode()

    def look(self) -> list[Record]:
        """What is there, while a lane may be at work."""
        self.engine._take_trace(self._put)
        return self._decode()

    def _decode(self) -> list[Record]:
        data, self._data = self._data, b""
        found: list[Record] = []
        start = 0
        while start < len(data):
            end = start + int.from_bytes(data[start + 8 : start + 10], "little")
            found.append(records.decode(data, start, end))
            start = end
        assert [record.time for record in found] == sorted(record.time for record in found)
        assert {record.lane for record in found} <= {1}
        return found


@pytest.fixture(params=["native", "mapped"])
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traced]:
    disk = open_backend(str(tmp_path / "disk"), create=True, size=16 * MIB)
    with Bench(disk, engine=request.param) as bench:
        bench.driver.enable()
        yield Traced(bench)


def entry(traced: Traced, pair: QueuePair, slot: int) -> bytes:
    return traced.bench.read_memory(pair.cq + 16 * slot, 16)


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("size", [512, PAGE, 2 * PAGE, 5 * PAGE, 128 << 10])
def test_a_write_and_a_read(traced: Traced, size: int, is_cached: bool) -> None:
    """The entry, where its data lies, what the data is, the completion: as the host sees them."""
    bench, driver = traced.bench, traced.bench.driver
    pair = driver.create_queues(1)
    place, data = driver.alloc(size), os.urandom(size)
    bench.write_memory(place, data)
    prps = driver.prps(place, size)
    for slot, opcode in enumerate((NvmOpcode.WRITE, NvmOpcode.READ)):
        if not is_cached:
            bench.backend.flush()
            assert bench.backend.direct is not None
            os.posix_fadvise(bench.backend.direct.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        command = ReadWrite(opcode=opcode, nsid=1, prp1=prps[0], prp2=prps[1], slba=8, nlb=size // 512)
        traced.take()
        driver.succeed(pair, command)
        found = [record for record in traced.take() if not isinstance(record, Doorbell)]
        to_host = opcode == NvmOpcode.READ
        expected: list[Record] = [Fetch(0, 1, 1, slot, bytes(command))]
        if size > 2 * PAGE:
            expected.append(Prp(0, 1, 1, command.cid, tuple(prp.runs(bench.ram, *prps, size, PAGE))))
        expected.append(Digest(0, 1, 1, command.cid, to_host, size, crc32(data)))
        expected.append(Completion(0, 1, 1, slot, entry(traced, pair, slot)))
        assert [record._replace(time=0) for record in found] == expected


def test_an_sgl_s_runs_are_told(traced: Traced) -> None:
    """Of a list. A lone data block is in the command."""
    bench, driver = traced.bench, traced.bench.driver
    pair = driver.create_queues(1)
    place, data = driver.alloc(4 * PAGE), os.urandom(PAGE)
    pieces: list[Piece] = [(place + 1, 600), (place + 601, 1000), (place + 8001, PAGE - 1600)]
    runs = ((place + 1, 1600), (place + 8001, PAGE - 1600))
    for start, size in runs:
        bench.write_memory(start, data[:size] if start == runs[0][0] else data[1600:])
    traced.take()
    for first, lists in ((sgl(driver, pieces), [Sgl(0, 1, 1, 0, False, runs)]), (data_block(place, PAGE), [])):
        for kind in (Write, Read):
            command = kind(nsid=1, nlb=8)
            point(command, first)
            driver.succeed(pair, command)
            found = [record._replace(time=0) for record in traced.take() if isinstance(record, Sgl | Digest)]
            assert found[:-1] == [one._replace(cid=command.cid) for one in lists]
            sent = data if lists else bench.read_memory(place, PAGE)
            assert found[-1] == Digest(0, 1, 1, command.cid, kind is Read, PAGE, crc32(sent))


def test_what_python_does_is_fetched_and_completed_by_the_engine(traced: Traced) -> None:
    driver = traced.bench.driver
    pair = driver.create_queues(1)
    traced.take()
    driver.succeed(pair, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8, prinfo=1))
    found = [record for record in traced.take() if not isinstance(record, Doorbell)]
    assert [type(record) for record in found] == [Fetch, Completion]
    assert isinstance(found[1], Completion)
    assert found[1].cqe == entry(traced, pair, 0)


def test_doorbells_without_a_message(traced: Traced) -> None:
    """Mapped ones, and shadows. Those that are messages have been seen by Python."""
    bench, driver = traced.bench, traced.bench.driver
    pair = driver.create_queues(1)
    traced.take()
    read = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8)
    driver.submit(pair, read)
    rung = [record._replace(time=0) for record in traced.take() if isinstance(record, Doorbell)]
    assert rung == ([Doorbell(0, 1, 1, False, False, 1)] if traced.engine.doorbells_fd >= 0 else [])
    shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
    opcode = AdminOpcode.DOORBELL_BUFFER_CONFIG
    driver.succeed(driver.admin, DoorbellBufferConfig(opcode=opcode, prp1=shadow, prp2=event))
    traced.take()
    driver.submit(pair, read, ring=False)
    bench.write_memory(shadow + 8, pair.sq_tail.to_bytes(4, "little"))
    driver.ring_sq(pair)
    rung = [record._replace(time=0) for record in traced.take() if isinstance(record, Doorbell)]
    assert Doorbell(0, 1, 1, False, True, 2) in rung


def test_interrupts(traced: Traced) -> None:
    driver = traced.bench.driver
    pair = driver.create_queues(1, vector=3)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        traced.engine.set_vector(3, eventfd)
        traced.take()
        driver.submit(pair, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8))
        assert [record.vector for record in traced.take() if isinstance(record, Interrupt)] == [3]
    finally:
        os.close(eventfd)


def test_an_interrupt_is_recorded_before_the_host_can_answer_it(traced: Traced) -> None:
    """The eventfd is full, so the lane cannot get past its write before we have looked."""
    driver = traced.bench.driver
    pair = driver.create_queues(1, vector=3)
    traced.take()
    eventfd = os.eventfd(0)
    os.eventfd_write(eventfd, 0xFFFFFFFFFFFFFFFE)
    try:
        traced.engine.set_vector(3, eventfd)
        read = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8)
        driver.submit(pair, read, ring=False)
        traced.bench.write_bar(0x1008, pair.sq_tail.to_bytes(4, "little"))
        found: list[Record] = []
        end = time.monotonic() + 10
        while not any(isinstance(record, Interrupt) for record in found) and time.monotonic() < end:
            found += traced.look()
    finally:
        os.eventfd_read(eventfd)
        os.close(eventfd)
    assert [type(record) for record in found if not isinstance(record, Doorbell)] == [
        *(Fetch, Digest, Completion),
        Interrupt,
    ]


def test_a_full_ring_loses_records_and_says_how_many(traced: Traced) -> None:
    """The guest does not wait for a trace that nobody takes."""
    bench, driver = traced.bench, traced.bench.driver
    pair = driver.create_queues(1, 1024)
    place = driver.alloc(PAGE)
    traced.take()
    count = 40 * 1000
    for _ in range(40):
        for _ in range(1000):
            driver.submit(pair, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=1), ring=False)
        bench.write_bar(0x1008, pair.sq_tail.to_bytes(4, "little"))
        traced.engine.wait_until_idle()  # without delivering its news
        while driver.poll(pair, ring=False) is not None:
            pass
        bench.write_bar(0x100C, pair.cq_head.to_bytes(4, "little"))
    found = traced.take()
    driver.submit(pair, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=1))
    found += traced.take()
    lost = sum(record.records for record in found if isinstance(record, Lost))
    told = [record for record in found if not isinstance(record, Lost | Doorbell)]
    assert lost > 0
    assert len(told) + lost >= 3 * (count + 1)


def test_off_is_off(traced: Traced) -> None:
    traced.take()
    traced.engine.trace(None)
    driver = traced.bench.driver
    driver.create_queues(1)
    driver.write(0, bytes(PAGE))
    assert traced.take() == []
