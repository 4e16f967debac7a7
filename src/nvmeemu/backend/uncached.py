"""A raw file or block device without the page cache (O_DIRECT)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Sequence

from nvmeemu.backend import SECTOR, BackendError, Direct
from nvmeemu.backend.raw import RawBackend, libc, takes_nowait

_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000  # linux/fcntl.h, linux/stat.h
_STATX = struct.Struct("=I148xII96x")  # mask, dio_mem_align, dio_offset_align of struct statx
_MOST_ALIGNMENT = 1 << 16  # bytes: the largest blocks of a device or file system


class UncachedBackend(RawBackend):
    """Every read and write goes to the disk. The kernel wants offset, length and memory aligned, so the data goes
    through private memory. A completed write may still be in a cache of the device, which ``flush`` and FUA empty."""

    open_flags = os.O_DIRECT

    def __init__(self, path: str, *, read_only: bool = False, any_content: bool = False) -> None:
        super().__init__(path, read_only=read_only, any_content=any_content)
        begins_now = takes_nowait(self._fd, _aligned(self.alignment))
        self.direct = Direct(fd=self._fd, begins_now=begins_now, failed_sync=self._failed_sync)

    def _beginning(self, size: int) -> bytes:
        """The first thing that is read: to do so, the alignment has to be known."""
        self.alignment = _find_alignment(self._fd, self.path)
        buffer = _aligned(self.alignment)
        return bytes(buffer[: min(size, os.preadv(self._fd, [buffer], 0))])

    def _probe(self) -> tuple[bool, int]:
        return False, 0  # the page cache has nothing, and RWF_NOWAIT waits for the disk once it has begun

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        buffer = _aligned(sum(map(len, views)))
        super().read(offset, [buffer])
        for view in views:
            view[:] = buffer[: len(view)]
            buffer = buffer[len(view) :]

    def _write(self, offset: int, views: Sequence[memoryview], flags: int) -> None:
        buffer = _aligned(sum(map(len, views)))
        start = 0
        for view in views:
            buffer[start : start + len(view)] = view
            start += len(view)
        super()._write(offset, [buffer], flags)


def _aligned(size: int) -> memoryview:
    """Private memory that begins with a page, which is aligned enough for every device."""
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _find_alignment(fd: int, path: str) -> int:
    """What offsets and lengths have to be multiples of, in bytes, with O_DIRECT."""
    told = _told_alignment(fd)
    if told == 0:
        advice = "its file system puts it into the page cache all the same: leave out --direct"
        raise BackendError(f"disk {path} cannot be opened with --direct: {advice}")
    size = told or SECTOR
    while size <= _MOST_ALIGNMENT:
        try:
            os.preadv(fd, [_aligned(size)], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            size *= 2
        else:
            return size
    raise BackendError(f"disk {path} cannot be read with --direct: leave out --direct")


def _told_alignment(fd: int) -> int | None:
    """What the kernel says of it, in bytes; 0: O_DIRECT has no effect. None: it does not know (before Linux 6.1, and
    many file systems)."""
    found = ctypes.create_string_buffer(_STATX.size)
    try:
        if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found) != 0:
            return None
    except AttributeError:  # an old C library
        return None
    mask, memory, offset = _STATX.unpack(found.raw)
    if not mask & _STATX_DIOALIGN:
        return None
    return offset if memory else 0
