"""A vfio-user client in plain Python: what a VMM does with a device, without the VM.

The protocol is QEMU's docs/interop/vfio-user.rst; the structures inside the messages are those of <linux/vfio.h>.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from array import array
from dataclasses import dataclass
from types import TracebackType
from typing import Self

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO = 1, 2, 3, 4, 5
GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DEVICE_RESET = 7, 8, 9, 10, 13

REPLY, NO_REPLY, ERROR = 1, 1 << 4, 1 << 5  # header flags
READABLE, WRITABLE = 1, 2  # DMA_MAP flags
UNMAP_ALL = 2
DATA_NONE, DATA_EVENTFD = 1, 4  # SET_IRQS flags
MASK, UNMASK, TRIGGER = 8, 16, 32

BAR0, BAR4, CONFIG = 0, 4, 7  # region indexes
INTX, MSIX, ERR, REQ = 0, 2, 3, 4  # interrupt indexes

HEADER = struct.Struct("<HHIII")  # id, command, size with the header, flags, error


class Refused(OSError):
    """The server answered with an error."""


@dataclass(frozen=True)
class Region:
    """What GET_REGION_INFO says."""

    flags: int
    size: int


class SharedMemory:
    """Guest RAM: a memfd, mapped here."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.data = mmap.mmap(self.fd, size)

    def close(self) -> None:
        self.data.close()
        os.close(self.fd)


class Client:
    """A connection to a server; agrees on a version at once."""

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._number = 0
        try:
            self.socket.connect(path)
            wanted = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}}
            answer = self.call(VERSION, struct.pack("<HH", 0, 1) + json.dumps(wanted).encode() + b"\0")
        except BaseException:
            self.socket.close()
            raise
        self.version = struct.unpack_from("<HH", answer)
        self.capabilities = json.loads(answer[4:].rstrip(b"\0"))["capabilities"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave without a word; there is no message for it."""
        self.socket.close()

    # --- messages

    def call(self, command: int, body: bytes = b"", fds: list[int] | None = None) -> bytes:
        """Send a command, wait for its reply: the reply's body. Raises Refused, or EOFError if the server is gone."""
        number = self.send(command, body, fds)
        answered, _, size, flags, error = HEADER.unpack(self._receive(HEADER.size))
        reply = self._receive(size - HEADER.size)
        if answered != number or flags & 0xF != REPLY:
            raise ValueError(f"message {number} was answered by {answered}, flags {flags:#x}")
        if flags & ERROR:
            raise Refused(error, os.strerror(error))
        return reply

    def send(self, command: int, body: bytes = b"", fds: list[int] | None = None, flags: int = 0) -> int:
        """Send a command and do not wait; its number."""
        self._number = (self._number + 1) & 0xFFFF
        message = HEADER.pack(self._number, command, HEADER.size + len(body), flags, 0) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self.socket.sendmsg([message], rights)
        return self._number

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError("the server closed the connection")
            data += piece
        return data

    # --- the device

    def device_info(self) -> tuple[int, int]:
        """How many regions, how many kinds of interrupts."""
        _, _, regions, interrupts = struct.unpack("<4I", self.call(GET_INFO, struct.pack("<4I", 16, 0, 0, 0)))
        return regions, interrupts

    def region_info(self, index: int) -> Region:
        reply = self.call(GET_REGION_INFO, struct.pack("<4I2Q", 32, 0, index, 0, 0, 0))
        _, flags, _, _, size, _ = struct.unpack_from("<4I2Q", reply)
        return Region(flags, size)

    def interrupt_count(self, index: int) -> int:
        reply = self.call(GET_IRQ_INFO, struct.pack("<4I", 16, 0, index, 0))
        return int(struct.unpack("<4I", reply)[3])

    def read(self, region: int, offset: int, size: int) -> bytes:
        return self.call(REGION_READ, struct.pack("<QII", offset, region, size))[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.call(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)

    def post(self, region: int, offset: int, data: bytes) -> None:
        """A write without a reply."""
        self.send(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data, flags=NO_REPLY)

    def reset(self) -> None:
        self.call(DEVICE_RESET)

    # --- memory and interrupts

    def map(
        self, iova: int, size: int, fd: int | None = None, offset: int = 0, flags: int = READABLE | WRITABLE
    ) -> None:
        """Give the device ``size`` bytes of the file at guest address ``iova``; no file: memory that is not shared."""
        self.call(DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, iova, size), None if fd is None else [fd])

    def unmap(self, iova: int, size: int) -> None:
        self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, iova, size))

    def unmap_all(self) -> None:
        self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, UNMAP_ALL, 0, 0))

    def set_interrupts(self, index: int, start: int, eventfds: list[int]) -> None:
        """Route the vectors from ``start`` on to these eventfds."""
        body = struct.pack("<5I", 20, DATA_EVENTFD | TRIGGER, index, start, len(eventfds))
        self.call(SET_IRQS, body, eventfds)

    def disable_interrupts(self, index: int) -> None:
        self.call(SET_IRQS, struct.pack("<5I", 20, DATA_NONE | TRIGGER, index, 0, 0))

    def unmask_pin(self) -> None:
        self.call(SET_IRQS, struct.pack("<5I", 20, DATA_NONE | UNMASK, INTX, 0, 1))
