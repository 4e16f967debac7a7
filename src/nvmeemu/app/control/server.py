"""The control socket's server: a part of the controller's event loop."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from nvmeemu.app.control.messages import LONGEST, Method, answer
from nvmeemu.vfio import Loop, SocketUnusable, address
from nvmeemu.vfio.loop import NO_DESCRIPTORS, NO_DESCRIPTORS_TIME

log = logging.getLogger(__name__)

MOST_CLIENTS = 16
PIECE = 65536
ROOM = 1 << 20  # bytes of answers that a client need not have taken yet


class ControlServer:
    """Answers with ``methods`` at ``path`` (mode 0600), on the loop's thread, from ``open`` to ``close``."""

    _socket: socket.socket

    def __init__(self, loop: Loop, path: str, methods: Mapping[str, Method]) -> None:
        self._loop = loop
        self._path = path
        self._methods = methods
        self._clients: dict[int, _Client] = {}
        self._file: tuple[int, int] | None = None  # what is at ``path``, if it is ours

    def open(self) -> None:
        """Raises SocketUnusable or OSError, and then nothing is open."""
        address.clear(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bind()
            self._file = address.identify(self._path)
            self._socket.listen()
            self._loop.watch(self._socket.fileno(), self._accept)
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        umask = os.umask(0o177)  # it can do whatever we can: mode 0600 from its first moment
        try:
            self._socket.bind(self._path)
        except OSError as error:
            raise SocketUnusable(f"{self._path}: {error.strerror}") from None
        finally:
            os.umask(umask)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drop the clients and remove the socket, if it is still ours."""
        for client in tuple(self._clients.values()):
            self._drop(client)
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        if self._file is not None and self._file == address.identify(self._path):
            with suppress(OSError):
                os.unlink(self._path)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:  # it waits still
                self._loop.rest(self._socket.fileno(), NO_DESCRIPTORS_TIME)
            return
        if len(self._clients) >= MOST_CLIENTS:
            for one in tuple(self._clients.values()):  # some may have left, and we have not looked yet
                self._serve(one)
        if len(self._clients) >= MOST_CLIENTS:
            log.warning("control: more than %d clients: one is turned away", MOST_CLIENTS)
            connection.close()
            return
        client = self._clients[connection.fileno()] = _Client(connection)
        self._loop.watch(connection.fileno(), lambda: self._serve(client))

    def _serve(self, client: _Client) -> None:
        try:
            piece = client.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        try:
            *lines, client.heard = (client.heard + piece).split(b"\n")
            for line in lines:
                if line.strip():
                    client.socket.sendall(answer(line, self._methods))
            if not piece or len(client.heard) > LONGEST:
                self._drop(client)
        except OSError:  # it has gone, or takes no answer
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        fd = client.socket.fileno()
        if self._clients.pop(fd, None) is not None:
            self._loop.unwatch(fd)
            client.socket.close()


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.heard = b""
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
