"""The errors of this package. The text of each is one line for the user."""

from __future__ import annotations


class ServeError(Exception):
    """A server cannot serve. The text is one line for the user."""


class BindingMissing(ServeError):
    """The package was built without libvfio-user."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the libvfio-user binding is not built ({reason}): run scripts/setup.sh, "
            "or install again with LIBVFIO_USER_SRC=DIR naming libvfio-user's sources"
        )


class SocketUnusable(ServeError):
    """No server can listen at the socket's path."""


class ProtocolError(Exception):
    """A client has broken the vfio-user protocol. The text, for the log, says how."""
