"""Blocks on a ``Backend``, which blocks: each operation waits on a thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from nvmeemu.backend import Backend, Direct
from nvmeemu.backend.atomicity import Atomicity
from nvmeemu.ports import Job, Worker
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import (
    VERIFIED_AT_ONCE,
    Blocks,
    Budget,
    DeallocateBlocks,
    FindBlocks,
    FlushMedia,
    MakeUncorrectable,
    Media,
    MediaError,
    Operation,
    ReadBlocks,
    Sought,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
    merged,
)
from nvmeemu.subsystem.steps import Done


class DiskMedia(Media):
    """The blocks of ``backend``, side by side. What has to wait does so on threads of ``worker``, at this medium: each
    has its own, and others for flushes, which must not wait behind reads and writes that never end. ``atomicity`` is
    that of the medium which the backend has had before. Raises ValueError for a format with metadata: a backend's bytes
    are data."""

    def __init__(self, backend: Backend, format: Format, worker: Worker, atomicity: Atomicity | None = None) -> None:
        if format.metadata_size:
            raise ValueError(f"disk {backend.identity} has no room for metadata")
        self._begin(backend, format, worker, atomicity)

    def _begin(self, backend: Backend, format: Format, worker: Worker, atomicity: Atomicity | None) -> None:
        super().__init__(format, Budget())
        self.backend = backend
        self._size = format.data_size
        self.worker = worker
        self._flushes = object()  # where they wait
        self._atomicity = atomicity or Atomicity()

    @property
    def blocks(self) -> int:
        return self.backend.size // self._size

    @property
    def identity(self) -> str:
        return self.backend.identity

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    @property
    def volatile_cache(self) -> bool:
        return self.backend.volatile_cache

    @property
    def atomicity(self) -> Atomicity:
        return self._atomicity

    @property
    def direct(self) -> Direct | None:
        return self.backend.direct

    def start(self, operation: Operation, done: Done) -> Job:
        at = self._flushes if isinstance(operation, FlushMedia) else self
        return self.worker.submit(partial(self._work, operation), done, at)

    def read_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        offset = slba * self._size
        if not self._atomicity.hold_now(offset, sum(map(len, data)), is_write=False):
            return False
        try:
            return self.backend.read_now(offset, data)
        finally:
            self._atomicity.leave()

    def write_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        offset, size = slba * self._size, sum(map(len, data))
        if self._atomicity.can_be_cut(offset, size) or not self._atomicity.hold_now(offset, size, is_write=True):
            return False
        try:
            return self.backend.write_now(offset, data)
        finally:
            self._atomicity.leave()

    def refresh(self) -> None:
        self.backend.refresh()

    def end(self) -> None:
        """All operations have ended, and there will be no others. What was left for the case of a kill goes away."""
        self._atomicity.close()

    def close(self) -> None:
        self.end()
        self.backend.close()

    # --- on a thread of the worker's

    def _work(self, operation: Operation) -> Any:
        try:
            with self._held(operation):
                return getattr(self, _WORK[type(operation)])(operation)
        except OSError as error:
            raise MediaError.of(operation, self.identity, error) from error

    def _held(self, operation: Operation) -> AbstractContextManager[None]:
        """While this is held, nobody else writes to the blocks, or reads what is written. Who gives blocks back, or
        finds out whether they can be read, does not care."""
        if isinstance(operation, WriteBlocks):
            size = len(operation.data)
        elif isinstance(operation, ReadBlocks | ZeroBlocks):
            size = operation.blocks * self._size
        else:
            return nullcontext()
        return self._atomicity.held(operation.slba * self._size, size, operation.is_changing)

    def _read(self, read: ReadBlocks) -> Blocks:
        if read.is_from_media:
            self.backend.flush()
        buffer = bytearray(read.blocks * self._size)
        self.backend.read(read.slba * self._size, [memoryview(buffer)])
        return Blocks(buffer)

    def _verify(self, verify: VerifyBlocks) -> None:
        if verify.is_from_media:
            self.backend.flush()
        offset, length = verify.slba * self._size, verify.blocks * self._size
        buffer = memoryview(bytearray(min(length, VERIFIED_AT_ONCE)))
        for start in range(0, length, len(buffer)):
            self.backend.read(offset + start, [buffer[: length - start]])

    def _write(self, write: WriteBlocks) -> None:
        with self._atomicity.kept(write.slba * self._size, write.data, write.metadata):
            self._put(write)

    def _put(self, write: WriteBlocks) -> None:
        self.backend.write(write.slba * self._size, [write.data], write.is_durable)

    def _zero(self, zero: ZeroBlocks) -> None:
        self.backend.zero(zero.slba * self._size, zero.blocks * self._size, zero.is_deallocating)
        if zero.is_durable:
            self.backend.flush()

    def _deallocate(self, deallocate: DeallocateBlocks) -> None:
        for slba, blocks in deallocate.extents:
            self.backend.deallocate(slba * self._size, blocks * self._size)
        if deallocate.is_durable:
            self.backend.flush()

    def _flush(self, flush: FlushMedia) -> None:
        self.backend.flush()

    def _find(self, find: FindBlocks) -> list[tuple[int, int]]:
        if find.wanted is Sought.ALLOCATED:
            return [(find.slba, find.blocks)]
        if find.wanted is Sought.UNCORRECTABLE or self._can_read(find.slba, find.blocks):
            return []
        end = find.slba + find.blocks
        return merged(((lba, 1) for lba in range(find.slba, end) if not self._can_read(lba, 1)), find.most)

    def _can_read(self, slba: int, blocks: int) -> bool:
        try:
            self._verify(VerifyBlocks(slba, blocks))
        except (OSError, MediaError):
            return False
        return True

    def _make_uncorrectable(self, made: MakeUncorrectable) -> None:
        raise NotImplementedError("nothing remembers which blocks are uncorrectable")


_WORK: dict[type[Operation], str] = {
    ReadBlocks: "_read",
    VerifyBlocks: "_verify",
    WriteBlocks: "_write",
    ZeroBlocks: "_zero",
    DeallocateBlocks: "_deallocate",
    FlushMedia: "_flush",
    FindBlocks: "_find",
    MakeUncorrectable: "_make_uncorrectable",
}
