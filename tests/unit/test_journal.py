"""The journal of a disk: what is kept in it and when, and what becomes of one that a killed server has left."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app import journals
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.app.pairs import companion_of
from nvmeemu.backend import BackendError, journal, open_backend
from nvmeemu.backend.atomicity import Atomicity
from nvmeemu.backend.companion import Companion
from nvmeemu.backend.journal import Journal, KeptWrite, left
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import BlockState, MediaError, ReadBlocks, WriteBlocks
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.testing import ManualWorker

MIB = 1 << 20
UNIT = 64 << 10
NONE = memoryview(b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.img.nvme-journal"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "a.img"
    image.write_bytes(b"o" * MIB)
    return image


class Spying(MemoryBackend):
    """Looks into the journal whenever it is written to."""

    def __init__(self, path: Path) -> None:
        super().__init__(MIB)
        self._path = path
        self.seen: list[list[KeptWrite]] = []
        self.fails = False

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self.seen.append(left(str(self._path)).writes)
        if self.fails:
            raise OSError(5, "made to fail")


def perform(media: DiskMedia, operation: Any) -> Any:
    ended: list[tuple[Any, BaseException | None]] = []
    media.start(operation, lambda result, error: ended.append((result, error)))
    assert isinstance(media.worker, ManualWorker)
    media.worker.finish_all()
    ((result, error),) = ended
    if error is not None:
        raise error
    return result


def killed(path: Path, *writes: KeptWrite) -> None:
    """Have a journal be there with these writes."""
    made = Journal(str(path), UNIT)
    for write in writes:
        assert made.keep(write.offset, memoryview(write.data), memoryview(write.metadata))
    made.remove()
    os.close(made._fd)


def begin(image: Path, **keys: Any) -> Atomicity:
    """As a server does; the disk is closed again."""
    table = NamespaceTable(disk=str(image), **keys)
    backend = open_backend(table.disk, read_only=table.read_only, overlay=table.overlay)
    companion = companion_of(table, backend)
    try:
        return journals.begin(table, backend, companion)
    finally:
        backend.close()
        if companion is not None:
            companion.close()


# --- what is kept


@pytest.mark.kills("a-write-that-may-be-cut-is-not-kept", "a-kept-write-stays-for-ever")
def test_a_write_that_a_kill_could_cut_is_kept_as_long_as_it_takes(path: Path) -> None:
    """Within a page the kernel does not look whether the process is killed."""
    backend = Spying(path)
    media = DiskMedia(backend, Format(), ManualWorker(), Atomicity(UNIT, Journal(str(path), UNIT)))
    for slba, size, is_kept in (
        *((0, UNIT, True), (7, 1024, True), (0, 4096, False), (4, 2048, False), (0, UNIT + 512, False)),
        *((0, 4608, True), (1, 4096, True)),
    ):
        data = os.urandom(size)
        perform(media, WriteBlocks(slba, memoryview(data)))
        assert backend.seen.pop() == ([KeptWrite(slba * 512, data, b"")] if is_kept else []), (slba, size)
        assert left(str(path)).writes == []
        assert media.write_now(slba, [memoryview(data)]) == (not is_kept)
    backend.fails = True
    with pytest.raises(MediaError):
        perform(media, WriteBlocks(0, memoryview(bytes(UNIT))))
    assert left(str(path)).writes == []
    media.end()
    assert not path.exists()


@pytest.mark.kills("metadata-are-not-kept")
def test_data_and_metadata_are_kept_together_also_of_one_block(path: Path) -> None:
    backend = Spying(path)
    companion = Companion.in_memory(Format(512, 8), MIB)
    media = PairedMedia(backend, companion, ManualWorker(), Atomicity(UNIT, Journal(str(path), UNIT)))
    perform(media, WriteBlocks(3, memoryview(b"d" * 512), memoryview(b"m" * 8)))
    assert backend.seen == [[KeptWrite(1536, b"d" * 512, b"m" * 8)]]
    media.close()


@pytest.mark.kills("without-room-it-is-not-kept")
def test_who_finds_no_room_waits_for_it(path: Path) -> None:
    made = Journal(str(path), UNIT)
    kept = []
    while one := made.keep(0, memoryview(b"x" * UNIT), NONE):
        kept.append(one)
    assert len(kept) == 64
    done = threading.Event()

    def write() -> None:
        with Atomicity(UNIT, made).kept(4096, memoryview(b"y" * UNIT), NONE):
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.01)
    made.remove()
    assert path.exists()  # something is under way
    made.release(kept.pop())
    thread.join()
    assert done.is_set()


@pytest.mark.kills("reads-on-threads-beside-writes")
def test_a_read_on_a_thread_waits_for_a_write() -> None:
    media = DiskMedia(MemoryBackend(MIB), Format(), ManualWorker())
    thread = threading.Thread(target=lambda: found.append(perform(media, ReadBlocks(0, 2)).data))
    found: list[bytes] = []
    with media.atomicity.held(0, 1024, is_write=True):
        media.backend.write_now(0, [memoryview(b"n" * 512)])
        thread.start()
        thread.join(0.05)  # who does not wait has read by then
        media.backend.write_now(512, [memoryview(b"n" * 512)])
    thread.join()
    assert found == [b"n" * 1024]


# --- what was left


@pytest.mark.kills("what-was-left-is-not-written", "what-was-left-stays")
def test_what_was_under_way_is_completed_at_the_next_start(image: Path, path: Path) -> None:
    """Whether that one is atomic or not."""
    for keys in ({}, {"atomic": "4K"}):
        data = os.urandom(UNIT)
        killed(path, KeptWrite(512, data, b""))
        assert begin(image, **keys).unit == (4096 if keys else 0)
        assert image.read_bytes()[512 : 512 + UNIT] == data
        assert path.exists() == bool(keys)
        if keys:
            assert left(str(path)) == ([], False)


@pytest.mark.kills("what-was-left-has-no-metadata")
def test_metadata_and_the_map_are_completed_too(image: Path, path: Path) -> None:
    Companion.make(f"{image}.nvme", Format(512, 8), MIB).close()
    killed(path, KeptWrite(1024, b"d" * 1024, b"m" * 16))
    begin(image)
    found = Companion.open(f"{image}.nvme")
    assert found.read_metadata(2, 2) == b"m" * 16
    assert list(found.states(0, 8)) == [
        (BlockState.DEALLOCATED, 0, 2),
        (BlockState.WRITTEN, 2, 2),
        (BlockState.DEALLOCATED, 4, 4),
    ]
    found.close()


@pytest.mark.kills("an-old-journal-is-believed")
def test_a_journal_of_another_boot_is_not_believed(
    image: Path, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be older than what a Flush has made durable since."""
    killed(path, KeptWrite(0, b"n" * UNIT, b""))
    with monkeypatch.context() as another:
        another.setattr(journal, "_boot", lambda: b"another")
        begin(image)
    assert image.read_bytes() == b"o" * MIB
    assert not path.exists()
    assert "before the host was started anew" in caplog.text


@pytest.mark.kills("an-overlay-uses-up-the-journal")
def test_who_does_not_write_leaves_it(image: Path, path: Path) -> None:
    killed(path, KeptWrite(0, b"n" * UNIT, b""))
    with pytest.raises(BackendError, match="serve it to write once"):
        begin(image, read_only=True)
    assert begin(image, overlay=True, atomic="64K").journal is None
    assert image.read_bytes() == b"o" * MIB
    assert left(str(path)).writes


@pytest.mark.kills("a-small-image-grows")
def test_an_image_that_has_become_smaller_does_not_grow(image: Path, path: Path) -> None:
    killed(path, KeptWrite(MIB - UNIT, b"n" * UNIT, b""), KeptWrite(0, b"n" * 8192, b""))
    os.truncate(image, MIB - 512)
    begin(image)
    assert image.read_bytes() == (b"n" * 8192).ljust(MIB - 512, b"o")


@pytest.mark.parametrize(
    "content", [b"a letter", b"nvmeemu journal\n" + b"\xff" * 8192, b"nvmeemu journal\n" + b"\1" * 9]
)
def test_what_is_no_journal_is_refused_and_left_alone(image: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for keys in ({}, {"atomic": "64K"}):
        with pytest.raises(BackendError, match="none that we know: move it away"):
            begin(image, **keys)
    assert path.read_bytes() == content


def test_one_that_was_not_finished_has_nothing(image: Path, path: Path) -> None:
    path.write_bytes(bytes(8192))
    begin(image)
    assert image.read_bytes() == b"o" * MIB
    assert not path.exists()


def test_it_is_locked(path: Path) -> None:
    made = Journal(str(path), UNIT)
    with pytest.raises(BackendError, match="in use"):
        Journal(str(path), UNIT)
    made.remove()
