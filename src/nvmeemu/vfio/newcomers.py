"""Newcomers: connections that are not the client's yet.

libvfio-user accepts a connection and then waits for its first message, for as long as that takes. All controllers of
this process would wait with it. So the connections are accepted here, and their first messages awaited beside all else;
the library gets a connection (``binding.Context.attach``) when it has nothing to wait for any more.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from nvmeemu.ports import Timer
from nvmeemu.vfio import messages
from nvmeemu.vfio.errors import ProtocolError
from nvmeemu.vfio.loop import NO_DESCRIPTORS, NO_DESCRIPTORS_TIME, Loop

MOST = 8  # that have not said what they want
HANDSHAKE_TIME = 5.0  # seconds for that


class Newcomer:
    """A connection, and what has come of its first message. One that sends nothing only looks whether a server is
    there."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid = _pid(connection)  # of the process at the other end; 0 if it is none that we see from here
        self.name = _name(self.pid)  # for the log
        self.greeting = bytearray()

    def hear(self) -> bool:
        """Take what has come. True: the message is whole, and nothing behind it was taken. Raises ProtocolError if it
        never will be, OSError if the connection is lost."""
        while missing := messages.missing(self.greeting):
            try:
                piece = self.connection.recv(missing)
            except BlockingIOError:
                return False
            if not piece:
                raise ProtocolError("it left in the middle of a message" if self.greeting else "it said nothing")
            self.greeting += piece
        return True


class Newcomers:
    """The newcomers of one listening socket.

    ``on_greeting()`` is called when the first message of a newcomer is there. The newcomer is then in ``ready``, until
    the caller takes it or turns it away. ``on_failure(reason)`` is called when a newcomer was lost before that.
    """

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        on_greeting: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.ready: list[Newcomer] = []
        self._silent: dict[Newcomer, Timer] = {}  # the oldest one first; when their time is over
        self._loop = loop
        self._listening = listening
        self._on_greeting = on_greeting
        self._on_failure = on_failure

    def open(self) -> None:
        """Accept connections from now on."""
        self._loop.watch(self._listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and close all connections of newcomers."""
        self._loop.unwatch(self._listening.fileno())
        for newcomer in tuple(self._silent):
            self._hang_up(newcomer)
        for newcomer in tuple(self.ready):
            self.drop(newcomer)

    def drop(self, newcomer: Newcomer) -> None:
        """Close the connection of a newcomer that is ready."""
        self.ready.remove(newcomer)
        newcomer.connection.close()

    def turn_away(self, newcomer: Newcomer) -> None:
        """Answer the first message of a newcomer that the server has a client already, and close the connection."""
        with suppress(OSError):
            messages.tell_busy(newcomer.connection, newcomer.greeting)
        self.drop(newcomer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:  # it waits still
                self._loop.rest(self._listening.fileno(), NO_DESCRIPTORS_TIME)
            return
        connection.setblocking(False)
        newcomer = Newcomer(connection)
        self._loop.watch(connection.fileno(), lambda: self._hear(newcomer))
        end = self._loop.call_later(HANDSHAKE_TIME, lambda: self._lose(newcomer, "it said nothing"))
        self._silent[newcomer] = end
        if len(self._silent) > MOST:  # those who say nothing must not keep others away
            self._hang_up(next(iter(self._silent)))

    def _hear(self, newcomer: Newcomer) -> None:
        try:
            is_whole = newcomer.hear()
        except ProtocolError as error:
            self._lose(newcomer, str(error))
            return
        except OSError as error:
            self._lose(newcomer, error.strerror or str(error))
            return
        if is_whole:
            self._forget(newcomer)
            self.ready.append(newcomer)
            self._on_greeting()

    def _lose(self, newcomer: Newcomer, reason: str) -> None:
        self._hang_up(newcomer)
        self._on_failure(reason)

    def _hang_up(self, newcomer: Newcomer) -> None:
        self._forget(newcomer)
        newcomer.connection.close()

    def _forget(self, newcomer: Newcomer) -> None:
        self._silent.pop(newcomer).cancel()
        self._loop.unwatch(newcomer.connection.fileno())


def _pid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as comm:
            return f"{comm.read().strip()}, pid {pid}"
    except OSError:
        return f"pid {pid}"
