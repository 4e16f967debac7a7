"""One drive, put together: its disks, engine, controller, trace, faults, socket and control socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from nvmeemu.app import arming, engines, recording
from nvmeemu.app.control.methods import Methods, OpenDisk
from nvmeemu.app.control.server import ControlServer
from nvmeemu.app.control.sharing import together
from nvmeemu.app.disks import Disks
from nvmeemu.app.drive.description import Drive
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.controller.controller import Controller
from nvmeemu.faults.file import FaultSet
from nvmeemu.ports import Mirrors
from nvmeemu.subsystem.identity import DEVICE_ID, VENDOR_ID, Identity, serial_of
from nvmeemu.subsystem.media import Media
from nvmeemu.subsystem.namespace import Namespace, Namespaces
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.vfio import Loop, PciHost, PciIdentity, ServeError, Server
from nvmeemu.vfio import check as check_socket


@dataclass(eq=False, repr=False)
class Assembly:
    """A drive that can be served."""

    drive: Drive
    disks: Disks
    controller: Controller
    server: Server
    methods: Methods

    @property
    def socket(self) -> str:
        return self.drive.controller.socket or ""


def faults_of(drive: Drive) -> FaultSet:
    """What its controller's files of faults hold. Raises Failure."""
    with drive.source.at("controller", 0):
        return arming.load_all(drive.controller)


def check(drive: Drive) -> None:
    """Raise Failure if this build cannot serve, or nobody can at the drive's socket. To be asked before all else."""
    try:
        check_socket(drive.controller.socket or "")
    except ServeError as error:
        raise drive.source.failure(str(error), "controller", 0, "socket", status=1) from None


def assemble(drive: Drive, disks: Disks, faults: FaultSet, loop: Loop, stack: ExitStack) -> Assembly:
    """Open all that it needs, and listen; ``stack`` closes it. Raises Failure."""
    namespaces = disks.open_all()
    with drive.source.at("controller", 0):
        return _connect(drive, disks, namespaces, faults, loop, stack)


def _connect(
    drive: Drive, disks: Disks, namespaces: Sequence[Namespace], given: FaultSet, loop: Loop, stack: ExitStack
) -> Assembly:
    table = drive.controller
    host = PciHost()
    engine = engines.start(table, loop, stack)
    limits = drive.limits_of(table)
    identity = _identity(drive, namespaces[0])
    subsystem = Subsystem(identity, Namespaces(limits.namespaces), loop)
    for namespace in namespaces:
        subsystem.add(namespace)
    controller = Controller(host, loop, subsystem, limits, engine, table.cntlid)
    host.mirror = Mirrors(engine, controller.taps)
    trace = recording.start(table, drive.name, controller, engine, stack)
    faults = arming.arm(table, controller, given)
    pci = PciIdentity(identity.vendor_id, identity.device_id, identity.vendor_id, identity.device_id)
    try:
        server = stack.enter_context(Server(loop, host, controller, table.socket or "", pci))
    except ServeError as error:
        raise drive.source.failure(str(error), "controller", 0, "socket", status=1) from None
    server.on_attach, server.on_leave = controller.taps.attached, controller.taps.left
    open_disk, close_disk = _hot_plug(drive, disks, controller)
    methods = Methods(controller, faults, open_disk, close_disk, None if trace is None else trace.note, drive.name)
    return Assembly(drive, disks, controller, server, methods)


def open_control_sockets(drives: Sequence[Assembly], loop: Loop, stack: ExitStack) -> None:
    """Those that the drives ask for. Drives that name the same one share it. Raises Failure."""
    by_path: dict[str, list[Assembly]] = {}
    for one in drives:
        if (path := one.drive.controller.control) is not None:
            by_path.setdefault(os.path.abspath(path), []).append(one)
    for sharing in by_path.values():
        first = sharing[0].drive
        methods = together({one.drive.name: one.methods.table() for one in sharing})
        try:
            stack.enter_context(ControlServer(loop, first.controller.control or "", methods))
        except ServeError as error:
            raise first.source.failure(str(error), "controller", 0, "control", status=1) from None


def _identity(drive: Drive, first: Namespace) -> Identity:
    table = drive.identity
    try:
        return Identity(
            serial=serial_of(first.identity) if table.serial is None else table.serial,
            model=table.model,
            firmware=table.firmware,
            nqn=table.subnqn,
            vendor_id=VENDOR_ID if table.vendor_id is None else table.vendor_id,
            device_id=DEVICE_ID if table.device_id is None else table.device_id,
        )
    except ValueError as error:
        raise drive.source.failure(str(error), "identity") from None


def _hot_plug(drive: Drive, disks: Disks, controller: Controller) -> tuple[OpenDisk, Callable[[Media], None]]:
    """What the control socket does with disks."""

    def open_disk(nsid: int, table: Mapping[str, Any]) -> Namespace:
        return disks.add(nsid, NamespaceTable(**{**drive.added, **table}))

    def close_disk(media: Media) -> None:
        disks.remove(media, lambda: controller.is_busy)

    return open_disk, close_disk
