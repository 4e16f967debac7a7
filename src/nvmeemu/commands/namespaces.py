"""Namespace Management and Namespace Attachment: what a host asks for, checked. Base 2.0, 5.22, 5.23 and 8.11."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

from nvmeemu.commands.format_nvm import chosen
from nvmeemu.controller.request import Changing, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    MOST_IN_CONTROLLER_LIST,
    AttachmentSelect,
    ControllerList,
    Csi,
    Dps,
    Flbas,
    HostNamespace,
    ManagementSelect,
    NamespaceAttachment,
    NamespaceManagement,
    Nmic,
    Status,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import management
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.management import NewNamespace
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.turns import Steps

_SEL = (40, 0)
_NSID = (4, 0)


def has_management(controller: ControllerState) -> bool:
    """The commands and pages of Namespace Management come all together, or not at all (OACS). So they need a pool:
    without one, no host could create a namespace."""
    return controller.subsystem.pool is not None


def _check_offered(request: Request[Any]) -> None:
    if not has_management(request.controller):
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))


def manage_namespaces(request: Request[NamespaceManagement]) -> Result:
    """Base 2.0, 5.23."""
    _check_offered(request)
    select = request.command.sel
    if select == ManagementSelect.CREATE:
        return _create(request)
    if select == ManagementSelect.DELETE:
        return _delete(request)
    raise CommandFailed(Status.INVALID_FIELD, location=_SEL)


def _create(request: Request[NamespaceManagement]) -> Result:
    controller, command = request.controller, request.command
    if command.nsid:
        raise CommandFailed(Status.INVALID_FIELD, location=_NSID, why="the controller chooses the number")
    if command.csi != Csi.NVM:
        raise CommandFailed(Status.COMMAND_SET_NOT_SUPPORTED, location=(47, 0))
    wanted = _wanted(controller, HostNamespace(request.receive(HostNamespace.SIZE)))
    return _change(controller, management.create(controller.subsystem, wanted))


def _wanted(controller: ControllerState, given: HostNamespace) -> NewNamespace:
    """Raises CommandFailed for what can never be."""
    format = _format(controller, Flbas.of(given.flbas), Dps.of(given.dps))
    if given.ncap > given.nsze or not given.nsze:
        raise CommandFailed(Status.INVALID_FIELD, why=f"NCAP {given.ncap:#x}, NSZE {given.nsze:#x}")
    if given.ncap < given.nsze:
        why = f"NCAP {given.ncap:#x}, NSZE {given.nsze:#x}"
        raise CommandFailed(Status.THIN_PROVISIONING_NOT_SUPPORTED, why=why)
    if given.anagrpid:
        raise CommandFailed(Status.ANA_GROUP_INVALID, why="there are no ANA groups")
    if given.nvmsetid or given.endgid:
        raise CommandFailed(Status.INVALID_FIELD, why="there are neither NVM sets nor endurance groups")
    return NewNamespace(given.nsze, format, bool(given.nmic & Nmic.SHARED))


def _format(controller: ControllerState, flbas: Flbas, dps: Dps) -> Format:
    """The upper bits of the number do not count, because there are not more than 16 formats. Raises CommandFailed."""
    formats = controller.subsystem.formats
    return chosen(controller, formats, flbas.index_low, flbas.is_extended, dps.type, dps.is_first)


def _delete(request: Request[NamespaceManagement]) -> Result:
    controller, nsid = request.controller, request.command.nsid
    inventory = controller.subsystem.namespaces

    def found() -> list[Namespace]:
        return inventory.addressed(nsid)

    found()  # one that is not there fails before others are waited for
    return _change(controller, management.delete(controller.subsystem, found, controller.cntlid))


def attach_namespace(request: Request[NamespaceAttachment]) -> Result:
    """Base 2.0, 5.22. NSID FFFFFFFFh is none, although it is for other commands."""
    _check_offered(request)
    controller, command = request.controller, request.command
    subsystem, nsid = controller.subsystem, command.nsid
    if command.sel not in set(AttachmentSelect):
        raise CommandFailed(Status.INVALID_FIELD, location=_SEL)
    subsystem.namespaces[nsid]
    cntlids, offsets = _controllers(controller, ControllerList(request.receive(ControllerList.SIZE)))
    if command.sel == AttachmentSelect.ATTACH:
        return _change(controller, management.attach(subsystem, nsid, cntlids, offsets, most_attached(controller)))
    return _change(controller, management.detach(subsystem, nsid, cntlids, offsets))


def most_attached(controller: ControllerState) -> int:
    """How many namespaces a controller can have (MAXCNA)."""
    return min(controller.limits.attached, controller.limits.namespaces)


def _controllers(controller: ControllerState, given: ControllerList) -> tuple[list[int], list[int]]:
    """The controllers of a list, and where each stands in it, in bytes. Raises CommandFailed."""
    if not 1 <= given.number <= MOST_IN_CONTROLLER_LIST:
        raise CommandFailed(Status.INVALID_CONTROLLER_LIST, why=f"{given.number} controllers")
    cntlids = list(struct.unpack_from(f"<{given.number}H", given.ids))
    offsets = [2 + 2 * index for index in range(len(cntlids))]
    known = {one.cntlid for one in controller.subsystem.controllers}
    before = -1
    for cntlid, offset in zip(cntlids, offsets, strict=True):
        if cntlid not in known or cntlid <= before:
            why = f"controller {cntlid} is not known, or does not come after {before}"
            raise CommandFailed(Status.INVALID_CONTROLLER_LIST, info=offset, why=why)
        before = cntlid
    return cntlids, offsets


def _change(controller: ControllerState, steps: Steps) -> Changing:
    return Changing(partial(controller.subsystem.turns.begin, steps), lambda dw0: int(dw0))
