"""The control sockets of drives that ask for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nvmeemu.app.assembly import Assembly
from nvmeemu.app.control.methods import Methods, OpenDisk
from nvmeemu.app.control.server import ControlServer
from nvmeemu.app.control.sharing import together
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.app.drive.source import in_keys
from nvmeemu.backend import BackendError
from nvmeemu.subsystem.media import Media
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.vfio import Loop, ServeError


def open_all(drives: Sequence[Assembly], loop: Loop, stack: ExitStack) -> None:
    """Open the control sockets that the drives ask for. Drives that name one path share its socket. Raises Failure."""
    by_path: dict[str, list[Assembly]] = {}
    for one in drives:
        if (path := one.drive.controller.control) is not None:
            by_path.setdefault(os.path.abspath(path), []).append(one)
    for sharing in by_path.values():
        first = sharing[0].drive
        methods = together({one.drive.name: _methods(one).table() for one in sharing})
        try:
            stack.enter_context(ControlServer(loop, first.controller.control or "", methods))
        except ServeError as error:
            raise first.source.failure(str(error), "controller", 0, "control", status=1) from None


def _methods(one: Assembly) -> Methods:
    assert one.faults is not None  # ``assembly.can_break``
    open_disk, close_disk = _hot_plug(one)
    note = None if one.trace is None else one.trace.note
    return Methods(one.controller, one.faults, open_disk, close_disk, note, one.drive.name)


def _hot_plug(one: Assembly) -> tuple[OpenDisk, Callable[[Media], None]]:
    """How the control socket opens and closes the disks of a drive."""

    def open_disk(nsid: int, table: Mapping[str, Any]) -> Namespace:
        try:
            return one.disks.add(nsid, NamespaceTable(**{**one.drive.added, **table}))
        except BackendError as error:
            raise type(error)(in_keys(str(error))) from None

    def close_disk(media: Media) -> None:
        one.disks.remove(media, lambda: one.controller.is_busy)

    return open_disk, close_disk
