"""One drive, put together: its disks, engine, controller, trace, faults and socket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvmeemu.app import engines, pools, recording
from nvmeemu.app.disks import Disks
from nvmeemu.app.drive.description import Drive
from nvmeemu.app.drive.keys import ControllerTable
from nvmeemu.app.drive.source import Failure
from nvmeemu.controller.controller import Controller
from nvmeemu.plugins import INSTALLED
from nvmeemu.ports import Mirrors, StateError
from nvmeemu.subsystem.identity import DEVICE_ID, VENDOR_ID, Identity, serial_of
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.saved import SERIAL
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.vfio import Loop, PciHost, PciIdentity, ServeError, Server
from nvmeemu.vfio import check as check_socket

if TYPE_CHECKING:
    from nvmeemu.faults import Faults
    from nvmeemu.faults.file import FaultSet
    from nvmeemu.state.file import StateFile
    from nvmeemu.trace.sink import TraceFile


@dataclass(eq=False, repr=False)
class Assembly:
    """A drive that can be served."""

    drive: Drive
    disks: Disks
    controller: Controller
    server: Server
    trace: TraceFile | None
    faults: Faults | None
    state: StateFile | None

    @property
    def socket(self) -> str:
        return self.drive.controller.socket or ""


def can_break(table: ControllerTable) -> bool:
    """Whether faults can be set on the controller, now or later."""
    return bool(table.faults or table.ocp or table.control is not None or INSTALLED)


def faults_of(drive: Drive) -> FaultSet | None:
    """The faults of the controller's files. None: faults can be set neither now nor later. Raises Failure."""
    if not can_break(drive.controller):
        return None
    from nvmeemu.app import arming  # start-up: most drives have no faults, which are a sixth of all that is imported

    with drive.source.at("controller", 0):
        return arming.load_all(drive.controller)


def check(drive: Drive) -> None:
    """Raise Failure if this build cannot serve, or if nobody can listen at the drive's socket. Call it first."""
    try:
        check_socket(drive.controller.socket or "")
    except ServeError as error:
        raise drive.source.failure(str(error), "controller", 0, "socket", status=1) from None


def assemble(drive: Drive, disks: Disks, faults: FaultSet | None, loop: Loop, stack: ExitStack) -> Assembly:
    """Open all that it needs, and listen; ``stack`` closes it. Raises Failure."""
    namespaces = disks.open_all()
    with drive.source.at("controller", 0):
        return _connect(drive, disks, namespaces, faults, loop, stack)


def _connect(
    drive: Drive, disks: Disks, namespaces: Sequence[Namespace], given: FaultSet | None, loop: Loop, stack: ExitStack
) -> Assembly:
    table = drive.controller
    host = PciHost()
    engine = engines.start(table, loop, stack)
    limits = drive.limits_of(table)
    pool = pools.open_pool(drive, loop, stack)
    identity = _identity(drive, namespaces)
    state = None if drive.state is None else _open_state(drive, drive.state, identity, loop, stack)
    subsystem = Subsystem(identity, Inventory(limits.namespaces), loop, state, pool)
    if any(namespace.formatter is not None for namespace in namespaces):
        subsystem.offer_formats()
    restored = pools.restore(drive, subsystem)
    disks.begin(subsystem, namespaces)
    try:
        controller = Controller(host, loop, subsystem, limits, engine, table.cntlid)
    except StateError as error:
        raise _bad_state(drive, error) from None
    host.mirror = Mirrors(engine, controller.taps)
    trace = recording.start(table, drive.name, controller, engine, stack)
    faults = None if given is None else _arm(table, controller, given)
    pci = PciIdentity(identity.vendor_id, identity.device_id, identity.vendor_id, identity.device_id)
    try:
        server = stack.enter_context(Server(loop, host, controller, table.socket or "", pci))
    except ServeError as error:
        raise drive.source.failure(str(error), "controller", 0, "socket", status=1) from None
    if state is not None:
        try:
            state.begin({**subsystem.power_on(), **restored, SERIAL.key: identity.serial})
        except StateError as error:
            raise _bad_state(drive, error) from None
    server.on_attach, server.on_leave = controller.taps.attached, controller.taps.left
    return Assembly(drive, disks, controller, server, trace, faults, state)


def _open_state(drive: Drive, path: str, identity: Identity, loop: Loop, stack: ExitStack) -> StateFile:
    from nvmeemu.state.file import StateFile  # start-up: most drives are new at each start

    try:
        state = StateFile.open(path, loop)
        stack.callback(state.close)
        owner = SERIAL.of(state)
        if owner not in ("", identity.serial):
            raise StateError(
                f"belongs to the drive with the serial number {owner}, and this one has {identity.serial}: give "
                f"--serial {owner} if it is that drive, or another path"
            )
    except StateError as error:
        raise _bad_state(drive, error) from None
    return state


def _bad_state(drive: Drive, error: StateError) -> Failure:
    return drive.source.failure(f"--state {drive.state}: {error}", "state", status=1)


def _arm(table: ControllerTable, controller: Controller, given: FaultSet) -> Faults:
    from nvmeemu.app import arming  # start-up, as above

    return arming.arm(table, controller, given)


def _identity(drive: Drive, namespaces: Sequence[Namespace]) -> Identity:
    """The serial number is made of the first disk's identity, or of what the pool is called."""
    table = drive.identity
    first = namespaces[0].identity if namespaces else os.path.realpath(drive.pool or "")
    try:
        return Identity(
            serial=serial_of(first) if table.serial is None else table.serial,
            model=table.model,
            firmware=table.firmware,
            nqn=table.subnqn,
            vendor_id=VENDOR_ID if table.vendor_id is None else table.vendor_id,
            device_id=DEVICE_ID if table.device_id is None else table.device_id,
        )
    except ValueError as error:
        raise drive.source.failure(str(error), "identity") from None
