"""A disk that misbehaves for one command: a layer above the medium of its namespace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nvmeemu.faults.words import Numbers
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import (
    Blocks,
    DeallocateBlocks,
    Filter,
    FindBlocks,
    FlushMedia,
    MakeUncorrectable,
    MediaError,
    Operation,
    ReadBlocks,
    Steps,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.namespace import Namespace

MOST_REMEMBERED = 64 << 20  # bytes of blocks, of one fault
_AT_ONCE = 1 << 20  # bytes


class History:
    """What blocks held before their last write. It forgets the oldest of that."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()  # by NGUID and LBA
        self._bytes = 0
        self._names: dict[int, bytes] = {}  # NSID -> NGUID

    def knows(self, nsid: int, slba: int, nlb: int) -> bool:
        """Whether it has something of any of these blocks."""
        name = self._names.get(nsid)
        return name is not None and any((name, lba) in self._blocks for lba in range(slba, slba + nlb))

    def keep(self, namespace: Namespace, slba: int, content: bytes) -> None:
        """The blocks from this one on hold this, and will be written now."""
        self._names[namespace.nsid] = namespace.nguid
        size = namespace.format.data_size
        for index, start in enumerate(range(0, len(content), size)):
            self._put((namespace.nguid, slba + index), content[start : start + size])

    def _put(self, key: tuple[bytes, int], block: bytes) -> None:
        self._bytes += len(block) - len(self._blocks.pop(key, b""))
        self._blocks[key] = block
        while self._bytes > MOST_REMEMBERED:
            self._bytes -= len(self._blocks.popitem(last=False)[1])

    def recall(self, namespace: Namespace, slba: int, content: bytes) -> bytes:
        """What was read from ``slba`` on, with the old blocks in place of the new ones as far as they are known."""
        size = namespace.format.data_size
        return b"".join(
            self._blocks.get((namespace.nguid, slba + index), content[start : start + size])
            for index, start in enumerate(range(0, len(content), size))
        )


Spoil = Callable[[Format, int, Blocks], Blocks]
"""What becomes of blocks of this format, from this one on."""


class Disk:
    """What shall go wrong. ``bad``: only what touches these blocks fails with ``errno``. ``kept`` is how many bytes of
    a write are really written; None means all. If it ``loses``, nothing is written or made durable. ``recalls`` is the
    history that reads get. ``histories`` are told of writes. ``spoils`` change what is read or written, the first one
    first."""

    def __init__(self) -> None:
        self.errno = 0
        self.bad: Numbers | None = None
        self.kept: int | None = None
        self.loses = False
        self.spoils: list[Spoil] = []
        self.recalls: History | None = None
        self.histories: Sequence[History] = ()


class FaultyMedia(Filter):
    """The medium of a namespace, with the faults of a ``Disk``."""

    def __init__(self, disk: Disk, namespace: Namespace) -> None:
        super().__init__(namespace.media)
        self._disk = disk
        self._namespace = namespace

    def steps(self, operation: Operation) -> Steps:
        if self._disk.errno and (self._disk.bad is None or self._meets(operation, self._disk.bad)):
            raise MediaError.of(operation, self.identity, OSError(self._disk.errno, "made to fail"))
        return (yield from _STEPS[type(operation)](self, operation))

    def _meets(self, operation: Operation, bad: Numbers) -> bool:
        extents: Sequence[tuple[int, int]] = ()
        if isinstance(operation, DeallocateBlocks):
            extents = operation.extents
        elif isinstance(operation, WriteBlocks):
            extents = [(operation.slba, len(operation.data) // self.format.data_size)]
        elif isinstance(operation, ReadBlocks | VerifyBlocks | ZeroBlocks | MakeUncorrectable):
            extents = [(operation.slba, operation.blocks)]
        return any(bad.overlaps(slba, slba + blocks - 1) for slba, blocks in extents)

    def _read(self, read: ReadBlocks) -> Steps:
        blocks: Blocks = yield self.inner, self._as_it_is(read)
        if self._disk.recalls is not None:
            data = self._disk.recalls.recall(self._namespace, read.slba, bytes(blocks.data))
            blocks = blocks._replace(data=data)
        return self._spoiled(read.slba, blocks)

    def _spoiled(self, slba: int, blocks: Blocks) -> Blocks:
        for spoil in self._disk.spoils:
            blocks = spoil(self.format, slba, blocks)
        return blocks

    def _verify(self, verify: VerifyBlocks) -> Steps:
        yield self.inner, self._as_it_is(verify)

    def _as_it_is(self, operation: R) -> R:
        """Where nothing is made durable, reads don't do that either."""
        return replace(operation, is_from_media=False) if self._disk.loses else operation

    def _write(self, write: WriteBlocks) -> Steps:
        """What is torn is written in whole blocks: a disk without a cache takes no others."""
        data, metadata = self._spoiled(write.slba, Blocks(bytes(write.data), bytes(write.metadata)))
        size = self.format.data_size
        blocks, rest = divmod(self._kept(len(data)), size)
        data, metadata = data[: blocks * size + rest], metadata[: blocks * self.format.metadata_size]
        if rest:  # this one begins anew, and goes on as it is
            old: Blocks = yield self.inner, ReadBlocks(write.slba + blocks, 1)
            data, metadata, blocks = data + old.data[rest:], metadata + old.metadata, blocks + 1
        if blocks:
            yield from self._remember(write.slba, blocks)
            yield self.inner, replace(write, data=memoryview(data), metadata=memoryview(metadata))

    def _zero(self, zero: ZeroBlocks) -> Steps:
        blocks, rest = divmod(self._kept(zero.blocks * self.format.data_size), self.format.data_size)
        if blocks:
            yield from self._remember(zero.slba, blocks)
            yield self.inner, replace(zero, blocks=blocks, is_durable=False)
        if rest:
            slba = zero.slba + blocks
            old: Blocks = yield self.inner, ReadBlocks(slba, 1)
            yield from self._remember(slba, 1)
            yield self.inner, WriteBlocks(slba, memoryview(bytes(rest) + old.data[rest:]), memoryview(old.metadata))
        if zero.is_durable:
            yield from self._flush(FlushMedia())

    def _deallocate(self, deallocate: DeallocateBlocks) -> Steps:
        for slba, asked in deallocate.extents:
            blocks = self._kept(asked * self.format.data_size) // self.format.data_size
            if blocks:
                yield from self._remember(slba, blocks)
                yield self.inner, DeallocateBlocks([(slba, blocks)])
        if deallocate.is_durable:
            yield from self._flush(FlushMedia())

    def _make_uncorrectable(self, made: MakeUncorrectable) -> Steps:
        blocks = self._kept(made.blocks * self.format.data_size) // self.format.data_size
        if blocks:
            yield self.inner, replace(made, blocks=blocks)

    def _find(self, find: FindBlocks) -> Steps:
        return (yield self.inner, find)

    def _flush(self, flush: FlushMedia) -> Steps:
        if not self._disk.loses:
            yield self.inner, flush

    def _kept(self, length: int) -> int:
        """Bytes of a write that happen."""
        if self._disk.loses:
            return 0
        return length if self._disk.kept is None else min(length, self._disk.kept)

    def _remember(self, slba: int, blocks: int) -> Steps:
        """They are about to be written."""
        if not self._disk.histories:
            return
        size = self.format.data_size
        end, most = slba + min(blocks, MOST_REMEMBERED // size), _AT_ONCE // size
        for start in range(slba, end, most):
            old: Blocks = yield self.inner, ReadBlocks(start, min(most, end - start))
            for history in self._disk.histories:
                history.keep(self._namespace, start, bytes(old.data))


R = TypeVar("R", ReadBlocks, VerifyBlocks)
_STEPS: dict[type[Operation], Callable[[FaultyMedia, Any], Steps]] = {
    ReadBlocks: FaultyMedia._read,
    VerifyBlocks: FaultyMedia._verify,
    WriteBlocks: FaultyMedia._write,
    ZeroBlocks: FaultyMedia._zero,
    DeallocateBlocks: FaultyMedia._deallocate,
    MakeUncorrectable: FaultyMedia._make_uncorrectable,
    FindBlocks: FaultyMedia._find,
    FlushMedia: FaultyMedia._flush,
}
