"""Which messages of a client libvfio-user may see, and what becomes of the others.

The library trusts its client, the VMM, with the health of this process. ``message.h`` looks at each message before
the library does; this module decides which of them must not reach the library, and what the client
is answered instead.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass

from nvmeemu.vfio.errors import ProtocolError
from nvmeemu.vfio.sharing import File

DMA_MAP, DMA_UNMAP, SET_IRQS = 2, 3, 8  # commands
NO_REPLY, ERROR_REPLY = 1 << 4, 1 << 5 | 1  # header flags
TRIGGER = 1 << 5  # of SET_IRQS
WRITABLE = 1 << 1  # of DMA_MAP
INTX = 0  # interrupt index

LONGEST = 1 << 16  # NVMEEMU_LONGEST in message.h
PAGE = 4096
ONE_FILE = "a range must lie in one file; for SPDK and DPDK: -g (--single-file-segments), or --no-huge -s 256"
HEADER = struct.Struct("<HHIII")  # id, command, size, flags, error
MAP = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
UNMAP = struct.Struct("<IIQQ")  # argsz, flags, address, size
BITMAP, GET_DIRTY_BITMAP = 16, 1  # bytes that follow it with this flag
SET = struct.Struct("<5I")  # argsz, flags, index, start, count


@dataclass(frozen=True)
class Message:
    """The header, the first 32 bytes of the body (with rubbish behind its end), and what came along."""

    id: int
    command: int
    size: int
    flags: int
    body: bytes
    file_size: int  # of its first descriptor's regular file, or -1
    file: File  # which that is, if it is one
    descriptors_lost: bool

    @property
    def mapping(self) -> tuple[int, int, int] | None:
        """DMA_MAP's address, size and offset, if it is one and whole."""
        if self.command != DMA_MAP or self.size < HEADER.size + MAP.size:
            return None
        _, _, offset, address, size = MAP.unpack_from(self.body)
        return address, size, offset

    @property
    def is_writable(self) -> bool:
        """Whether what DMA_MAP maps may be written to."""
        return bool(MAP.unpack_from(self.body)[1] & WRITABLE)

    @property
    def routes(self) -> int | None:
        """The kind of interrupts whose eventfds SET_IRQS replaces, if it is one and does."""
        if self.command != SET_IRQS or self.size < HEADER.size + SET.size:
            return None
        _, flags, index, _, _ = SET.unpack_from(self.body)
        return int(index) if flags & TRIGGER else None


@dataclass(frozen=True)
class Refusal:
    """The answer to a message that the library must not see. ``reason`` and ``cure`` are for the log."""

    error: int
    reason: str
    cure: str = ""


def judge(message: Message) -> Refusal | None:
    """What the library would not survive, or not without losing descriptors, whatever the state of the device."""
    if message.descriptors_lost:
        return Refusal(errno.EMFILE, "it came with more file descriptors than this process may open (ulimit -n)")
    if message.command == SET_IRQS and message.size >= HEADER.size + SET.size:
        _, _, _, start, count = SET.unpack_from(message.body)
        if start + count > 0xFFFFFFFF:  # the library adds them in 32 bits
            return Refusal(errno.EINVAL, f"interrupts {start} to {start + count}")
    if message.size < HEADER.size + _least_body(message):
        return Refusal(errno.EINVAL, f"memory, in a message of {message.size} bytes")
    if message.mapping is not None:
        return _judge_mapping(*message.mapping, message.file_size)
    return None


def _least_body(message: Message) -> int:
    """Bytes of the body that the library reads before it looks how long it is."""
    if message.command == DMA_MAP:
        return MAP.size
    if message.command == DMA_UNMAP:
        _, flags, _, _ = UNMAP.unpack_from(message.body)
        return UNMAP.size + (BITMAP if flags == GET_DIRTY_BITMAP else 0)
    return 0


def _judge_mapping(address: int, size: int, offset: int, file_size: int) -> Refusal | None:
    where = f"memory at {address:#x}, {size:#x} bytes"
    if size == 0 or address + size > 1 << 64:
        return Refusal(errno.EINVAL, f"{where}: no range")
    if size > sys.maxsize:  # before the library sees that it is too large, it adds it to a pointer: undefined in C
        return Refusal(errno.ENOSPC, f"{where}: more than half of all addresses")
    if offset % PAGE:
        return Refusal(errno.EINVAL, f"{where}: its file offset {offset:#x} is not a multiple of {PAGE}")
    if file_size >= 0 and offset + size > file_size + -file_size % PAGE:
        return Refusal(errno.EINVAL, f"{where}: its file ends before {offset + size:#x}", ONE_FILE)
    return None


def refuse(fd: int, message: Message, refusal: Refusal) -> None:
    """Take the message off the socket and answer it. Raises OSError."""
    with _socket(fd) as connection:
        left = message.size
        while left:
            piece = connection.recv(left, socket.MSG_DONTWAIT)  # its descriptors are closed unseen
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            left -= len(piece)
        if not message.flags & NO_REPLY:
            reply = HEADER.pack(message.id, message.command, HEADER.size, ERROR_REPLY, refusal.error)
            connection.send(reply, socket.MSG_DONTWAIT)


def missing(beginning: bytes | bytearray) -> int:
    """How many bytes of a message, or first of its header, are still to come after its beginning. Raises
    ProtocolError."""
    if len(beginning) < HEADER.size:
        return HEADER.size - len(beginning)
    _, _, size, _, _ = HEADER.unpack_from(beginning)
    if not HEADER.size <= size <= LONGEST:
        raise ProtocolError("what it sent is no vfio-user command")
    return int(size) - len(beginning)


def tell_busy(connection: socket.socket, message: bytes | bytearray) -> None:
    """Answer the first message of one that is no client. Raises OSError."""
    number, command, *_ = HEADER.unpack_from(message)
    connection.send(HEADER.pack(number, command, HEADER.size, ERROR_REPLY, errno.EBUSY), socket.MSG_DONTWAIT)
    connection.recv(LONGEST, socket.MSG_DONTWAIT)  # closed with something unread, it would lose the answer


def hang_up(fd: int) -> None:
    """End the connection and throw away what has come, so that the library sees nothing but the end."""
    with suppress(OSError), _socket(fd) as connection:
        connection.shutdown(socket.SHUT_RDWR)
        while connection.recv(1 << 16, socket.MSG_DONTWAIT):
            pass


def limit_sending(fd: int, seconds: int) -> None:
    """Let the library give up when the client takes no replies for this long: it would wait for ever."""
    with _socket(fd) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, 0))


def _socket(fd: int) -> socket.socket:
    """A socket of the library's, to be closed here without being closed there."""
    return socket.socket(fileno=os.dup(fd))
