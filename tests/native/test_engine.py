"""The native engine in this process: what it serves itself, what it leaves to Python, and that nothing gets lost
between the two. That both paths answer alike is proved by the conformance tests, which run on both."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from nvmeemu.backend import Backend, open_backend
from nvmeemu.engine.native.generate import header
from nvmeemu.spec import CQE_SIZE, Command, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, QueuePair

MIB = 1 << 20


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench(engine="native")) as bench:
        bench.driver.enable()
        yield bench


def served(bench: Bench) -> tuple[int, int]:
    """Reads and writes that the engine has done since the last call."""
    assert bench.engine is not None
    assert bench.engine.can_wait, "no io_uring: built without liburing, or the kernel refuses it"
    counts = bench.engine.take_counts()
    return counts.reads, counts.writes


def reading(page: int, slba: int = 0, **fields: Any) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=page, slba=slba, nlb=8, **fields)


def on_file(path: Path, size: int = 16 * MIB) -> Backend:
    return open_backend(str(path), create=True, size=size)


def test_ordinary_reads_and_writes_are_the_engines(bench: Bench) -> None:
    driver = bench.driver
    driver.create_queues(1)
    data = os.urandom(2 * MIB)
    driver.write(8, data)
    assert driver.read(8, len(data) // 512) == data
    assert served(bench) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"opcode": NvmOpcode.VERIFY}, Status.SUCCESS),
        ({"opcode": 0x7F}, Status.INVALID_OPCODE),
        ({"flags": 3}, Status.INVALID_FIELD),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_NAMESPACE),
        ({"slba": 1 << 63}, Status.LBA_OUT_OF_RANGE),
        ({"slba": (1 << 64) - 8}, Status.LBA_OUT_OF_RANGE),
        ({"prp1": 0x100002}, Status.INVALID_PRP_OFFSET),
        ({"nlb": 8192}, Status.INVALID_FIELD),
        ({"opcode": NvmOpcode.WRITE, "prinfo": 1}, Status.SUCCESS),
    ],
)
def test_everything_else_is_pythons_and_comes_back_through_the_engine(
    bench: Bench, fields: dict[str, int], status: Status
) -> None:
    driver = bench.driver
    queue = driver.create_queues(1)
    place = driver.alloc(PAGE)
    command = reading(place)
    for name, value in fields.items():
        setattr(command, name, value)
    completion = driver.execute(queue, command)
    assert completion.status == status
    assert (completion.sqid, completion.sqhd) == (1, 1)
    assert served(bench) == (0, 0)
    assert driver.execute(queue, reading(place)).status == Status.SUCCESS
    assert served(bench) == (1, 0)


def test_smart_counts_what_both_have_done(bench: Bench) -> None:
    driver = bench.driver
    queue = driver.create_queues(1)
    place = driver.alloc(PAGE)
    for prinfo in (0, 1):  # the engine's, and Python's
        driver.succeed(queue, reading(place, prinfo=prinfo))
    assert served(bench) == (1, 0)
    driver.succeed(queue, reading(place))
    assert int.from_bytes(driver.get_log(0x02, 512)[64:80], "little") == 2


def test_no_completion_is_lost_while_the_completion_queue_is_full(bench: Bench) -> None:
    driver = bench.driver
    cq = driver.create_cq(1, 4)
    queue = QueuePair(1, driver.create_sq(1, 64), cq, 64, 4)
    place = driver.alloc(PAGE)
    # Every third one is Python's: its completions wait in the engine's list.
    cids = [driver.submit(queue, reading(place, prinfo=number % 3 == 0), ring=False) for number in range(50)]
    driver.ring_sq(queue)
    seen = []
    while completion := driver.poll(queue):
        assert completion.status == Status.SUCCESS
        seen.append(completion.cid)
    assert sorted(seen) == sorted(cids)


def test_memory_that_goes_away_and_comes_back_stalls_and_loses_nothing(bench: Bench) -> None:
    driver = bench.driver
    queue = driver.create_queues(1, 64)
    place = driver.alloc(PAGE)
    for _ in range(5):
        driver.submit(queue, reading(place), ring=False)
    bench.controller.quiesce()
    data = bench.ram.unmap(0)
    bench.controller.memory_changed()
    driver.ring_sq(queue)
    bench.map(0, data[: MIB // 2])
    bench.map(MIB // 2, data[MIB // 2 :])
    assert [completion.status for completion in driver.drain(queue)] == [Status.SUCCESS] * 5


def test_a_queue_whose_memory_stays_away_is_fatal(bench: Bench) -> None:
    driver = bench.driver
    queue = driver.create_queues(1)
    place = driver.alloc(PAGE)
    driver.submit(queue, reading(place))
    assert driver.poll(queue)
    driver.submit(queue, reading(place), ring=False)
    bench.unmap(0)  # the region that was used last
    driver.ring_sq(queue)
    bench.clock.advance(1.5)
    assert driver.status.cfs


def test_a_file_without_the_page_cache_is_the_engines_too() -> None:
    with (
        TemporaryDirectory(dir="/var/tmp") as folder,  # /tmp may be in memory
        closing(Bench(open_backend(f"{folder}/d", create=True, size=16 * MIB, direct=True), engine="native")) as bench,
    ):
        driver = bench.driver
        driver.enable()
        driver.create_queues(1)
        data = os.urandom(2 * MIB)
        driver.write(3, data)
        assert driver.read(3, len(data) // 512) == data
        assert served(bench) == (1, 1)


def test_a_file_is_served_whether_cached_or_not(tmp_path: Path) -> None:
    """What is not cached goes through io_uring, or to Python's threads where that is not to be had."""
    disk = tmp_path / "disk"
    with closing(Bench(on_file(disk), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        driver.create_queues(1)
        data = os.urandom(4 * MIB)
        for start in range(0, len(data), MIB):
            driver.write(start // 512, data[start : start + MIB])
        bench.backend.flush()
        fd = os.open(disk, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        chance = random.Random(5)
        for _ in range(200):
            start, blocks = chance.randrange(len(data) // 512 - 64), chance.randrange(1, 64)
            assert driver.read(start, blocks) == data[start * 512 :][: blocks * 512]
        assert disk.read_bytes()[: len(data)] == data


def test_a_disk_that_fails_is_asked_again_by_python(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with closing(Bench(on_file(disk), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1)
        os.truncate(disk, 0)
        assert driver.execute(queue, reading(driver.alloc(PAGE))).status == Status.UNRECOVERED_READ_ERROR
        assert served(bench) == (0, 0)


@pytest.mark.parametrize("number", range(20))
def test_deletion_and_reset_with_commands_in_flight(tmp_path: Path, number: int) -> None:
    """On uncached data, so that io_uring has them: each is completed before its queue's deletion is, and none after a
    reset."""
    disk = tmp_path / "disk"
    with closing(Bench(on_file(disk), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1, 64)
        place = driver.alloc(PAGE)
        for index in range(40):
            driver.submit(queue, reading(place, slba=index * 64), ring=False)
        # Without waiting, unlike Driver: what comes next meets commands in any state.
        tail = queue.sq_tail.to_bytes(4, "little")
        bench.write_bar(0x1008, tail)
        if number % 2:
            assert driver.delete_sq(1).status == Status.SUCCESS
            completions = driver.drain(queue)
            assert all(completion.status == Status.SUCCESS for completion in completions)
            assert len({completion.cid for completion in completions}) == len(completions) <= 40
            assert driver.delete_cq(1).status == Status.SUCCESS
        else:
            driver.disable()
            before = bench.read_memory(queue.cq, 64 * CQE_SIZE)
            bench.settle()
            assert bench.read_memory(queue.cq, 64 * CQE_SIZE) == before
        driver.enable()
        driver.create_queues(1)
        driver.write(0, b"x" * PAGE)
        assert driver.read(0, 8) == b"x" * PAGE


def test_a_shutdown_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    with closing(Bench(on_file(tmp_path / "disk"), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1, 64)
        place = driver.alloc(PAGE)
        for index in range(40):
            write = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=place, slba=index * 8, nlb=8)
            driver.submit(queue, write, ring=False)
        bench.write_bar(0x1008, queue.sq_tail.to_bytes(4, "little"))
        driver.set_reg(0x14, driver.reg(0x14) | 1 << 14)
        assert driver.status.shst == 2
        done = driver.drain(queue)
        driver.submit(queue, Command(opcode=NvmOpcode.FLUSH, nsid=1))
        assert not driver.drain(queue)
        assert len(done) <= 40


def test_many_queues_on_several_lanes(tmp_path: Path) -> None:
    with closing(Bench(ram=32 * MIB, engine="native", lanes=3)) as bench:
        driver = bench.driver
        driver.enable()
        queues = [driver.create_queues(qid) for qid in range(1, 9)]
        # Places of their own: two lanes that write to one page are a race that only the host can be blamed for.
        places = {queue.qid: driver.alloc(PAGE) for queue in queues}
        for _ in range(20):
            for queue in queues:
                for index in range(30):
                    driver.submit(queue, reading(places[queue.qid], slba=index), ring=False)
                bench.write_bar(0x1000 + 8 * queue.qid, queue.sq_tail.to_bytes(4, "little"))
            bench.settle()
            assert [len(driver.drain(queue)) for queue in queues] == [30] * 8
        assert served(bench) == (20 * 8 * 30, 0)


def test_the_header_is_made_from_the_specification() -> None:
    text = header()
    assert "#define NVME_NVM_OPCODE_READ 0x02" in text
    assert "offsetof(struct nvme_read_write, slba) == 40" in text
