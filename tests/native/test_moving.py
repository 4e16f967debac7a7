"""Queues that move between the engine and Python while commands are in flight: each command ends once, and rightly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeemu.backend import open_backend
from nvmeemu.controller.taps import Interceptor
from nvmeemu.spec import AdminOpcode, DoorbellBufferConfig, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, QueuePair

MIB = 1 << 20
QUEUES = 2
DEPTH = 24
SQ_ENTRIES, CQ_ENTRIES = 15, 6  # completions wait for room, too
BLOCKS = PAGE // 512
MOVES = int(os.environ.get("NVMEEMU_MOVES", "1000"))


@pytest.fixture(params=["native", "mapped", "shadow"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """On a file whose pages are not cached, so that commands wait for io_uring; with each kind of doorbells."""
    disk = open_backend(str(tmp_path / "disk"), create=True, size=16 * MIB)
    with Bench(disk, ram=32 * MIB, engine="mapped" if request.param == "mapped" else "native", lanes=2) as bench:
        bench.driver.enable()
        if request.param == "shadow":
            shadow, event = bench.driver.alloc(PAGE), bench.driver.alloc(PAGE)
            configure = DoorbellBufferConfig(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)
            bench.driver.succeed(bench.driver.admin, configure)
        yield bench


class Load:
    """Writes and reads of pages on several queues, or reads only; what was written is known."""

    def __init__(self, bench: Bench, seed: int, *, writes: float = 0.5) -> None:
        self.bench = bench
        self.writes = writes
        self.chance = random.Random(seed)
        driver = bench.driver
        self.queues = []
        for qid in range(1, QUEUES + 1):
            entries = SQ_ENTRIES + qid
            cq, sq = driver.create_cq(qid, CQ_ENTRIES), driver.create_sq(qid, entries)
            self.queues.append(QueuePair(qid, sq, cq, entries, CQ_ENTRIES))
        self.buffers = [driver.alloc(PAGE) for _ in range(DEPTH)]
        self.pages: dict[int, bytes] = {}
        self.pending: dict[tuple[int, int], tuple[int, int, bytes | None]] = {}
        self.shadow = bench.controller.state.shadow
        self.completed = 0

    def submit(self) -> None:
        """As many commands as there are free buffers; does not wait."""
        busy = {page for page, _, _ in self.pending.values()}
        used = {place for _, place, _ in self.pending.values()}
        for place in self.buffers:
            page = self.chance.randrange(2048)
            if page in busy or place in used:
                continue
            queue = self.chance.choice(self.queues)
            if len([1 for qid, _ in self.pending if qid == queue.qid]) >= SQ_ENTRIES - 1:
                continue
            busy.add(page)
            data = self.chance.randbytes(16) * (PAGE // 16) if self.chance.random() < self.writes else None
            self.bench.write_memory(place, data or bytes(PAGE))
            opcode = NvmOpcode.READ if data is None else NvmOpcode.WRITE
            command = ReadWrite(opcode=opcode, nsid=1, prp1=place, slba=page * BLOCKS, nlb=BLOCKS)
            command.fua = self.chance.random() < 0.1
            command.prinfo = self.chance.random() < 0.1  # Python's
            cid = self.bench.driver.submit(queue, command, ring=False)
            self.pending[queue.qid, cid] = page, place, data
        for queue in self.queues:
            self._ring(2 * queue.qid, queue.sq_tail)

    def _ring(self, number: int, value: int) -> None:
        data = value.to_bytes(4, "little")
        if self.shadow is not None:
            slot = self.shadow.head(number >> 1) if number & 1 else self.shadow.tail(number >> 1)
            self.bench.write_memory(slot.shadow, data)
        self.bench.write_bar(0x1000 + 4 * number, data)

    def collect(self, *others: Status) -> None:
        """Check what has completed; ``others``: what it may also end with."""
        for queue in self.queues:
            while (completion := self.bench.driver.poll(queue, ring=False)) is not None:
                page, place, data = self.pending.pop((queue.qid, completion.cid))
                self.completed += 1
                if completion.status in others:
                    continue
                assert completion.status == Status.SUCCESS
                if data is None:
                    assert self.bench.read_memory(place, PAGE) == self.pages.get(page, bytes(PAGE))
                else:
                    self.pages[page] = data
            self._ring(2 * queue.qid + 1, queue.cq_head)


def test_queues_move_a_thousand_times_under_commands(bench: Bench) -> None:
    load = Load(bench, seed=1)
    chance = load.chance
    engine = bench.engine
    assert engine is not None
    by_python = 0
    for number in range(MOVES):
        if number % 50 == 0:
            drop_cache(bench)
        load.submit()
        which = frozenset(qid for qid in range(1, QUEUES + 1) if chance.random() < 0.5)
        bench.controller.serve_in_python(which.__contains__)
        for _ in range(chance.randrange(4)):
            bench.controller.run()
            bench.worker.finish_all()
        load.collect()
        by_python += sum(not sq.server.is_engine for sq in bench.controller.state.sqs.values())
    for _ in range(SQ_ENTRIES):
        bench.settle()
        load.collect()
    assert not load.pending
    assert load.completed > MOVES
    counts = engine.take_counts()
    assert min(counts.reads, counts.writes, by_python) > 0
    for sq in bench.controller.state.sqs.values():
        assert (not sq.server.is_engine) == (sq.qid == 0 or sq.qid in which)


def test_a_queue_that_is_made_later_is_pythons_from_the_start(bench: Bench) -> None:
    bench.controller.serve_in_python(lambda qid: qid == 2)
    load = Load(bench, seed=1)
    load.submit()
    for _ in range(SQ_ENTRIES):
        bench.settle()
        load.collect()
    assert not load.pending
    sqs = bench.controller.state.sqs
    assert sqs[1].server.is_engine
    assert not sqs[2].server.is_engine


def test_a_queue_is_deleted_while_it_moves(bench: Bench) -> None:
    for number in range(50):
        load = Load(bench, seed=number, writes=0)
        drop_cache(bench)
        load.submit()
        bench.controller.serve_in_python({1 + number % 2}.__contains__)
        bench.controller.run()
        for qid in (1, 2):
            assert bench.driver.delete_sq(qid).status == Status.SUCCESS
        load.collect(Status.ABORTED_SQ_DELETION)
        for qid in (1, 2):
            assert bench.driver.delete_cq(qid).status == Status.SUCCESS


def test_who_comes_to_intercept_is_given_no_interrupt_that_there_was_before(bench: Bench) -> None:
    """Completions that the host has consumed without ringing: a fault that lost the next interrupt lost that one."""
    load = Load(bench, seed=1)
    for _ in range(SQ_ENTRIES):
        load.submit()
        bench.settle()
        load.collect()
    bench.settle()
    bench.ram.interrupts.clear()
    for interceptor in (Interceptor(), None):
        bench.controller.intercept(interceptor)
        bench.settle()
        assert bench.ram.interrupts == []


def drop_cache(bench: Bench) -> None:
    bench.backend.flush()
    direct = bench.backend.direct
    assert direct is not None
    os.posix_fadvise(direct.fd, 0, 0, os.POSIX_FADV_DONTNEED)
