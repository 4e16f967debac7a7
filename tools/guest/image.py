"""Looks into a raw disk image from the host, without the guest or the drive."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from nvmeemu.guest.errors import GuestError
from tools.guest.errors import UsageError
from tools.guest.programs import ProgramFailed, run

BLOCK_SIZES = (512, 4096)
SECTOR = 512  # partx's unit, whatever the blocks
PROBED = 1 << 20  # partition tables, boot loaders and file systems all have something in the first MiB


def create(path: Path, size: int) -> None:
    """Make an empty, sparse image."""
    with path.open("xb") as image:
        image.truncate(size)


def size(path: Path) -> int:
    """The size in bytes, of a file or a block device."""
    with path.open("rb") as image:
        return image.seek(0, os.SEEK_END)


def is_empty(path: Path) -> bool:
    """Whether the image looks unused."""
    with path.open("rb") as image:
        return not any(image.read(PROBED))


def require_raw(path: Path) -> None:
    """Refuse an image that is not raw."""
    with path.open("rb") as image:
        if image.read(4) == b"QFI\xfb":
            raise UsageError(
                f"{path} is a qcow2 image, and the drive takes raw ones: qemu-img convert -O raw makes one"
            )


def partition(path: Path, number: int = 1) -> int:
    """Where a partition begins, in bytes; the first is 1. With partx: sfdisk knows no blocks but those of 512 bytes."""
    for block_size in BLOCK_SIZES:
        with contextlib.suppress(ProgramFailed):  # no partition table, if these are its blocks
            words = ("--sector-size", str(block_size), "--raw", "--noheadings", "--output", "NR,START", path)
            starts = dict(line.split() for line in run("partx", *words).decode().splitlines())
            if str(number) in starts:
                return int(starts[str(number)]) * SECTOR
    raise GuestError(f"host: {path} holds no partition {number}: what the guest wrote is not in the image")


def extract(path: Path, offset: int, folder: Path) -> None:
    """Copy all files of the ext4 file system at `offset` into `folder`, with debugfs."""
    folder.mkdir()
    _debugfs(path, offset, f"rdump / {folder}")


def read_file(path: Path, offset: int, name: str) -> bytes:
    """One file of the ext4 file system at `offset`; nothing if it is not there."""
    return _debugfs(path, offset, f"cat {name}")


def _debugfs(path: Path, offset: int, request: str) -> bytes:
    """It rarely says that it has failed: the caller compares what comes out."""
    return run("debugfs", "-R", request, f"{path}?offset={offset}")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in files}


def sha256(content: bytes) -> str:
    """As the guest's sha256sum prints it."""
    return hashlib.sha256(content).hexdigest()


def compare(expected: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Raise GuestError unless both name the same files with the same checksums."""
    for name, checksum in expected.items():
        if name not in found:
            raise GuestError(f"{where}: {name} is missing")
        if found[name] != checksum:
            raise GuestError(f"{where}: the contents of {name} differ from what was written")
    for name in found:
        if name not in expected:
            raise GuestError(f"{where}: {name} was never written")
