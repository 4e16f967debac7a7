"""Images with a companion: served, ended, killed and served again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app.disks import Disks
from nvmeemu.app.drive import file as drive_file
from nvmeemu.app.drive.source import Failure
from nvmeemu.backend.companion import Companion
from nvmeemu.backend.raw import RawBackend
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import (
    Blocks,
    FlushMedia,
    MakeUncorrectable,
    Media,
    MediaError,
    Operation,
    ReadBlocks,
    WriteBlocks,
)
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.vfio import Loop

MIB = 1 << 20


class Opened:
    """The first disk of a drive, open as a server has it."""

    def __init__(self, folder: Path, keys: str, loop: Loop) -> None:
        text = f"[[namespace]]\n{keys}\n[[controller]]\nsocket = 's'\n"
        drive = drive_file.parse(text, str(folder / "drive.toml")).drive()
        self.loop = loop
        self.namespace: Namespace = Disks(drive, loop).open_all()[0]

    def do(self, operation: Operation) -> object:
        ends: list[tuple[object, BaseException | None]] = []
        self.namespace.media.start(operation, lambda value, error: ends.append((value, error)))
        self.loop.run_until(lambda: bool(ends))
        [(value, error)] = ends
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        self.namespace.media.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.touch()
    os.truncate(path, MIB)
    return path


PI = "metadata = 8\nprotection = 1"


def test_an_image_keeps_its_metadata_and_stays_an_image(tmp_path: Path, image: Path, loop: Loop) -> None:
    first = Opened(tmp_path, f"disk = 'a.img'\n{PI}", loop)
    first.do(WriteBlocks(3, memoryview(b"x" * 512), memoryview(b"m" * 8), is_durable=True))
    first.do(FlushMedia())
    first.close()
    assert image.read_bytes()[3 * 512 : 4 * 512] == b"x" * 512
    assert image.stat().st_size == MIB
    again = Opened(tmp_path, "disk = 'a.img'\nblock_size = 4096", loop)
    format = again.namespace.format
    assert (format.data_size, format.metadata_size) == (512, 8), "the companion counts"
    assert again.do(ReadBlocks(3, 2)) == Blocks(b"x" * 512 + bytes(512), b"m" * 8 + b"\xff" * 8)
    again.close()


def test_what_an_image_held_before_stays_readable(tmp_path: Path, image: Path, loop: Loop) -> None:
    with image.open("r+b") as file:
        file.seek(64 << 10)
        file.write(b"old" * 1000)
    opened = Opened(tmp_path, f"disk = 'a.img'\n{PI}", loop)
    first = (64 << 10) // 512
    assert opened.do(ReadBlocks(first, 1)) == Blocks((b"old" * 1000)[:512], b"\xff" * 8)
    block_map = opened.namespace.media.block_map
    assert block_map is not None
    assert 6 <= block_map.written <= 128, "holes of the image are no blocks that were written"
    opened.close()


def test_an_overlay_leaves_both_files_as_they_are(tmp_path: Path, image: Path, loop: Loop) -> None:
    Opened(tmp_path, f"disk = 'a.img'\n{PI}", loop).close()
    companion = Path(f"{image}.nvme")
    before = companion.read_bytes()
    for _ in range(2):
        opened = Opened(tmp_path, "disk = 'a.img'\noverlay = true", loop)
        assert opened.do(ReadBlocks(0, 1)) == Blocks(bytes(512), b"\xff" * 8)
        opened.do(WriteBlocks(0, memoryview(b"x" * 512), memoryview(b"m" * 8)))
        opened.do(MakeUncorrectable(1, 1))
        opened.close()
    assert companion.read_bytes() == before


def test_a_disk_that_has_grown_has_more_blocks_and_one_that_has_shrunk_is_refused(
    tmp_path: Path, image: Path, loop: Loop
) -> None:
    Opened(tmp_path, f"disk = 'a.img'\n{PI}", loop).close()
    os.truncate(image, 2 * MIB)
    larger = Opened(tmp_path, "disk = 'a.img'", loop)
    assert larger.namespace.blocks == 4096
    assert larger.do(ReadBlocks(4095, 1)) == Blocks(bytes(512), b"\xff" * 8)
    larger.close()
    os.truncate(image, MIB)
    with pytest.raises(Failure, match=r"has 1 MiB, and .*a.img.nvme is for 2 MiB: .*nvmeemu image repair"):
        Opened(tmp_path, "disk = 'a.img'", loop)
    os.truncate(image, 2 * MIB)
    Opened(tmp_path, "disk = 'a.img'", loop).close()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (f"disk = 'a.img'\nread_only = true\n{PI}", "is only read, and has no companion"),
        (f"disk = 'a.img'\ncompanion = '/nowhere/x'\n{PI}", "cannot make /nowhere/x, the companion of a disk"),
    ],
)
def test_a_companion_that_cannot_be_made_is_told(tmp_path: Path, image: Path, loop: Loop, keys: str, why: str) -> None:
    with pytest.raises(Failure, match=why):
        Opened(tmp_path, keys, loop)
    Opened(tmp_path, "disk = 'a.img'", loop).close()


def test_memory_has_its_companion_in_memory(tmp_path: Path, loop: Loop) -> None:
    opened = Opened(tmp_path, "disk = 'mem:1M'\nblock_map = true", loop)
    assert opened.namespace.format.metadata_size == 0
    opened.do(WriteBlocks(0, memoryview(b"x" * 512)))
    opened.do(MakeUncorrectable(0, 1))
    block_map = opened.namespace.media.block_map
    assert block_map is not None
    assert [(int(state), first, blocks) for state, first, blocks in block_map.states(0, 3)] == [(2, 0, 1), (0, 1, 2)]
    opened.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_companion_is_refused(tmp_path: Path, image: Path, loop: Loop) -> None:
    Companion.make(f"{image}.nvme", Opened(tmp_path, "disk = 'mem:1M'", loop).namespace.format, MIB).close()
    with open(f"{image}.nvme", "r+b") as file:
        file.write(bytes(8192))
    with pytest.raises(Failure, match="is damaged: it is no companion: repair it with nvmeemu image repair"):
        Opened(tmp_path, "disk = 'a.img'", loop)


# --- formats


class Formatted(Opened):
    """And given another format."""

    def format(self, wanted: Format, *, is_overwriting: bool = False) -> None:
        self.begin(wanted, is_overwriting)
        self.loop.run_until(lambda: bool(self.ends))
        [error] = self.ends
        if error is not None:
            raise error

    def begin(self, wanted: Format, is_overwriting: bool) -> None:
        self.ends: list[BaseException | None] = []
        assert self.namespace.formatter is not None

        def done(media: Media | None, error: BaseException | None) -> None:
            if media is not None:
                self.namespace.move(media)
            self.ends.append(error)

        self.namespace.formatter.start(wanted, is_overwriting, lambda left: None, done)


ALLOWED = "disk = 'a.img'\nformat = 'allow'"
WITH_METADATA = Format(4096, 8, protection=Protection(1))


def test_a_users_image_is_formatted_only_if_he_says_so(tmp_path: Path, image: Path, loop: Loop) -> None:
    for keys, may in (("disk = 'a.img'", False), (ALLOWED, True), ("disk = 'a.img'\noverlay = true", True)):
        opened = Formatted(tmp_path, keys, loop)
        assert (opened.namespace.formatter is not None) == may
        opened.close()


@pytest.mark.parametrize("is_overwriting", [False, True])
def test_a_format_holds_at_the_next_start(tmp_path: Path, image: Path, loop: Loop, is_overwriting: bool) -> None:
    opened = Formatted(tmp_path, ALLOWED, loop)
    opened.do(WriteBlocks(3, memoryview(b"x" * 512), is_durable=True))
    for wanted in (WITH_METADATA, Format(512, 64, True), WITH_METADATA):
        opened.format(wanted, is_overwriting=is_overwriting)
        assert opened.namespace.format == wanted
        assert not any(image.read_bytes())
        opened.do(WriteBlocks(1, memoryview(b"y" * wanted.data_size), memoryview(b"m" * wanted.metadata_size)))
    opened.do(FlushMedia())
    opened.close()
    again = Opened(tmp_path, "disk = 'a.img'", loop)
    assert (again.namespace.format, again.namespace.blocks) == (WITH_METADATA, MIB // 4096)
    assert again.do(ReadBlocks(0, 2)) == Blocks(bytes(4096) + b"y" * 4096, b"\xff" * 8 + b"m" * 8)
    again.close()


@pytest.mark.parametrize("is_first", [True, False])
def test_a_format_is_completed_or_has_never_been_wherever_the_server_ends(
    tmp_path: Path, image: Path, loop: Loop, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are copied at each change of either of them, as a kill would leave them, and served."""
    companion = Path(f"{image}.nvme")
    opened = Formatted(tmp_path, ALLOWED, loop)
    if not is_first:
        opened.format(Format(512, 16))
    before = opened.namespace.format
    size = before.metadata_size
    opened.do(WriteBlocks(3, memoryview(b"x" * 512), memoryview(b"m" * size), is_durable=True))
    opened.do(FlushMedia())
    copies: list[tuple[bytes, bytes | None]] = []

    def copy() -> None:
        copies.append((image.read_bytes(), companion.read_bytes() if companion.exists() else None))

    def copying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            copy()
            found = function(*arguments, **named)
            copy()
            return found

        return call

    for name in ("ftruncate", "fsync", "fdatasync", "rename", "pwrite"):
        monkeypatch.setattr(os, name, copying(getattr(os, name)))
    opened.format(WITH_METADATA)
    copy()
    monkeypatch.undo()
    opened.close()
    seen = set()
    for data, beside in dict.fromkeys(copies):
        image.write_bytes(data)
        companion.unlink(missing_ok=True)
        if beside is not None:
            companion.write_bytes(beside)
        again = Opened(tmp_path, ALLOWED, loop)
        seen.add(again.namespace.format)
        if again.namespace.format == before:
            assert again.do(ReadBlocks(3, 1)) == Blocks(b"x" * 512, b"m" * size)
        else:
            assert again.namespace.format == WITH_METADATA
            assert again.do(ReadBlocks(0, 1)) == Blocks(bytes(4096), b"\xff" * 8)
            assert not any(image.read_bytes())
        again.close()
    assert seen == {before, WITH_METADATA}


def test_a_disk_that_was_being_formatted_is_not_only_read(tmp_path: Path, image: Path, loop: Loop) -> None:
    Companion.make(f"{image}.nvme", Format(512), MIB, intention=WITH_METADATA).close()
    with pytest.raises(Failure, match="was being formatted: serve it without read_only once"):
        Opened(tmp_path, "disk = 'a.img'\nread_only = true", loop)
    overlaid = Opened(tmp_path, "disk = 'a.img'\noverlay = true", loop)
    assert overlaid.namespace.format == WITH_METADATA
    overlaid.close()
    assert Companion.open(f"{image}.nvme", read_only=True).contents.intention == WITH_METADATA


def test_a_format_that_fails_leaves_an_image_without_a_companion(
    tmp_path: Path, image: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Formatted(tmp_path, ALLOWED, loop)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(RawBackend, "deallocate", fail)
    with pytest.raises(MediaError, match="no room"):
        opened.format(WITH_METADATA)
    assert not Path(f"{image}.nvme").exists()
    assert opened.namespace.format == Format(512)
    opened.close()


def test_a_plain_image_gets_a_companion_when_a_host_needs_one(tmp_path: Path, image: Path, loop: Loop) -> None:
    """It is there from then on, and what the image holds stays readable."""
    with image.open("r+b") as file:
        file.seek(64 << 10)
        file.write(b"old" * 1000)
    opened = Opened(tmp_path, "disk = 'a.img'", loop)
    companion, first = Path(f"{image}.nvme"), (64 << 10) // 512
    assert not companion.exists()
    pairer = opened.namespace.pairer
    assert pairer is not None
    ends: list[tuple[Media, BaseException | None]] = []
    pairer.start(lambda media, error: ends.append((media, error)))
    loop.run_until(lambda: bool(ends))
    assert ends[0][1] is None
    opened.namespace.move(ends[0][0])
    opened.do(MakeUncorrectable(first + 1, 1))
    opened.close()
    assert companion.exists()
    again = Opened(tmp_path, "disk = 'a.img'", loop)
    assert again.namespace.pairer is None
    assert again.do(ReadBlocks(first, 1)) == Blocks((b"old" * 1000)[:512])
    assert again.do(ReadBlocks(0, 1)) == Blocks(bytes(512))
    with pytest.raises(MediaError, match="uncorrectable"):
        again.do(ReadBlocks(first + 1, 1))
    block_map = again.namespace.media.block_map
    assert block_map is not None
    assert block_map.written <= 128, "holes are not there"
    again.close()


def test_which_disks_can_get_one(tmp_path: Path, image: Path, loop: Loop) -> None:
    for keys, can in (
        ("disk = 'a.img'", True),
        ("disk = 'mem:1M'", True),
        ("disk = 'a.img'\nread_only = true", False),
        ("disk = 'a.img'\noverlay = true", True),
        ("disk = 'a.img'\nblock_map = true", False),
    ):
        opened = Opened(tmp_path, keys, loop)
        assert (opened.namespace.pairer is not None) == can, keys
        opened.close()
