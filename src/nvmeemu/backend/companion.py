"""The companion of a disk, ``IMAGE.nvme`` beside ``IMAGE``: what a namespace has beyond the data of its blocks.

    0        two headers of 4096 bytes: the format, and what is under way; the valid one with the higher number counts
    8192     chunks of 16384 blocks, each: a map of 4096 bytes, then the metadata of these blocks

The map has two bits for each block, the first block's in the lowest bits. A block is deallocated (0: it was never
written, or was deallocated), written (1), or uncorrectable (2: a host has made it so). What the image and the metadata
hold of a deallocated block does not count. So a Format need not fill anything, and the first write of a block is
atomic: the map says of it only after data and metadata are there.

The file is sparse. It is written through the page cache, and ``flush`` makes it durable. The image itself stays as it
is: it can be mounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Self

from nvmeemu.backend import BackendError, DirectCompanion, FailedSync, describe
from nvmeemu.backend.claim import lock
from nvmeemu.backend.companion_header import HEADER, Contents, header_of
from nvmeemu.backend.raw import data_of, libc, probe, sync_folder
from nvmeemu.backend.shared_map import SharedMap, is_available
from nvmeemu.subsystem.formats import Format, Guard
from nvmeemu.subsystem.media import BlockState

SUFFIX = ".nvme"
CHUNK = 16384  # blocks
_MAP = CHUNK // 4  # bytes
_HEADERS = 2 * HEADER
_PUNCH_HOLE = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_PAGE = 4096
_MEMORY = "memory"  # in place of a path


_LOW_BITS = int.from_bytes(b"\x55" * _MAP, "little")  # of each block's two
_UNPACKED = [bytes(byte >> 2 * at & 3 for at in range(4)) for byte in range(256)]


class CompanionError(BackendError):
    """It cannot be used; the text is one line for the user and says what to do."""


def beside(image: str) -> str:
    """Where the companion of an image is."""
    return os.path.realpath(image) + SUFFIX


class Companion:
    """An open companion of ``blocks`` blocks. Several threads may use it. Its methods raise OSError."""

    def __init__(self, path: str, fd: int, contents: Contents, number: int, read_only: bool) -> None:
        self.path = path
        self.contents = contents
        self.read_only = read_only
        self._fd = fd
        self._number = number
        self._size = contents.format.metadata_size
        self._failed_sync = FailedSync()
        self._lock = threading.Lock()  # of the map: several blocks share a byte
        self._reads_now, self._now_flags = (True, 0) if path == _MEMORY else probe(fd)
        self._written: int | None = None  # blocks that are not deallocated, of chunks not in memory, once counted
        self.direct: DirectCompanion | None = None
        """For the native engine; None: it does not know this format, or this build has none."""
        self._map: SharedMap | None = None
        self._forget_map()

    def _forget_map(self) -> None:
        """No chunk of the map is in memory."""
        self._share(SharedMap(self._chunk_count) if is_available() else None)

    def _share(self, map: SharedMap | None) -> None:
        """This is the map in memory. For an extended format a host has to say first that it knows these, which is
        Python's business."""
        format, of = self.format, self.format.protection
        self._map, self.direct = map, None
        is_known = of is None or (of.type == 1 and of.guard is Guard.CRC16)
        if map is not None and is_known and not format.offered.needs_extension:
            self.direct = DirectCompanion(
                map=map,
                fd=self._fd,
                begin=_HEADERS,
                never_waits=not self._now_flags,
                can_read_now=self._reads_now,
                metadata_size=format.metadata_size,
                is_extended=format.is_extended,
                is_protected=of is not None,
                is_first=of is not None and of.is_first,
            )

    @property
    def _chunk_count(self) -> int:
        return -(-self.blocks // CHUNK)

    @property
    def format(self) -> Format:
        """The format of the blocks."""
        return self.contents.format

    @property
    def blocks(self) -> int:
        """How many blocks the image has."""
        return self.contents.size // self.format.data_size

    # --- making and opening

    @classmethod
    def make(
        cls,
        path: str,
        format: Format,
        size: int,
        written: Sequence[tuple[int, int]] = (),
        intention: Format | None = None,
    ) -> Self:
        """A new one for an image of ``size`` bytes, in place of the one that is there. ``written``: extents of blocks
        that are there already. ``intention``: the format that the image is to be given. Raises CompanionError."""
        new = f"{path}.new"
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                made = cls._begin(path, fd, Contents(format, size, intention), written)
                os.fsync(fd)
                os.rename(new, path)
                sync_folder(path)
            except BaseException:
                os.close(fd)
                with suppress(FileNotFoundError):
                    os.unlink(new)
                raise
        except OSError as error:
            raise CompanionError(f"cannot make {path}, the companion of a disk: {describe(error)}") from None
        return made

    @classmethod
    def in_memory(
        cls, format: Format, size: int, written: Sequence[tuple[int, int]] = (), intention: Format | None = None
    ) -> Self:
        """The same without a file: it is gone when it is closed. Raises OSError."""
        fd = os.memfd_create("nvmeemu-companion", os.MFD_CLOEXEC)
        return cls._begin(_MEMORY, fd, Contents(format, size, intention), written)

    @classmethod
    def _begin(cls, path: str, fd: int, contents: Contents, written: Sequence[tuple[int, int]]) -> Self:
        made = cls(path, fd, contents, 0, False)
        made._lock_file()
        os.ftruncate(fd, made.end)
        made._put_header(contents)
        for slba, blocks in written:
            made.mark(slba, blocks, BlockState.WRITTEN)
        return made

    @classmethod
    def open(cls, path: str, read_only: bool = False) -> Self:
        """The one that is there. Raises CompanionError, and FileNotFoundError if there is none."""
        try:
            fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CompanionError(f"{path}, the companion of a disk, cannot be opened: {describe(error)}") from None
        try:
            number, contents = header_of(_headers(fd))
            made = cls(path, fd, contents, number, read_only)
            made._lock_file()
        except (OSError, ValueError) as error:
            os.close(fd)
            why = describe(error) if isinstance(error, OSError) else str(error)
            advice = f"repair it with nvmeemu image repair {path.removesuffix(SUFFIX)}"
            raise CompanionError(f"{path}, the companion of a disk, is damaged: {why}: {advice}") from None
        except BackendError:
            os.close(fd)
            raise
        return made

    @staticmethod
    def is_readable(path: str) -> bool:
        """Whether a header says what it is."""
        try:
            with open(path, "rb") as file:
                header_of(_headers(file.fileno()))
        except (OSError, ValueError):
            return False
        return True

    @classmethod
    def rebuild(cls, path: str, format: Format, size: int) -> Self:
        """Open one whose headers are damaged, as if they said this. Its map and its metadata are kept. Raises OSError,
        CompanionError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        found = cls(path, fd, Contents(format, size), 0, False)
        try:
            if os.fstat(fd).st_size > found.end:
                text = f"{path}, the companion of a disk, is larger than this format has it: give the one that it has"
                raise CompanionError(text)
            found._lock_file()
            found.note(found.contents)
        except BaseException:
            os.close(fd)
            raise
        return found

    def copy(self) -> Companion:
        """One in memory that begins as this one is, for an overlay."""
        fd = os.memfd_create("nvmeemu-companion", os.MFD_CLOEXEC)
        os.ftruncate(fd, self.end)
        for start, end in data_of(self._fd, 0, self.end):
            while start < end:
                piece = os.pread(self._fd, min(1 << 20, end - start), start)
                if not piece:
                    break
                os.pwrite(fd, piece, start)
                start += len(piece)
        return Companion(_MEMORY, fd, self.contents, self._number, False)

    def _lock_file(self) -> None:
        if self.path != _MEMORY:
            lock(self._fd, self.path, self.read_only)

    @property
    def _stride(self) -> int:
        return _MAP + CHUNK * self._size

    @property
    def end(self) -> int:
        """Bytes that the file has, at least."""
        return _HEADERS + self._chunk_count * self._stride

    def _put_header(self, contents: Contents) -> None:
        """The other header becomes the one that counts."""
        self._number += 1
        _write(self._fd, contents.header(self._number), self._number % 2 * HEADER)
        self.contents = contents

    def resize(self, size: int) -> None:
        """The image has this size now, in bytes."""
        if size != self.contents.size:
            self.note(replace(self.contents, size=size))

    def cut(self, size: int) -> None:
        """As ``resize``; of blocks that are no more nothing is left, if the image grows again."""
        before, after = self.blocks, size // self.format.data_size
        if after < before:
            self.mark(after, before - after, BlockState.DEALLOCATED)
        self.resize(size)
        if os.fstat(self._fd).st_size < self.end:
            os.ftruncate(self._fd, self.end)

    def note(self, contents: Contents) -> None:
        """Say something new of itself; it is durable when this returns. A larger size makes room."""
        self._put_header(contents)
        if os.fstat(self._fd).st_size < self.end:
            os.ftruncate(self._fd, self.end)
        os.fsync(self._fd)
        with self._lock:
            if self._map is not None and self._map.count != self._chunk_count:
                self._share(self._map.resized(self._chunk_count))

    # --- another format

    def intend(self, format: Format | None) -> None:
        """From now on the blocks are being given this format, whatever happens: ``finish`` ends it, or else the next
        start. None: they are not."""
        self.note(replace(self.contents, intention=format))

    def finish(self) -> None:
        """The blocks have the format that was intended. All of them are deallocated, and nothing is left of their
        metadata."""
        wanted = self.contents.intention
        assert wanted is not None
        with self._lock:
            os.ftruncate(self._fd, _HEADERS)
            os.fsync(self._fd)  # before the header: nothing of the old map must count by the new one
            self._written, self._map = 0, None
            before, self._size = self._size, wanted.metadata_size
        try:
            self.note(Contents(wanted, self.contents.size))
        except OSError:
            self._size = before
            raise
        finally:
            self._forget_map()

    def remove(self) -> None:
        """There is none any more."""
        if self.path != _MEMORY:
            os.unlink(self.path)
            sync_folder(self.path)
        self.close()

    # --- the map

    def states(self, slba: int, blocks: int) -> Iterator[tuple[BlockState, int, int]]:
        """The runs of blocks of the same state: (state, slba, blocks)."""
        first, last = slba, None
        for at, states in self._unpacked(slba, blocks, 0):
            start = 0
            while start < len(states):
                state = states[start]
                if state != last:
                    if last is not None and at + start > first:
                        yield BlockState(last), first, at + start - first
                    first, last = at + start, state
                start = _next_other(states, state, start)
        if last is not None:
            yield BlockState(last), first, slba + blocks - first

    def find(self, slba: int, blocks: int, wanted: Collection[BlockState]) -> Iterator[tuple[int, int]]:
        """The runs of blocks of these states: (slba, blocks). A run may end where another begins. Where there is hardly
        any, it takes about a second for a TiB."""
        is_any_allocated = BlockState.WRITTEN in wanted
        for chunk, first, number in _pieces(slba, blocks):
            bits = int.from_bytes(self._read_map(chunk, 0, _MAP, 0), "little")
            if bits if is_any_allocated else bits >> 1 & _LOW_BITS:
                for state, start, length in self.states(chunk * CHUNK + first, number):
                    if state in wanted:
                        yield start, length

    def is_written(self, slba: int, blocks: int, *, now: bool = False) -> bool:
        """Whether all of the blocks were written. With ``now``: False also if that would have to wait."""
        try:
            pieces = self._unpacked(slba, blocks, self._now_flags if now else 0)
            return all(states.count(BlockState.WRITTEN) == len(states) for _, states in pieces)
        except BlockingIOError:
            return False

    def keeps_written(self, slba: int, blocks: int) -> bool:
        """Whether the file says already that all of the blocks were written, as far as can be seen without waiting."""
        found = self._map
        return found is not None and all(
            chunk in found and found.keeps(chunk, first, number, BlockState.WRITTEN)
            for chunk, first, number in _pieces(slba, blocks)
        )

    def load(self, slba: int, blocks: int) -> None:
        """Take what the map says of these blocks, and of their neighbours, into memory, where the engine sees it."""
        for chunk, _, _ in _pieces(slba, blocks):
            if self._map is not None and chunk not in self._map:
                with self._lock:
                    self._load(self._map, chunk)

    def _load(self, map: SharedMap, chunk: int) -> None:
        if chunk not in map:
            before = map.written
            map.add(chunk, self._read_file(_HEADERS + chunk * self._stride, _MAP, 0))
            if self._written is not None:
                self._written -= map.written - before

    def mark(self, slba: int, blocks: int, state: BlockState) -> None:
        """From now on the blocks are of this state."""
        with self._lock:
            for chunk, first, number in _pieces(slba, blocks):
                if state is BlockState.DEALLOCATED and number == CHUNK:
                    self._empty_chunk(chunk)
                else:
                    self._mark(chunk, first, number, state)

    def _mark(self, chunk: int, first: int, number: int, state: BlockState) -> None:
        if self._map is None or chunk not in self._map:
            self._mark_in_file(chunk, first, number, state)
        elif not self._map.keeps(chunk, first, number, state):
            with self._map.changing(chunk, first, number, state) as (begin, end):
                _write(self._fd, self._map.view(chunk, begin, end), _HEADERS + chunk * self._stride + begin)
        if state is BlockState.DEALLOCATED:
            self._give_back(self._place(chunk, first), number * self._size)

    def _mark_in_file(self, chunk: int, first: int, number: int, state: BlockState) -> None:
        """Of a chunk that is not in memory: nobody else changes it meanwhile."""
        begin, end = first // 4, -(-(first + number) // 4)
        place = _HEADERS + chunk * self._stride + begin
        if number == CHUNK and self._written is None:  # nobody counts: of a large disk all is marked, once
            _write(self._fd, bytes([state * 0b01010101]) * _MAP, place)
            return
        states = bytearray(_unpack(self._read_file(place, end - begin, 0)))
        before = states[first - 4 * begin : first - 4 * begin + number]
        if before.count(state) == number:
            return
        states[first - 4 * begin : first - 4 * begin + number] = bytes([state]) * number
        packed = bytes(
            states[at] | states[at + 1] << 2 | states[at + 2] << 4 | states[at + 3] << 6
            for at in range(0, len(states), 4)
        )
        _write(self._fd, packed, place)
        self._count(before, number if state else 0)

    def _give_back(self, place: int, size: int) -> None:
        """The storage of whole pages."""
        start, end = -(-place // _PAGE) * _PAGE, (place + size) // _PAGE * _PAGE
        if start < end:
            _punch(self._fd, start, end - start)

    def _count(self, before: bytes | bytearray, after: int) -> None:
        if self._written is not None:
            self._written += after - (len(before) - before.count(BlockState.DEALLOCATED))

    def _empty_chunk(self, chunk: int) -> None:
        place = _HEADERS + chunk * self._stride
        is_in_memory = self._map is not None and chunk in self._map
        if not is_in_memory and next(data_of(self._fd, place, place + self._stride), None) is None:
            return
        self._mark(chunk, 0, CHUNK, BlockState.DEALLOCATED)
        _punch(self._fd, place, self._stride)
        if self._map is not None and is_in_memory:  # the engine may have marked one meanwhile
            states = self._map.view(chunk, 0, _MAP)
            if any(states):
                _write(self._fd, states, place)

    @property
    def written(self) -> int:
        """How many blocks are not deallocated."""
        with self._lock:
            found = self._map
            if self._written is None:
                chunks = (chunk for chunk in self._chunks() if found is None or chunk not in found)
                self._written = sum(map(self._written_in, chunks))
            return self._written + (0 if found is None else found.written)

    def _chunks(self) -> Iterator[int]:
        """The chunks of which the file has something: the others are holes."""
        first = 0
        for start, end in data_of(self._fd, _HEADERS, self.end):
            first = max(first, (start - _HEADERS) // self._stride)
            last = (end - 1 - _HEADERS) // self._stride
            yield from range(first, last + 1)
            first = last + 1

    def _written_in(self, chunk: int) -> int:
        packed = bytearray(_MAP)
        _read(self._fd, packed, _HEADERS + chunk * self._stride, 0)
        bits = int.from_bytes(packed, "little")
        return ((bits | bits >> 1) & _LOW_BITS).bit_count()

    def _unpacked(self, slba: int, blocks: int, flags: int) -> Iterator[tuple[int, bytes]]:
        """The states of blocks, a byte each, in pieces: (first block, states)."""
        for chunk, first, number in _pieces(slba, blocks):
            begin, end = first // 4, -(-(first + number) // 4)
            states = _unpack(self._read_map(chunk, begin, end, flags))
            yield chunk * CHUNK + first, states[first - 4 * begin : first - 4 * begin + number]

    def _read_map(self, chunk: int, begin: int, end: int, flags: int) -> bytes:
        found = self._map
        if found is not None and chunk in found:
            return bytes(found.view(chunk, begin, end))
        return self._read_file(_HEADERS + chunk * self._stride + begin, end - begin, flags)

    def _read_file(self, place: int, size: int, flags: int) -> bytes:
        packed = bytearray(size)
        _read(self._fd, packed, place, flags)
        return bytes(packed)

    # --- the metadata

    def read_metadata(self, slba: int, blocks: int) -> bytearray:
        """The metadata of the blocks, side by side, whatever their state."""
        found = bytearray(blocks * self._size)
        view, done = memoryview(found), 0
        for chunk, first, number in _pieces(slba, blocks):
            piece = view[done : done + number * self._size]
            _read(self._fd, piece, self._place(chunk, first), 0)
            done += len(piece)
        return found

    def write_metadata(self, slba: int, metadata: memoryview) -> None:
        """Write it for as many blocks as it has."""
        done = 0
        for chunk, first, number in _pieces(slba, len(metadata) // self._size if self._size else 0):
            piece = metadata[done : done + number * self._size]
            _write(self._fd, piece, self._place(chunk, first))
            done += len(piece)

    def _place(self, chunk: int, first: int) -> int:
        return _HEADERS + chunk * self._stride + _MAP + first * self._size

    # --- its end

    def flush(self) -> None:
        """Make all that was written durable. It stays failed once it has failed (``FailedSync.sync``)."""
        if not self.read_only:
            self._failed_sync.sync(self._fd)

    def close(self) -> None:
        """Give the file back; it does not flush. Once more, it does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _headers(fd: int) -> list[bytes]:
    return [os.pread(fd, HEADER, slot * HEADER) for slot in range(2)]


def _pieces(slba: int, blocks: int) -> Iterator[tuple[int, int, int]]:
    """The range by chunks: (chunk, its first block, blocks)."""
    end = slba + blocks
    while slba < end:
        chunk, first = divmod(slba, CHUNK)
        number = min(end - slba, CHUNK - first)
        yield chunk, first, number
        slba += number


def _unpack(packed: bytes) -> bytes:
    """A byte for each block."""
    return b"".join(map(_UNPACKED.__getitem__, packed))


def _next_other(states: bytes, state: int, start: int) -> int:
    """Where something else than ``state`` comes next, or the end."""
    rest = states[start:].lstrip(bytes([state]))
    return len(states) - len(rest)


def _read(fd: int, view: bytearray | memoryview, offset: int, flags: int) -> None:
    """What is behind the end reads as zeros."""
    done = os.preadv(fd, [view], offset, flags)
    while 0 < done < len(view):
        more = os.preadv(fd, [memoryview(view)[done:]], offset + done, flags)
        if more == 0:
            return
        done += more


def _write(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _punch(fd: int, offset: int, size: int) -> None:
    """Give the storage back, if the file system can do that."""
    if libc.fallocate(fd, _PUNCH_HOLE, offset, size) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number))
