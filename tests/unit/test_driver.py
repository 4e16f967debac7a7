"""``testing.Driver``, which users script: its memory comes back, and its errors say what to do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.ports import HostMemoryError
from nvmeemu.spec import AdminOpcode, Command, CriticalWarning, FeatureId, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import Bench, CommandError, Driver
from nvmeemu.testing.heap import Heap

KIB = 1 << 10


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        bench.driver.enable()
        yield bench


@pytest.fixture
def driver(bench: Bench) -> Driver:
    bench.driver.create_queues()
    return bench.driver


def test_a_thousand_large_transfers_fit_a_small_memory(driver: Driver) -> None:
    chance = random.Random(1)
    for _ in range(1000):
        data = chance.randbytes(4) * (chance.randrange(1, 129) * 128)
        driver.write(0, data)
        assert driver.read(0, len(data) // 512) == data
    driver.write(0, bytes(2048 * KIB))


def test_so_do_resets_queues_and_log_pages(driver: Driver) -> None:
    for _ in range(400):
        driver.enable()
        driver.create_queues()
        driver.delete_sq(1)
        driver.delete_cq(1)
        driver.create_queues()
        driver.identify(1)
        driver.get_log(2, 16 * KIB)


def test_what_fails_gives_its_memory_back(driver: Driver) -> None:
    for _ in range(400):
        with pytest.raises(CommandError):
            driver.read(1 << 40, 128)
        with pytest.raises(CommandError):
            driver.create_cq(2, 1024, vector=0xFFFF)


def test_a_scratch_block_frees_what_was_allocated_in_it(driver: Driver) -> None:
    kept = driver.alloc(KIB)
    for _ in range(200):
        with driver.scratch():
            driver.alloc(128 * KIB)
            with driver.scratch():
                driver.alloc(128 * KIB)
            driver.free(driver.alloc(128 * KIB))
    driver.free(kept)
    with pytest.raises(ValueError, match="freed already"):
        driver.free(kept)


def test_memory_of_a_command_that_does_not_come_back_is_not_used_again(driver: Driver) -> None:
    missing = r"no completion of READ \(queue 1, CID \d+\): ControllerStatus\(rdy=True\)"
    half_there = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp2=1 << 40, nlb=16)

    def execute() -> None:
        with driver.scratch():
            half_there.prp1 = driver.alloc(4 * KIB)
            driver.execute(driver.queues[1], half_there)

    with pytest.raises(TimeoutError, match=missing):
        execute()
    given = []
    with suppress(HostMemoryError):
        while True:
            given.append(driver.alloc(4 * KIB))
    assert len(given) > 3000
    assert half_there.prp1 not in given


def test_the_heap_gives_nothing_out_twice() -> None:
    chance = random.Random(2)
    heap = Heap(0x1000)
    taken: dict[int, int] = {}
    for _ in range(1000):
        if taken and chance.random() < 0.6:
            place = chance.choice(list(taken))
            heap.give_back(place)
            del taken[place]
        size, align = chance.randrange(1, 100 * KIB), chance.choice((4, 4 * KIB, 64 * KIB))
        place = heap.take(size, align)
        assert place % align == 0
        assert all(place + size <= other or other + length <= place for other, length in taken.items())
        taken[place] = size
    assert max(place + size for place, size in taken.items()) < 2 * sum(taken.values()) + (4 << 20)


def test_what_was_freed_rests_before_it_is_used_again(driver: Driver) -> None:
    place = driver.alloc(4 * KIB)
    driver.free(place)
    assert place not in [driver.alloc(4 * KIB) for _ in range(100)]


def test_the_block_size_is_the_namespaces() -> None:
    with Bench(MemoryBackend(1 << 20), block_size=4096) as bench:
        driver = bench.driver
        driver.enable()
        driver.create_queues()
        data = bytes(range(256)) * 32
        driver.write(3, data)
        assert driver.read(3, 2) == data
        driver.flush()


def test_a_command_error_says_what_failed_and_how(driver: Driver) -> None:
    with pytest.raises(CommandError) as caught:
        driver.read(1 << 40, 1)
    assert caught.value.status == Status.LBA_OUT_OF_RANGE
    assert caught.value.command.opcode == NvmOpcode.READ
    cid = caught.value.completion.cid
    assert str(caught.value) == f"READ (queue 1, CID {cid}): LBA_OUT_OF_RANGE (SCT 0h, SC 80h), DNR"
    with pytest.raises(CommandError, match=r"^GET_LOG_PAGE \(.*\): INVALID_LOG_PAGE \(SCT 1h, SC 09h\), DNR$"):
        driver.get_log(0xC0, 512)
    with pytest.raises(CommandError, match=r"^opcode 83h \(.*\): INVALID_OPCODE \(SCT 0h, SC 01h\), DNR$"):
        driver.succeed(driver.admin, Command(opcode=0x83))


@pytest.mark.parametrize("length", [0, 1, 511, 513])
def test_only_whole_blocks_are_written(driver: Driver, length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes are not one or more whole blocks of 512 bytes"):
        driver.write(0, bytes(length))


def test_what_was_not_made_is_asked_for() -> None:
    with Bench() as bench:
        with pytest.raises(RuntimeError, match=r"call enable\(\) first"):
            bench.driver.identify(1)
        with pytest.raises(RuntimeError, match=r"call enable\(\) first"):
            bench.driver.create_queues()
        bench.driver.enable()
        with pytest.raises(LookupError, match=r"make it with create_queues\(1\)"):
            bench.driver.read(0, 1)
        with pytest.raises(LookupError, match=r"no I/O queue 7"):
            bench.driver.write(0, bytes(512), qid=7)
        with pytest.raises(LookupError, match=r"no I/O queue 2"):
            _ = bench.driver.queues[2]


def test_an_event_that_comes_while_another_command_is_waited_for_is_kept(bench: Bench, driver: Driver) -> None:
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, CriticalWarning.SPARE)
    cid = driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
    bench.controller.set_health(spare=0)
    assert driver.identify(1)
    assert [completion.cid for completion in driver.drain(driver.admin)] == [cid]
    assert driver.poll(driver.admin) is None
