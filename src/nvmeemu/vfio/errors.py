"""What keeps us from serving, each in one line for the user."""

from __future__ import annotations


class ServeError(Exception):
    """Cannot serve; the message is one line, written for the user."""


class BindingMissing(ServeError):
    """The package was built without libvfio-user."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the libvfio-user binding is not built ({reason}): run scripts/setup.sh, "
            "or install again with LIBVFIO_USER_SRC=DIR naming libvfio-user's sources"
        )


class SocketUnusable(ServeError):
    """The socket's path cannot be served on."""


class ProtocolError(Exception):
    """A client has sent what is no vfio-user; the text says what, for the log."""
