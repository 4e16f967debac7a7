"""Whole writes: nobody reads half of one, and a kill of the process leaves none.

What is being read and written of a disk is known to all who use it, Python's threads and the native engine's alike
(``ranges.h``). So a write and what overlaps it run one after the other. What a kill could cut is kept in a ``Journal``
meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvmeemu.backend.journal import Journal

try:
    from nvmeemu.backend._atomicity import ffi, lib
except ImportError:  # built without a C compiler
    ffi = lib = None

_MOMENT = 0.001  # seconds, until there may be room in the journal


def is_available() -> bool:
    """Whether writes can be atomic here: the C code was built."""
    return lib is not None


class Atomicity:
    """Of one open disk. ``unit``: how many bytes a write may have to be atomic; 0: one block. Built without a C
    compiler, it does nothing."""

    def __init__(self, unit: int = 0, journal: Journal | None = None) -> None:
        self.unit = unit
        self.journal = journal
        self._ranges: Any = None
        if lib is not None:
            self._ranges = ffi.new("struct ranges *")
            self._mine = ffi.new("struct range *")

    @property
    def addresses(self) -> tuple[int, int]:
        """Of ``struct ranges`` and ``struct journal``, for the native engine, which has to keep this object. 0: there
        is none."""
        ranges = 0 if self._ranges is None else int(ffi.cast("uintptr_t", self._ranges))
        return ranges, 0 if self.journal is None else self.journal.address

    def hold_now(self, offset: int, size: int, is_write: bool) -> bool:
        """On the controller's thread, until ``leave``, which must come before the next call: nobody else writes to
        these bytes, or, if this is a write, uses them. False: somebody does."""
        return self._ranges is None or bool(lib.range_try(self._ranges, self._mine, offset, size, is_write))

    def leave(self) -> None:
        """After ``hold_now``."""
        if self._ranges is not None:
            lib.range_leave(self._mine)

    @contextmanager
    def held(self, offset: int, size: int, is_write: bool) -> Iterator[None]:
        """The same, on a thread that may wait for the others."""
        if self._ranges is None:
            yield
            return
        range = ffi.new("struct range *")
        lib.range_enter(self._ranges, range, offset, size, is_write)
        try:
            yield
        finally:
            lib.range_leave(range)

    def can_be_cut(self, offset: int, size: int) -> bool:
        """Whether a kill could leave a part of this write, which has to be kept therefore."""
        return self.journal is not None and self.journal.needs(offset, size, 0)

    def kept(self, offset: int, data: memoryview, metadata: memoryview) -> Any:
        """A context in which a write happens wholly, even if the process is killed meanwhile. It may wait for room."""
        journal = self.journal
        if journal is None or not journal.needs(offset, len(data), len(metadata)):
            return nullcontext()
        return _kept(journal, offset, data, metadata)

    def close(self) -> None:
        """Nobody uses the disk any more."""
        if self.journal is not None:
            self.journal.remove()


@contextmanager
def _kept(journal: Journal, offset: int, data: memoryview, metadata: memoryview) -> Iterator[None]:
    while not (slot := journal.keep(offset, data, metadata)):
        time.sleep(_MOMENT)
    try:
        yield
    finally:
        journal.release(slot)
