"""A disk of memory, gone at exit: ``mem:1G``."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from nvmeemu.backend import Backend, BackendError, Direct

_MAP_NORESERVE = 0x4000  # linux/mman.h; Python 3.11 does not name it


class MemoryBackend(Backend):
    """Anonymous memory, taken page by page as it is written. It has no cache to lose: ``volatile_cache`` is False."""

    volatile_cache = False

    def __init__(self, size: int) -> None:
        self.size = size
        self.identity = f"mem:{size}"
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, size, flags)
        except (OSError, OverflowError):
            raise BackendError(f"no room for a memory disk of {size} bytes: make it smaller, or use a file") from None
        self._bytes = memoryview(self._map)
        self.direct = Direct(memory=self._bytes)

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        for view in views:
            end = offset + len(view)
            view[:] = self._bytes[offset:end]
            offset = end
        return True

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        for view in views:
            end = offset + len(view)
            self._bytes[offset:end] = view
            offset = end
        return True

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.read_now(offset, views)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self.write_now(offset, views)

    def flush(self) -> None:
        pass

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        """Whole pages are given back to the system, which makes them zero; the edges are overwritten."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            self._bytes[offset : offset + length] = bytes(length)
            return
        self._bytes[offset:first] = bytes(first - offset)
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._bytes[last : offset + length] = bytes(offset + length - last)

    def deallocate(self, offset: int, length: int) -> None:
        self.zero(offset, length, True)

    def close(self) -> None:
        self._bytes.release()
        self._map.close()
