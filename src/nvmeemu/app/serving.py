"""Starts `nvmeemu serve` as a child process, and waits until it listens."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvmeemu.app import process

START_SECONDS = 60.0


class ServerError(Exception):
    """`nvmeemu serve` did not do what it should. One line."""


class ServerEnded(ServerError):
    """`nvmeemu serve` ended when it should not, or with `status` (negative: the signal) when it should end well."""

    def __init__(self, status: int, log: Path | None) -> None:
        last = process.tail(log, 1) if log else []
        super().__init__(f"nvmeemu serve ended with status {status}: {last[0] if last else 'its log is empty'}")
        self.status = status


def start(
    socket: Path | None,
    arguments: Sequence[str],
    log: Path | None,
    *,
    seconds: float = START_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server and wait until it listens: at ``socket``, or where its drive files say. Raises ServerError.

    Its output goes to `log`; None: what it has to say, to our stderr.
    """
    ready, ready_there = os.pipe()
    try:
        where = [] if socket is None else ["--socket", str(socket)]
        command = [sys.executable, "-m", "nvmeemu", "serve", *where, "--ready-fd", str(ready_there), *arguments]
        server = process.spawn(command, log, pass_fds=[ready_there], environment=environment)
    finally:
        os.close(ready_there)
    with os.fdopen(ready, "rb") as pipe:  # open until the server has ended: it has nothing to say of a broken pipe
        try:
            if not select.select([pipe], [], [], seconds)[0]:
                raise ServerError("nvmeemu serve did not say that it listens")
            if not pipe.readline():
                raise ServerEnded(process.end(server), log)
        except BaseException:
            process.end(server)
            raise
    return server


def properties(socket: Path) -> dict[str, object]:
    """QEMU's device for the drive at a socket."""
    return {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}}
