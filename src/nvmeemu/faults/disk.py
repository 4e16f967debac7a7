"""A disk that misbehaves for one command: what stands in for its namespace's backend while the command is begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvmeemu.backend import Backend


class Disk:
    """What shall go wrong. ``kept``: how many bytes of a write really are written; None: all."""

    def __init__(self) -> None:
        self.errno = 0
        self.kept: int | None = None
        self.spoil: Callable[[bytes], bytes] | None = None


class FaultyBackend(Backend):
    """``inner`` with a ``Disk``'s faults; always on a worker, like any slow disk."""

    def __init__(self, inner: Backend, disk: Disk) -> None:
        self.inner = inner
        self._disk = disk
        self.size = inner.size
        self.read_only = inner.read_only
        self.volatile_cache = inner.volatile_cache
        self.identity = inner.identity

    def _fail(self) -> None:
        if self._disk.errno:
            raise OSError(self._disk.errno, "made to fail")

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._fail()
        self.inner.read(offset, views)
        if self._disk.spoil is not None:
            spoiled = self._disk.spoil(b"".join(views))
            for view in views:
                view[:], spoiled = spoiled[: len(view)], spoiled[len(view) :]

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self._fail()
        disk, content = self._disk, b"".join(views)
        if disk.spoil is not None:
            content = disk.spoil(content)
        if disk.kept is not None:
            content = content[: disk.kept]
        if content:
            self.inner.write(offset, [memoryview(content)], fua)

    def flush(self) -> None:
        self._fail()
        if self._disk.kept is None:
            self.inner.flush()

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._fail()
        length = self._kept(length)
        if length:
            self.inner.zero(offset, length, deallocate)

    def deallocate(self, offset: int, length: int) -> None:
        self._fail()
        length = self._kept(length)
        if length:
            self.inner.deallocate(offset, length)

    def _kept(self, length: int) -> int:
        return length if self._disk.kept is None else min(length, self._disk.kept)
