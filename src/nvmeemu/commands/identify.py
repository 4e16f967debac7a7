"""Identify: what the controller and its namespaces are, built from the values that the code uses. Base 1.4, 5.15."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_

from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState, Offer
from nvmeemu.spec import (
    CQE_SIZE,
    PAGE_MIN,
    SQE_SIZE,
    VERSION,
    Cns,
    Identify,
    IdentifyController,
    IdentifyNamespace,
    IndependentNamespace,
    LbaFormat,
    NvmController,
    PowerState,
    Status,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.health import CRITICAL_TEMPERATURE, ERROR_LOG_ENTRIES, WARNING_TEMPERATURE
from nvmeemu.subsystem.namespace import Namespace

PAGE = 4096
_NIDT_EUI64, _NIDT_NGUID, _NIDT_UUID, _NIDT_CSI = 1, 2, 3, 4
_SHUTDOWN_TIME = 30_000_000  # microseconds that a Flush of a slow disk may take: RTD3E


def identify(request: Request[Identify]) -> int:
    """Base 1.4, 5.15."""
    controller, command = request.controller, request.command
    build = PAGES.get(command.cns)
    if build is None or (command.cns in _OF_COMMAND_SET and command.csi != 0):  # only the NVM command set is there
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    request.send(build(controller, command.nsid))
    return 0


def _advertised(controller: ControllerState, commands: Mapping[int, Offer]) -> int:
    return reduce(or_, (entry.advertised for entry in commands.values() if entry.is_offered(controller)), 0)


def _controller(controller: ControllerState, nsid: int) -> bytes:
    """CNS 01h."""
    identity, limits = controller.identity, controller.limits
    page = IdentifyController(
        vid=identity.vendor_id,
        ssvid=identity.vendor_id,
        sn=identity.serial,
        mn=identity.model,
        fr=identity.firmware,
        rab=6,
        mdts=limits.mdts,
        cntlid=identity.cntlid,
        ver=VERSION,
        rtd3e=_SHUTDOWN_TIME,
        oaes=1 << 8,  # namespaces that change are told
        ctratt=bool(controller.uuids) << 9,  # UUID list
        cntrltype=1,  # I/O controller
        oacs=_advertised(controller, controller.admin_commands),
        acl=limits.acl,
        aerl=limits.aerl,
        frmw=0b11,  # one firmware slot, read-only
        lpa=0b110,  # Commands Supported and Effects log; offsets and lengths beyond 12 bits in Get Log Page
        elpe=ERROR_LOG_ENTRIES,
        npss=1,
        avscc=1,
        wctemp=WARNING_TEMPERATURE,
        cctemp=CRITICAL_TEMPERATURE,
        sanicap=0b01 << 30,  # NODMMAS: no media changes after a sanitize (which we do not have)
        sqes_min=SQE_SIZE.bit_length() - 1,
        sqes_max=SQE_SIZE.bit_length() - 1,
        cqes_min=CQE_SIZE.bit_length() - 1,
        cqes_max=CQE_SIZE.bit_length() - 1,
        nn=controller.namespaces.nn,
        oncs=_advertised(controller, controller.io_commands) | 1 << 4 | 1 << 6,  # Save and Select fields; Timestamp
        vwc=0b111 if controller.has_write_cache else 0b110,  # bits 2:1: Flush takes NSID FFFFFFFFh
        subnqn=identity.subnqn.encode(),
        psd=[PowerState(mp=900, enlat=0, exlat=0)],
    )
    return bytes(page)


def _namespace(controller: ControllerState, nsid: int) -> bytes:
    """CNS 00h: an inactive NSID reads as zeros (Base 1.4, 5.15.2.1)."""
    namespace = _active_or_none(controller, nsid)
    if namespace is None:
        return bytes(PAGE)
    granularity = max(PAGE_MIN // namespace.format.data_size, 1)
    page = IdentifyNamespace(
        nsze=namespace.blocks,
        ncap=namespace.blocks,
        nuse=namespace.blocks,
        nsfeat=1 << 4,  # NPWG to NOWS are valid
        dlfeat=0b1001,  # deallocated blocks read as zeros; Write Zeroes may deallocate
        nvmcap=namespace.blocks * namespace.format.data_size,
        npwg=granularity,
        npwa=granularity,
        npdg=granularity,
        npda=granularity,
        nows=granularity,  # a multiple of NPWG
        nsattr=int(namespace.read_only),
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        lbaf=[LbaFormat(lbads=namespace.format.data_size.bit_length() - 1)],
    )
    return bytes(page)


def _active_or_none(controller: ControllerState, nsid: int) -> Namespace | None:
    if not controller.namespaces.is_valid(nsid):
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    return controller.namespaces.active.get(nsid)


def _list(controller: ControllerState, nsid: int) -> bytes:
    """CNS 02h: the active NSIDs greater than ``nsid``."""
    if nsid >= 0xFFFFFFFE:
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    found = sorted(number for number in controller.namespaces.active if number > nsid)[: PAGE // 4]
    return struct.pack(f"<{len(found)}I", *found).ljust(PAGE, b"\0")


def _descriptors(controller: ControllerState, nsid: int) -> bytes:
    """CNS 03h: EUI-64 if there is one, NGUID, UUID, command set. Base 1.4, Figure 246: type, length, 2 bytes reserved,
    value."""
    namespace = controller.namespaces[nsid]
    values = [(_NIDT_NGUID, namespace.nguid), (_NIDT_UUID, namespace.uuid.bytes), (_NIDT_CSI, b"\0")]
    if any(namespace.eui64):
        values.insert(0, (_NIDT_EUI64, namespace.eui64))
    return b"".join(bytes((kind, len(value), 0, 0)) + value for kind, value in values).ljust(PAGE, b"\0")


def _csi_namespace(controller: ControllerState, nsid: int) -> bytes:
    """CNS 05h: no protection information, no storage tags: all zero, as for an inactive NSID."""
    _active_or_none(controller, nsid)
    return bytes(PAGE)


def _csi_controller(controller: ControllerState, nsid: int) -> bytes:
    """CNS 06h: no limits beyond MDTS."""
    return bytes(NvmController())


def _independent_namespace(controller: ControllerState, nsid: int) -> bytes:
    """CNS 08h."""
    namespace = _active_or_none(controller, nsid)
    if namespace is None:
        return bytes(PAGE)
    return bytes(IndependentNamespace(nsattr=int(namespace.read_only), nstat=1))


def _uuid_list(controller: ControllerState, nsid: int) -> bytes:
    """CNS 17h, if there are any: entries of 32 bytes from 32 on, each with its UUID in the upper half."""
    if not controller.uuids:
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    return (bytes(32) + b"".join(bytes(16) + uuid for uuid in controller.uuids)).ljust(PAGE, b"\0")


def _command_sets(controller: ControllerState, nsid: int) -> bytes:
    """CNS 1Ch: one combination, the NVM command set alone."""
    return struct.pack("<Q", 1).ljust(PAGE, b"\0")


PAGES: dict[int, Callable[[ControllerState, int], bytes]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: _controller,
    Cns.ACTIVE_NAMESPACES: _list,
    Cns.NAMESPACE_DESCRIPTORS: _descriptors,
    Cns.CSI_NAMESPACE: _csi_namespace,
    Cns.CSI_CONTROLLER: _csi_controller,
    Cns.CSI_ACTIVE_NAMESPACES: _list,
    Cns.INDEPENDENT_NAMESPACE: _independent_namespace,
    Cns.UUID_LIST: _uuid_list,
    Cns.COMMAND_SETS: _command_sets,
}
_OF_COMMAND_SET = (Cns.CSI_NAMESPACE, Cns.CSI_CONTROLLER, Cns.CSI_ACTIVE_NAMESPACES)
