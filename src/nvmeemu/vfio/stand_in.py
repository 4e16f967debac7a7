"""A connection that stands in for a client's, for as long as libvfio-user agrees on a version with it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stand_in(listening_fd: int, said: bytes | bytearray) -> Iterator[socket.socket]:
    """Put a stand-in for a client behind ``listening_fd`` as long as the context lasts.

    Whoever accepts there gets a connection whose other end has sent ``said`` and then shut its side down. So nobody
    waits for more. Gives that other end, a socket that does not block. Raises OSError.
    """
    before = os.dup(listening_fd)
    try:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other_end:
            listening.bind("")  # a name that the kernel makes up
            listening.listen(0)  # room for one: if the next line succeeds, it is us
            other_end.setblocking(False)
            other_end.connect(listening.getsockname())
            if other_end.send(said) < len(said):
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            other_end.shutdown(socket.SHUT_WR)
            os.dup2(listening.fileno(), listening_fd, inheritable=False)
            yield other_end
    finally:
        os.dup2(before, listening_fd, inheritable=False)
        os.close(before)
