"""Flush, Force Unit Access, Write Zeroes and Dataset Management in the native engine: what it does itself, what it
leaves to Python, and what becomes of the disk. That data survives a power cut is shown in tests/server/test_durable.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from nvmeemu.backend import Backend, open_backend
from nvmeemu.spec import (
    BROADCAST,
    Command,
    DatasetManagement,
    DsmRange,
    FeatureId,
    LogId,
    NvmOpcode,
    ReadWrite,
    Status,
)
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.testing import PAGE, Bench, QueuePair

MIB = 1 << 20
SIZE = 16 * MIB
FULL = b"\x77" * PAGE


def open_disk(kind: str, folder: Path) -> Backend:
    if kind == "memory":
        return open_backend("mem:16M")
    name = f"{folder.name}-{os.getpid()}"  # another run's folder may have that name, too
    place = Path("/dev/shm") / name if kind == "memory file" else Path("/var/tmp") / name  # no tmpfs
    try:
        return open_backend(str(place), create=True, size=SIZE, direct=kind == "direct")
    finally:
        place.unlink(missing_ok=True)


@pytest.fixture(params=["memory", "memory file", "file", "direct"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(open_disk(request.param, tmp_path), engine="native")) as bench:
        bench.driver.enable()
        bench.driver.create_queues(1)
        yield bench
        bench.backend.close()


@pytest.fixture
def file_bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(open_disk("file", tmp_path), engine="native")) as bench:
        bench.driver.enable()
        bench.driver.create_queues(1)
        yield bench
        bench.backend.close()


def served(bench: Bench) -> tuple[int, int, int]:
    """Reads, writes and others that the engine has done since the last call."""
    assert bench.engine is not None
    counts = bench.engine.take_counts()
    return counts.reads, counts.writes, counts.others


def queue_of(bench: Bench) -> QueuePair:
    return bench.driver.queues[1]


def write(bench: Bench, slba: int = 0, data: bytes = FULL, **fields: Any) -> ReadWrite:
    place = bench.driver.alloc(len(data))
    bench.write_memory(place, data)
    prp1, prp2 = bench.driver.prps(place, len(data))
    return ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=prp1, prp2=prp2, slba=slba, nlb=len(data) // 512, **fields)


def zeroes(slba: int, blocks: int, **fields: Any) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=slba, nlb=blocks, **fields)


def deallocate(bench: Bench, *ranges: tuple[int, int], offset: int = 0, **fields: Any) -> DatasetManagement:
    place = bench.driver.alloc(2 * PAGE)
    data = b"".join(bytes(DsmRange(slba=slba, length=length)) for slba, length in ranges)
    bench.write_memory(place + offset, data)
    prp1, prp2 = place + offset, place + PAGE
    fields = {"nsid": 1, "ad": True, **fields}
    return DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nr=len(ranges), prp1=prp1, prp2=prp2, **fields)


def flush(nsid: int = 1) -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=nsid)


def allocated(bench: Bench) -> int:
    """Bytes that the disk's file takes."""
    assert bench.backend.direct is not None
    return os.fstat(bench.backend.direct.fd).st_blocks * 512


def test_the_engine_does_them_itself(bench: Bench) -> None:
    driver, queue = bench.driver, queue_of(bench)
    driver.succeed(queue, write(bench, 8, fua=True))
    driver.succeed(queue, write(bench, 16, os.urandom(MIB), fua=True))
    assert driver.read(8, 8) == FULL
    assert served(bench) == (1, 2, 0)
    driver.succeed(queue, flush())
    driver.succeed(queue, flush(BROADCAST))
    driver.succeed(queue, deallocate(bench, (8, 4)))
    assert served(bench) == (0, 0, 3)
    assert driver.read(8, 8) == bytes(PAGE // 2) + FULL[: PAGE // 2]
    driver.succeed(queue, zeroes(14, 2, deac=True))
    driver.succeed(queue, zeroes(13, 1, deac=True, fua=True))
    assert driver.read(8, 8) == bytes(PAGE // 2) + FULL[:512] + bytes(3 * 512)
    assert served(bench) == (2, 0, 2)


def test_write_zeroes_keeps_the_storage_and_deac_gives_it_back(file_bench: Bench) -> None:
    """A file system without zeroed ranges leaves the former to Python."""
    driver, queue = file_bench.driver, queue_of(file_bench)
    driver.write(0, b"\x77" * MIB)
    driver.succeed(queue, flush())
    whole = allocated(file_bench)
    served(file_bench)
    driver.succeed(queue, zeroes(0, 1024, deac=False, fua=True))
    assert allocated(file_bench) >= whole - PAGE
    assert served(file_bench) == (0, 0, 1)
    driver.succeed(queue, zeroes(0, 1024, deac=True))
    assert allocated(file_bench) <= whole - MIB // 2
    assert served(file_bench) == (0, 0, 1)
    assert driver.read(0, 1024) == bytes(MIB // 2)
    assert driver.read(1024, 1024) == b"\x77" * (MIB // 2)
    driver.succeed(queue, deallocate(file_bench, (1024, 512), (1536, 512)))
    driver.succeed(queue, flush())
    assert allocated(file_bench) <= whole - MIB
    assert served(file_bench)[2] == 2


@pytest.mark.parametrize("offset", [0, 2048, 4080])
def test_all_the_ranges_wherever_they_lie(bench: Bench, offset: int) -> None:
    """256 of them, those of no length in between, in one page or two."""
    driver, queue = bench.driver, queue_of(bench)
    driver.write(0, b"\x77" * MIB)
    ranges = [(8 * index, index % 4) for index in range(256)]
    driver.succeed(queue, deallocate(bench, *ranges, offset=offset))
    assert served(bench)[2] == 1
    expected = b"".join((bytes(512 * length) + b"\x77" * 4096)[:4096] for _, length in ranges)
    assert driver.read(0, 2048) == expected


@pytest.mark.parametrize("how", ["deallocate", "zeroes"])
def test_many_pages_with_a_part_of_one_at_both_ends(bench: Bench, how: str) -> None:
    """Of memory, whole pages are given back and the rest is overwritten."""
    driver, queue = bench.driver, queue_of(bench)
    driver.write(0, b"\x77" * MIB)
    slba, blocks = 8 * 16 + 3, 8 * 64 + 2  # at the end, 5 blocks of a page
    driver.succeed(queue, deallocate(bench, (slba, blocks)) if how == "deallocate" else zeroes(slba, blocks, deac=True))
    assert served(bench)[2] == 1
    data = driver.read(0, MIB // 512)
    assert [block for block in range(MIB // 512) if not any(data[block * 512 :][:512])] == [*range(slba, slba + blocks)]
    assert data.replace(b"\0", b"") == b"\x77" * (MIB - blocks * 512)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda bench: flush(0), Status.INVALID_NAMESPACE),
        (lambda bench: flush(2), Status.INVALID_FIELD),
        (lambda bench: flush(0xFFFFFFFE), Status.INVALID_NAMESPACE),
        (lambda bench: Command(opcode=NvmOpcode.FLUSH, nsid=1, flags=2), Status.MISSING_FUSED),
        (lambda bench: zeroes(SIZE // 512, 1), Status.LBA_OUT_OF_RANGE),
        (lambda bench: zeroes(SIZE // 512 - 1, 2), Status.LBA_OUT_OF_RANGE),
        (lambda bench: zeroes((1 << 64) - 1, 2), Status.LBA_OUT_OF_RANGE),
        (lambda bench: zeroes(0, 1, flags=0xC0), Status.INVALID_FIELD),
        (lambda bench: deallocate(bench, (0, 8), nsid=0), Status.INVALID_NAMESPACE),
        (lambda bench: deallocate(bench, (0, 8), (SIZE // 512 - 7, 8)), Status.LBA_OUT_OF_RANGE),
        (lambda bench: deallocate(bench, (0, 8), ((1 << 64) - 1, 2)), Status.LBA_OUT_OF_RANGE),
        (lambda bench: deallocate(bench, (0, 8), (SIZE // 512 + 1, 0)), Status.LBA_OUT_OF_RANGE),
        (lambda bench: deallocate(bench, (0, 8), ad=False, nsid=3), Status.INVALID_FIELD),
        (lambda bench: write(bench, SIZE // 512 - 7, fua=True), Status.LBA_OUT_OF_RANGE),
    ],
)
def test_what_is_odd_is_pythons_before_anything_happens(
    bench: Bench, make: Callable[[Bench], Command], status: Status
) -> None:
    driver, queue = bench.driver, queue_of(bench)
    driver.write(0, FULL)
    served(bench)
    assert driver.execute(queue, make(bench)).status == status
    assert served(bench) == (0, 0, 0)
    assert driver.read(0, 8) == FULL


def test_a_hint_alone_changes_nothing(bench: Bench) -> None:
    driver, queue = bench.driver, queue_of(bench)
    driver.write(0, FULL)
    driver.succeed(queue, deallocate(bench, (0, 8), ad=False))
    assert served(bench)[2] == 1
    assert driver.read(0, 8) == FULL


def test_a_read_only_disk_is_pythons_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(FULL * 16)
    with closing(Bench(open_backend(str(path), read_only=True), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1)
        for command in (write(bench, 0, fua=True), zeroes(0, 8), deallocate(bench, (0, 8))):
            assert driver.execute(queue, command).status == Status.NAMESPACE_WRITE_PROTECTED
        assert served(bench) == (0, 0, 0)
        driver.succeed(queue, flush())  # there is nothing to flush
        driver.succeed(queue, deallocate(bench, (0, 8), ad=False))
        assert served(bench) == (0, 0, 2)
        assert path.read_bytes() == FULL * 16


def test_an_overlay_has_nothing_to_flush(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(FULL * 16)
    with closing(Bench(open_backend(str(path), overlay=True), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1)
        driver.succeed(queue, write(bench, 0, bytes(PAGE), fua=True))
        driver.succeed(queue, flush())
        driver.succeed(queue, flush(BROADCAST))
        assert served(bench) == (0, 0, 2)
        driver.succeed(queue, zeroes(8, 8))
        driver.succeed(queue, deallocate(bench, (16, 8)))
        assert served(bench) == (0, 0, 0)
        assert driver.read(0, 32) == bytes(3 * PAGE) + FULL


def test_a_flush_of_all_namespaces_is_for_one_disk_or_pythons(tmp_path: Path) -> None:
    with closing(Bench(open_backend("mem:1M"), engine="native")) as bench:
        for nsid in (2, 3):
            backend = open_backend(str(tmp_path / str(nsid)), create=True, size=MIB)
            bench.namespaces.add(bench.namespace(nsid, backend))
        synced: list[int] = []
        for nsid, count in ((3, 0), (2, 1)):
            bench.driver.enable()
            queue = bench.driver.create_queues(1)
            for namespace in bench.namespaces:
                assert isinstance(namespace.media, DiskMedia)
                backend = namespace.media.backend
                backend.flush = lambda nsid=namespace.nsid: synced.append(nsid)  # type: ignore[method-assign,misc]
            bench.driver.succeed(queue, flush(BROADCAST))
            assert served(bench)[2] == count
            bench.driver.disable()
            bench.namespaces.remove(nsid)
        assert synced == [1, 2, 3]


@pytest.mark.parametrize("bench", ["memory file", "file", "direct"], indirect=True)
def test_the_write_cache_is_off_without_python(bench: Bench) -> None:
    driver, queue = bench.driver, queue_of(bench)
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    driver.succeed(queue, write(bench))
    driver.succeed(queue, zeroes(4, 2, deac=True))
    assert served(bench) == (0, 1, 1)
    assert driver.read(0, 8) == FULL[:2048] + bytes(1024) + FULL[:1024]


def test_what_is_read_with_fua_is_pythons_where_a_cache_may_have_it(bench: Bench) -> None:
    driver, queue = bench.driver, queue_of(bench)
    direct = bench.backend.direct
    assert direct is not None
    driver.succeed(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8, fua=True))
    assert served(bench)[0] == (0 if bench.backend.volatile_cache and not direct.never_waits else 1)


@pytest.mark.parametrize("op", ["flush", "flush of all"])
def test_a_failed_sync_is_a_media_error_and_never_forgotten(file_bench: Bench, op: str) -> None:
    """The engine's descriptor cannot be synced; Python's can, as after an error that the kernel has told."""
    bench, driver = file_bench, file_bench.driver
    backend = bench.backend
    assert backend.direct is not None
    reader, writer = os.pipe()
    real, backend.direct = backend.direct, replace(backend.direct, fd=writer)
    driver.disable()
    driver.enable()
    queue = driver.create_queues(1)
    nsid = 1 if op == "flush" else BROADCAST
    assert driver.execute(queue, flush(nsid)).status == Status.WRITE_FAULT
    backend.direct = real
    driver.disable()
    driver.enable()
    queue = driver.create_queues(1)
    for again in (1, BROADCAST):
        assert driver.execute(queue, flush(again)).status == Status.WRITE_FAULT
    assert served(bench) == (0, 0, 0)
    driver.succeed(queue, write(bench))  # without a promise
    assert int.from_bytes(driver.get_log(LogId.SMART, 512)[160:176], "little") == 3
    with pytest.raises(OSError, match="Invalid argument"):
        backend.flush()
    os.close(reader)
    os.close(writer)


def test_a_sync_that_python_saw_fail_is_the_engines_too(file_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, driver, queue = file_bench, file_bench.driver, queue_of(file_bench)

    def fail(fd: int) -> None:
        raise OSError(5, "made to fail")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="made to fail"):
            bench.backend.flush()
    assert driver.execute(queue, flush()).status == Status.WRITE_FAULT
    assert served(bench) == (0, 0, 0)


def flush_all(bench: Bench) -> Command:
    return flush(BROADCAST)


def zeroes_there(bench: Bench) -> Command:
    return zeroes(0, 8, deac=True)


def deallocate_there(bench: Bench) -> Command:
    return deallocate(bench, (0, 8), (16, 8))


@pytest.mark.parametrize("make", [lambda bench: flush(), flush_all, write, zeroes_there, deallocate_there])
@pytest.mark.parametrize("error", [0, -5])
def test_no_sync_counts_while_a_durable_write_is_in_doubt(
    file_bench: Bench, make: Callable[[Bench], Command], error: int
) -> None:
    """The kernel may have told that one of what this one was to make durable. Python waits for the outcome."""
    bench, driver, queue = file_bench, file_bench.driver, queue_of(file_bench)
    assert bench.backend.direct is not None
    word = bench.backend.direct.failed_sync.word
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    served(bench)
    word[1] = 1

    def come_out() -> None:
        word[0] = error
        word[1] = 0

    timer = Timer(0.2, come_out)
    timer.start()
    completion = driver.execute(queue, make(bench))
    timer.join()
    assert served(bench) == (0, 0, 0)
    if make is write:  # which was done again, durably
        assert completion.status == Status.SUCCESS
        assert driver.read(0, 8) == FULL
    else:
        assert completion.status == (Status.WRITE_FAULT if error else Status.SUCCESS)


def test_without_the_write_cache_nothing_is_deallocated_that_cannot_be_synced(file_bench: Bench) -> None:
    bench, driver, queue = file_bench, file_bench.driver, queue_of(file_bench)
    assert bench.backend.direct is not None
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    bench.backend.direct.failed_sync.note(OSError(5, "made to fail"))
    served(bench)
    assert driver.execute(queue, deallocate(bench, (0, 8))).status == Status.WRITE_FAULT
    assert served(bench) == (0, 0, 0)


def test_many_at_once_and_a_reset(file_bench: Bench) -> None:
    """More syncs than the lane does itself, and what was begun ends before the controller is ready again."""
    bench, driver = file_bench, file_bench.driver
    driver.create_queues(2, 256)
    queue = driver.queues[2]
    for round in range(6):
        commands: list[Command] = []
        for index in range(40):
            commands += [write(bench, 8 * index, bytes([round + 1]) * PAGE, fua=index % 2 == 0), flush()]
            if index % 8 == 0:
                commands.append(deallocate(bench, *[(8192 + 8 * part, 8) for part in range(20)]))
        for command in commands:
            driver.submit(queue, command, ring=False)
        driver.ring_sq(queue)
        if round % 2:
            driver.disable()
            driver.enable()
            driver.create_queues(1)
            driver.create_queues(2, 256)
            queue = driver.queues[2]
            continue
        completions = driver.drain(queue)
        assert [completion.status for completion in completions] == [Status.SUCCESS] * len(commands)
        assert driver.read(0, 320) == bytes([round + 1]) * (40 * PAGE)
