"""Blocks on a ``Backend`` with a ``Companion``: they have metadata, and each may be deallocated or uncorrectable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nvmeemu.backend import Backend, Direct
from nvmeemu.backend.atomicity import Atomicity
from nvmeemu.backend.companion import Companion
from nvmeemu.ports import Worker
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import (
    VERIFIED_AT_ONCE,
    BlockMap,
    Blocks,
    BlockState,
    DeallocateBlocks,
    ErrorKind,
    FindBlocks,
    FlushMedia,
    MakeUncorrectable,
    MediaError,
    ReadBlocks,
    Sought,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
    merged,
)


class PairedMedia(DiskMedia):
    """A deallocated block reads as zeros, and its protection information as all ones, so that no check fails (NVM 1.0,
    3.2.3.2.1 and 5.2.1). An uncorrectable block cannot be read until it is written (NVM 1.0, 3.2.7).

    Data and metadata of a block are there before the map says so. So the first write of a block happens wholly or not
    at all, whenever the process ends.
    """

    def __init__(
        self, backend: Backend, companion: Companion, worker: Worker, atomicity: Atomicity | None = None
    ) -> None:
        self._begin(backend, companion.format, worker, atomicity)
        self.companion = companion
        self._direct: Direct | None = None

    @property
    def block_map(self) -> BlockMap:
        return self.companion

    @property
    def direct(self) -> Direct | None:
        disk, companion = self.backend.direct, self.companion.direct
        if disk is None or companion is None:
            return None
        if self._direct is None or self._direct.companion is not companion:  # it is asked for often
            self._direct = replace(disk, companion=companion)
        return self._direct

    def read_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        if self.format.metadata_size or not self.companion.is_written(slba, self._blocks_of(data), now=True):
            return False
        return super().read_now(slba, data)

    def write_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        if self.format.metadata_size or not self.companion.keeps_written(slba, self._blocks_of(data)):
            return False
        return super().write_now(slba, data)

    def _blocks_of(self, data: Sequence[memoryview]) -> int:
        return sum(map(len, data)) // self._size

    def refresh(self) -> None:
        super().refresh()
        self.companion.resize(self.backend.size)

    def close(self) -> None:
        super().close()
        self.companion.close()

    # --- on a thread of the worker's

    def _read(self, read: ReadBlocks) -> Blocks:
        if read.is_from_media:
            self._flush(FlushMedia())
        self.companion.load(read.slba, read.blocks)
        data = bytearray(read.blocks * self._size)
        metadata = self.companion.read_metadata(read.slba, read.blocks)
        for state, slba, blocks in self.companion.states(read.slba, read.blocks):
            first = slba - read.slba
            self._check(state, slba, read.refuses_deallocated)
            if state is BlockState.WRITTEN:
                place = memoryview(data)[first * self._size : (first + blocks) * self._size]
                self.backend.read(slba * self._size, [place])
            else:
                size = self.format.metadata_size
                metadata[first * size : (first + blocks) * size] = deallocated_metadata(self.format) * blocks
        return Blocks(data, metadata)

    def _check(self, state: BlockState, slba: int, refuses_deallocated: bool) -> None:
        if state is BlockState.UNCORRECTABLE:
            raise MediaError(ErrorKind.UNCORRECTABLE, self.identity, slba)
        if state is BlockState.DEALLOCATED and refuses_deallocated:
            raise MediaError(ErrorKind.DEALLOCATED, self.identity, slba)

    def _verify(self, verify: VerifyBlocks) -> None:
        most = max(1, VERIFIED_AT_ONCE // self.format.block_size)
        end = verify.slba + verify.blocks
        for slba in range(verify.slba, end, most):
            blocks = min(most, end - slba)
            self._read(ReadBlocks(slba, blocks, verify.is_from_media, verify.refuses_deallocated))

    def _put(self, write: WriteBlocks) -> None:
        blocks = len(write.data) // self._size
        self.companion.load(write.slba, blocks)
        super()._put(write)
        self.companion.write_metadata(write.slba, write.metadata)
        self.companion.mark(write.slba, blocks, BlockState.WRITTEN)
        if write.is_durable:
            self.companion.flush()

    def _zero(self, zero: ZeroBlocks) -> None:
        if zero.is_deallocating and not zero.metadata:
            self.companion.mark(zero.slba, zero.blocks, BlockState.DEALLOCATED)
            super()._zero(zero)
        else:
            super()._zero(zero)
            metadata = zero.metadata or memoryview(bytes(zero.blocks * self.format.metadata_size))
            self.companion.write_metadata(zero.slba, metadata)
            self.companion.mark(zero.slba, zero.blocks, BlockState.WRITTEN)
        if zero.is_durable:
            self.companion.flush()

    def _deallocate(self, deallocate: DeallocateBlocks) -> None:
        for slba, blocks in deallocate.extents:
            self.companion.mark(slba, blocks, BlockState.DEALLOCATED)
        super()._deallocate(deallocate)
        if deallocate.is_durable:
            self.companion.flush()

    def _find(self, find: FindBlocks) -> list[tuple[int, int]]:
        if find.wanted is Sought.UNREADABLE:
            return super()._find(find)
        is_allocated = find.wanted is Sought.ALLOCATED
        states = {BlockState.UNCORRECTABLE, BlockState.WRITTEN} if is_allocated else {BlockState.UNCORRECTABLE}
        return merged(self.companion.find(find.slba, find.blocks, states), find.most)

    def _make_uncorrectable(self, made: MakeUncorrectable) -> None:
        self.companion.mark(made.slba, made.blocks, BlockState.UNCORRECTABLE)
        self.companion.flush()

    def _flush(self, flush: FlushMedia) -> None:
        super()._flush(flush)
        self.companion.flush()


def deallocated_metadata(format: Format) -> bytes:
    """The metadata of a block that is deallocated: zeros, and protection information of all ones."""
    if format.protection is None:
        return bytes(format.metadata_size)
    start, size = format.protection_offset, format.protection.size
    return (bytes(start) + b"\xff" * size).ljust(format.metadata_size, b"\0")
