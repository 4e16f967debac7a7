"""A vfio-user client in plain Python: what a VMM does with a device, without the VM.

    memory = SharedMemory(1 << 20)
    with VfioClient("/tmp/nvme.sock") as vmm:  # nvmeemu serve --socket /tmp/nvme.sock --disk mem:1G
        vmm.map(0, 1 << 20, memory.fd)
        vmm.enable_bus_master()
        cap = vmm.read(BAR0, 0x00, 8)

``VfioBus`` is the same with a ``Driver`` in mind. The protocol is QEMU's docs/interop/vfio-user.rst; the structures
inside the messages are those of <linux/vfio.h>.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO = 1, 2, 3, 4, 5
GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DEVICE_RESET = 7, 8, 9, 10, 13

REPLY, NO_REPLY, ERROR = 1, 1 << 4, 1 << 5  # header flags
READABLE, WRITABLE = 1, 2  # DMA_MAP flags
SPARSE_MMAP = 1  # a capability of a region
MOST_INFO = 4096  # bytes of GET_REGION_INFO
MOST_FDS = 8
UNMAP_ALL = 2
DATA_NONE, DATA_BOOL, DATA_EVENTFD = 1, 2, 4  # SET_IRQS flags
MASK, UNMASK, TRIGGER = 8, 16, 32

BAR0, BAR4, CONFIG = 0, 4, 7  # region indexes
COMMAND, MEMORY_SPACE, BUS_MASTER = 0x04, 1 << 1, 1 << 2  # a register of the configuration space, bits of it
INTX, MSIX, ERR, REQ = 0, 2, 3, 4  # interrupt indexes

HEADER = struct.Struct("<HHIII")  # id, command, size with the header, flags, error
REGION_ACCESS = struct.Struct("<QII")  # offset, region, count
MAP = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
UNMAP = struct.Struct("<IIQQ")
SET = struct.Struct("<5I")  # argsz, flags, index, start, count


class Refused(OSError):
    """The server answered with an error."""


@dataclass(frozen=True)
class RegionInfo:
    """What GET_REGION_INFO says. ``areas``: offsets and sizes of what may be mapped, at ``offset`` in the files."""

    flags: int
    size: int
    offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()


class SharedMemory:
    """Guest RAM: a memfd, mapped here as ``data``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.data = mmap.mmap(self.fd, size)

    def close(self) -> None:
        self.data.close()
        os.close(self.fd)


class VfioClient:
    """A connection to a server; agrees on a version at once. Raises Refused, OSError or EOFError."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._number = 0
        self._received: list[int] = []  # descriptors that came with the last reply
        try:
            self.socket.connect(path)
            wanted = {"capabilities": {"max_msg_fds": MOST_FDS, "max_data_xfer_size": 1 << 20}}
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
        """Leave. The protocol has no message for it."""
        self.socket.close()
        self._close_received()

    def _close_received(self) -> None:
        while self._received:
            os.close(self._received.pop())

    # --- messages

    def call(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a command, wait for its reply and return the body. Raises Refused, or EOFError if the server is gone."""
        self._close_received()
        number = self.send(command, body, fds)
        answered, _, size, flags, error = HEADER.unpack(self._receive(HEADER.size))
        reply = self._receive(size - HEADER.size)
        if answered != number or flags & 0xF != REPLY:
            raise ValueError(f"message {number} was answered by {answered}, flags {flags:#x}")
        if flags & ERROR:
            raise Refused(error, os.strerror(error))
        return reply

    def send(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> int:
        """Send a command and do not wait; returns its number."""
        self._number = (self._number + 1) & 0xFFFF
        self.send_raw(HEADER.pack(self._number, command, HEADER.size + len(body), flags, 0) + body, fds)
        return self._number

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes: no message, half a message, or many."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], rights)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece, fds, _, _ = socket.recv_fds(self.socket, size - len(data), MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            self._received += fds
            if not piece:
                raise EOFError("the server closed the connection")
            data += piece
        return data

    # --- the device

    def device_info(self) -> tuple[int, int]:
        """How many regions, how many kinds of interrupts."""
        _, _, regions, interrupts = struct.unpack("<4I", self.call(GET_INFO, struct.pack("<4I", 16, 0, 0, 0)))
        return regions, interrupts

    def region_info(self, index: int) -> RegionInfo:
        reply = self.call(GET_REGION_INFO, struct.pack("<4I2Q", MOST_INFO, 0, index, 0, 0, 0))
        _, flags, _, at, size, offset = struct.unpack_from("<4I2Q", reply)
        areas = []
        while at:
            kind, _, following = struct.unpack_from("<HHI", reply, at)
            if kind == SPARSE_MMAP:
                count = struct.unpack_from("<I", reply, at + 8)[0]
                areas += [struct.unpack_from("<2Q", reply, at + 16 + 16 * number) for number in range(count)]
            at = following
        return RegionInfo(flags, size, offset, tuple(areas))

    def map_region(self, index: int) -> tuple[int, mmap.mmap] | None:
        """Where the part of a region begins that the server shares, and the part; None if it shares nothing."""
        info = self.region_info(index)
        if not info.areas:
            return None
        start, size = info.areas[0]
        return start, mmap.mmap(self._received[0], size, offset=info.offset + start)

    def interrupt_count(self, index: int) -> int:
        reply = self.call(GET_IRQ_INFO, struct.pack("<4I", 16, 0, index, 0))
        return int(struct.unpack("<4I", reply)[3])

    def read(self, region: int, offset: int, size: int) -> bytes:
        return self.call(REGION_READ, REGION_ACCESS.pack(offset, region, size))[REGION_ACCESS.size :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.call(REGION_WRITE, REGION_ACCESS.pack(offset, region, len(data)) + data)

    def post(self, region: int, offset: int, data: bytes) -> None:
        """A write without a reply."""
        self.send(REGION_WRITE, REGION_ACCESS.pack(offset, region, len(data)) + data, flags=NO_REPLY)

    def reset(self) -> None:
        """Reset the device, as a VMM does when its machine is reset."""
        self.call(DEVICE_RESET)

    def capability(self, identifier: int) -> int:
        """Where this PCI capability is in the configuration space; 0: nowhere."""
        offset = self.read(CONFIG, 0x34, 1)[0]
        while offset and self.read(CONFIG, offset, 1)[0] != identifier:
            offset = self.read(CONFIG, offset + 1, 1)[0]
        return offset

    def enable_bus_master(self) -> None:
        """What firmware and drivers do (PCI Local Bus 3.0, 6.2.2): without it the device reaches no memory and sends
        no MSI-X message. Every reset of the function undoes it."""
        command = int.from_bytes(self.read(CONFIG, COMMAND, 2), "little")
        self.write(CONFIG, COMMAND, (command | MEMORY_SPACE | BUS_MASTER).to_bytes(2, "little"))

    # --- memory and interrupts

    def map(
        self, iova: int, size: int, fd: int | None = None, offset: int = 0, flags: int = READABLE | WRITABLE
    ) -> None:
        """Give the device ``size`` bytes of the file at guest address ``iova``. Without a file: memory that is not
        shared."""
        self.call(DMA_MAP, MAP.pack(MAP.size, flags, offset, iova, size), () if fd is None else (fd,))

    def unmap(self, iova: int, size: int) -> None:
        self.call(DMA_UNMAP, UNMAP.pack(UNMAP.size, 0, iova, size))

    def unmap_all(self) -> None:
        self.call(DMA_UNMAP, UNMAP.pack(UNMAP.size, UNMAP_ALL, 0, 0))

    def set_interrupts(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Route the vectors from ``start`` on to these eventfds, in as many messages as their number needs."""
        most = self.capabilities.get("max_msg_fds", 1)
        for first in range(0, len(eventfds), most):
            chunk = eventfds[first : first + most]
            self.set_irqs(DATA_EVENTFD | TRIGGER, index, start + first, len(chunk), fds=chunk)

    def disable_interrupts(self, index: int) -> None:
        """Take all routes of this kind away."""
        self.set_irqs(DATA_NONE | TRIGGER, index, 0, 0)

    def mask_pin(self) -> None:
        self.set_irqs(DATA_NONE | MASK, INTX, 0, 1)

    def unmask_pin(self) -> None:
        """What a VMM does when the guest has ended an interrupt: a pin that is still asserted fires again."""
        self.set_irqs(DATA_NONE | UNMASK, INTX, 0, 1)

    def set_irqs(
        self, flags: int, index: int, start: int, count: int, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        self.call(SET_IRQS, SET.pack(SET.size + len(data), flags, index, start, count) + data, fds)
