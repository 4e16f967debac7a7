"""The journal of a disk: writes that are under way, for the next start, if the process is killed meanwhile.

    0        head: magic, version, bytes of data and of metadata of a slot, number of slots, the host's boot
    4096     slots, each: a head of 4096 bytes (``struct slot`` of journal.h), data, metadata

It is a file that is mapped into memory: what was stored there survives the process, but not the host. After another
boot of the host it is worthless, because nobody knows what of it, and of the disk, had come to the medium.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nvmeemu.backend import BackendError, describe
from nvmeemu.backend.claim import lock

try:
    from nvmeemu.backend._atomicity import ffi, lib
except ImportError:  # built without a C compiler
    ffi = lib = None

_HEAD = 4096
_MAGIC, _VERSION = b"nvmeemu journal\n", 1
_FIELDS = struct.Struct("<16sIIII36s")
_SLOT = struct.Struct("<IIIxxxxQ")  # state, bytes of data, of metadata, offset
_WHOLE = 2
_LEAST_SLOTS, _MOST_SLOTS = 16, 64
_SIZE = 16 << 20  # bytes of data in all slots, more or less
_SMALLEST_BLOCK, _MOST_METADATA = 512, 64  # bytes


class KeptWrite(NamedTuple):
    """A write that was under way when a process was killed: bytes at an offset of the disk."""

    offset: int
    data: bytes
    metadata: bytes


class Leftover(NamedTuple):
    """What a process that was killed has left. If it ``is_stale``, the host was started anew since."""

    writes: list[KeptWrite]
    is_stale: bool


class Journal:
    """An open journal, with slots for writes of ``unit`` bytes. Several threads may use it. What was ``left`` in its
    place is overwritten. Raises BackendError."""

    def __init__(self, path: str, unit: int) -> None:
        self.path = path
        metadata = unit // _SMALLEST_BLOCK * _MOST_METADATA
        count = max(_LEAST_SLOTS, min(_MOST_SLOTS, _SIZE // unit))
        size = _HEAD + count * (_HEAD + unit + metadata)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            lock(self._fd, path, read_only=False)
            os.ftruncate(self._fd, 0)
            os.posix_fallocate(self._fd, 0, size)  # a store to what has no room would end the process
            self._map = mmap.mmap(self._fd, size)
        except OSError as error:
            raise BackendError(f"{path}, the journal of a disk, cannot be made: {describe(error)}") from None
        slots = ffi.cast("uint8_t *", ffi.from_buffer(self._map)) + _HEAD
        self._journal: Any = ffi.new("struct journal *", (slots, count, unit, metadata))
        self._map[: _FIELDS.size] = _FIELDS.pack(_MAGIC, _VERSION, unit, metadata, count, _boot())

    @property
    def address(self) -> int:
        """Of its ``struct journal``."""
        return int(ffi.cast("uintptr_t", self._journal))

    def needs(self, offset: int, size: int, metadata_size: int) -> bool:
        """Whether this write could be cut, and is not too long to be kept."""
        return bool(lib.journal_needs(self._journal, offset, size, metadata_size))

    def keep(self, offset: int, data: memoryview, metadata: memoryview) -> Any:
        """Keep a write until ``release`` of what is returned; if that is false, there is no room now."""
        return lib.journal_keep(self._journal, offset, _start(data), len(data), _start(metadata), len(metadata))

    def release(self, kept: Any) -> None:
        """The write has ended."""
        lib.journal_release(kept)

    def remove(self) -> None:
        """Remove it, unless a write is under way for ever, at a disk that never answers."""
        if self._fd >= 0 and lib.journal_is_empty(self._journal):
            with suppress(OSError):
                os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1


def left(path: str) -> Leftover:
    """What the journal of a process that was killed has. Raises BackendError, also if it is none."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BackendError(f"{path}, the journal of a disk, cannot be read: {describe(error)}") from None
    if not any(content[: _FIELDS.size]):
        return Leftover([], False)  # it was being made
    try:
        magic, version, unit, metadata, count, boot = _FIELDS.unpack_from(content)
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError
        size = _HEAD + unit + metadata
        slots = (content[at : at + size] for at in range(_HEAD, _HEAD + count * size, size))
        writes = [_kept_write(slot, unit) for slot in slots if _SLOT.unpack_from(slot)[0] == _WHOLE]
    except (struct.error, ValueError):
        raise BackendError(f"{path} is in the place of a journal, and is none that we know: move it away") from None
    return Leftover(writes, boot != _boot())


def _kept_write(slot: bytes, unit: int) -> KeptWrite:
    """Raises ValueError."""
    _, size, metadata_size, offset = _SLOT.unpack_from(slot)
    data, metadata = slot[_HEAD : _HEAD + unit][:size], slot[_HEAD + unit :][:metadata_size]
    if len(data) != size or len(metadata) != metadata_size:
        raise ValueError
    return KeptWrite(offset, data, metadata)


def _start(buffer: memoryview) -> Any:
    return ffi.from_buffer("uint8_t[]", buffer)


def _boot() -> bytes:
    """What the kernel calls this boot of the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""
