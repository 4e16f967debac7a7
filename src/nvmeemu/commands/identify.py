"""Identify: what the controller and its namespaces are, built from the values that the code uses. Base 1.4, 5.15."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvmeemu.commands import features, log_pages
from nvmeemu.commands.copy import MOST_RANGES, CopyLimits, has_copy
from nvmeemu.commands.format_nvm import can_format
from nvmeemu.commands.namespaces import has_management, most_attached
from nvmeemu.controller.limits import FUSED_BLOCKS
from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    BROADCAST,
    CQE_SIZE,
    FLUSH_TAKES_BROADCAST,
    MEDIA_NOT_MODIFIED,
    MOST_IN_CONTROLLER_LIST,
    PAGE_MIN,
    READS_AS_ZEROS,
    SGLS_ANY_BYTE,
    SQE_SIZE,
    Cns,
    ControllerList,
    ControllerType,
    Csi,
    Ctratt,
    DlFeat,
    Dps,
    ExtendedLbaFormat,
    Flbas,
    Fna,
    Fpi,
    Frmw,
    Fuses,
    GranularityDescriptor,
    Identify,
    IdentifyController,
    IdentifyNamespace,
    IndependentNamespace,
    LbaFormat,
    MetadataCapabilities,
    NamespaceGranularityList,
    Nidt,
    Nmic,
    NsAttr,
    NsFeat,
    NStat,
    NvmController,
    NvmNamespace,
    Nwpc,
    Oacs,
    Ocfs,
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
from nvmeemu.subsystem.formats import PLAIN_FORMATS, OfferedFormat, Protection
from nvmeemu.subsystem.health import CRITICAL_TEMPERATURE, ERROR_LOG_ENTRIES, WARNING_TEMPERATURE
from nvmeemu.subsystem.namespace import Namespace, Namespaces
from nvmeemu.subsystem.pool import GRANULE
from nvmeemu.tables import Table

PAGE = 4096
_DEALLOCATED = DlFeat(read=READS_AS_ZEROS, write_zeroes_deallocates=True)
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
    subsystem, limits = controller.subsystem, controller.limits
    identity = subsystem.identity
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
        tnvmcap=subsystem.capacity if has_management(controller) else 0,
        unvmcap=subsystem.unallocated if has_management(controller) else 0,
        sanicap=int(Sanicap(nodmmas=MEDIA_NOT_MODIFIED)),  # there is no Sanitize
        sqes_min=SQE_SIZE.bit_length() - 1,
        sqes_max=SQE_SIZE.bit_length() - 1,
        cqes_min=CQE_SIZE.bit_length() - 1,
        cqes_max=CQE_SIZE.bit_length() - 1,
        nn=controller.namespaces.nn,
        fuses=Fuses.COMPARE_AND_WRITE,
        acwu=FUSED_BLOCKS,
        fna=Fna.CRYPTO_ERASE if can_format(controller) else Fna(0),
        oncs=_oncs(controller),
        vwc=int(Vwc(present=controller.has_write_cache, flush_behavior=FLUSH_TAKES_BROADCAST)),
        nwpc=Nwpc.PROTECTED | Nwpc.UNTIL_POWER_CYCLE | Nwpc.PERMANENT,
        ocfs=~Ocfs(0) if has_copy(controller) else Ocfs(0),
        sgls=int(_sgls(controller)),
        mnan=limits.namespaces if has_management(controller) else 0,
        maxcna=most_attached(controller) if has_management(controller) else 0,
        subnqn=identity.subnqn.encode(),
        psd=[PowerState(mp=900, enlat=0, exlat=0)],
    )
    return bytes(page)


def _namespace(request: Request[Identify]) -> bytes:
    """CNS 00h: an inactive NSID reads as zeros (Base 1.4, 5.15.2.1)."""
    if request.command.nsid == BROADCAST and has_management(request.controller):
        return _common(request.controller)
    namespace = _active_or_none(request)
    if namespace is None:
        return bytes(PAGE)
    return _page(request.controller, namespace)


def _common(controller: ControllerState) -> bytes:
    """CNS 00h for FFFFFFFFh: what all namespaces have, and what a host may choose when it creates one."""
    page = IdentifyNamespace(nsfeat=NsFeat.OPTPERF | NsFeat.IDS_NOT_REUSED, nmic=Nmic.SHARED, dlfeat=int(_DEALLOCATED))
    _tell_formats(page, controller.subsystem.formats)
    return bytes(page)


def _allocated_namespace(request: Request[Identify]) -> bytes:
    """CNS 11h: as CNS 00h, whether the namespace is attached to this controller or not."""
    namespace = _allocated_or_none(request)
    return bytes(PAGE) if namespace is None else _page(request.controller, namespace)


def _page(controller: ControllerState, namespace: Namespace) -> bytes:
    format, block_map = namespace.format, namespace.media.block_map
    formats = controller.subsystem.formats_of(namespace)
    granularity = max(PAGE_MIN // format.data_size, 1)
    page = IdentifyNamespace(
        nsze=namespace.blocks,
        ncap=namespace.blocks,
        nuse=namespace.blocks if block_map is None else block_map.written,
        nsfeat=_features(namespace),
        flbas=int(_flbas(formats.index(format.offered), format.is_extended)),
        dps=0 if format.protection is None else int(_dps(format.protection)),
        nmic=_sharing(namespace),
        fpi=int(_progress(namespace)),
        dlfeat=int(_DEALLOCATED),
        nvmcap=namespace.capacity,
        npwg=granularity,
        npwa=granularity,
        npdg=granularity,
        npda=granularity,
        nows=granularity,  # a multiple of NPWG
        nawun=_atomic_blocks(namespace),
        nawupf=_atomic_blocks(namespace),
        nacwu=FUSED_BLOCKS if _atomic_blocks(namespace) > 1 else 1,
        nsattr=_attributes(namespace),
        nguid=namespace.nguid,
        eui64=namespace.eui64,
    )
    _tell_formats(page, formats)
    if has_copy(controller):
        page.mssrl, page.mcl = CopyLimits.of(format)
        page.msrc = MOST_RANGES
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


def _features(namespace: Namespace) -> NsFeat:
    found = NsFeat.OPTPERF
    if _atomic_blocks(namespace) > 1:
        found |= NsFeat.NSABP
    if namespace.media.block_map is not None:
        found |= NsFeat.DULBE
    return found if namespace.pool_name is None else found | NsFeat.IDS_NOT_REUSED


def _atomic_blocks(namespace: Namespace) -> int:
    """How many blocks a write may have to be atomic. AWUN and AWUPF are of all namespaces that there can be: one."""
    atomicity = namespace.media.atomicity
    return 1 if atomicity is None else max(atomicity.unit // namespace.format.data_size, 1)


def _sharing(namespace: Namespace) -> Nmic:
    return Nmic.SHARED if namespace.is_shared else Nmic(0)


def _active_or_none(request: Request[Identify]) -> Namespace | None:
    return _one_or_none(request, request.controller.namespaces)


def _allocated_or_none(request: Request[Identify]) -> Namespace | None:
    return _one_or_none(request, request.controller.subsystem.namespaces)


def _one_or_none(request: Request[Identify], namespaces: Namespaces) -> Namespace | None:
    nsid = request.command.nsid
    if not namespaces.is_valid(nsid):
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    return namespaces.by_nsid.get(nsid)


def _attributes(namespace: Namespace) -> NsAttr:
    return NsAttr.WRITE_PROTECTED if namespace.is_write_protected else NsAttr(0)


def _progress(namespace: Namespace) -> Fpi:
    return Fpi(is_supported=namespace.formatter is not None, left=namespace.format_left)


def _list(request: Request[Identify]) -> bytes:
    """CNS 02h: the active NSIDs greater than NSID."""
    return _listed(request, request.controller.namespaces)


def _allocated_list(request: Request[Identify]) -> bytes:
    """CNS 10h: the same of all that there are."""
    return _listed(request, request.controller.subsystem.namespaces)


def _listed(request: Request[Identify], namespaces: Namespaces) -> bytes:
    nsid = request.command.nsid
    if nsid >= 0xFFFFFFFE:
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0))
    found = sorted(number for number in namespaces.by_nsid if number > nsid)[: PAGE // 4]
    return struct.pack(f"<{len(found)}I", *found).ljust(PAGE, b"\0")


def _attached_controllers(request: Request[Identify]) -> bytes:
    """CNS 12h: the controllers, from CNTID on, to which a namespace is attached."""
    namespaces, nsid = request.controller.subsystem.namespaces, request.command.nsid
    if nsid == BROADCAST:
        raise CommandFailed(Status.INVALID_FIELD, location=(4, 0))
    return _controller_list(request, namespaces.attached_to(namespaces[nsid].nsid))


def _controllers(request: Request[Identify]) -> bytes:
    """CNS 13h: all controllers of the subsystem, from CNTID on."""
    return _controller_list(request, sorted(one.cntlid for one in request.controller.subsystem.controllers))


def _controller_list(request: Request[Identify], cntlids: list[int]) -> bytes:
    found = [cntlid for cntlid in cntlids if cntlid >= request.command.cntid][:MOST_IN_CONTROLLER_LIST]
    return bytes(ControllerList(number=len(found), ids=struct.pack(f"<{len(found)}H", *found)))


def _granularity(request: Request[Identify]) -> bytes:
    """CNS 16h: one for all formats. Other sizes are taken, too."""
    descriptor = GranularityDescriptor(nszeg=GRANULE, ncapg=GRANULE)
    return bytes(NamespaceGranularityList(number=1, descriptors=[descriptor]))


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
    if request.command.nsid == BROADCAST and has_management(request.controller):
        return bytes(_guards(request.controller.subsystem.formats))
    return _of_nvm(request, _active_or_none(request))


def _csi_allocated_namespace(request: Request[Identify]) -> bytes:
    """CNS 1Bh: as CNS 05h, whether the namespace is attached or not."""
    return _of_nvm(request, _allocated_or_none(request))


def _of_nvm(request: Request[Identify], namespace: Namespace | None) -> bytes:
    if namespace is None:
        return bytes(PAGE)
    page = _guards(request.controller.subsystem.formats_of(namespace))
    page.lbstm = (1 << namespace.format.offered.storage_tag_size) - 1
    return bytes(page)


def _guards(formats: Sequence[OfferedFormat]) -> NvmNamespace:
    page = NvmNamespace(elbaf=[ExtendedLbaFormat(sts=one.storage_tag_size, pif=one.guard) for one in formats])
    if any(one.needs_extension for one in formats):
        page.pic = Pic.STORAGE_TAG_WITH_16_BITS | Pic.STORAGE_TAG_MASK_WITH_16_BITS
    return page


def _csi_controller(request: Request[Identify]) -> bytes:
    """CNS 06h: no limits beyond MDTS."""
    return bytes(NvmController())


def _independent_namespace(request: Request[Identify]) -> bytes:
    """CNS 08h."""
    return _independent(_active_or_none(request))


def _independent_allocated_namespace(request: Request[Identify]) -> bytes:
    """CNS 1Fh: as CNS 08h, whether the namespace is attached or not."""
    return _independent(_allocated_or_none(request))


def _independent(namespace: Namespace | None) -> bytes:
    if namespace is None:
        return bytes(PAGE)
    page = IndependentNamespace(
        nsfeat=NsFeat(0) if namespace.pool_name is None else NsFeat.IDS_NOT_REUSED,
        nmic=_sharing(namespace),
        fpi=int(_progress(namespace)),
        nsattr=_attributes(namespace),
        nstat=NStat.READY,
    )
    return bytes(page)


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
    IdentifyPage(Cns.ALLOCATED_NAMESPACES, _allocated_list, has_management),
    IdentifyPage(Cns.ALLOCATED_NAMESPACE, _allocated_namespace, has_management),
    IdentifyPage(Cns.ATTACHED_CONTROLLERS, _attached_controllers, has_management),
    IdentifyPage(Cns.CONTROLLERS, _controllers, has_management),
    IdentifyPage(Cns.NAMESPACE_GRANULARITY, _granularity, has_management),
    IdentifyPage(Cns.UUID_LIST, _uuid_list, _has_uuids),
    IdentifyPage(Cns.INDEPENDENT_ALLOCATED_NAMESPACE, _independent_allocated_namespace, has_management),
    IdentifyPage(Cns.COMMAND_SETS, _command_sets),
)
"""What there is whatever CSI says."""

OF_COMMAND_SETS = {
    int(Csi.NVM): Table(
        IdentifyPage(Cns.CSI_NAMESPACE, _csi_namespace),
        IdentifyPage(Cns.CSI_CONTROLLER, _csi_controller),
        IdentifyPage(Cns.CSI_ACTIVE_NAMESPACES, _list),
        IdentifyPage(Cns.CSI_ALLOCATED_NAMESPACES, _allocated_list, has_management),
        IdentifyPage(Cns.CSI_ALLOCATED_NAMESPACE, _csi_allocated_namespace, has_management),
    ),
}
"""And what each command set has: CSI tells which is meant."""
