"""Where a recorder's bytes go: a file that a thread of its own writes, so that the guest never waits for it.

At most the last ``PAUSE`` seconds are not written yet, unless the file takes no more. Then up to ``MOST_WAITING``
bytes wait, and records beyond that are left out and counted (a ``Lost`` record says so). A full disk ends the trace
with one message, and the guest does not notice.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from nvmeemu.trace.file import MAGIC, BadUse, Description, Reader, TraceError, Writer
from nvmeemu.trace.records import Lost, Note, encode, split

log = logging.getLogger(__name__)

PAUSE = 0.05  # seconds between two writes: one for many records
MOST_WAITING = 64 << 20  # bytes
LAST_WORDS = 5.0  # seconds that ``close`` waits for a file that takes nothing


class BadTarget(BadUse):
    """A trace there would destroy something else: bad use, and no failure of the system."""


class TraceFile:
    """A trace that is being written, from ``open`` to ``close``. ``put`` is called on one thread, never blocks and
    never raises."""

    _file: io.FileIO
    _thread: threading.Thread
    start: int
    """The time at which it begins; nanoseconds."""

    def __init__(self, path: str, description: Description, now: Callable[[], int] = time.monotonic_ns) -> None:
        self.path = path
        self._description = description
        self._now = now
        self._waiting: deque[bytes] = deque()
        self._put = self._taken = 0  # bytes; each is changed on one thread only
        self._lost = self._told = 0  # records
        self._is_dead = False
        self._news = threading.Event()
        self._closing = threading.Event()

    def open(self) -> Self:
        """Begin. Raises TraceError if the file cannot be written, or is something that must not be overwritten."""
        self._file = io.FileIO(_open(self.path), "wb")
        try:
            self.start = self._now()
            Writer(self._file, self._description, time.time_ns())
            self._thread = threading.Thread(target=self._write_all, name="nvmeemu-trace", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: there can be no more threads
            self._file.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise TraceError(f"{self.path}: {reason}") from None
        return self

    def now(self) -> int:
        """The time for a record."""
        return self._now() - self.start

    def put(self, data: bytes) -> None:
        """A record, encoded, or several."""
        if self._put - self._taken > MOST_WAITING or self._is_dead:
            self._lost += sum(1 for _ in split(data))
            return
        self._waiting.append(data)
        self._put += len(data)
        if not self._news.is_set():
            self._news.set()

    def note(self, text: str) -> None:
        """Put a user's remark between the records."""
        self.put(encode(Note(self.now(), 0, text)))

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._closing.set()
        self._news.set()
        self._thread.join(LAST_WORDS)
        if self._thread.is_alive():
            log.warning("trace %s: the file takes no more data: the last records are not in it", self.path)
        else:
            self._file.close()

    # --- on the thread

    def _write_all(self) -> None:
        while self._waiting or not self._closing.is_set():
            self._news.wait()
            self._closing.wait(PAUSE)
            self._news.clear()  # before looking: what comes from here on sets it again
            self._write(b"".join(self._waiting.popleft() for _ in range(len(self._waiting))))
        self._write(b"")  # what was lost during the last write

    def _write(self, data: bytes) -> None:
        taken = len(data)
        if self._lost != self._told:
            lost, self._told = self._lost - self._told, self._lost
            data += encode(Lost(self.now(), 0, lost))
        try:
            while data and not self._is_dead:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            self._is_dead = True
            log.error("trace %s: %s: it ends here; the guest goes on", self.path, error.strerror)
        self._taken += taken


def _open(path: str) -> int:
    """A descriptor of the file, emptied. A file that holds something other than a trace is not touched. Raises
    TraceError."""
    try:
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )  # a pipe nobody reads: an error
        os.set_blocking(fd, True)
        try:
            _check(path, os.fstat(fd).st_mode)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                _lock(path, fd)
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    return fd


def _check(path: str, mode: int) -> None:
    if stat.S_ISBLK(mode):
        raise BadTarget(f"{path}: a block device: give a file")
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) not in (b"", MAGIC):
                raise BadTarget(f"{path}: there is a file that is no trace: give another name")


def _lock(path: str, fd: int) -> None:
    """Keep others from writing a trace there until the file is closed. Raises TraceError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TraceError(f"{path}: another process is writing a trace there") from None
    except OSError:  # a file system without locks
        pass


def save(path: str, trace: Reader) -> None:
    """Write a trace that is complete, in one go. Raises TraceError, also if the disk is full."""
    try:
        with open(_open(path), "wb") as file:
            writer = Writer(file, trace.description, trace.started or time.time_ns())
            for record in trace:
                writer.write(record)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


class Memory:
    """A trace in memory, for tests."""

    def __init__(self, description: Description, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._start = now()
        self._file = io.BytesIO()
        Writer(self._file, description)

    def now(self) -> int:
        return self._now() - self._start

    def put(self, data: bytes) -> None:
        self._file.write(data)

    def reader(self) -> Reader:
        """A reader of what it has so far."""
        return Reader(io.BytesIO(self._file.getvalue()))
