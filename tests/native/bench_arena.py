"""The arena in this process: guest memory that shows each access that is not allowed.

Memory that the VMM takes away is sometimes protected: then an access by C ends the process. A system call on protected
memory would only fail. So at other times it is filled with a pattern, which must still be there when it comes back. It
may come back at another address of this process, as with a real VMM.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, cast

from native.arena import BLOCK, REGIONS, SIZES, Arena, check_spoilt, create_disk, spoil
from nvmeemu.backend import Direct
from nvmeemu.backend.raw import RawBackend
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import BlockState
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.protection import Tags, generate
from nvmeemu.testing import Bench, Ram

_PROT_NONE = 0  # <sys/mman.h>; Python does not name it
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(memory: mmap.mmap, protection: int) -> None:
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), protection) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


class BitingRam(Ram):
    """A Ram of mappings that nobody can touch unnoticed while they are unmapped."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(0)
        self._chance = chance
        self._gone: dict[int, tuple[mmap.mmap, bytes | None]] = {}
        self.fds: dict[int, int] = {}  # vector -> eventfd

    def add(self, iova: int, memory: mmap.mmap | None = None) -> None:
        memory = memory or mmap.mmap(-1, SIZES[iova])
        self.map(iova, len(memory), data=cast(bytearray, memory))

    def remove(self, iova: int) -> None:
        memory = cast(mmap.mmap, self._regions.pop(iova).data)
        self._starts.remove(iova)
        assert self.mirror is not None
        self.mirror.remove_region(iova)
        if self._chance.random() < 0.5:
            self._gone[iova] = memory, None
            _protect(memory, _PROT_NONE)
        else:
            self._gone[iova] = memory, memory[:]
            memory[:] = spoil(len(memory))

    def bring_back(self, iova: int) -> None:
        memory = self._check(iova)
        if self._chance.random() < 0.5:
            other = mmap.mmap(-1, len(memory))
            other[:] = memory[:]
            memory.close()  # BufferError if anybody still holds a view
            memory = other
        self.add(iova, memory)

    def forget(self, iova: int) -> None:
        """The VMM that had it is gone for good."""
        self._check(iova).close()

    def _check(self, iova: int) -> mmap.mmap:
        memory, kept = self._gone.pop(iova)
        if kept is None:
            _protect(memory, mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            check_spoilt(memory[:])
            memory[:] = kept
        return memory

    def interrupt_fd(self, vector: int) -> int:
        return self.fds.get(vector, -1)


class QuickDisk(RawBackend):
    """A file in memory that syncs nothing: neither durability nor the machine's disk is what is tried here."""

    def through_io_uring(self) -> Self:
        """The same file, as one whose reads and writes may all have to wait."""
        other = copy.copy(self)
        other.direct = Direct(fd=self._fd)
        return other

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        super().write(offset, views)

    def flush(self) -> None:
        pass


class BenchArena(Arena):
    """On a ``Bench``. Namespace 2 is the same disk as 1, through io_uring, with protection information."""

    rounds = 100
    patience = 1
    protected = frozenset({2})

    def __init__(self, seed: int, folder: Path, doorbells: str) -> None:
        disk = create_disk(folder / "disk")
        super().__init__(seed, {1: disk, 2: disk}, has_shadows=doorbells == "shadow")
        self._ram = BitingRam(self.chance)
        backend = QuickDisk(str(folder / "disk"))
        engine = "mapped" if doorbells == "mapped" else "native"
        self._bench = Bench(backend, ram=self._ram, engine=engine, lanes=2)
        self._bench.namespaces.add(self._protected(backend.through_io_uring()))
        self._controller = self._bench.controller
        self._add_memory()
        self.start()

    def _protected(self, backend: QuickDisk) -> Namespace:
        """All of its blocks were written."""
        format = Format(BLOCK, 8, protection=Protection(1))
        namespace = self._bench.namespace(2, backend, format=format)
        data = bytearray(backend.size)
        backend.read(0, [memoryview(data)])
        metadata = bytearray(len(data) // BLOCK * 8)
        generate(format, data, metadata, Tags())
        companion = cast(PairedMedia, namespace.media).companion
        companion.write_metadata(0, memoryview(metadata))
        companion.mark(0, len(data) // BLOCK, BlockState.WRITTEN)
        return namespace

    def close(self) -> None:
        for fd in self._ram.fds.values():
            os.close(fd)
        self._bench.close()
        super().close()

    @property
    def host(self) -> Bench:
        return self._bench

    def settle(self) -> None:
        self._bench.settle()

    def pass_a_moment(self) -> None:
        self._controller.run()

    # --- memory

    def take_memory(self, regions: Iterable[int]) -> None:
        self._controller.quiesce()
        for region in regions:
            self._ram.remove(region)
        self._controller.memory_changed()

    def bring_memory(self, regions: Iterable[int]) -> None:
        self._controller.quiesce()
        for region in regions:
            self._ram.bring_back(region)
        self._controller.memory_changed()

    def replace_host(self) -> None:
        self._controller.reset()
        self.take_memory(REGIONS)
        self.spin()
        self.settle()
        for region in REGIONS:
            self._ram.forget(region)
        self._add_memory()

    def _add_memory(self) -> None:
        self._controller.quiesce()
        for region in REGIONS:
            self._ram.add(region)
        self._controller.memory_changed()

    def reset_function(self) -> None:
        self._controller.reset()

    # --- interrupts

    def reroute(self) -> None:
        """To other eventfds, or, as without any, to ``Host.interrupt``."""
        old = self._ram.fds
        self._ram.fds = {vector: os.eventfd(0, os.EFD_NONBLOCK) for vector in (1, 2) if self.chance.random() < 0.8}
        self._controller.interrupts_changed()
        for fd in old.values():
            os.close(fd)  # another file may get the number

    def interrupts(self) -> Iterable[int]:
        vectors = set(self._ram.interrupts)
        self._ram.interrupts.clear()
        for vector, fd in self._ram.fds.items():
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
                vectors.add(vector)
        return vectors

    def wait_for_interrupts(self) -> None:
        self.settle()
