"""A disk that takes its time: a file in a FUSE file system of our own, which answers each read after a while.

It is a server in this process, on a thread; root is needed to mount it. There is one file in it, ``disk``, whose pages
begin with their places. The structures are those of <linux/fuse.h>.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import os
import select
import stat
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PAGE = 4096
ROOT, FILE = 1, 2  # node numbers
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
INIT, INTERRUPT, DESTROY, BATCH_FORGET = 26, 36, 38, 42
UNANSWERED = (FORGET, BATCH_FORGET, INTERRUPT)
VERSION = (7, 31)
ASYNC_READ, MAX_BACKGROUND = 1 << 0, 64
DIRECT_IO = 1 << 0  # of an open file: nothing is cached

_IN = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT = struct.Struct("=IiQ")
_READ = struct.Struct("=QQI")  # handle, offset, size
_ATTRIBUTES = struct.Struct("=6Q10I")
_INIT = struct.Struct("=IIIIHHIIHHI28x")
_libc = ctypes.CDLL(None, use_errno=True)


class SlowDisk:
    """A context manager; ``path`` is the disk. Raises OSError where nothing can be mounted."""

    def __init__(self, folder: Path, size: int, seconds: float, *, direct: bool = True) -> None:
        self.path = folder / "disk"
        self.size = size
        self.seconds = seconds
        self.most = 0  # reads that waited at the same time
        self.waiting = 0  # reads, now
        self._is_direct = direct
        self._due: list[tuple[float, int, bytes]] = []
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if _libc.mount(b"slow", bytes(folder), b"fuse", 0, options):
            error = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(error, f"no FUSE file system can be mounted: {os.strerror(error)}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _libc.umount2(bytes(self.path.parent), 2)  # MNT_DETACH
        self._thread.join(5)
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            if select.select([self._fd], [], [], wait)[0]:
                try:
                    request = os.read(self._fd, 1 << 20)
                except OSError:  # ENODEV: unmounted
                    return
                self._take(request)
            while self._due and self._due[0][0] <= time.monotonic():
                _, unique, data = heapq.heappop(self._due)
                self.waiting = len(self._due)
                self._answer(unique, data)

    def _take(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if opcode == READ:
            _, offset, size = _READ.unpack_from(body)
            heapq.heappush(self._due, (time.monotonic() + self.seconds, unique, self._content(offset, size)))
            self.waiting = len(self._due)
            self.most = max(self.most, self.waiting)
        elif opcode not in UNANSWERED:
            self._answer(unique, self._reply(opcode, node, body))

    def _reply(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """What these answer; a number is an error."""
        if opcode == INIT:
            ahead = struct.unpack_from("=III", body)[2]
            return _INIT.pack(*VERSION, ahead, ASYNC_READ, MAX_BACKGROUND, MAX_BACKGROUND, PAGE, 1, 0, 0, 0)
        if opcode == LOOKUP and body.rstrip(b"\0") == b"disk":
            return struct.pack("=4QII", FILE, 1, 3600, 3600, 0, 0) + self._attributes(FILE)
        if opcode == GETATTR:
            return struct.pack("=QII", 3600, 0, 0) + self._attributes(node)
        if opcode == OPEN:
            return struct.pack("=QII", 0, DIRECT_IO if self._is_direct else 0, 0)
        if opcode in (FLUSH, RELEASE, DESTROY):
            return b""
        return errno.ENOENT if opcode == LOOKUP else errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size = self.size if node == FILE else 0
        mode = stat.S_IFREG | 0o600 if node == FILE else stat.S_IFDIR | 0o700
        return _ATTRIBUTES.pack(
            node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, PAGE, 0
        )

    def _content(self, offset: int, size: int) -> bytes:
        first, last = offset // PAGE, -(-(offset + size) // PAGE)
        pages = b"".join(struct.pack("=Q", page).ljust(PAGE, b"\0") for page in range(first, last))
        return pages[offset - first * PAGE :][: max(0, min(size, self.size - offset))]

    def _answer(self, unique: int, reply: bytes | int) -> None:
        body = reply if isinstance(reply, bytes) else b""
        failure = reply if isinstance(reply, int) else 0
        try:
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -failure, unique) + body)
        except OSError:  # interrupted meanwhile, or unmounted
            return
