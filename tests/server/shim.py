"""Drives ``shim.c``: a disk that blocks, fails, and remembers what a power cut could not take away.

The shim is preloaded into the real server and touches no other file than the disk. It works below Python, so that it
also sees a data path in C.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("shim.c", "shim_uring.c")]
PATIENCE = 120.0
_RECORD = struct.Struct("=IIQQ")


class Op(IntEnum):
    """The kinds of calls; a write is a sync, too, where it is to be durable (RWF_DSYNC)."""

    READ = 0
    WRITE = 1
    SYNC = 2
    PUNCH = 3


class Event(IntEnum):
    """What a trace tells, in its order."""

    WROTE = 0
    WROTE_DURABLY = 1
    SYNC_BEGAN = 2
    SYNC_DONE = 3
    PUNCHED = 4


@dataclass(frozen=True)
class Record:
    """One line of a trace. WROTE, PUNCHED: when the call had returned, so before anybody was told."""

    event: Event
    thread: int
    offset: int = 0
    length: int = 0
    data: bytes = b""


def compile_shim(folder: Path) -> Path:
    """The shared object, made in ``folder``."""
    library = folder / "shim.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *options, "-o", library, *SOURCES, "-ldl", "-pthread"], check=True)
    return library


class Shim:
    """The shim of one server, and after it of the next one on the same disk: give them ``environment`` and ``engine``.

    ``path``: who moves the data. ``python``; ``native``, the engine without io_uring, so that Python's threads
    wait for the disk; ``io_uring``, the engine with one that is as bad as the disk; ``lane``, with that, too, on a file
    system that cannot be asked for writes that do not wait, so that the engine's lanes do the writes.
    """

    def __init__(self, library: Path, folder: Path, disk: Path, *, trace: bool = False, path: str = "python") -> None:
        self.path = path
        self.engine = ("--engine", "python" if path == "python" else "native")
        control, self._trace = folder / "shim-control", folder / "shim-trace"
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("I")
        self.environment = {"LD_PRELOAD": str(library), "SHIM_CONTROL": str(control), "SHIM_DISK": str(disk)}
        if path in ("io_uring", "lane"):
            self.environment["SHIM_URING"] = "1"
        if path == "lane":
            self.environment["SHIM_WRITES_WAIT"] = "1"
        self._position = 0
        if trace:
            self._trace.touch()
            self.environment["SHIM_TRACE"] = str(self._trace)

    def close(self) -> None:
        self._words.release()
        self._map.close()

    def hold(self, *ops: Op) -> None:
        """Let these calls wait until ``release``."""
        for op in ops:
            self._words[op] = 1

    def release(self) -> None:
        for op in Op:
            self._words[op] = 0

    def fail(self, op: Op, errno: int, *, once: bool = False) -> None:
        """Let these calls fail with ``errno``, or only the next one; 0: no more."""
        self._words[20 + op] = once
        self._words[4 + op] = errno

    def cut(self, op: Op, is_cut: bool = True) -> None:
        """Let these calls do only a part of their work, as a signal or a full disk can make them."""
        self._words[16 + op] = is_cut

    def hold_halfway(self, is_held: bool = True) -> None:
        """Let writes wait when their first half is on the disk, until ``release``."""
        self._words[16 + Op.WRITE] = 2 if is_held else 0

    def forget(self) -> None:
        """The server was killed: nothing of it waits, and the next one's calls go on."""
        self.hold_halfway(False)
        self.release()
        for op in Op:
            self._words[8 + op] = 0

    def held(self, op: Op) -> int:
        """How many calls wait at this moment."""
        return self._words[8 + op]

    def calls(self, op: Op) -> int:
        """How many calls have come."""
        return self._words[12 + op]

    def wait_for_held(self, op: Op, number: int = 1) -> None:
        """Return when at least so many calls wait."""
        _wait(lambda: self.held(op) >= number, f"{number} calls are held")

    def wait_for_record(self, event: Event) -> None:
        """Return when this has been traced, since the last call of ``records``."""
        _wait(lambda: any(record.event is event for record in self.records()), event.name)

    def records(self) -> Iterator[Record]:
        """What has been traced since the last call. A record that is not whole yet is left for the next one."""
        with self._trace.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        start = 0
        while start + _RECORD.size <= len(text):
            event, thread, offset, length = _RECORD.unpack_from(text, start)
            body = start + _RECORD.size
            end = body + length if event in (Event.WROTE, Event.WROTE_DURABLY) else body
            if end > len(text):
                break
            yield Record(Event(event), thread, offset, length, text[body:end])
            start = end
        self._position += start

    def drop_torn_record(self) -> None:
        """The server was killed, maybe in the middle of telling: what the next one tells must not come behind half a
        record. A write of more than one page ends early when its process is killed."""
        os.truncate(self._trace, self._position)


def _wait(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never: {what}")
        time.sleep(0.001)


class Medium:
    """What is on the disk for sure if the power goes now: only what was synced, everything else is lost.

    A real disk keeps more than that; a promise that holds here holds on every disk.
    """

    def __init__(self, size: int) -> None:
        self.durable = bytearray(size)
        self._cache: list[Record] = []
        self._syncing: dict[int, int] = {}  # thread -> how much of the cache its sync found when it began

    def take(self, records: Iterator[Record]) -> None:
        for record in records:
            if record.event is Event.WROTE_DURABLY:
                self._keep(record)
                self._cache.append(record)
            elif record.event is Event.SYNC_BEGAN:
                self._syncing[record.thread] = len(self._cache)
            elif record.event is Event.SYNC_DONE:
                self._sync(self._syncing.pop(record.thread))
            else:
                self._cache.append(record)

    def restart(self) -> None:
        """The server was killed: the syncs that had begun will never report."""
        self._syncing.clear()

    def _sync(self, number: int) -> None:
        for record in self._cache[:number]:
            self._keep(record)
        del self._cache[:number]
        for record in self._cache:  # what was older than these must not come back over them
            if record.event is Event.WROTE_DURABLY:
                self._keep(record)
        self._syncing = {thread: max(0, other - number) for thread, other in self._syncing.items()}

    def _keep(self, record: Record) -> None:
        data = bytes(record.length) if record.event is Event.PUNCHED else record.data
        self.durable[record.offset : record.offset + len(data)] = data
