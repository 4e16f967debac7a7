"""Writes that are thrown away: a base that is only read, below an unnamed temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence

from nvmeemu.backend import SECTOR, Backend, BackendError, describe
from nvmeemu.backend.raw import RawBackend

_CHUNK = 1 << 20
_SECTORS = _CHUNK // SECTOR


class OverlayBackend(Backend):
    """Reads what was written here from the temporary file and everything else from ``base``.

    The base is never copied: one byte for each sector of a touched MiB says where it lives.
    """

    volatile_cache = False  # what is to be thrown away at exit has no durability to wait for

    def __init__(self, base: Backend) -> None:
        self._base = base
        self.size = base.size
        self.identity = base.identity
        try:
            with tempfile.NamedTemporaryFile(prefix="nvmeemu-overlay-") as file:
                os.ftruncate(file.fileno(), base.size)
                self._top = RawBackend(file.name, any_content=True)
        except (OSError, BackendError) as error:
            base.close()
            text = describe(error) if isinstance(error, OSError) else str(error)
            raise BackendError(f"no overlay in {tempfile.gettempdir()}: {text}: set TMPDIR") from None
        self._written: dict[int, bytearray] = {}

    def _runs(self, offset: int, length: int) -> Iterator[tuple[Backend, int, int]]:
        """The range as pieces (who has it, offset, length)."""
        end = offset + length
        while offset < end:
            chunk, sector = divmod(offset // SECTOR, _SECTORS)
            limit = min((end - offset) // SECTOR, _SECTORS - sector)
            marks = self._written.get(chunk)
            if marks is None:
                where, stop = 0, limit
            else:
                where = marks[sector]
                change = marks.find(1 - where, sector, sector + limit)
                stop = limit if change < 0 else change - sector
            yield (self._top if where else self._base), offset, stop * SECTOR
            offset += stop * SECTOR

    def _mark(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            chunk, sector = divmod(offset // SECTOR, _SECTORS)
            number = min((end - offset) // SECTOR, _SECTORS - sector)
            marks = self._written.setdefault(chunk, bytearray(_SECTORS))
            marks[sector : sector + number] = b"\1" * number
            offset += number * SECTOR

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        length = sum(map(len, views))
        backend, _, run = next(self._runs(offset, length))
        return run == length and backend.read_now(offset, views)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        for backend, start, length in self._runs(offset, sum(map(len, views))):
            piece, views = _split(views, length)
            backend.read(start, piece)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self._top.write(offset, views)
        self._mark(offset, sum(map(len, views)))

    def flush(self) -> None:
        pass

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._top.zero(offset, length, True)
        self._mark(offset, length)

    def deallocate(self, offset: int, length: int) -> None:
        self.zero(offset, length, True)

    def refresh(self) -> None:
        self._base.refresh()
        if self._base.size > self._top.size:
            self._top.truncate(self._base.size)
        self.size = self._base.size

    def close(self) -> None:
        self._top.close()
        self._base.close()


def _split(views: Sequence[memoryview], size: int) -> tuple[list[memoryview], Sequence[memoryview]]:
    """The first ``size`` bytes of ``views``, and the others. A view may end anywhere in a sector."""
    first: list[memoryview] = []
    for index, view in enumerate(views):
        if size < len(view):
            return [*first, view[:size]], [view[size:], *views[index + 1 :]]
        first.append(view)
        size -= len(view)
    return first, []
