"""What is measured: our server with either engine and each kind of doorbell, and the floor; all by the same host."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from bench import cpu
from bench.polled import MAX_DEPTH, PAGE, Floor, Load, Queue, address, library
from nvmeemu.app import process, serving
from nvmeemu.app.cli import capabilities
from nvmeemu.spec import CQE_SIZE, DOORBELLS, SQE_SIZE, AdminOpcode, Command, FormatNvm, NvmOpcode
from nvmeemu.testing import Driver, SharedMemory, VfioBus
from nvmeemu.testing.client import BAR0

MIB = 1 << 20
ENTRIES = 1024  # of each queue
RAM = 128 * MIB
BUFFERS = 16 * MIB  # of all queues: 128 commands of 128 KiB


class BenchError(Exception):
    """It cannot be measured; the text is one line for the user."""


@dataclass(frozen=True)
class Result:
    """One load's outcome. Times in nanoseconds."""

    load: Load
    p50: int
    p99: int
    engine: int  # CPU time of the threads that serve the queues
    process: int  # and of the whole server
    disturbance: int  # the longest that a thread waited for a CPU which others had


class Target(Protocol):
    name: str
    queues: int

    def run(self, load: Load, count: int = 1) -> Result:
        """Run a load on the first ``count`` queues. Raises BenchError."""
        ...


def _submit(queues: ctypes.Array[Queue], count: int, load: Load, name: str) -> tuple[int, int]:
    """The latencies' median, and the one that 1 % are above."""
    return _latencies(load, name, lambda: library().run_load(queues, count, ctypes.byref(load)))


def _latencies(load: Load, name: str, run: Callable[[], int]) -> tuple[int, int]:
    samples = (ctypes.c_uint32 * load.room)()
    load.samples = samples
    error = run()
    if error or load.failed or load.wrong:
        what = os.strerror(error) if error else f"{load.failed} failed, {load.wrong} read other data"
        raise BenchError(f"{name}: of {load.done} commands {what}")
    found = sorted(samples[: min(load.done, load.room)]) or [0]
    return found[len(found) // 2], found[len(found) * 99 // 100]


class Layout:
    """The guest memory of ``count`` queue pairs."""

    def __init__(self, memory: SharedMemory, start: int, count: int) -> None:
        self.base = address(memory.data)
        self.queues = (Queue * count)()
        self._next = start
        for index, queue in enumerate(self.queues):
            queue.data_iova, queue.lists_iova = self.take(BUFFERS // count), self.take(MAX_DEPTH * PAGE)
            queue.data, queue.lists = self.base + queue.data_iova, self.base + queue.lists_iova
            queue.entries, queue.qid, queue.phase, queue.socket = ENTRIES, index + 1, 1, -1

    def take(self, size: int) -> int:
        """A guest address."""
        start, self._next = self._next, self._next + size
        if self._next > RAM:
            raise ValueError("the guest memory is too small")
        return start


class ServedTarget:
    """``nvmeemu serve`` in a process of its own, its controller enabled, with ``queues`` I/O queue pairs."""

    def __init__(
        self,
        name: str,
        folder: Path,
        disk: str,
        arguments: Sequence[str] = (),
        *,
        doorbells: str,
        queues: int = 1,
        environment: Mapping[str, str] | None = None,
        format: FormatNvm | None = None,
    ) -> None:
        """With ``format``, namespace 1 is formatted first."""
        self.name = name
        self.queues = queues
        self.log = folder / f"{name}.log"
        socket = folder / f"{name}.sock"
        words = ["--disk", disk, "--log-level", "error", *arguments]
        self._server = serving.start(socket, words, self.log, environment=environment)
        try:
            self._bus = VfioBus(str(socket), ram=RAM, vectors=1)
            for tid in cpu.threads(self.pid):
                cpu.leave_to_host(tid)
            self._has_engine = "python" not in arguments
            self._set_up(doorbells, format)
        except BaseException:
            process.end(self._server)
            raise

    def _set_up(self, doorbells: str, format: FormatNvm | None) -> None:
        layout = Layout(self._bus.memory, RAM // 2, self.queues)
        driver = Driver(self._bus)
        driver.enable()
        if format is not None:
            driver.succeed(driver.admin, format)
        self._queues = layout.queues
        for queue in layout.queues:
            at = driver.create_cq(queue.qid, ENTRIES, ien=False), driver.create_sq(queue.qid, ENTRIES)
            queue.cq, queue.sq = (layout.base + place for place in at)
            queue.socket = self._bus.client.socket.fileno()
            self._bus.client.socket.settimeout(None)
            queue.tail_register = DOORBELLS + 8 * queue.qid
            queue.head_register = queue.tail_register + 4
        if doorbells == "shadow":
            self._use_shadows(driver, layout)
        elif doorbells == "mapped":
            self._use_page(layout)

    def _use_shadows(self, driver: Driver, layout: Layout) -> None:
        shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
        opcode = AdminOpcode.DOORBELL_BUFFER_CONFIG
        driver.succeed(driver.admin, Command(opcode=opcode, prp1=shadow, prp2=event))
        for queue in layout.queues:
            offset = layout.base + 8 * queue.qid
            queue.tail_shadow, queue.tail_event = offset + shadow, offset + event
            queue.head_shadow, queue.head_event = queue.tail_shadow + 4, queue.tail_event + 4

    def _use_page(self, layout: Layout) -> None:
        shared = self._bus.client.map_region(BAR0)
        if shared is None:
            raise BenchError(f"{self.name}: the server shares no doorbells")
        start, self._page = shared
        for queue in layout.queues:
            queue.tail_page = address(self._page) + queue.tail_register - start
            queue.head_page = address(self._page) + queue.head_register - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del self._queues  # it points into the memory that goes
        self._bus.client.close()
        process.end(self._server)

    @property
    def pid(self) -> int:
        return self._server.pid

    def run(self, load: Load, count: int = 1) -> Result:
        with cpu.host():
            begun, before, here = cpu.process(self.pid), cpu.threads(self.pid), cpu.thread()
            latencies = _submit(self._queues, count, load, self.name)
            times = cpu.spent(before, cpu.threads(self.pid))
            everything = cpu.process(self.pid) - begun
            waited = cpu.thread().waited - here.waited
        lanes = cpu.named(self.pid, "nvmeemu-lane") if self._has_engine else {self.pid}
        engine = sum(one.run for tid, one in times.items() if tid in lanes)
        disturbance = max(waited, cpu.disturbance(times))
        return Result(load, *latencies, engine, everything, disturbance)

    def memory(self) -> dict[str, int]:
        """/proc/PID/status: bytes, by the field's name."""
        lines = (line.split() for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


class FloorTarget:
    """The least that serving takes: a thread of ours that copies entry and data and stores the completion."""

    name = "floor"

    def __init__(self, disk: int, queues: int = 1) -> None:
        self.queues = queues
        self._memory = SharedMemory(RAM)
        self._disk = mmap.mmap(-1, disk, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page = mmap.mmap(-1, PAGE)
        layout = Layout(self._memory, 0, queues)
        self._queues = layout.queues
        self._served = (Queue * queues)()
        for queue in layout.queues:
            queue.sq, queue.cq = (layout.base + layout.take(ENTRIES * size) for size in (SQE_SIZE, CQE_SIZE))
            queue.tail_page = address(self._page) + 8 * queue.qid  # as in a controller's doorbells
            queue.head_page = queue.tail_page + 4
            self._served[queue.qid - 1] = queue

    def run(self, load: Load, count: int = 1) -> Result:
        floor = Floor(guest=address(self._memory.data), disk=address(self._disk), count=count)
        floor.queues = self._served
        floor.counts_idle = load.depth > 1
        waited: list[int] = []

        def serve() -> None:
            cpu.leave_to_host()
            before = cpu.thread()
            library().run_floor(ctypes.byref(floor))
            waited.append(cpu.thread().waited - before.waited)

        server = threading.Thread(target=serve)
        server.start()
        try:
            with cpu.host():
                before = cpu.thread()
                latencies = _submit(self._queues, count, load, self.name)
                waited.append(cpu.thread().waited - before.waited)
        finally:
            floor.stop = 1
            server.join()
        return Result(load, *latencies, floor.cpu, floor.cpu, max(waited))


class CallsTarget:
    """No drive: the system calls that a command comes to, on a file."""

    queues = 1

    def __init__(self, name: str, path: Path, size: int) -> None:
        self.name = name
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.truncate(self._fd, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def run(self, load: Load, count: int = 1) -> Result:
        with cpu.host():
            cpu.leave_to_host()
            before = cpu.thread()
            latencies = _latencies(load, self.name, lambda: library().run_calls(self._fd, ctypes.byref(load)))
            after = cpu.thread()
        return Result(load, *latencies, after.run - before.run, after.run - before.run, after.waited - before.waited)


def has_mapped() -> bool:
    """Whether the server has doorbells that are shared memory."""
    return "doorbells" in capabilities()["features"]  # type: ignore[operator]


def fill(target: Target, pages: int) -> None:
    """Write the whole disk, so that each page begins with its place."""
    each = 32
    opcode = NvmOpcode.WRITE
    target.run(Load(disk_pages=pages, opcode=opcode, pages=each, depth=8, commands=pages // each))
