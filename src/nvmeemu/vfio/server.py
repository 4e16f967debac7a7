"""One PCI function on one socket, for one client (a VMM) after another."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from nvmeemu.vfio import address, messages
from nvmeemu.vfio.binding import Context, Turn, require
from nvmeemu.vfio.errors import ProtocolError, SocketUnusable
from nvmeemu.vfio.function import Function, PciFunction, PciHost, library_log
from nvmeemu.vfio.loop import NO_DESCRIPTORS, NO_DESCRIPTORS_TIME, Loop
from nvmeemu.vfio.pci import PciIdentity, msix_bar_size
from nvmeemu.vfio.sharing import Sharing

log = logging.getLogger(__name__)

MESSAGES_PER_TURN = 64  # then the function and the timers have their turn
BACKLOG = 8  # the library's own backlog of 0 turns a client away while another one is only looking
HANDSHAKE_TIME = 5.0  # seconds for a client's first message, for which the library waits, or for half a one's rest
REST_TIME = 0.002  # seconds until we look for that rest again


def check(path: str) -> None:
    """Raise ServeError if this build cannot serve, or nobody can at ``path``. To be asked before all else."""
    require()
    address.check(path)


class Server:
    """Serves ``function``, which was made with ``host``, on the socket ``path``. A client can connect from the
    moment it is made, and is answered in ``run``. Raises ServeError like ``check``."""

    def __init__(self, loop: Loop, host: PciHost, function: Function, path: str, identity: PciIdentity) -> None:
        require()
        address.clear(path)
        _raise_descriptor_limit()
        self._loop = loop
        self._path = path
        self._pci = PciFunction(function, identity, host)
        self._context = _listen(path, self._pci)
        self._file = address.identify(path)
        self._listening_fd = self._watched_fd = self._context.poll_fd()
        with _connection(self._listening_fd) as listening:
            listening.listen(BACKLOG)
        self.on_attach: Callable[[str], None] = lambda peer: None  # a client has come: how the log calls it
        self.on_leave: Callable[[], None] = lambda: None
        self._client = ""  # how the log calls it
        self._others: dict[socket.socket, str] = {}  # that came meanwhile, until they say what they want
        self._once = False
        self._patience: float | None = None  # until when half a message is waited for
        host.connect(self._context, self._pci.config)
        if function.direct_doorbells is not None:
            self._context.ring_directly(*function.direct_doorbells)
        if library_log.level == logging.DEBUG:  # set on purpose, not inherited: it is several lines a message
            self._context.log_everything()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(self, *, once: bool = False) -> None:
        """Serve until the loop is asked to stop or, with ``once``, until the first client has left."""
        self._once = once
        self._watch()
        try:
            self._loop.run(self._pci.function.run)
        finally:
            self._loop.unwatch(self._watched_fd)
            self._loop.unwatch(self._listening_fd)
            for another in tuple(self._others):
                self._turn_away(another)

    def close(self) -> None:
        """Drop the client, if any, which resets the function, and remove the socket."""
        self._pci.quiesce()  # the library does not ask here
        try:
            self._context.close()
        finally:
            if self._file is not None and self._file == address.identify(self._path):
                self._file = None
                os.unlink(self._path)

    # --- a client comes, talks, and goes

    def _watch(self) -> None:
        """Wait for what comes next: a client, or the client's messages."""
        self._loop.unwatch(self._watched_fd)
        self._watched_fd = self._context.poll_fd()
        attached = self._watched_fd != self._listening_fd
        self._loop.unwatch(self._listening_fd)
        self._loop.watch(self._watched_fd, self._on_messages if attached else self._on_client)
        if attached:
            self._loop.watch(self._listening_fd, self._on_another)

    def _on_client(self) -> None:
        guard = threading.Timer(HANDSHAKE_TIME, self._hang_up)
        guard.daemon = True
        guard.start()
        try:
            self._context.attach()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                reason = "it said nothing" if error.errno == errno.ENOMSG else error.strerror
                log.info("a client connected, but did not get through the handshake: %s", reason)
            if error.errno in NO_DESCRIPTORS:  # it waits still
                self._loop.rest(self._watched_fd, NO_DESCRIPTORS_TIME)
            return
        finally:
            guard.cancel()
        self._client = _peer(self._context.poll_fd())
        self._pci.sharing = Sharing(_pid(self._context.poll_fd()))
        log.info("attached: %s", self._client)
        self.on_attach(self._client)
        self._pci.tell_state(always=True)
        self._watch()

    def _on_another(self) -> None:
        """Somebody connects while a client is served: it is told at once, and not left to wait."""
        gone = select.poll()
        gone.register(self._watched_fd, select.POLLRDHUP | select.POLLHUP)
        if gone.poll(0):
            return  # this one is the next client, as soon as we have heard of the loss
        try:
            with _connection(self._listening_fd) as listening:
                another, _ = listening.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._loop.rest(self._listening_fd, NO_DESCRIPTORS_TIME)
            return
        if len(self._others) >= BACKLOG:
            another.close()
            return
        another.setblocking(False)
        self._others[another] = _peer(another.fileno())
        self._loop.watch(another.fileno(), lambda: self._turn_away(another))
        self._loop.call_later(HANDSHAKE_TIME, lambda: self._turn_away(another))

    def _turn_away(self, another: socket.socket) -> None:
        """Answer its first message. Who says nothing only looks whether a server is there."""
        name = self._others.pop(another, None)
        if name is None:
            return
        self._loop.unwatch(another.fileno())
        with another, suppress(OSError):
            if messages.tell_busy(another):
                log.warning("%s is turned away: the drive is taken by %s", name, self._client)

    def _on_messages(self) -> None:
        try:
            for _ in range(MESSAGES_PER_TURN):
                turn = self._context.run()
                if turn is not Turn.MESSAGE or self._pci.lost:
                    break
                self._patience = None
                self._pci.settle()
            if turn is Turn.PARTIAL:
                self._await_rest()
        except ProtocolError as error:
            self._drop(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EINTR):
                # Its message was not understood, so the next one's beginning is unknown.
                self._drop(error.strerror or str(error))
        if self._pci.lost:
            self._on_loss()

    def _await_rest(self) -> None:
        """Half a message has come. Look again soon."""
        now = self._loop.now()
        if self._patience is None:
            self._patience = now + HANDSHAKE_TIME
        if now >= self._patience:
            self._drop("the rest of its message does not come")
            return
        self._loop.rest(self._watched_fd, REST_TIME)

    def _drop(self, reason: str) -> None:
        log.warning("dropping the client: %s", reason)
        self._patience = None
        self._context.hang_up()

    def _on_loss(self) -> None:
        """The library has unmapped the guest's memory and reset the function already."""
        self._pci.lost = False
        self._pci.settle()
        log.info("detached: %s", self._client)
        self._client = ""
        self.on_leave()
        self._watch()
        if self._once:
            self._loop.request_stop()

    def _hang_up(self) -> None:
        """End the handshake of a client that says nothing. Called on another thread."""
        if self._context.poll_fd() != self._listening_fd:
            self._context.hang_up()


def _listen(path: str, pci: PciFunction) -> Context:
    function = pci.function
    umask = os.umask(0o177)  # the socket gives access to the disk: mode 0600 from its first moment
    try:
        return Context(
            path,
            pci,
            bar0_size=function.bar0_size,
            bar0_shared=function.bar0_shared,
            bar4_size=msix_bar_size(function.vectors),
            vectors=function.vectors,
        )
    except OSError as error:
        raise SocketUnusable(f"{path}: {error.strerror}") from None
    finally:
        os.umask(umask)


@contextmanager
def _connection(fd: int) -> Iterator[socket.socket]:
    """A socket of the library's, which stays open."""
    connection = socket.socket(fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()


def _pid(fd: int) -> int:
    """The process at the other end; 0 if it is none that we see from here."""
    with _connection(fd) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _peer(fd: int) -> str:
    """Who is at the other end, for the log."""
    pid = _pid(fd)
    try:
        with open(f"/proc/{pid}/comm") as comm:
            return f"{comm.read().strip()}, pid {pid}"
    except OSError:
        return f"pid {pid}"


def _raise_descriptor_limit() -> None:
    """Every DMA region comes with a file descriptor, and a library that is not our copy keeps them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
