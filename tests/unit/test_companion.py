"""The companion of a disk: which blocks there are, their metadata, and what becomes of a file that is damaged."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.backend import BackendError
from nvmeemu.backend.companion import CHUNK, Companion, CompanionError
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import (
    Blocks,
    BlockState,
    DeallocateBlocks,
    ErrorKind,
    FlushMedia,
    MakeUncorrectable,
    MediaError,
    Operation,
    ReadBlocks,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.testing.ports import ManualWorker

FORMAT = Format(512, 8, protection=Protection(1))
BLOCKS = 3 * CHUNK + 100
SIZE = BLOCKS * 512
DEALLOCATED, WRITTEN, UNCORRECTABLE = BlockState


@pytest.fixture(params=["file", "memory"])
def companion(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Companion]:
    if request.param == "file":
        made = Companion.make(str(tmp_path / "disk.nvme"), FORMAT, SIZE)
    else:
        made = Companion.in_memory(FORMAT, SIZE)
    yield made
    made.close()


def runs(companion: Companion, slba: int = 0, blocks: int = BLOCKS) -> list[tuple[int, int, int]]:
    return [(int(state), first, number) for state, first, number in companion.states(slba, blocks)]


def test_a_new_one_has_nothing_but_deallocated_blocks(companion: Companion) -> None:
    assert runs(companion) == [(DEALLOCATED, 0, BLOCKS)]
    assert (companion.blocks, companion.written, companion.format) == (BLOCKS, 0, FORMAT)
    assert companion.read_metadata(CHUNK - 1, 3) == bytes(24)


@pytest.mark.kills("the-map-forgets-its-neighbours", "the-count-of-blocks-is-not-kept")
def test_the_map_says_what_was_marked_last(companion: Companion) -> None:
    """Against a list: at the edges of bytes and chunks, and over several chunks."""
    chance = random.Random(3)
    model = bytearray(BLOCKS)
    for number in range(400):
        slba = chance.choice([chance.randrange(BLOCKS), CHUNK * chance.randrange(4), CHUNK - chance.randrange(9)])
        most = BLOCKS - slba
        blocks = min(most, chance.choice([1, 2, 3, 4, 7, 8, 64, 1000, CHUNK, 2 * CHUNK + 5]))
        state = chance.choice(list(BlockState))
        if number % 40 == 7:
            companion.load(slba, 1)  # from now on the chunk's part is in memory
        companion.mark(slba, blocks, state)
        model[slba : slba + blocks] = bytes([state]) * blocks
        first = chance.randrange(BLOCKS)
        wanted, at = [], first
        for value, group in groupby(model[first : first + 5000]):
            length = len(list(group))
            wanted.append((value, at, length))
            at += length
        assert runs(companion, first, min(5000, BLOCKS - first)) == wanted
        if number % 20 == 0:
            assert companion.written == BLOCKS - model.count(DEALLOCATED)
        probe = chance.randrange(1, 40)
        place = chance.randrange(BLOCKS - probe)
        is_written = model[place : place + probe].count(WRITTEN) == probe
        assert companion.is_written(place, probe) == is_written


@pytest.mark.kills("a-failed-mark-is-forgotten")
def test_what_the_file_lacks_comes_into_it_with_the_next_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a write that has succeeded is gone after the next start."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no room")

    made = Companion.make(str(tmp_path / "disk.nvme"), FORMAT, SIZE)
    made.load(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr("nvmeemu.backend.companion._write", fail)
        with pytest.raises(OSError, match="no room"):
            made.mark(0, 4, WRITTEN)
    assert not made.keeps_written(0, 4)
    made.mark(0, 1, WRITTEN)
    assert made.keeps_written(0, 4)
    copy = made.copy()
    assert runs(copy, 0, 5) == [(WRITTEN, 0, 4), (DEALLOCATED, 4, 1)]
    copy.close()
    made.close()


@pytest.mark.kills("metadata-over-the-end-of-a-chunk")
def test_metadata_lies_by_blocks_over_the_end_of_a_chunk(companion: Companion) -> None:
    data = random.Random(4).randbytes(8 * 20)
    companion.write_metadata(CHUNK - 10, memoryview(data))
    assert companion.read_metadata(CHUNK - 10, 20) == data
    assert companion.read_metadata(CHUNK, 5) == data[80:120]
    assert runs(companion) == [(DEALLOCATED, 0, BLOCKS)]


@pytest.mark.kills("the-older-header-counts")
def test_it_is_there_again_when_it_is_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.nvme")
    format = Format(4096, 64, True, Protection(3, Guard.CRC64, 16))
    made = Companion.make(path, format, 1 << 24, [(0, 5)])
    made.mark(9, 2, UNCORRECTABLE)
    made.write_metadata(3, memoryview(b"m" * 64))
    made.flush()
    made.close()
    again = Companion.open(path)
    assert (again.format, again.blocks, again.written) == (format, 4096, 7)
    assert runs(again, 0, 12) == [(WRITTEN, 0, 5), (DEALLOCATED, 5, 4), (UNCORRECTABLE, 9, 2), (DEALLOCATED, 11, 1)]
    assert again.read_metadata(3, 1) == b"m" * 64
    again.resize(1 << 25)
    again.mark(8000, 1, WRITTEN)
    copy = again.copy()
    again.close()
    assert runs(copy, 7999, 2) == [(DEALLOCATED, 7999, 1), (WRITTEN, 8000, 1)]
    assert copy.read_metadata(3, 1) == b"m" * 64
    copy.mark(0, 1, DEALLOCATED)
    copy.close()
    last = Companion.open(path, read_only=True)
    assert (last.blocks, runs(last, 0, 1)) == (8192, [(WRITTEN, 0, 1)])
    last.close()


@pytest.mark.kills("a-large-companion-is-not-sparse")
def test_it_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "disk.nvme"
    made = Companion.make(str(path), FORMAT, 1 << 40)
    made.mark(1 << 30, 1, WRITTEN)
    made.write_metadata(1 << 30, memoryview(b"m" * 8))
    made.mark(0, 4 * CHUNK, WRITTEN)
    assert path.stat().st_size > 1 << 34
    assert path.stat().st_blocks * 512 < 1 << 16
    made.mark(0, 1 << 31, DEALLOCATED)
    assert path.stat().st_blocks * 512 < 1 << 14
    assert made.written == 0
    made.close()


def test_it_has_one_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.nvme")
    made = Companion.make(path, FORMAT, SIZE)
    with pytest.raises(BackendError, match="in use by another process"):
        Companion.open(path)
    made.close()


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.kills("a-checksum-is-not-looked-at")
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ([(0, bytes(8192))], "it is no companion"),
        ([(40, b"\xff"), (4096 + 40, b"\xff")], "do not fit their checksums"),
        ([(16, b"\x07"), (4096 + 16, b"\x07")], "version 7, and this program knows 1"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(tmp_path: Path, broken: list[tuple[int, bytes]], why: str) -> None:
    path = tmp_path / "disk.nvme"
    Companion.make(str(path), FORMAT, SIZE).close()
    for offset, data in broken:
        damage(path, offset, data)
    with pytest.raises(CompanionError, match=why) as caught:
        Companion.open(str(path))
    assert str(caught.value).count("\n") == 0
    assert "nvmeemu image repair" in str(caught.value)
    with pytest.raises(CompanionError, match="Is a directory"):
        Companion.open(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        Companion.open(str(tmp_path / "none"))


@pytest.mark.kills("one-header-only")
def test_one_torn_header_leaves_the_other_one(tmp_path: Path) -> None:
    """A header is never written over while it is the only one."""
    path = tmp_path / "disk.nvme"
    made = Companion.make(str(path), FORMAT, SIZE)
    made.resize(SIZE + 512)  # the second one
    made.close()
    for slot, blocks in ((0, BLOCKS), (4096, BLOCKS + 1)):
        data = path.read_bytes()
        damage(path, slot, bytes(100))
        opened = Companion.open(str(path))
        assert opened.blocks == blocks
        opened.close()
        path.write_bytes(data)


def test_a_failed_sync_stays_failed(companion: Companion, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "made to fail")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="made to fail"):
        companion.flush()
    monkeypatch.undo()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        companion.flush()


@pytest.mark.kills("a-sync-that-fails-meanwhile-is-not-heeded")
def test_a_sync_that_fails_meanwhile_is_this_ones_failure_too(
    companion: Companion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells one of the two of data that both were to make durable."""
    calls: list[int] = []

    def sync(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.EIO, "made to fail")
        with pytest.raises(OSError, match="made to fail"):
            companion.flush()  # as another thread does

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        companion.flush()
    assert len(calls) == 2


# --- the medium


class Pair:
    """A medium with a companion, both in memory, whose work is done at once."""

    def __init__(self, format: Format = FORMAT) -> None:
        self.backend = MemoryBackend(1 << 20)
        self.companion = Companion.in_memory(format, 1 << 20)
        self.worker = ManualWorker()
        self.media = PairedMedia(self.backend, self.companion, self.worker)

    def do(self, operation: Operation) -> Any:
        ends: list[tuple[Any, BaseException | None]] = []
        self.media.start(operation, lambda value, error: ends.append((value, error)))
        self.worker.finish_all()
        [(value, error)] = ends
        if error is not None:
            raise error
        return value


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.media.close()


def test_data_and_metadata_come_back(pair: Pair) -> None:
    data, metadata = os.urandom(3 * 512), os.urandom(24)
    pair.do(WriteBlocks(5, memoryview(data), memoryview(metadata)))
    assert pair.do(ReadBlocks(5, 3)) == Blocks(data, metadata)
    assert bytes(pair.backend._bytes[5 * 512 : 8 * 512]) == data, "the image is as it would be alone"
    pair.do(FlushMedia())


@pytest.mark.kills("the-guard-of-nothing")
def test_deallocated_blocks_read_as_zeros_and_the_escape_value(pair: Pair) -> None:
    pair.do(WriteBlocks(1, memoryview(b"x" * 1024), memoryview(b"m" * 16)))
    assert pair.do(ReadBlocks(0, 4)) == Blocks(
        bytes(512) + b"x" * 1024 + bytes(512), b"\xff" * 8 + b"m" * 16 + b"\xff" * 8
    )
    pair.do(DeallocateBlocks([(2, 1)]))
    assert pair.do(ReadBlocks(1, 2)) == Blocks(b"x" * 512 + bytes(512), b"m" * 8 + b"\xff" * 8)
    with pytest.raises(MediaError) as caught:
        pair.do(ReadBlocks(1, 2, refuses_deallocated=True))
    assert (caught.value.kind, caught.value.lba) == (ErrorKind.DEALLOCATED, 2)
    with pytest.raises(MediaError):
        pair.do(VerifyBlocks(1, 2, refuses_deallocated=True))
    pair.do(VerifyBlocks(0, 2048))


@pytest.mark.kills("the-image-shows-through")
def test_old_data_that_the_image_still_has_is_not_read() -> None:
    """A companion that is new says that nothing is there, whatever the image holds."""
    made = Pair()
    made.backend.write_now(0, [memoryview(b"old" * 512)])
    assert made.do(ReadBlocks(0, 3)) == Blocks(bytes(3 * 512), b"\xff" * 24)
    made.media.close()


def test_zeroed_blocks_are_there_unless_they_are_deallocated(pair: Pair) -> None:
    pair.do(WriteBlocks(0, memoryview(b"x" * 2048), memoryview(b"m" * 32)))
    pair.do(ZeroBlocks(0, 1))
    pair.do(ZeroBlocks(1, 1, is_deallocating=True))
    pair.do(ZeroBlocks(2, 1, is_deallocating=True, metadata=memoryview(b"tags" * 2)))
    assert runs(pair.companion, 0, 4) == [(WRITTEN, 0, 1), (DEALLOCATED, 1, 1), (WRITTEN, 2, 2)]
    assert pair.do(ReadBlocks(0, 4)) == Blocks(
        bytes(3 * 512) + b"x" * 512, bytes(8) + b"\xff" * 8 + b"tags" * 2 + b"m" * 8
    )


@pytest.mark.kills("spoiled-blocks-are-read", "a-write-does-not-mend")
def test_an_uncorrectable_block_is_unreadable_until_it_is_written(pair: Pair) -> None:
    pair.do(WriteBlocks(0, memoryview(b"x" * 2048), memoryview(b"m" * 32)))
    pair.do(MakeUncorrectable(1, 2))
    for operation in (ReadBlocks(0, 4), VerifyBlocks(0, 4)):
        with pytest.raises(MediaError) as caught:
            pair.do(operation)
        assert (caught.value.kind, caught.value.lba, caught.value.is_lasting) == (ErrorKind.UNCORRECTABLE, 1, True)
    pair.do(WriteBlocks(1, memoryview(b"y" * 512), memoryview(b"n" * 8)))
    pair.do(ZeroBlocks(2, 1))
    assert pair.do(ReadBlocks(0, 4)).data == b"x" * 512 + b"y" * 512 + bytes(512) + b"x" * 512


@pytest.mark.kills("past-the-map", "written-past-the-map")
def test_a_medium_without_metadata_goes_past_the_worker_once_a_block_is_written() -> None:
    made = Pair(Format(512))
    place = memoryview(bytearray(1024))
    assert not made.media.read_now(0, [place])
    made.do(WriteBlocks(0, memoryview(b"x" * 512)))
    assert not made.media.write_now(0, [place])
    made.do(WriteBlocks(1, memoryview(b"y" * 512)))
    assert made.media.read_now(0, [place])
    assert bytes(place) == b"x" * 512 + b"y" * 512
    assert made.media.write_now(1, [memoryview(b"z" * 512)])
    made.do(MakeUncorrectable(0, 1))
    assert not made.media.read_now(0, [place])
    made.media.close()
