"""The control socket's client, in plain Python: nothing else of the package is needed."""

from __future__ import annotations

import json
import os
import socket
from types import TracebackType
from typing import Any, BinaryIO, Self


class Unreachable(OSError):
    """There is no server, or it has gone; the text is one line."""


class ControlError(Exception):
    """The server refused; ``code`` is JSON-RPC's, the text is one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """A connection to the control socket at ``path``, from ``open`` to ``close``."""

    _socket: socket.socket
    _file: BinaryIO

    def __init__(self, path: str | os.PathLike[str], timeout: float = 20.0) -> None:
        self._path = os.fspath(path)
        self._timeout = timeout
        self._number = 0

    def open(self) -> Self:
        """Connect. Raises Unreachable."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"no server answers at {self._path}: {error.strerror or error}") from None
        self._file = self._socket.makefile("rb")
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, method: str, /, **parameters: Any) -> Any:
        """Ask, and wait for the result. Raises ControlError or Unreachable."""
        self._number += 1
        request = {"jsonrpc": "2.0", "method": method, "params": parameters, "id": self._number}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._file.readline()
        except OSError as error:
            raise Unreachable(f"the server at {self._path} does not answer: {error.strerror or error}") from None
        if not line.endswith(b"\n"):
            raise Unreachable(f"the server at {self._path} has gone")
        try:
            answer = json.loads(line)
            if "error" in answer:
                raise ControlError(answer["error"]["code"], answer["error"]["message"])
            return answer["result"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Unreachable(f"what listens at {self._path} is no control socket of nvmeemu serve") from None
