"""A controller on virtual ports and a driver for it, all in one process."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from nvmeemu.backend import Backend
from nvmeemu.backend.companion import Companion
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.limits import Limits
from nvmeemu.engine.native.engine import NativeEngine
from nvmeemu.ports import Mirrors, SavedState, Worker
from nvmeemu.spec import DOORBELLS
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import SMALLEST, Format
from nvmeemu.subsystem.formatter import Formatter
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pairing import Pairer
from nvmeemu.subsystem.pool import MemoryPool
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.testing.driver import Driver
from nvmeemu.testing.ports import ManualWorker, Ram, VirtualClock

_NO_IDS = Ids()


class _WatchedPool(MemoryPool):
    """Notes what it makes in ``made``, so that it can be closed with the bench."""

    def __init__(self, capacity: int, worker: Worker, made: list[Companion]) -> None:
        super().__init__(capacity, worker)
        self._made = made

    def make(self, name: str, size: int, format: Format) -> PairedMedia:
        media = super().make(name, size, format)
        self._made.append(media.companion)
        return media


class Bench:
    """A controller on virtual ports, and a driver for it. ``manual`` leaves the worker's tasks to the test.

    ``ram`` is the size of guest memory from address 0 on, or a memory of the test's own without regions. With
    ``engine="native"`` the native engine serves its I/O queues, on a thread that ``settle`` waits for; ``close`` (or
    the end of a ``with``) ends it. With ``"mapped"`` the engine also finds the doorbells in memory, where
    ``write_bar`` puts them. ``format`` and the three that follow are of namespace 1. ``subsystem``
    is that of another bench, of which this is one more controller. ``state`` is what the drive remembers, perhaps from
    a bench before. With ``pool``, hosts can make namespaces of so many bytes.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        limits: Limits | None = None,
        block_size: int = SMALLEST,
        format: Format | None = None,
        has_block_map: bool = False,
        can_be_paired: bool = False,
        can_be_formatted: bool = False,
        ram: int | Ram = 16 << 20,
        manual: bool = False,
        engine: str = "python",
        lanes: int = 1,
        subsystem: Subsystem | None = None,
        cntlid: int = 1,
        state: SavedState | None = None,
        pool: int = 0,
    ) -> None:
        self._companions: list[Companion] = []
        self.engine: NativeEngine | None = None
        if engine != "python":
            self.engine = NativeEngine(lanes, has_mapped_doorbells=engine == "mapped")
        self.ram = ram if isinstance(ram, Ram) else Ram(0)
        self.clock = VirtualClock()
        if self.engine is not None:
            self.engine.set_test_time(0.0)
            self.clock.on_advance = self.engine.set_test_time
        self.worker = ManualWorker()
        self.is_manual = manual
        self.backend = backend or MemoryBackend(16 << 20)
        limits = limits or Limits()
        is_new = subsystem is None
        if subsystem is None:
            room = _WatchedPool(pool, self.worker, self._companions) if pool else None
            subsystem = Subsystem(Identity(serial="TEST0001"), Inventory(limits.namespaces), self.clock, state, room)
            first = self.namespace(1, self.backend, block_size, format=format, has_block_map=has_block_map)
            if can_be_paired:
                self.allow_pairing(first)
            if can_be_formatted:
                self.allow_format(first)
                subsystem.offer_formats()
            subsystem.add(first)
        elif subsystem.pool is not None and isinstance(subsystem.pool.worker, ManualWorker):
            self.worker = subsystem.pool.worker
        self.subsystem = subsystem
        self.namespaces = subsystem.namespaces
        self.controller = Controller(self.ram, self.clock, subsystem, limits, self.engine, cntlid)
        if is_new:
            subsystem.state.save(subsystem.power_on(), lambda error: None)
        self.ram.mirror = Mirrors(self.engine, self.controller.taps)
        if isinstance(ram, int) and ram:
            self.ram.map(0, ram)
        self.driver = Driver(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        while self._companions:
            self._companions.pop().close()

    def namespace(
        self,
        nsid: int,
        backend: Backend,
        block_size: int = SMALLEST,
        identity: str | None = None,
        ids: Ids = _NO_IDS,
        *,
        format: Format | None = None,
        has_block_map: bool = False,
    ) -> Namespace:
        """A namespace on a disk of the test's own, which waits at ``worker``. Add it to ``namespaces`` for the host to
        see it. ``format`` says more than ``block_size``; with metadata, or ``has_block_map``, the disk has a companion
        in memory, in which all blocks are deallocated."""
        format = format or Format(block_size)
        if not format.metadata_size and not has_block_map:
            return Namespace(nsid, DiskMedia(backend, format, self.worker), identity, ids)
        companion = Companion.in_memory(format, backend.size)
        companion.load(0, 1)  # from the first command on the engine sees it
        self._companions.append(companion)
        return Namespace(nsid, PairedMedia(backend, companion, self.worker), identity, ids)

    def allow_format(self, namespace: Namespace) -> None:
        """Let hosts format a namespace of ``namespace``. Its companion, too, is in memory."""
        media = namespace.media
        assert isinstance(media, DiskMedia)

        def make(now: Format, wanted: Format) -> Companion:
            companion = Companion.in_memory(now, media.backend.size, intention=wanted)
            self._companions.append(companion)
            return companion

        namespace.formatter = Formatter(media, make)

    def allow_pairing(self, namespace: Namespace) -> None:
        """Let a plain namespace of ``namespace`` get a companion, in memory, when one is needed."""
        media = namespace.media
        assert isinstance(media, DiskMedia)

        def make() -> Companion:
            companion = Companion.in_memory(media.format, media.backend.size, [(0, media.blocks)])
            self._companions.append(companion)
            return companion

        namespace.pairer = Pairer(media, make)

    def unmap(self, iova: int) -> bytearray:
        """The VMM takes a region away; returns its bytes."""
        self.controller.quiesce()
        data = self.ram.unmap(iova)
        self.controller.memory_changed()
        return data

    def map(self, iova: int, data: bytearray, *, writable: bool = True) -> None:
        """The VMM maps a region (again)."""
        self.controller.quiesce()
        self.ram.map(iova, len(data), data=data, writable=writable)
        self.controller.memory_changed()
        self.settle()

    def read_bar(self, offset: int, size: int) -> bytes:
        return self.controller.read(offset, size)

    def write_bar(self, offset: int, data: bytes) -> None:
        is_mapped = self.engine is not None and self.engine.doorbells_fd >= 0
        if self.engine is not None and is_mapped and offset >= DOORBELLS and len(data) == 4 and not offset & 3:
            os.pwrite(self.engine.doorbells_fd, data, offset)
        else:
            self.controller.write(offset, data)

    def read_memory(self, iova: int, size: int) -> bytes:
        return self.ram.read(iova, size)

    def write_memory(self, iova: int, data: bytes) -> None:
        self.ram.write(iova, data)

    def settle(self) -> None:
        """Let everything be done that can be done now. Then the engine is idle and has told Python everything."""
        while self.controller.run() or self._has_more():
            if not self.is_manual:
                self.worker.finish_all()

    def _has_more(self) -> bool:
        if self.engine is not None:
            self.engine.wait_until_idle()
            if self.engine.has_news:
                return True
        return bool(self.worker.tasks) and not self.is_manual
