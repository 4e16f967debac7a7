"""Whether the path of a socket is free for a server."""

from __future__ import annotations

import errno
import os
import socket
import stat

from nvmeemu.vfio.errors import SocketUnusable

LONGEST = 107  # bytes: sockaddr_un.sun_path is 108, with the final NUL


def check(path: str) -> None:
    """Raise SocketUnusable unless a socket can be made at ``path``. A stale socket there, which nobody serves, is
    allowed."""
    length = len(os.fsencode(path))
    if not path or "\0" in path:
        raise SocketUnusable("the socket's path is empty or holds a NUL")
    if length > LONGEST:
        raise SocketUnusable(f"{path}: {length} bytes are too long for a socket's path (at most {LONGEST})")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise SocketUnusable(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SocketUnusable(f"{path}: no permission to make a socket in {folder}")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketUnusable(f"{path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SocketUnusable(f"{path}: exists and is not a socket")
    if _is_served(path):
        raise SocketUnusable(f"{path}: another server is listening there")


def clear(path: str) -> None:
    """Do what ``check`` does, and remove a stale socket."""
    check(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SocketUnusable(f"{path}: cannot replace the stale socket: {error.strerror}") from None


def identify(path: str) -> tuple[int, int] | None:
    """The identity of the file at ``path``, so that a server later removes no other file than its own."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        error = probe.connect_ex(path)
    if error in (0, errno.EAGAIN):  # EAGAIN: it serves a client, and another one waits
        return True
    if error in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    raise SocketUnusable(f"{path}: {os.strerror(error)}")
