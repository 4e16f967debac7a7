"""A disk that misbehaves for one command: what stands in for its namespace's backend while the command is begun."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from nvmeemu.backend import Backend
from nvmeemu.subsystem.namespace import Namespace

MOST_REMEMBERED = 64 << 20  # bytes of blocks, of one fault
_AT_ONCE = 1 << 20  # bytes


class History:
    """What blocks held before they were written last; of the oldest it forgets that. Workers call it at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()  # by NGUID and LBA
        self._bytes = 0
        self._names: dict[int, bytes] = {}  # NSID -> NGUID

    def knows(self, nsid: int, slba: int, nlb: int) -> bool:
        """Whether it has something of any of these blocks."""
        name = self._names.get(nsid)
        with self._lock:
            return name is not None and any((name, lba) in self._blocks for lba in range(slba, slba + nlb))

    def keep(self, namespace: Namespace, backend: Backend, offset: int, length: int) -> None:
        """They are about to be written."""
        size = namespace.block_size
        end = offset + min(length, MOST_REMEMBERED)
        for start in range(offset, end, _AT_ONCE):
            piece = bytearray(min(_AT_ONCE, end - start))
            backend.read(start, [memoryview(piece)])
            with self._lock:
                self._names[namespace.nsid] = namespace.nguid
                for place in range(0, len(piece), size):
                    self._put((namespace.nguid, (start + place) // size), bytes(piece[place : place + size]))

    def _put(self, key: tuple[bytes, int], block: bytes) -> None:
        self._bytes += len(block) - len(self._blocks.pop(key, b""))
        self._blocks[key] = block
        while self._bytes > MOST_REMEMBERED:
            self._bytes -= len(self._blocks.popitem(last=False)[1])

    def recall(self, namespace: Namespace, offset: int, content: bytes) -> bytes:
        """What was read at ``offset``, with the old blocks in place of the new ones as far as they are known."""
        size = namespace.block_size
        with self._lock:
            return b"".join(
                self._blocks.get((namespace.nguid, (offset + start) // size), content[start : start + size])
                for start in range(0, len(content), size)
            )


class Disk:
    """What shall go wrong. ``kept``: how many bytes of a write really are written; None: all. ``loses``: nothing is
    written or made durable. ``recalls``: what it gives to reads is what this knows. ``histories`` hear of writes."""

    def __init__(self) -> None:
        self.errno = 0
        self.kept: int | None = None
        self.loses = False
        self.spoil: Callable[[bytes], bytes] | None = None
        self.recalls: History | None = None
        self.histories: Sequence[History] = ()


class FaultyBackend(Backend):
    """The namespace's backend with a ``Disk``'s faults; always on a worker, like any slow disk."""

    def __init__(self, namespace: Namespace, disk: Disk) -> None:
        self.inner = inner = namespace.backend
        self._namespace = namespace
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
        disk = self._disk
        if disk.spoil is None and disk.recalls is None:
            return
        content = b"".join(views)
        if disk.recalls is not None:
            content = disk.recalls.recall(self._namespace, offset, content)
        if disk.spoil is not None:
            content = disk.spoil(content)
        for view in views:
            view[:], content = content[: len(view)], content[len(view) :]

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self._fail()
        disk, content = self._disk, b"".join(views)
        if disk.spoil is not None:
            content = disk.spoil(content)
        content = self._torn(offset, content)
        if content:
            self._remember(offset, len(content))
            self.inner.write(offset, [memoryview(content)], fua)

    def flush(self) -> None:
        self._fail()
        if not self._disk.loses:
            self.inner.flush()

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._fail()
        kept = self._kept(length)
        whole = kept - kept % self._namespace.block_size
        if whole:
            self._remember(offset, whole)
            self.inner.zero(offset, whole, deallocate)
        if kept > whole:
            part = self._with_old(offset + whole, bytes(kept - whole))
            self._remember(offset + whole, len(part))
            self.inner.write(offset + whole, [memoryview(part)])

    def deallocate(self, offset: int, length: int) -> None:
        self._fail()
        kept = self._kept(length)
        whole = kept - kept % self._namespace.block_size
        if whole:
            self._remember(offset, whole)
            self.inner.deallocate(offset, whole)

    def _kept(self, length: int) -> int:
        if self._disk.loses:
            return 0
        return length if self._disk.kept is None else min(length, self._disk.kept)

    def _torn(self, offset: int, content: bytes) -> bytes:
        """What is written of it, in whole blocks: a disk without a cache takes no others."""
        kept = self._kept(len(content))
        whole = kept - kept % self._namespace.block_size
        return content[:whole] + (self._with_old(offset + whole, content[whole:kept]) if kept > whole else b"")

    def _with_old(self, offset: int, begin: bytes) -> bytes:
        """A block that begins anew and goes on as it is."""
        old = bytearray(self._namespace.block_size)
        self.inner.read(offset, [memoryview(old)])
        return begin + bytes(old[len(begin) :])

    def _remember(self, offset: int, length: int) -> None:
        for history in self._disk.histories:
            history.keep(self._namespace, self.inner, offset, length)
