"""What a server says when a client can connect: to its user, and to the program that has started it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Sequence

from nvmeemu import __version__
from nvmeemu.app.assembly import Assembly
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.app.drive.source import Failure
from nvmeemu.backend import describe, in_words


def announce(drives: Sequence[Assembly], ready_fd: int | None) -> None:
    """Print QEMU's arguments for each drive, then say on ``ready_fd`` that all drives listen. Raises Failure."""
    try:
        os.write(1, os.fsencode("".join(map(_text, drives))))  # what sys.stdout cannot write, it tries again at exit
    except OSError as error:
        raise Failure(f"cannot write to the standard output: {describe(error)}") from None
    if ready_fd is None:
        return
    try:
        os.write(ready_fd, b"ready\n")
        if ready_fd > 2:
            os.close(ready_fd)
    except OSError as error:
        raise Failure(f"--ready-fd {ready_fd}: {describe(error)}") from None


def check_ready_fd(fd: int | None) -> None:
    """Raise Failure unless ``fd`` is open for writing.

    Call it before anything is opened: otherwise a number that nobody gave us could become that of a disk.
    """
    if fd is None:
        return
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise Failure(f"--ready-fd {fd}: {describe(error)}", 2) from None
    if mode == os.O_RDONLY:
        raise Failure(f"--ready-fd {fd}: not open for writing", 2)


def _text(one: Assembly) -> str:
    path = os.path.abspath(one.socket)
    device = json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}}, separators=(",", ":"))
    tables = one.disks.tables
    disks = [f"disk {disk} ({in_words(it.size)}{_mode(tables[disk])})" for disk, it in one.disks.media.items()]
    said = ", ".join(disks).replace(", disk ", ", ")
    if one.drive.pool is not None:
        said += f"{', ' if said else ''}pool {one.drive.pool}"
    return (
        f"nvmeemu {__version__}: {said} on {path}\n"
        "QEMU: -object memory-backend-memfd,id=ram,size=1G,share=on -m 1G -machine q35,memory-backend=ram \\\n"
        f"      -device {shlex.quote(device)}\n"
    )


def _mode(table: NamespaceTable) -> str:
    mode = ", read-only" if table.read_only else ", writes are thrown away" if table.overlay else ""
    return mode + (", direct" if table.direct else "")
