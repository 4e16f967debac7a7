"""The controller's ports without an operating system: memory, time and workers that do what a test says."""

from __future__ import annotations

import heapq
import itertools
import mmap
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvmeemu.ports import HostMemoryError, MemoryMirror

_LARGE = 1 << 20  # bytes
_MAP_NORESERVE = 0x4000  # linux/mman.h; Python 3.11 does not name it


@dataclass
class _Region:
    data: bytearray | mmap.mmap
    writable: bool


def _zeros(size: int) -> bytearray | mmap.mmap:
    """Memory of zeros. A large mapping costs nothing until it is touched, but there cannot be many."""
    if size < _LARGE:
        return bytearray(size)
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


class Ram:
    """A Host: guest memory in regions, and a record of interrupts. ``unmap`` raises BufferError if anybody still holds
    a view of the region: on a real host that would be a crash."""

    def __init__(self, size: int = 16 << 20, base: int = 0, mirror: MemoryMirror | None = None) -> None:
        self._starts: list[int] = []
        self._regions: dict[int, _Region] = {}
        self.msix_enabled = True
        self.obstacle = ""
        self.pin_disabled = False  # Interrupt Disable, of the PCI Command register
        self.interrupts: list[int] = []
        self.pin_level = False
        self.on_barrier: Callable[[], None] | None = None  # what the host does at that very moment
        self.mirror = mirror
        if size:
            self.map(base, size)

    def map(self, iova: int, size: int, *, data: bytearray | mmap.mmap | None = None, writable: bool = True) -> None:
        region = self._regions[iova] = _Region(_zeros(size) if data is None else data, writable)
        self._starts = sorted(self._regions)
        if self.mirror is not None:
            self.mirror.add_region(iova, memoryview(region.data) if writable else memoryview(region.data).toreadonly())

    def unmap(self, iova: int) -> bytearray:
        """Take a region away; returns its bytes."""
        data = self._regions[iova].data
        kept = bytearray(data) if isinstance(data, mmap.mmap) else data
        self.discard(iova)
        return kept

    def discard(self, iova: int) -> None:
        """Take a region away with what is in it."""
        region = self._regions.pop(iova)
        if self.mirror is not None:
            self.mirror.remove_region(iova)
        self._starts = sorted(self._regions)
        if isinstance(region.data, mmap.mmap):
            region.data.close()  # BufferError while a view exists
        else:
            region.data.append(0)  # the same
            del region.data[-1]

    def _find(self, iova: int) -> tuple[int, _Region] | None:
        index = bisect_right(self._starts, iova) - 1
        if index < 0:
            return None
        start = self._starts[index]
        return start, self._regions[start]

    def view(self, iova: int, size: int) -> memoryview:
        found = self._find(iova)
        if found is None or not found[1].writable or iova + size > found[0] + len(found[1].data):
            raise HostMemoryError(iova, size)
        start, region = found
        return memoryview(region.data)[iova - start : iova - start + size]

    def views(self, iova: int, size: int, writable: bool = True) -> list[memoryview]:
        pieces = []
        while size:
            found = self._find(iova)
            if found is None or iova >= found[0] + len(found[1].data) or (writable and not found[1].writable):
                raise HostMemoryError(iova, size)
            start, region = found
            number = min(size, start + len(region.data) - iova)
            pieces.append(memoryview(region.data)[iova - start : iova - start + number])
            iova, size = iova + number, size - number
        return pieces

    def barrier(self) -> None:
        if self.on_barrier is not None:
            self.on_barrier()

    @property
    def pin_enabled(self) -> bool:
        return not (self.msix_enabled or self.pin_disabled)

    def interrupt_fd(self, vector: int) -> int:
        return -1

    def interrupt(self, vector: int) -> None:
        self.interrupts.append(vector)

    def pin(self, asserted: bool) -> None:
        self.pin_level = asserted

    def read(self, iova: int, size: int) -> bytes:
        return b"".join(self.views(iova, size, False))

    def write(self, iova: int, data: bytes) -> None:
        for piece in self.views(iova, len(data)):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]


@dataclass(order=True)
class _Alarm:
    time: float
    number: int
    callback: Callable[[], None] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualClock:
    """A Clock that stands still until ``advance``."""

    def __init__(self) -> None:
        self._time = 0.0
        self._alarms: list[_Alarm] = []
        self._numbers = itertools.count()
        self.on_advance: Callable[[float], None] = lambda time: None

    def now(self) -> float:
        return self._time

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Alarm:
        alarm = _Alarm(self._time + delay, next(self._numbers), callback)
        heapq.heappush(self._alarms, alarm)
        return alarm

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what is due, in order."""
        end = self._time + seconds
        while self._alarms and self._alarms[0].time <= end:
            alarm = heapq.heappop(self._alarms)
            self._time = alarm.time
            if not alarm.is_cancelled:
                alarm.callback()
        self._time = end
        self.on_advance(end)


class Task:
    """Work given to a ``ManualWorker``. ``run`` does the work, ``finish`` tells the controller."""

    def __init__(self, worker: ManualWorker, work: Callable[[], Any], done: Callable[[Any, Any], None]) -> None:
        self._worker = worker
        self._work = work
        self._done = done
        self.has_begun = False
        self._result: tuple[Any, BaseException | None] = (None, None)

    def run(self) -> None:
        self.has_begun = True
        try:
            self._result = (self._work(), None)
        except BaseException as error:
            self._result = (None, error)

    def finish(self) -> None:
        if not self.has_begun:
            self.run()
        self._worker.tasks.remove(self)
        self._done(*self._result)

    def cancel(self) -> bool:
        if self.has_begun or self not in self._worker.tasks:
            return False
        self._worker.tasks.remove(self)
        return True


class ManualWorker:
    """A Worker that does nothing by itself. Tests run and finish its ``tasks`` when, and in the order, they like."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def submit(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], at: object = None
    ) -> Task:
        task = Task(self, work, done)
        self.tasks.append(task)
        return task

    def finish_all(self) -> None:
        while self.tasks:
            self.tasks[0].finish()
