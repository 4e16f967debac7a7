"""Identify: what the controller and its namespaces are, built from the values that the code uses. Base 1.4, 5.15."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvmeemu.commands import features, log_pages
from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    CQE_SIZE,
    FLUSH_TAKES_BROADCAST,
    MEDIA_NOT_MODIFIED,
    PAGE_MIN,
    READS_AS_ZEROS,
    SGLS_ANY_BYTE,
    SQE_SIZE,
    Cns,
    ControllerType,
    Csi,
    Ctratt,
    DlFeat,
    Dps,
    ExtendedLbaFormat,
    Flbas,
    Frmw,
    Identify,
    IdentifyController,
    IdentifyNamespace,
    IndependentNamespace,
    LbaFormat,
    MetadataCapabilities,
    Nidt,
    NsAttr,
    NsFeat,
    NStat,
    NvmController,
    NvmNamespace,
    Nwpc,
    Oacs,
    Oncs,
    Pic,
    PowerState,
    ProtectionCapabilities,
    Sanicap,
    Sgls,
    Status,
    Vwc,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import OfferedFormat, Protection
from nvmeemu.subsystem.health import CRITICAL_TEMPERATURE, ERROR_LOG_ENTRIES, WARNING_TEMPERATURE
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.tables import Table

PAGE = 4096
PLAIN_FORMATS = 16  # that every host can use
_SHUTDOWN_TIME = 30_000_000  # microseconds that a Flush of a slow disk may take: RTD3E


@dataclass(frozen=True)
class IdentifyPage:
    """A structure that Identify gives."""

    cns: int
    build: Callable[[Request[Identify]], bytes]
    is_offered: Callable[[ControllerState], bool] = lambda controller: True

    @property
    def number(self) -> int:
        """Its row in the table of structures."""
        return self.cns


def identify(request: Request[Identify]) -> int:
    """Base 1.4, 5.15."""
    command = request.command
    of_set = OF_COMMAND_SETS.get(command.csi)
    page = PAGES.get(command.cns) or (None if of_set is None else of_set.get(command.cns))
    if page is None or not page.is_offered(request.controller):
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    request.send(page.build(request))
    return 0


def _oacs(controller: ControllerState) -> Oacs:
    found = Oacs(0)
    for entry in controller.admin_commands.values():
        if entry.is_offered(controller):
            found |= entry.oacs
    return found


def _oncs(controller: ControllerState) -> Oncs:
    found = features.advertised(controller)
    for entry in (*controller.admin_commands.values(), *controller.io_commands.values()):
        if entry.is_offered(controller):
            found |= entry.oncs
    return found


def _sgls(controller: ControllerState) -> Sgls:
    if not controller.limits.has_sgls:
        return Sgls()
    return Sgls(support=SGLS_ANY_BYTE, bit_bucket=True, mptr_any_byte=True, longer_than_data=True, mptr_is_sgl=True)


def _ctratt(controller: ControllerState) -> Ctratt:
    found = Ctratt.UUID_LIST if controller.uuids else Ctratt(0)
    in_use = [namespace.format.offered for namespace in controller.namespaces]
    if any(one.needs_extension for one in (*controller.subsystem.formats, *in_use)):
        found |= Ctratt.ELBAS
    return found


def _controller(request: Request[Identify]) -> bytes:
    """CNS 01h."""
    controller = request.controller
    identity, limits = controller.subsystem.identity, controller.limits
    page = IdentifyController(
        vid=identity.vendor_id,
        ssvid=identity.vendor_id,
        sn=identity.serial,
        mn=identity.model,
        fr=identity.firmware,
        rab=6,
        mdts=limits.mdts,
        cntlid=controller.cntlid,
        ver=limits.vs,
        rtd3e=_SHUTDOWN_TIME,
        oaes=log_pages.notices(controller),
        ctratt=_ctratt(controller),
        cntrltype=ControllerType.IO,
        oacs=_oacs(controller),
        acl=limits.acl,
        aerl=limits.aerl,
        frmw=int(Frmw(slots=1, is_slot1_read_only=True)),
        lpa=log_pages.attributes(controller),
        elpe=ERROR_LOG_ENTRIES,
        npss=1,
        avscc=1,
        wctemp=WARNING_TEMPERATURE,
        cctemp=CRITICAL_TEMPERATURE,
        sanicap=int(Sanicap(nodmmas=MEDIA_NOT_MODIFIED)),  # there is no Sanitize
        sqes_min=SQE_SIZE.bit_length() - 1,
        sqes_max=SQE_SIZE.bit_length() - 1,
        cqes_min=CQE_SIZE.bit_length() - 1,
        cqes_max=CQE_SIZE.bit_length() - 1,
        nn=controller.namespaces.nn,
        oncs=_oncs(controller),
        vwc=int(Vwc(present=controller.has_write_cache, flush_behavior=FLUSH_TAKES_BROADCAST)),
        nwpc=Nwpc.PROTECTED | Nwpc.UNTIL_POWER_CYCLE | Nwpc.PERMANENT,
        sgls=int(_sgls(controller)),
        subnqn=identity.subnqn.encode(),
        psd=[PowerState(mp=900, enlat=0, exlat=0)],
    )
    return bytes(page)


def _namespace(request: Request[Identify]) -> bytes:
    """CNS 00h: an inactive NSID reads as zeros (Base 1.4, 5.15.2.1)."""
    namespace = _active_or_none(request)
    if namespace is None:
        return bytes(PAGE)
    format, block_map = namespace.format, namespace.media.block_map
    formats = request.controller.subsystem.formats_of(namespace)
    granularity = max(PAGE_MIN // format.data_size, 1)
    page = IdentifyNamespace(
        nsze=namespace.blocks,
        ncap=namespace.blocks,
        nuse=namespace.blocks if block_map is None else block_map.written,
        nsfeat=NsFeat.OPTPERF | (NsFeat(0) if block_map is None else NsFeat.DULBE),
        flbas=int(_flbas(formats.index(format.offered), format.is_extended)),
        dps=0 if format.protection is None else int(_dps(format.protection)),
        dlfeat=int(DlFeat(read=READS_AS_ZEROS, write_zeroes_deallocates=True)),
        nvmcap=namespace.blocks * format.data_size,
        npwg=granularity,
        npwa=granularity,
        npdg=granularity,
        npda=granularity,
        nows=granularity,  # a multiple of NPWG
        nsattr=_attributes(namespace),
        nguid=namespace.nguid,
        eui64=namespace.eui64,
    )
    _tell_formats(page, formats)
    return bytes(page)


def _tell_formats(page: IdentifyNamespace, formats: Sequence[OfferedFormat]) -> None:
    """The formats that there are, and what can be done with them."""
    page.nlbaf = min(len(formats), PLAIN_FORMATS)
    page.nulbaf = len(formats) - page.nlbaf
    page.lbaf = [LbaFormat(ms=one.metadata_size, lbads=one.data_size.bit_length() - 1) for one in formats]
    if any(one.metadata_size for one in formats):
        page.mc = MetadataCapabilities.EXTENDED | MetadataCapabilities.SEPARATE
    if protection.is_available() and any(one.can_be_protected for one in formats):
        page.dpc = ProtectionCapabilities(0b11111)


def _flbas(index: int, is_extended: bool) -> Flbas:
    return Flbas(index_low=index & 0xF, index_high=index >> 4, is_extended=is_extended)


def _dps(of: Protection) -> Dps:
    return Dps(type=of.type, is_first=of.is_first)


def _active_or_none(request: Request[Identify]) -> Namespace | None:
    namespaces, nsid = request.controller.namespaces, request.command.nsid
    if not namespaces.is_valid(nsid):
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    return namespaces.by_nsid.get(nsid)


def _attributes(namespace: Namespace) -> NsAttr:
    return NsAttr.WRITE_PROTECTED if namespace.is_write_protected else NsAttr(0)


def _list(request: Request[Identify]) -> bytes:
    """CNS 02h: the active NSIDs greater than NSID."""
    nsid = request.command.nsid
    if nsid >= 0xFFFFFFFE:
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    found = sorted(number for number in request.controller.namespaces.by_nsid if number > nsid)[: PAGE // 4]
    return struct.pack(f"<{len(found)}I", *found).ljust(PAGE, b"\0")


def _descriptors(request: Request[Identify]) -> bytes:
    """CNS 03h: EUI-64 if there is one, NGUID, UUID, command set. Base 1.4, Figure 246: type, length, 2 bytes reserved,
    value."""
    namespace = request.controller.namespaces[request.command.nsid]
    values = [(Nidt.NGUID, namespace.nguid), (Nidt.UUID, namespace.uuid.bytes), (Nidt.CSI, b"\0")]
    if any(namespace.eui64):
        values.insert(0, (Nidt.EUI64, namespace.eui64))
    return b"".join(bytes((kind, len(value), 0, 0)) + value for kind, value in values).ljust(PAGE, b"\0")


def _csi_namespace(request: Request[Identify]) -> bytes:
    """CNS 05h: the guards and storage tags of the formats; all zero for an inactive NSID."""
    namespace = _active_or_none(request)
    if namespace is None:
        return bytes(PAGE)
    formats = request.controller.subsystem.formats_of(namespace)
    page = NvmNamespace(elbaf=[ExtendedLbaFormat(sts=one.storage_tag_size, pif=one.guard) for one in formats])
    page.lbstm = (1 << namespace.format.offered.storage_tag_size) - 1
    if any(one.needs_extension for one in formats):
        page.pic = Pic.STORAGE_TAG_WITH_16_BITS | Pic.STORAGE_TAG_MASK_WITH_16_BITS
    return bytes(page)


def _csi_controller(request: Request[Identify]) -> bytes:
    """CNS 06h: no limits beyond MDTS."""
    return bytes(NvmController())


def _independent_namespace(request: Request[Identify]) -> bytes:
    """CNS 08h."""
    namespace = _active_or_none(request)
    if namespace is None:
        return bytes(PAGE)
    return bytes(IndependentNamespace(nsattr=_attributes(namespace), nstat=NStat.READY))


def _uuid_list(request: Request[Identify]) -> bytes:
    """CNS 17h, if there are any: entries of 32 bytes from 32 on, each with its UUID in the upper half."""
    uuids = request.controller.uuids
    return (bytes(32) + b"".join(bytes(16) + uuid for uuid in uuids)).ljust(PAGE, b"\0")


def _command_sets(request: Request[Identify]) -> bytes:
    """CNS 1Ch: one combination, with a bit for each command set."""
    return struct.pack("<Q", sum(1 << csi for csi in OF_COMMAND_SETS)).ljust(PAGE, b"\0")


def _has_uuids(controller: ControllerState) -> bool:
    return bool(controller.uuids)


PAGES = Table(
    IdentifyPage(Cns.NAMESPACE, _namespace),
    IdentifyPage(Cns.CONTROLLER, _controller),
    IdentifyPage(Cns.ACTIVE_NAMESPACES, _list),
    IdentifyPage(Cns.NAMESPACE_DESCRIPTORS, _descriptors),
    IdentifyPage(Cns.INDEPENDENT_NAMESPACE, _independent_namespace),
    IdentifyPage(Cns.UUID_LIST, _uuid_list, _has_uuids),
    IdentifyPage(Cns.COMMAND_SETS, _command_sets),
)
"""What there is whatever CSI says."""

OF_COMMAND_SETS = {
    int(Csi.NVM): Table(
        IdentifyPage(Cns.CSI_NAMESPACE, _csi_namespace),
        IdentifyPage(Cns.CSI_CONTROLLER, _csi_controller),
        IdentifyPage(Cns.CSI_ACTIVE_NAMESPACES, _list),
    ),
}
"""And what each command set has: CSI tells which is meant."""
