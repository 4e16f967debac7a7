"""QEMU's machine protocol (QMP): commands, events, and why the guest ended."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded, GuestError

RESET, POWER_OFF = "guest-reset", "guest-shutdown"


class Monitor:
    """Our end of QEMU's control connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._said = b""
        self._events: list[dict[str, Any]] = []
        self._send("qmp_capabilities", {})  # before it, QEMU tells no events

    def execute(self, command: str, arguments: dict[str, Any], deadline: Deadline) -> Any:
        """Carry out a command; what it returns."""
        self._send(command, arguments, id=command)
        answer = self._await(lambda message: message.get("id") == command, deadline, command)
        if "error" in answer:
            raise GuestError(f"QEMU does not {command}: {answer['error']['desc']}")
        return answer["return"]

    def await_event(self, name: str, deadline: Deadline) -> dict[str, Any]:
        """The next event of this kind that has not been waited for; what it tells."""
        while True:
            for event in self._events:
                if event["event"] == name:
                    self._events.remove(event)
                    return dict(event.get("data", {}))
            self._await(lambda message: message.get("event") == name, deadline, name)

    def shutdown_reason(self) -> str:
        """After QEMU's end: the reason it gave for it ("" if none), as in QMP's ShutdownCause."""
        self._connection.settimeout(None)
        while data := self._connection.recv(65536):
            self._said += data
        while (message := self._next()) is not None:
            if message.get("event") == "SHUTDOWN":
                self._events.append(message)
        reasons = [event["data"]["reason"] for event in self._events if event["event"] == "SHUTDOWN"]
        return str(reasons[0]) if reasons else ""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _send(self, command: str, arguments: dict[str, Any], **more: str) -> None:
        try:
            self._connection.sendall(json.dumps({"execute": command, "arguments": arguments} | more).encode() + b"\n")
        except OSError:
            raise GuestEnded(f"QEMU ended before it was asked to {command}") from None

    def _await(self, wanted: Callable[[dict[str, Any]], bool], deadline: Deadline, what: str) -> dict[str, Any]:
        """Read until such a message; events are kept."""
        while True:
            while (message := self._next()) is not None:
                if "event" in message:
                    self._events.append(message)
                if wanted(message):
                    return message
            self._connection.settimeout(max(deadline.check(what), 0.01))
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                raise GuestEnded(f"QEMU ended before {what}")
            self._said += data

    def _next(self) -> dict[str, Any] | None:
        line, newline, rest = self._said.partition(b"\n")
        if not newline:
            return None
        self._said = rest
        return dict(json.loads(line))
