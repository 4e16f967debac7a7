"""The states of blocks in memory, where Python and the native engine change them together: what a companion's map says.

A chunk of the map comes into memory when it is used for the first time, and stays there. Both change it with atomic
operations, and write it to the companion's file from here. A build without a C compiler has no engine and needs none
of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    from nvmeemu.backend._block_map import ffi, lib
except ImportError:  # built without a C compiler
    ffi = lib = None


def is_available() -> bool:
    """Whether states can be shared here."""
    return lib is not None


class SharedMap:
    """Chunks in memory, of a map of ``count``. ``add`` is for one thread at a time; all else is for any."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._chunks: dict[int, Any] = {}
        self._map = ffi.new("struct block_map *", {"count": count, "chunks": count})

    def resized(self, count: int) -> SharedMap:
        """One of another number of chunks, with those that this one has. None is given up: the engine may be using
        it."""
        other = SharedMap(count)
        other._chunks |= self._chunks
        for chunk, there in self._chunks.items():
            if chunk < count:
                other._map.chunks[chunk] = there
        return other

    @property
    def address(self) -> int:
        """Of the ``struct block_map``, for the engine. It is there as long as this object."""
        return int(ffi.cast("uintptr_t", self._map))

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._chunks

    def add(self, chunk: int, states: bytes) -> None:
        """A chunk that was not there: its part of the map."""
        there = ffi.new("struct map_chunk *", {"states": states})
        lib.map_put(self._map, chunk, there)
        self._chunks[chunk] = there

    def view(self, chunk: int, begin: int, end: int) -> memoryview:
        """Bytes of a chunk's part of the map, as they are at each moment."""
        return memoryview(ffi.buffer(self._chunks[chunk].states))[begin:end]

    def keeps(self, chunk: int, first: int, blocks: int, state: int) -> bool:
        """Whether all of the blocks are of this state, in the file, too."""
        return bool(lib.map_keeps(self._chunks[chunk], first, blocks, state))

    @contextmanager
    def changing(self, chunk: int, first: int, blocks: int, state: int) -> Iterator[tuple[int, int]]:
        """From now on the blocks are of this state. Within, write these bytes of the chunk (begin, end) to the file."""
        there = self._chunks[chunk]
        bytes_ = lib.map_begin(there, first, blocks, state)
        is_in_file = False
        try:
            yield bytes_.begin, bytes_.end
            is_in_file = True
        finally:
            lib.map_end(there, is_in_file)

    @property
    def written(self) -> int:
        """How many blocks of the chunks here are not deallocated."""
        return int(lib.map_written(self._map))
