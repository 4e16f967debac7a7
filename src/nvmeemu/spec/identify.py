"""Identify: which structures there are, their layouts, and the names of their bits. Base 1.4, 5.15.

Fields that stay zero are left out. Bits that came with Base 2.0 are marked: the device reports version 1.4.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nvmeemu.spec.events import Notice
from nvmeemu.spec.layout import Record, bit, bits, count, flags, raw, records, text, uint
from nvmeemu.spec.names import Names


class Cns(IntEnum):
    """Controller or Namespace Structure of Identify. Base 1.4, Figure 241; 05h to 08h and 1Ah to 1Ch: Base
    2.0; 1Fh: Base 2.1."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    ATTACHED_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    NAMESPACE_GRANULARITY = 0x16
    UUID_LIST = 0x17
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    COMMAND_SETS = 0x1C
    INDEPENDENT_ALLOCATED_NAMESPACE = 0x1F


CNS_NAMES = Names(Cns)


class ControllerType(IntEnum):
    """CNTRLTYPE. Base 1.4, Figure 247."""

    IO = 1
    DISCOVERY = 2
    ADMINISTRATIVE = 3


class Csi(IntEnum):
    """Command Set Identifier. Base 2.0, Figure 274."""

    NVM = 0
    KEY_VALUE = 1
    ZONED = 2


class Nidt(IntEnum):
    """Namespace Identifier Type, of a Namespace Identification Descriptor. Base 1.4, Figure 246; CSI: Base 2.0."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


class Cmic(IntFlag):
    """Controller Multi-Path I/O and Namespace Sharing Capabilities."""

    MULTIPLE_PORTS = 1 << 0
    MULTIPLE_CONTROLLERS = 1 << 1
    SR_IOV = 1 << 2
    ANA = 1 << 3


class Ctratt(IntFlag):
    """Controller Attributes. ``MDS`` and what follows: Base 2.0."""

    HOST_ID_128 = 1 << 0
    NON_OPERATIONAL_PERMISSIVE = 1 << 1
    NVM_SETS = 1 << 2
    READ_RECOVERY_LEVELS = 1 << 3
    ENDURANCE_GROUPS = 1 << 4
    PREDICTABLE_LATENCY = 1 << 5
    TRAFFIC_BASED_KEEP_ALIVE = 1 << 6
    NAMESPACE_GRANULARITY = 1 << 7
    SQ_ASSOCIATIONS = 1 << 8
    UUID_LIST = 1 << 9
    MDS = 1 << 10
    ELBAS = 1 << 15
    MDTS_EXCLUDES_METADATA = 1 << 16
    FDP = 1 << 19


class Oacs(IntFlag):
    """Optional Admin Command Support. ``LOCKDOWN``: Base 2.0."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    DEVICE_SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    NVME_MI = 1 << 6
    VIRTUALIZATION = 1 << 7
    DOORBELL_BUFFER_CONFIG = 1 << 8
    GET_LBA_STATUS = 1 << 9
    LOCKDOWN = 1 << 10


class Oncs(IntFlag):
    """Optional NVM Command Support. ``COPY``: Base 2.0."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_AND_SELECT = 1 << 4  # the fields SV and SEL of Set Features and Get Features
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8


class Ocfs(IntFlag):
    """Optional Copy Formats Supported: the descriptor formats of Copy. Base 2.0; 2 and 3: Base 2.1."""

    FORMAT_0 = 1 << 0
    FORMAT_1 = 1 << 1
    FORMAT_2 = 1 << 2
    FORMAT_3 = 1 << 3


class Fuses(IntFlag):
    """Fused Operation Support."""

    COMPARE_AND_WRITE = 1 << 0


class Fna(IntFlag):
    """Format NVM Attributes. ``NO_BROADCAST``: Base 2.0."""

    FORMAT_ALL = 1 << 0
    ERASE_ALL = 1 << 1
    CRYPTO_ERASE = 1 << 2
    NO_BROADCAST = 1 << 3


class Lpa(IntFlag):
    """Log Page Attributes."""

    SMART_PER_NAMESPACE = 1 << 0
    COMMAND_EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2  # NUMDU and LPO of Get Log Page
    TELEMETRY = 1 << 3
    PERSISTENT_EVENT = 1 << 4
    SUPPORTED_PAGES = 1 << 5  # log pages 00h, 12h and, with a management interface, 13h; Base 2.0


class Frmw(Record, size=1):
    """Firmware Updates. ``slots``: how many there are."""

    is_slot1_read_only = bit(0, 0, size=1)
    slots = bits(0, 3, 1, size=1)
    without_reset = bit(0, 4, size=1)


class Sanicap(Record, size=4):
    """Sanitize Capabilities."""

    crypto_erase = bit(0, 0)
    block_erase = bit(0, 1)
    overwrite = bit(0, 2)
    no_deallocate_inhibited = bit(0, 29)
    nodmmas = bits(0, 31, 30)


MEDIA_NOT_MODIFIED = 0b01  # NODMMAS: the media is not changed once more after a sanitize


class Vwc(Record, size=1):
    """Volatile Write Cache."""

    present = bit(0, 0, size=1)
    flush_behavior = bits(0, 2, 1, size=1)


FLUSH_TAKES_BROADCAST = 0b11  # of VWC: Flush takes NSID FFFFFFFFh


class Nwpc(IntFlag):
    """Namespace Write Protection Capabilities: the states that there are."""

    PROTECTED = 1 << 0  # and none
    UNTIL_POWER_CYCLE = 1 << 1
    PERMANENT = 1 << 2


class Nmic(IntFlag):
    """Namespace Multi-path I/O and Namespace Sharing Capabilities."""

    SHARED = 1 << 0


class NsFeat(IntFlag):
    """Namespace Features."""

    THIN_PROVISIONING = 1 << 0
    NSABP = 1 << 1  # the atomic units of the namespace count
    DULBE = 1 << 2
    IDS_NOT_REUSED = 1 << 3
    OPTPERF = 1 << 4  # NPWG, NPWA, NPDG, NPDA and NOWS are valid


class DlFeat(Record, size=1):
    """Deallocate Logical Block Features. ``read``: what deallocated blocks read as."""

    read = bits(0, 2, 0, size=1)
    write_zeroes_deallocates = bit(0, 3, size=1)
    guard_is_crc = bit(0, 4, size=1)


READS_AS_ZEROS, READS_AS_ONES = 1, 2  # of DLFEAT


class NsAttr(IntFlag):
    """Namespace Attributes."""

    WRITE_PROTECTED = 1 << 0


class NStat(IntFlag):
    """Namespace Status. Base 2.0, Figure 280."""

    READY = 1 << 0


class PowerState(Record, size=32):
    """Power State Descriptor. Base 1.4, Figure 248. ``mp`` in centiwatts, latencies in microseconds."""

    mp = uint(0, 2)
    enlat = uint(4, 4)
    exlat = uint(8, 4)


class IdentifyController(Record, size=4096):
    """Identify Controller. Base 1.4, Figure 247."""

    vid = uint(0, 2)
    ssvid = uint(2, 2)
    sn = text(4, 20)
    mn = text(24, 40)
    fr = text(64, 8)
    rab = uint(72, 1)
    ieee = uint(73, 3)
    cmic = flags(76, 1, Cmic)
    mdts = uint(77, 1)
    cntlid = uint(78, 2)
    ver = uint(80, 4)
    rtd3r = uint(84, 4)  # microseconds
    rtd3e = uint(88, 4)
    oaes = flags(92, 4, Notice)
    ctratt = flags(96, 4, Ctratt)
    cntrltype = uint(111, 1)  # ``ControllerType``
    oacs = flags(256, 2, Oacs)
    acl = count(258, 7, 0, size=1)
    aerl = count(259, 7, 0, size=1)
    frmw = uint(260, 1)  # ``Frmw``
    lpa = flags(261, 1, Lpa)
    elpe = count(262, 7, 0, size=1)
    npss = count(263, 7, 0, size=1)
    avscc = uint(264, 1)  # 1: the commands of vendors are as in Base 1.4, Figure 106
    wctemp = uint(266, 2)  # kelvin
    cctemp = uint(268, 2)
    tnvmcap = uint(280, 16)  # bytes
    unvmcap = uint(296, 16)
    sanicap = uint(328, 4)  # ``Sanicap``
    sqes_min = bits(512, 3, 0, size=1)
    sqes_max = bits(512, 7, 4, size=1)
    cqes_min = bits(513, 3, 0, size=1)
    cqes_max = bits(513, 7, 4, size=1)
    maxcmd = uint(514, 2)
    nn = uint(516, 4)
    oncs = flags(520, 2, Oncs)
    fuses = flags(522, 2, Fuses)
    fna = flags(524, 1, Fna)
    vwc = uint(525, 1)  # ``Vwc``
    awun = count(526, 15, 0, size=2)
    awupf = count(528, 15, 0, size=2)
    nwpc = flags(531, 1, Nwpc)
    acwu = count(532, 15, 0, size=2)
    ocfs = flags(534, 2, Ocfs)
    sgls = uint(536, 4)
    mnan = uint(540, 4)
    maxdna = uint(544, 16)
    maxcna = uint(560, 4)
    subnqn = raw(768, 256)
    psd = records(2048, PowerState, 32)


class Flbas(Record, size=1):
    """Formatted LBA Size: the number of the format, and whether metadata follow the data of each block in the same
    buffer. Base 1.4, Figure 245; the upper bits: NVM 1.0, Figure 97."""

    index_low = bits(0, 3, 0, size=1)
    is_extended = bit(0, 4, size=1)
    index_high = bits(0, 6, 5, size=1)


class MetadataCapabilities(IntFlag):
    """MC: how a host can transfer metadata."""

    EXTENDED = 1 << 0
    SEPARATE = 1 << 1


class ProtectionCapabilities(IntFlag):
    """DPC: types of protection information, and where it can lie in the metadata."""

    TYPE_1 = 1 << 0
    TYPE_2 = 1 << 1
    TYPE_3 = 1 << 2
    FIRST = 1 << 3
    LAST = 1 << 4


class Fpi(Record, size=1):
    """Format Progress Indicator: whether it is told, and how many percent of a Format are left."""

    left = bits(0, 6, 0, size=1)
    is_supported = bit(0, 7, size=1)


class Dps(Record, size=1):
    """End-to-end Data Protection Type Settings: the type (0: none), and whether it lies first in the metadata."""

    type = bits(0, 2, 0, size=1)
    is_first = bit(0, 3, size=1)


class LbaFormat(Record, size=4):
    """LBA Format. Base 1.4, Figure 246. A block has 2 ** ``lbads`` bytes of data."""

    ms = uint(0, 2)
    lbads = uint(2, 1)
    rp = bits(3, 1, 0, size=1)


class IdentifyNamespace(Record, size=4096):
    """Identify Namespace. Base 1.4, Figure 245. Sizes in blocks."""

    nsze = uint(0, 8)
    ncap = uint(8, 8)
    nuse = uint(16, 8)
    nsfeat = flags(24, 1, NsFeat)
    nlbaf = count(25, 7, 0, size=1)
    flbas = uint(26, 1)  # ``Flbas``
    mc = flags(27, 1, MetadataCapabilities)
    dpc = flags(28, 1, ProtectionCapabilities)
    dps = uint(29, 1)  # ``Dps``
    nmic = flags(30, 1, Nmic)
    rescap = uint(31, 1)
    fpi = uint(32, 1)  # ``Fpi``
    dlfeat = uint(33, 1)  # ``DlFeat``
    nawun = count(34, 15, 0, size=2)
    nawupf = count(36, 15, 0, size=2)
    nacwu = count(38, 15, 0, size=2)
    nabsn = count(40, 15, 0, size=2)
    nabo = uint(42, 2)
    nabspf = count(44, 15, 0, size=2)
    noiob = uint(46, 2)
    nvmcap = uint(48, 16)  # bytes
    npwg = count(64, 15, 0, size=2)
    npwa = count(66, 15, 0, size=2)
    npdg = count(68, 15, 0, size=2)
    npda = count(70, 15, 0, size=2)
    nows = count(72, 15, 0, size=2)
    mssrl = uint(74, 2)
    mcl = uint(76, 4)
    msrc = count(80, 7, 0, size=1)
    anagrpid = uint(92, 4)
    nsattr = flags(99, 1, NsAttr)
    nvmsetid = uint(100, 2)
    endgid = uint(102, 2)
    nguid = raw(104, 16)
    eui64 = raw(120, 8)
    nulbaf = uint(82, 1)
    lbaf = records(128, LbaFormat, 64)


class ControllerList(Record, size=4096):
    """Controller List: identifiers in ascending order. Base 2.0, Figure 137."""

    number = uint(0, 2)
    ids = raw(2, 4094)


MOST_IN_CONTROLLER_LIST = 2047


class GranularityDescriptor(Record, size=16):
    """Namespace Granularity Descriptor: bytes that the size and the capacity of a namespace should be multiples of.
    Base 1.4, Figure 254."""

    nszeg = uint(0, 8)
    ncapg = uint(8, 8)


class NamespaceGranularityList(Record, size=4096):
    """Namespace Granularity List (CNS 16h). Base 1.4, Figure 253. ``is_for_each``: a descriptor for each LBA format,
    and otherwise one for all."""

    is_for_each = bit(0, 0)
    number = count(4, 7, 0, size=1)
    descriptors = records(32, GranularityDescriptor, 16)


class IndependentNamespace(Record, size=4096):
    """I/O Command Set Independent Identify Namespace. Base 2.0, Figure 280."""

    nsfeat = flags(0, 1, NsFeat)  # only IDS_NOT_REUSED is here where it is in ``IdentifyNamespace``
    nmic = flags(1, 1, Nmic)
    rescap = uint(2, 1)
    fpi = uint(3, 1)  # ``Fpi``
    anagrpid = uint(4, 4)
    nsattr = flags(8, 1, NsAttr)
    nvmsetid = uint(10, 2)
    endgid = uint(12, 2)
    nstat = flags(14, 1, NStat)


class NvmController(Record, size=4096):
    """Identify Controller, NVM Command Set (CNS 06h, CSI 00h). NVM 1.0, Figure 101. Zero: no limit or not said."""

    vsl = uint(0, 1)
    wzsl = uint(1, 1)
    wusl = uint(2, 1)
    dmrl = uint(3, 1)
    dmrsl = uint(4, 4)
    dmsl = uint(8, 8)


class Pic(IntFlag):
    """Protection Information Capabilities. NVM 1.0, Figure 100."""

    STORAGE_TAG_WITH_16_BITS = 1 << 0
    STORAGE_TAG_MASK_WITH_16_BITS = 1 << 1
    STORAGE_TAG_CHECK_READ = 1 << 2
    QUALIFIED_FORMAT = 1 << 3


class ExtendedLbaFormat(Record, size=4):
    """Extended LBA Format (ELBAF). NVM 1.0, Figure 119. ``pif``: 0, 1 and 2 for guards of 16, 32 and 64 bits."""

    sts = bits(0, 6, 0)
    pif = bits(0, 8, 7)
    qpif = bits(0, 12, 9)


class NvmNamespace(Record, size=4096):
    """Identify Namespace, NVM Command Set (CNS 05h, CSI 00h). NVM 1.0, Figure 100."""

    lbstm = uint(0, 8)
    pic = flags(8, 1, Pic)
    pifa = uint(9, 1)
    elbaf = records(12, ExtendedLbaFormat, 64)
