"""The pid file of a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nvmeemu.app.drive.source import Failure
from nvmeemu.backend import describe


@contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Write a pid file that is there as long as this context lasts. Raises Failure."""
    if path is None:
        yield
        return
    try:
        found = _read(path).strip()
        if found and not found.isdigit():
            raise Failure(f"--pid-file {path}: there is a file that is no pid file: give another name", 2)
        with open(path, "wb", opener=_open_at_once) as file:
            file.write(_line())
    except OSError as error:
        raise Failure(f"--pid-file {path}: {describe(error)}") from None
    try:
        yield
    finally:
        remove(path)


def remove(path: str | None) -> None:
    """Remove the pid file, unless it is that of a server that has taken it over, or a device."""
    with suppress(OSError):
        if path is not None and _read(path) == _line():
            os.unlink(path)


def _line() -> bytes:
    return f"{os.getpid()}\n".encode()


def _read(path: str) -> bytes:
    """The beginning of a file, nothing if there is none."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read(32)
    except FileNotFoundError:
        return b""


def _open_at_once(path: str, flags: int) -> int:
    """An opener for ``open`` that never waits, not even for somebody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
