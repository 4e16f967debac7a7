"""Log pages: their identifiers and layouts. Base 1.4, 5.14. Fields that stay zero are left out."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nvmeemu.spec.events import CriticalWarning
from nvmeemu.spec.layout import Record, bit, bits, count, flags, records, text, uint
from nvmeemu.spec.names import Names


class LogId(IntEnum):
    """Log Page Identifiers. Base 1.4, Figure 191; Supported Log Pages, and Feature Identifiers Supported and
    Effects: Base 2.0."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACE_LIST = 0x04
    COMMAND_EFFECTS = 0x05
    LBA_STATUS = 0x0E
    FEATURE_EFFECTS = 0x12


LOG_NAMES = Names(LogId)
CHANGED_NAMESPACES = 1024  # entries of that log; with more, the first is FFFFFFFFh


class SupportedLogPage(Record, size=4):
    """One page of Supported Log Pages. Base 2.0, 5.16.1.1."""

    supported = bit(0, 0)
    index_offset = bit(0, 1)


class SupportedLogPages(Record, size=1024):
    """Supported Log Pages: an entry for each log page there can be. Base 2.0, 5.16.1.1."""

    pages = records(0, SupportedLogPage, 256)


class ErrorLogEntry(Record, size=64):
    """Error Information. Base 1.4, Figure 192. ``status`` is the Status Field, phase tag in bit 0."""

    error_count = uint(0, 8)
    sqid = uint(8, 2)
    cid = uint(10, 2)
    phase = bit(12, 0, size=2)
    status = bits(12, 15, 1, size=2)
    location_byte = bits(14, 7, 0, size=2)
    location_bit = bits(14, 10, 8, size=2)
    location = uint(14, 2)  # FFFFh: not specific to a parameter
    lba = uint(16, 8)
    nsid = uint(24, 4)
    command_specific = uint(32, 8)


class SmartLog(Record, size=512):
    """SMART / Health Information. Base 1.4, Figure 193."""

    critical_warning = flags(0, 1, CriticalWarning)
    temperature = uint(1, 2)  # kelvin
    available_spare = uint(3, 1)  # percent
    spare_threshold = uint(4, 1)
    percentage_used = uint(5, 1)
    data_units_read = uint(32, 16)  # thousands of 512 bytes, rounded up
    data_units_written = uint(48, 16)
    host_reads = uint(64, 16)  # commands
    host_writes = uint(80, 16)
    busy_time = uint(96, 16)  # minutes
    power_cycles = uint(112, 16)
    power_on_hours = uint(128, 16)
    unsafe_shutdowns = uint(144, 16)
    media_errors = uint(160, 16)
    error_log_entries = uint(176, 16)


class Afi(Record, size=1):
    """Active Firmware Info: the slot that runs, and the one that will after the next reset (0: the same)."""

    active = bits(0, 2, 0, size=1)
    after_reset = bits(0, 6, 4, size=1)


class FirmwareSlotLog(Record, size=512):
    """Firmware Slot Information. Base 1.4, Figure 194."""

    afi = uint(0, 1)  # ``Afi``
    frs1 = text(8, 8)


class Effect(IntFlag):
    """What a command changes, beside its answer: the bits of ``CommandEffect``. Base 1.4, Figure 199."""

    CSUPP = 1 << 0  # it is supported
    LBCC = 1 << 1  # the content of logical blocks
    NCC = 1 << 2  # what Identify says of a namespace
    NIC = 1 << 3  # which namespaces there are
    CCC = 1 << 4  # what the controller can do
    ALONE_IN_NAMESPACE = 0b001 << 16  # CSE: no other command to the namespace at the same time
    ALONE = 0b010 << 16  # CSE: no other command at all
    OF_NAMESPACE = 1 << 20  # CSP: what it acts on; Base 2.0
    OF_CONTROLLER = 1 << 21
    OF_SUBSYSTEM = 1 << 25


class CommandEffect(Record, size=4):
    """One command of the Commands Supported and Effects log. Base 1.4, Figure 199."""

    csupp = bit(0, 0)
    lbcc = bit(0, 1)
    ncc = bit(0, 2)
    nic = bit(0, 3)
    ccc = bit(0, 4)
    cse = bits(0, 18, 16)
    uuid_selection = bit(0, 19)
    csp = bits(0, 31, 20)  # Base 2.0, Figure 211


class CommandEffectsLog(Record, size=4096):
    """Commands Supported and Effects, a word an opcode. Base 1.4, Figure 198."""

    admin = records(0, CommandEffect, 256)
    io = records(1024, CommandEffect, 256)


class FeatureEffect(Record, size=4):
    """One feature of the Feature Identifiers Supported and Effects log. Base 2.0, Figure 257."""

    fsupp = bit(0, 0)
    udcc = bit(0, 1)
    ncc = bit(0, 2)
    nic = bit(0, 3)
    ccc = bit(0, 4)
    uuid_selection = bit(0, 19)
    fsp = bits(0, 31, 20)  # bit 0: a namespace, 1: a controller, 5: the subsystem


FEATURE_OF_NAMESPACE, FEATURE_OF_CONTROLLER, FEATURE_OF_SUBSYSTEM = 1 << 0, 1 << 1, 1 << 5  # FSP


class FeatureEffectsLog(Record, size=1024):
    """Feature Identifiers Supported and Effects, a word for each identifier. Base 2.0, 5.16.1.18."""

    features = records(0, FeatureEffect, 256)


class LbaStatusLogHead(Record, size=16):
    """The begin of the LBA Status Information log. Base 1.4, Figure 213. An ``LbaStatusElement`` for each namespace
    follows."""

    lslplen = uint(0, 4)  # bytes of the log
    nlslne = uint(4, 4)  # elements
    estulb = uint(8, 4)  # blocks that may be unreadable, about
    lsgc = uint(14, 2)  # counts changes


class LbaStatusElement(Record, size=16):
    """What there is of one namespace: so many ``LbaStatusRange`` follow. Base 1.4, Figure 214."""

    neid = uint(0, 4)  # NSID
    nlrd = uint(4, 4)
    ratype = uint(8, 1)  # the ``ActionType`` with which Get LBA Status should be asked


class LbaStatusRange(Record, size=16):
    """Blocks of which a host should ask Get LBA Status. Base 1.4, Figure 215."""

    rslba = uint(0, 8)
    rnlb = count(8, 31, 0)
