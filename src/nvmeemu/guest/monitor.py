"""QEMU's machine protocol (QMP), of which little is needed: why the guest ended."""

from __future__ import annotations

import json
import socket

RESET, POWER_OFF = "guest-reset", "guest-shutdown"


class Monitor:
    """Our end of QEMU's control connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.sendall(b'{"execute": "qmp_capabilities"}\n')  # before it, QEMU tells no events

    def shutdown_reason(self) -> str:
        """After QEMU's end: the reason it gave for it ("" if none), as in QMP's ShutdownCause."""
        said = b""
        while data := self._connection.recv(65536):
            said += data
        for line in said.splitlines():
            event = json.loads(line)
            if event.get("event") == "SHUTDOWN":
                return str(event["data"]["reason"])
        return ""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
