"""A server: one PCI function on one socket, for one client (a VMM) after another. A loop runs any number of servers."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from nvmeemu.vfio import address
from nvmeemu.vfio.binding import SENDING_TIME, Context, Turn, require
from nvmeemu.vfio.errors import ProtocolError, SocketUnusable
from nvmeemu.vfio.function import Function, PciFunction, PciHost, library_log
from nvmeemu.vfio.loop import NO_DESCRIPTORS, NO_DESCRIPTORS_TIME, Loop
from nvmeemu.vfio.memory import most_regions
from nvmeemu.vfio.newcomers import HANDSHAKE_TIME, Newcomer, Newcomers
from nvmeemu.vfio.pci import PciIdentity, msix_bar_size
from nvmeemu.vfio.sharing import Sharing

log = logging.getLogger(__name__)

MESSAGES_PER_TURN = 64  # then the function, the timers and the others have their turn
MESSAGES_PER_LOOK, TURN_TIME = 8, 0.005  # or earlier: after so many we look whether so many seconds are over
BACKLOG = 8  # the library's own backlog of 0 turns a client away while another one is only looking
REST_TIME = 0.002  # seconds until we look again at a client that keeps us waiting
PATIENCE = {  # for how many seconds, and what the log says then
    Turn.PARTIAL: (HANDSHAKE_TIME, "the rest of its message does not come"),
    Turn.CHOKED: (SENDING_TIME, "it does not take our replies"),
}


def check(path: str) -> None:
    """Raise ServeError if this build cannot serve, or if nobody can listen at ``path``. Call it first."""
    require()
    address.check(path)


class Server:
    """Serves ``function``, which was made with ``host``, on the socket ``path``, from ``open`` to ``close``. A client
    can connect at once, and is answered while ``loop`` runs. ``open`` raises ServeError like ``check``."""

    _context: Context
    _newcomers: Newcomers
    _listening: socket.socket

    def __init__(self, loop: Loop, host: PciHost, function: Function, path: str, identity: PciIdentity) -> None:
        self._loop = loop
        self._path = path
        self._host = host
        self._pci = PciFunction(function, identity, host, lambda: self._most_regions // max(loop.step_count, 1))
        self.on_attach: Callable[[str], None] = lambda peer: None  # a client has come: how the log calls it
        self.on_leave: Callable[[], None] = lambda: None
        self._opened = ExitStack()  # what ``close`` does
        self._file: tuple[int, int] | None = None  # what is at ``path``
        self._most_regions = 0  # that this process can map; each client has its part
        self._client = ""  # how the log calls it
        self._client_fd = -1
        self._patience: float | None = None  # until when a client may keep us waiting

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Raises ServeError like ``check``, or OSError, and then nothing is open."""
        require()
        address.clear(self._path)
        _raise_descriptor_limit()
        self._most_regions = most_regions()
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()

    def _open(self, opened: ExitStack) -> None:
        function = self._pci.function
        self._context = _listen(self._path, self._pci)
        self._file = address.identify(self._path)
        opened.callback(self._remove_socket)
        opened.callback(self._context.close)
        opened.callback(self._pci.quiesce)  # the library does not ask when it closes
        opened.callback(lambda: self._loop.unwatch(self._client_fd))
        self._listening = socket.socket(fileno=os.dup(self._context.poll_fd()))
        opened.callback(self._listening.close)
        self._listening.listen(BACKLOG)
        self._newcomers = Newcomers(self._loop, self._listening, self._meet, self._on_failed_handshake)
        self._host.connect(self._context, self._pci.config)
        if function.direct_doorbells is not None:
            self._context.ring_directly(*function.direct_doorbells)
        if library_log.level == logging.DEBUG:  # set on purpose, not inherited: it is several lines a message
            self._context.log_everything()
        opened.callback(self._newcomers.close)
        self._newcomers.open()
        opened.callback(self._loop.remove_step, function.run)
        self._loop.add_step(function.run)

    def close(self) -> None:
        """Drop the client, if any, which resets the function, and remove the socket. A second call does nothing."""
        self._opened.close()

    def _remove_socket(self) -> None:
        if self._file is not None and self._file == address.identify(self._path):
            os.unlink(self._path)

    # --- a client comes

    def _meet(self) -> None:
        """Attach a newcomer whose first message is there, or turn it away if there is a client."""
        for newcomer in tuple(self._newcomers.ready):
            if not self._client:
                try:
                    self._attach(newcomer)
                except OSError:  # there is no descriptor for it: it waits still
                    self._loop.call_later(NO_DESCRIPTORS_TIME, self._meet)
                    return
            elif not self._has_left():  # else this one is the next client, as soon as we have heard of the loss
                self._newcomers.turn_away(newcomer)
                log.warning("%s is turned away: the drive is taken by %s", newcomer.name, self._client)

    def _has_left(self) -> bool:
        end = select.poll()
        end.register(self._client_fd, select.POLLRDHUP | select.POLLHUP)
        return bool(end.poll(0))

    def _attach(self, newcomer: Newcomer) -> None:
        """Make the newcomer the client. Raises OSError if this process has no descriptor left."""
        try:
            self._context.attach(newcomer.connection, newcomer.greeting)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise
            self._newcomers.drop(newcomer)
            self._on_failed_handshake(error.strerror or str(error))
            return
        self._newcomers.drop(newcomer)  # the library has a descriptor of its own
        self._client = newcomer.name
        self._client_fd = self._context.poll_fd()
        self._patience = None
        self._pci.sharing = Sharing(newcomer.pid)
        log.info("attached: %s", self._client)
        self.on_attach(self._client)
        self._pci.tell_state(always=True)
        self._loop.watch(self._client_fd, self._on_messages)

    def _on_failed_handshake(self, reason: str) -> None:
        if not self._client:
            log.info("a client connected, but did not get through the handshake: %s", reason)

    # --- it talks

    def _on_messages(self) -> None:
        try:
            turn = self._serve_messages()
            if turn in PATIENCE:
                self._wait_for_it(*PATIENCE[turn])
        except ProtocolError as error:
            self._drop(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EINTR):
                # Its message was not understood, so the next one's beginning is unknown.
                self._drop(error.strerror or str(error))
        if self._pci.lost:
            self._on_loss()

    def _serve_messages(self) -> Turn:
        """Handle the messages that have come, as many as there is time for."""
        end = None
        for number in range(1, MESSAGES_PER_TURN + 1):
            turn = self._context.run()
            if turn is not Turn.MESSAGE or self._pci.lost:
                break
            self._patience = None
            self._pci.settle()
            if number % MESSAGES_PER_LOOK == 0:
                now = self._loop.now()
                end = now + TURN_TIME if end is None else end
                if now >= end:
                    break
        return turn

    def _wait_for_it(self, seconds: float, complaint: str) -> None:
        """Look at the socket again soon. Drops the client with ``complaint`` if that has gone on for so many
        seconds."""
        now = self._loop.now()
        if self._patience is None:
            self._patience = now + seconds
        if now >= self._patience:
            self._drop(complaint)
            return
        self._loop.rest(self._client_fd, REST_TIME)

    # --- and goes

    def _drop(self, reason: str) -> None:
        log.warning("dropping the client: %s", reason)
        self._patience = None
        self._context.hang_up()

    def _on_loss(self) -> None:
        """The library has unmapped the guest's memory and reset the function already."""
        self._pci.lost = False
        self._pci.settle()
        self._loop.unwatch(self._client_fd)
        self._client_fd = -1
        log.info("detached: %s", self._client)
        self._client = ""
        self.on_leave()
        self._meet()


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


def _raise_descriptor_limit() -> None:
    """Every DMA region comes with a file descriptor, and a library that is not our copy keeps them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
