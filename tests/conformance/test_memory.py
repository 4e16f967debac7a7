"""Guest memory that is scattered, read-only, gone for a moment, or was never there.

A VMM unmaps guest memory and maps it again in other pieces while the controller is enabled. So a command whose memory
is missing waits a moment; a queue whose memory is missing for good is fatal (Base 1.4, 9.5).
"""

from __future__ import annotations

import random

import pytest

from conformance.tools import Advance, NewBench, TellingBackend, flush_command, read_command, write_command
from nvmeemu.spec import AdminOpcode, ControllerStatus, CreateCq, CreateSq, Identify, Status
from nvmeemu.testing import CC, CSTS, PAGE, Bench, Driver, QueuePair

CLAUSE = "Base 1.4, 4.6.1 Data Transfer Error and 9.5"
AWAY = 1 << 40  # a region of its own
SIZE = 64 * PAGE
NOWHERE = AWAY + SIZE
BELOW = 0x80000  # bytes of memory that the driver does not use


@pytest.fixture
def two(bench: Bench) -> Bench:
    """An enabled controller with a queue pair, and a second region of guest memory at AWAY."""
    bench.ram.map(AWAY, SIZE)
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


def statuses(driver: Driver, pair: QueuePair) -> list[int]:
    return [completion.status for completion in driver.drain(pair)]


def pair_at(driver: Driver, qid: int, *, sq: int = 0, cq: int = 0) -> QueuePair:
    """A queue pair of 16 entries whose parts may lie at given addresses."""
    sq, cq = sq or driver.alloc(PAGE), cq or driver.alloc(PAGE)
    create_cq = CreateCq(opcode=AdminOpcode.CREATE_CQ, prp1=cq, qid=qid, qsize=16, pc=True, ien=True)
    create_sq = CreateSq(opcode=AdminOpcode.CREATE_SQ, prp1=sq, qid=qid, qsize=16, pc=True, cqid=qid)
    for command in (create_cq, create_sq):
        driver.succeed(driver.admin, command)
    return QueuePair(qid, sq, cq, 16, 16)


# --- data


@pytest.mark.fact("A24", clause=CLAUSE, kills=("no-patience-with-memory",))
def test_a_command_waits_for_memory_that_comes_back(two: Bench) -> None:
    driver, pair = two.driver, two.driver.queues[1]
    two.backend.write(0, [memoryview(b"\x5a" * PAGE)])
    data = two.unmap(AWAY)
    cid = driver.submit(pair, read_command(AWAY, blocks=8))
    two.clock.advance(0.09)
    two.settle()
    assert driver.drain(pair) == []
    two.map(AWAY, data)
    assert [(completion.cid, completion.status) for completion in driver.drain(pair)] == [(cid, Status.SUCCESS)]
    assert data[:PAGE] == b"\x5a" * PAGE


@pytest.mark.fact("A24", clause=CLAUSE, kills=("held-for-ever", "gone-memory-is-not-retryable"))
def test_a_command_fails_when_its_memory_stays_away(two: Bench) -> None:
    """With Data Transfer Error, which the host may retry; others go on meanwhile."""
    driver, pair = two.driver, two.driver.queues[1]
    data = two.unmap(AWAY)
    cid = driver.submit(pair, read_command(AWAY))
    driver.submit(pair, flush_command())
    assert statuses(driver, pair) == [Status.SUCCESS]
    two.clock.advance(0.11)
    two.settle()
    (completion,) = driver.drain(pair)
    assert (completion.cid, completion.status, completion.dnr) == (cid, Status.DATA_TRANSFER_ERROR, False)
    two.map(AWAY, data)
    assert driver.drain(pair) == []
    assert two.ram.read(AWAY, SIZE) == bytes(SIZE)


@pytest.mark.fact("A24", clause=CLAUSE, kills=("no-patience-with-memory",))
def test_a_disk_may_answer_while_the_memory_is_away(slow: Bench) -> None:
    slow.map(AWAY, bytearray(SIZE))
    driver = slow.driver
    pair = driver.create_queues(1)
    slow.backend.write(0, [memoryview(b"\x5a" * 512)])
    driver.submit(pair, read_command(AWAY))
    data = slow.unmap(AWAY)
    slow.worker.finish_all()
    slow.settle()
    assert driver.drain(pair) == []
    slow.map(AWAY, data)
    assert statuses(driver, pair) == [Status.SUCCESS]
    assert data[:512] == b"\x5a" * 512


@pytest.mark.fact("A24", clause=CLAUSE, kills=("held-for-ever",))
@pytest.mark.parametrize(
    ("prp1", "prp2", "pages"),
    [
        pytest.param(NOWHERE, 0, 1, id="prp1"),
        pytest.param((1 << 64) - PAGE, 0, 1, id="prp1-at-the-top"),
        pytest.param(PAGE, NOWHERE, 2, id="second-page"),
        pytest.param(PAGE, NOWHERE, 3, id="list"),
        pytest.param(PAGE, (1 << 64) - 8, 3, id="list-at-the-top"),
    ],
)
def test_a_hostile_prp_ends_in_an_error_and_harms_nothing(
    driver: Driver, advance: Advance, prp1: int, prp2: int, pages: int
) -> None:
    pair = driver.create_queues(1)
    before = driver.bus.read_memory(0, BELOW)
    for command in (read_command, write_command):
        driver.submit(pair, command(prp1, prp2, blocks=pages * 8))
    driver.submit(driver.admin, Identify(opcode=AdminOpcode.IDENTIFY, cns=1, prp1=NOWHERE))
    advance(0.2)
    assert statuses(driver, pair) == [Status.DATA_TRANSFER_ERROR] * 2
    assert statuses(driver, driver.admin) == [Status.DATA_TRANSFER_ERROR]
    assert driver.bus.read_memory(0, BELOW) == before
    assert driver.status == ControllerStatus(rdy=True)
    driver.succeed(pair, flush_command())


@pytest.mark.fact("A24", clause=CLAUSE, kills=("rom-is-written",))
def test_read_only_memory_is_read_and_never_written(two: Bench) -> None:
    """The guest writes its ROM to the disk, and tries to read into it."""
    driver, pair = two.driver, two.driver.queues[1]
    rom = bytearray(b"\x99" * PAGE)
    two.map(NOWHERE, rom, writable=False)
    driver.submit(pair, write_command(NOWHERE, blocks=8))
    assert statuses(driver, pair) == [Status.SUCCESS]
    driver.submit(pair, read_command(NOWHERE, slba=8))
    two.clock.advance(0.2)
    two.settle()
    assert statuses(driver, pair) == [Status.DATA_TRANSFER_ERROR]
    assert rom == b"\x99" * PAGE
    assert driver.read(0, 8) == b"\x99" * PAGE


# --- queues


@pytest.mark.fact("A1", clause=CLAUSE, kills=("no-patience-with-queues",))
def test_a_submission_queue_waits_for_its_memory(two: Bench) -> None:
    driver = two.driver
    pair = pair_at(driver, 2, sq=AWAY)
    driver.succeed(pair, flush_command())
    driver.submit(pair, flush_command(), ring=False)
    data = two.unmap(AWAY)
    driver.ring_sq(pair)
    two.clock.advance(0.9)
    two.settle()
    assert driver.status == ControllerStatus(rdy=True)
    assert driver.drain(pair) == []
    two.map(AWAY, data)
    assert statuses(driver, pair) == [Status.SUCCESS]
    two.clock.advance(5)
    assert driver.status == ControllerStatus(rdy=True)


@pytest.mark.fact("A1", clause=CLAUSE, kills=("no-patience-with-queues", "completions-lost-with-memory"))
def test_a_completion_queue_waits_for_its_memory(two: Bench) -> None:
    driver = two.driver
    pair = pair_at(driver, 2, cq=AWAY)
    driver.succeed(pair, flush_command())
    data = two.unmap(AWAY)
    cids = [driver.submit(pair, flush_command()) for _ in range(5)]
    two.clock.advance(0.9)
    two.settle()
    assert driver.status == ControllerStatus(rdy=True)
    two.ram.interrupts.clear()
    two.map(AWAY, data)
    assert [completion.cid for completion in driver.drain(pair)] == cids
    assert two.ram.interrupts


@pytest.mark.fact("A1", clause=CLAUSE, kills=("lost-queues-go-unnoticed",))
@pytest.mark.parametrize("part", ["sq", "cq"])
def test_a_queue_whose_memory_is_gone_for_good_is_fatal(two: Bench, part: str) -> None:
    driver = two.driver
    pair = pair_at(driver, 2, sq=AWAY if part == "sq" else 0, cq=AWAY if part == "cq" else 0)
    driver.submit(pair, flush_command(), ring=False)
    data = two.unmap(AWAY)
    driver.ring_sq(pair)
    two.clock.advance(1.2)
    two.settle()
    assert driver.status == ControllerStatus(rdy=True, cfs=True)
    two.map(AWAY, data)
    assert driver.reg(CSTS) == 3
    assert data == two.ram.read(AWAY, SIZE)
    driver.enable()
    driver.succeed(driver.create_queues(1), flush_command())


@pytest.mark.fact("A11", clause=CLAUSE, kills=("lost-queues-go-unnoticed",))
def test_admin_queues_in_no_memory_are_fatal_at_the_first_command(driver: Driver, advance: Advance) -> None:
    driver.set_reg(CC, 0)
    driver.set_reg(0x28, AWAY, 8)
    driver.set_reg(0x30, AWAY, 8)
    driver.set_reg(CC, 1)
    assert driver.status == ControllerStatus(rdy=True)
    driver.set_reg(0x1000, 1)
    advance(2)
    assert driver.status.cfs


# --- views


@pytest.mark.fact("A1", clause="the Host port", kills=("views-outlive-quiesce",))
def test_no_view_of_guest_memory_is_kept_when_the_map_changes(two: Bench) -> None:
    """``Ram.unmap`` raises BufferError if anybody holds one: on a real host that is a crash."""
    driver, pair = two.driver, two.driver.queues[1]
    assert len(driver.identify(1)) == PAGE
    driver.write(0, b"\x11" * (64 << 10))
    driver.submit(pair, read_command(NOWHERE))  # held: its memory is missing
    driver.submit(pair, read_command(NOWHERE - PAGE, NOWHERE, blocks=16))  # half of it is there
    two.unmap(AWAY)
    two.map(0, bytearray(two.unmap(0)))  # moved to another place of the host
    assert driver.read(0, 128) == b"\x11" * (64 << 10)
    two.clock.advance(0.2)
    two.settle()
    assert statuses(driver, pair) == [Status.DATA_TRANSFER_ERROR] * 2


@pytest.mark.fact("A1", clause="the Host port", kills=("views-outlive-quiesce",))
def test_everything_may_be_unmapped_and_mapped_again_under_load(new_bench: NewBench) -> None:
    """Every few commands, at random, as a guest's firmware makes a VMM do."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    bench = new_bench(TellingBackend(), manual=True, ram=4 << 20)
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, 16)
    places = [driver.alloc(PAGE) for _ in range(8)]
    outstanding: set[int] = set()
    for _ in range(200):
        for _ in range(chance.randrange(4)):
            if len(outstanding) < 15:
                command = chance.choice((read_command, write_command))(chance.choice(places), blocks=8)
                outstanding.add(driver.submit(pair, command))
        data = bytearray(bench.unmap(0))
        for _ in range(chance.randrange(3)):
            if bench.worker.tasks:
                chance.choice(bench.worker.tasks).finish()
        bench.clock.advance(chance.choice((0, 0.05)))
        bench.map(0, data)
        for completion in driver.drain(pair):
            assert completion.status == Status.SUCCESS
            outstanding.remove(completion.cid)
    while outstanding:
        bench.worker.finish_all()
        bench.settle()
        outstanding -= {completion.cid for completion in driver.drain(pair)}
    assert driver.status == ControllerStatus(rdy=True)


@pytest.mark.fact("A1", clause="the Host port", kills=("scattered-queue-reads-its-first-entry", "scattered-data-fails"))
def test_queues_and_data_may_be_scattered_over_4_kib_regions(new_bench: NewBench) -> None:
    """As a VMM without huge pages may map them."""
    bench = new_bench(ram=0)
    start = 0x100000
    for iova in range(start, start + (1 << 20), PAGE):
        bench.ram.map(iova, PAGE)
    driver = bench.driver
    driver.enable(asqs=256, acqs=1024)
    pair = driver.create_queues(1, 512)
    data = random.Random(1).randbytes(100 << 10)
    driver.write(3, data)
    assert driver.read(3, 200) == data
    for _ in range(3):
        cids = [driver.submit(pair, flush_command(), ring=False) for _ in range(500)]
        driver.ring_sq(pair)
        assert [completion.cid for completion in driver.drain(pair)] == cids
    for iova in range(start, start + (1 << 20), PAGE):
        bench.map(iova, bytearray(bench.unmap(iova)))
    driver.succeed(pair, flush_command())
    assert driver.read(3, 200) == data


def test_an_entry_is_found_again_when_its_queue_grows_together(bench: Bench) -> None:
    """A queue that was scattered becomes one region, and the other way round."""
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, 256)
    pages = (pair.sq, pair.sq + PAGE)
    for _ in range(3):
        data = bytearray(bench.unmap(0))
        for iova in range(0, len(data), PAGE):
            if iova in pages:
                bench.map(iova, data[iova : iova + PAGE])
        bench.ram.map(0, pages[0], data=data[: pages[0]])
        bench.map(pages[1] + PAGE, data[pages[1] + PAGE :])
        for _ in range(100):
            driver.succeed(pair, flush_command())
        parts = [bench.unmap(iova) for iova in (0, *pages, pages[1] + PAGE)]
        bench.map(0, bytearray().join(parts))
        for _ in range(100):
            driver.succeed(pair, flush_command())
