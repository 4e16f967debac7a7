"""Faults of the disk: writes that are lost or torn. The tests look at what has really reached the disk, also where only
whole blocks can be written (O_DIRECT)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from faults.rig import BLOCK, GUARD, NEW, OLD, Rig
from nvmeemu.backend import Backend, BackendError, open_backend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.faults import Fault, FaultError, Faults
from nvmeemu.faults import disk as faulty
from nvmeemu.spec import (
    BROADCAST,
    Command,
    Copy,
    CopyRange,
    DatasetManagement,
    DsmRange,
    FeatureId,
    NvmOpcode,
    ReadWrite,
    Status,
)
from nvmeemu.testing import Bench

WRITES = {"opcode": "write"}
READS = {"opcode": "read"}
FLUSH = Command(opcode=NvmOpcode.FLUSH, nsid=1)
ZEROES = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=0, nlb=2)


class Strict(MemoryBackend):
    """Takes whole blocks only, as a file does with O_DIRECT, and tells what was asked of it."""

    volatile_cache = True
    alignment = BLOCK

    def __init__(self) -> None:
        super().__init__(16 << 20)
        self.direct = None
        self.did: list[str] = []

    def _do(self, what: str, offset: int = 0, length: int = 0) -> None:
        if offset % BLOCK or length % BLOCK:
            raise OSError(errno.EINVAL, "no whole blocks")
        self.did.append(what)

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        self._do("read", offset, sum(map(len, views)))
        return super().read_now(offset, views)

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        self._do("write", offset, sum(map(len, views)))
        return super().write_now(offset, views)

    def flush(self) -> None:
        self._do("flush")

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._do("zero", offset, length)
        super().zero(offset, length, deallocate)

    def deallocate(self, offset: int, length: int) -> None:
        self._do("deallocate", offset, length)
        super().deallocate(offset, length)


@pytest.fixture(params=["python", "native"])
def strict(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(str(request.param), backend=Strict())
    with closing(rig.bench):
        yield rig


def did(rig: Rig) -> list[str]:
    """What the disk was asked for since the last time."""
    backend = rig.bench.backend
    assert isinstance(backend, Strict)
    found, backend.did = backend.did, []
    return found


# --- torn


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 700, 1024, 5000])
@pytest.mark.kills("torn-writes-part-of-a-block", "torn-clears-the-rest-of-the-block")
def test_a_torn_write_arrives_in_whole_blocks(kept: int, strict: Rig) -> None:
    strict.add({"torn": kept}, "backend", WRITES)
    assert strict.run(strict.write(NEW * 2 * BLOCK)).status == Status.SUCCESS
    kept = min(kept, 2 * BLOCK)
    assert strict.disk(2) == NEW * kept + OLD * (2 * BLOCK - kept)


@pytest.mark.parametrize("kept", [0, 511, 700])
@pytest.mark.kills("torn-zeroes-are-whole")
def test_so_do_torn_zeroes(kept: int, strict: Rig) -> None:
    strict.add({"torn": kept}, "backend", {"opcode": "write_zeroes"})
    assert strict.run(ZEROES).status == Status.SUCCESS
    assert strict.disk(2) == bytes(kept) + OLD * (2 * BLOCK - kept)


def test_of_torn_deallocations_whole_blocks_go(strict: Rig) -> None:
    strict.add({"torn": 700}, "backend", {"opcode": "dataset_management"})
    strict.driver.bus.write_memory(strict.place, bytes(DsmRange(length=2, slba=0)))
    command = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=strict.place, nr=1, ad=True)
    assert strict.run(command).status == Status.SUCCESS
    assert strict.disk(2) == bytes(BLOCK) + OLD * BLOCK


@pytest.mark.parametrize("kind", ["zeros", "ones", "flip"])
def test_a_disk_without_a_cache_takes_what_is_torn_or_corrupted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(OLD * (1 << 20))
    backend: Backend | None = None
    with suppress(BackendError):
        backend = open_backend(str(path), direct=True)
    if backend is None or BLOCK % backend.alignment:
        pytest.skip("this file system has no O_DIRECT for blocks of 512 bytes")
    rig = Rig(backend=backend)
    rig.add({"torn": 700}, "backend", WRITES, nth=1)
    assert rig.run(rig.write(NEW * 2 * BLOCK)).status == Status.SUCCESS
    assert rig.disk(2) == NEW * 700 + OLD * 324
    rig.add({"corrupt": kind}, "backend", WRITES)
    assert rig.run(rig.write(NEW * 2 * BLOCK)).status == Status.SUCCESS
    assert rig.disk(2) != NEW * 2 * BLOCK
    backend.close()


# --- lose


@pytest.mark.parametrize("nsid", [1, BROADCAST])
@pytest.mark.kills("lose-lets-flush-through")
def test_a_lost_flush_does_not_reach_the_disk(nsid: int, strict: Rig) -> None:
    did(strict)
    fault = strict.add("lose", match={"opcode": "flush"}, times=1)
    flush = Command(opcode=NvmOpcode.FLUSH, nsid=nsid)
    assert strict.run(flush).status == Status.SUCCESS
    assert (fault.hits, did(strict)) == (1, [])
    assert strict.run(flush).status == Status.SUCCESS
    assert did(strict) == ["flush"]


def test_nothing_that_writes_reaches_the_disk(strict: Rig) -> None:
    """Nor what makes a write durable: FUA, and the write cache switched off."""
    strict.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    did(strict)
    fault = strict.add("lose", match={"queue": 1})
    fua = strict.write()
    fua.fua = True
    for command in (strict.write(), fua, ZEROES, FLUSH):
        assert strict.run(command).status == Status.SUCCESS
    assert (fault.hits, did(strict)) == (4, [])
    assert strict.disk() == OLD * BLOCK


@pytest.mark.kills("a-torn-flush-is-lost")
def test_a_flush_cannot_be_torn(strict: Rig) -> None:
    did(strict)
    fault = strict.add({"torn": 0}, "backend", {"queue": 1})
    assert strict.run(FLUSH).status == Status.SUCCESS
    assert (fault.seen, did(strict)) == (0, ["flush"])


# --- what it can do nothing to


@pytest.mark.parametrize(
    ("at", "do", "opcode"),
    [
        ("backend", "lose", "write"),
        ("backend", {"torn": 0}, "write"),
        ("backend", {"corrupt": "ones"}, "read"),
        ("backend", {"corrupt": "stale"}, "write"),
        ("dma", {"corrupt": "ones"}, "read"),
        ("dma", "drop", "read"),
    ],
)
@pytest.mark.kills("hits-at-commands-that-it-leaves-as-they-are")
def test_it_is_about_no_other_commands(at: str, do: Any, opcode: str, rig: Rig) -> None:
    """A hit is what the host can see, or its disk."""
    fault = rig.add(do, at, {"queue": 1}, nth=1)
    others = [rig.read()] if do in ("lose", {"torn": 0}) else [FLUSH, rig.read()] if opcode == "write" else [FLUSH]
    for command in others:
        assert rig.run(command).status == Status.SUCCESS
    assert (fault.seen, fault.hits) == (0, 0)
    rig.run(rig.write() if opcode == "write" else rig.read())
    assert (fault.seen, fault.hits) == (1, 1)


@pytest.mark.parametrize(
    ("at", "do", "match", "reason"),
    [
        ("backend", "lose", READS, "lose at backend: no command that match asks for writes to a disk or flushes it"),
        ("backend", "lose", {"opcode": ["compare", "verify"]}, "lose at backend: no command"),
        (
            "backend",
            {"torn": 5},
            READS,
            "torn at backend: no command that match asks for writes to a disk: what arrives of a read is torn at dma",
        ),
        ("backend", {"torn": 5}, {"opcode": "flush"}, "torn at backend: no command"),
        (
            "backend",
            {"corrupt": "flip"},
            {"opcode": "flush"},
            "corrupt at backend: no command that match asks for reads or",
        ),
        ("dma", {"corrupt": "stale"}, WRITES, "corrupt at dma: no command that match asks for moves data to the host"),
        ("dma", "drop", {"opcode": "write_zeroes"}, "drop at dma: no command that match asks for moves data"),
        (
            "dma",
            {"status": "write_fault"},
            {"opcode": 0x7C},
            "status at dma: no command that match asks for moves data",
        ),
    ],
)
@pytest.mark.kills("what-can-never-fire-is-accepted")
def test_what_could_never_fire_is_refused(at: str, do: Any, match: Any, reason: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault(match, at, do)
    assert str(refused.value).startswith(reason)


# --- stale


@pytest.mark.kills("stale-reads-give-what-is-there", "stale-is-the-first-content", "stale-forgets-zeroes")
def test_a_stale_read_gives_what_the_blocks_held_before(strict: Rig) -> None:
    fault = strict.add({"corrupt": "stale"}, "backend", READS)
    strict.run(strict.read())
    assert strict.got() == OLD * BLOCK
    assert fault.hits == 0  # nothing of this block was written since
    for content, before in ((NEW, OLD), (b"m", NEW), (b"l", b"m")):
        strict.run(strict.write(content * BLOCK))
        assert strict.run(strict.read()).status == Status.SUCCESS
        assert strict.got() == before * BLOCK
        assert strict.disk() == content * BLOCK
    strict.run(ZEROES)
    strict.run(strict.read(blocks=2))
    assert strict.got(2) == b"l" * BLOCK + OLD * BLOCK
    assert fault.hits == 4


def test_blocks_that_were_not_written_are_as_they_are(strict: Rig) -> None:
    strict.add({"corrupt": "stale"}, "backend", READS)
    strict.run(strict.write(NEW * BLOCK, slba=1))
    strict.run(strict.write(b"m" * BLOCK, slba=1))
    strict.run(strict.read(blocks=2))
    assert strict.got(2) == OLD * BLOCK + NEW * BLOCK


@pytest.mark.kills("stale-sees-only-its-own-queues")
def test_writes_of_other_queues_count(rig: Rig) -> None:
    """With the native engine, too, which serves no queue as long as there is such a fault."""
    rig.add({"corrupt": "stale"}, "backend", {"opcode": "read", "queue": 1})
    rig.run(rig.write(), rig.other)
    rig.run(rig.read())
    assert rig.got() == OLD * BLOCK


@pytest.mark.kills("stale-writes-are-written")
def test_a_stale_write_leaves_the_old_content(strict: Rig) -> None:
    strict.add({"corrupt": "stale"}, "backend", WRITES)
    assert strict.run(strict.write()).status == Status.SUCCESS
    assert strict.disk() == OLD * BLOCK


def test_a_comparison_meets_the_old_content(strict: Rig) -> None:
    strict.add({"corrupt": "stale"}, "backend", {"opcode": "compare"})
    command = strict.write()
    strict.run(command)
    same = ReadWrite(opcode=NvmOpcode.COMPARE, nsid=1, prp1=strict.place, slba=0, nlb=1)
    assert strict.run(same).status == Status.COMPARE_FAILURE
    strict.driver.bus.write_memory(strict.place, OLD * BLOCK)
    assert strict.run(same).status == Status.SUCCESS


def test_at_dma_it_is_what_the_buffer_held(rig: Rig) -> None:
    rig.add({"corrupt": "stale"}, "dma", {"queue": 1})
    rig.run(rig.write())
    assert rig.disk() == NEW * BLOCK  # only what goes to the host
    rig.run(rig.read())
    assert rig.got() == GUARD * BLOCK


@pytest.mark.kills("a-history-grows-without-end")
def test_a_history_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch, strict: Rig) -> None:
    monkeypatch.setattr(faulty, "MOST_REMEMBERED", 4 * BLOCK)
    fault = strict.add({"corrupt": "stale"}, "backend", READS)
    for slba in range(6):
        strict.run(strict.write(NEW * BLOCK, slba))
    (history,) = [action.history for action in fault.actions]
    assert history is not None
    assert [history.knows(1, slba, 1) for slba in range(6)] == [False, False, True, True, True, True]
    zeroes = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=0, nlb=1 << 12)
    strict.run(zeroes)
    assert [history.knows(1, slba, 1) for slba in (0, 3, 4)] == [True, True, False]


def test_another_disk_with_the_same_number_has_its_own_past() -> None:
    bench = Bench()
    bench.driver.enable()
    bench.driver.create_queues(1)
    faults = Faults(bench.controller)
    (history,) = [one.history for one in faults.add(Fault(READS, "backend", {"corrupt": "stale"})).actions]
    bench.driver.write(0, NEW * BLOCK)
    namespace = bench.namespaces.by_nsid[1]
    assert history is not None
    assert history.recall(namespace, 0, NEW * BLOCK) == bytes(BLOCK)
    namespace.nguid = bytes(16)
    assert history.recall(namespace, 0, NEW * BLOCK) == NEW * BLOCK


@pytest.mark.kills("bad-blocks-everywhere")
def test_a_disk_fails_where_it_touches_bad_blocks(rig: Rig) -> None:
    """So a Copy fails at one of its ranges, and nothing else fails."""
    driver, queue = rig.driver, rig.driver.queues[1]
    place = driver.alloc(4096)
    entries = b"".join(bytes(CopyRange(slba=slba, nlb=2)) for slba in (0, 6, 2))
    driver.bus.write_memory(place, entries)
    with pytest.raises(FaultError, match=r"do\.lba: give a block, a list or a range"):
        Fault({"opcode": "copy"}, do={"error": "EIO", "lba": {"mask": 1, "value": 1}})
    for lba, number in (("7-9", 1), (33, 0), ([99, 34], 1), ("36-40", None)):
        rig.faults.add(Fault({"opcode": "copy"}, do={"error": "EIO", "lba": lba}))
        completion = driver.execute(queue, Copy(nsid=1, prp1=place, nr=3, sdlba=30 if lba == "36-40" else 32))
        assert completion.dw0 == (number or 0)
        assert (completion.status == Status.SUCCESS) == (number is None)
        rig.faults.clear()


def test_blocks_that_are_made_uncorrectable_are_lost_and_torn() -> None:
    bench = Bench(has_block_map=True)
    driver, faults = bench.driver, Faults(bench.controller)
    driver.enable()
    queue = driver.create_queues(1)
    driver.write(0, OLD * 4 * BLOCK)
    for do in ("lose", {"torn": BLOCK}):
        faults.add(Fault({"opcode": "write_uncorrectable"}, "backend", do))
        driver.succeed(queue, ReadWrite(opcode=NvmOpcode.WRITE_UNCORRECTABLE, nsid=1, slba=2, nlb=2))
        assert driver.read(3, 1) == OLD * BLOCK
        assert (driver.execute(queue, READ_2).status == Status.SUCCESS) == (do == "lose")
        faults.clear()
    bench.close()


READ_2 = ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, slba=2, nlb=1)
