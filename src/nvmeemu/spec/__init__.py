"""NVM Express: opcodes, statuses, registers, commands, completions. The one source of every number and field.

Source: NVM Express Base Specification 1.4 (Base) and, for the commands' later names, the NVM Command Set
Specification 1.0 (NVM). The device reports version 1.4; where a structure was extended later, only what 1.4 knows
is declared. Data structures that commands transfer are in ``structures``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nvmeemu.spec.layout import Record, address, bit, bits, count, named, uint

VERSION = 0x00010400
PAGE_MIN = 4096  # CAP.MPSMIN = 0: the unit of MDTS, whatever CC.MPS says
SQE_SIZE = 64
CQE_SIZE = 16
BROADCAST = 0xFFFFFFFF  # the NSID that means all namespaces
CLASS_CODE = 0x010802  # mass storage, non-volatile memory, NVM Express


class AdminOpcode(IntEnum):
    """Base 1.4, Figure 139."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    DOORBELL_BUFFER_CONFIG = 0x7C


class NvmOpcode(IntEnum):
    """Base 1.4, Figure 346."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C


class Status(IntEnum):
    """Status Code Type (bits 10:8) and Status Code (bits 7:0) of a completion. Base 1.4, 4.6.1.

    Some come from no command of ours: faults may ask for them, and traces and drivers must know their names.
    """

    def __str__(self) -> str:
        return self.name

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    CID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_PRP_OFFSET = 0x013
    NAMESPACE_WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    INVALID_CQ = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    AER_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    WRITE_TO_READ_ONLY_RANGE = 0x182
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286


RETRYABLE = frozenset(
    {
        Status.DATA_TRANSFER_ERROR,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.NAMESPACE_NOT_READY,
        Status.ABORT_LIMIT_EXCEEDED,
        Status.AER_LIMIT_EXCEEDED,
    }
)
"""Statuses that another attempt may not meet; all others carry Do Not Retry (Base 1.4, Figure 124, DNR)."""

DRIVER_ERRORS = frozenset(
    {
        Status.DATA_TRANSFER_ERROR,
        Status.INVALID_PRP_OFFSET,
        Status.LBA_OUT_OF_RANGE,
        Status.INVALID_CQ,
        Status.INVALID_QUEUE_ID,
        Status.INVALID_QUEUE_SIZE,
        Status.INVALID_QUEUE_DELETION,
        Status.INVALID_INTERRUPT_VECTOR,
        Status.AER_LIMIT_EXCEEDED,
    }
)
"""Statuses that no driver means to get: none of them tells what a controller can do."""

DNR = 1 << 14  # in the 15-bit Status Field, that is without the phase tag
MORE = 1 << 13  # more about this in the Error Information log


class FeatureId(IntEnum):
    """Base 1.4, Figure 271 and 272."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E
    HOST_BEHAVIOR_SUPPORT = 0x16


class LogId(IntEnum):
    """Base 1.4, Figure 191; Supported Log Pages came with Base 2.0."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACE_LIST = 0x04
    COMMAND_EFFECTS = 0x05


class Cns(IntEnum):
    """Controller or Namespace Structure of Identify. Base 1.4, Figure 241; 05h to 08h and 1Ch: Base 2.0."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    UUID_LIST = 0x17
    COMMAND_SETS = 0x1C


class EventType(IntEnum):
    """Base 1.4, Figure 144: Asynchronous Event Type."""

    ERROR = 0
    SMART = 1
    NOTICE = 2


class ErrorEvent(IntEnum):
    """Base 1.4, Figure 145: information of an error event."""

    INVALID_DOORBELL_REGISTER = 0
    INVALID_DOORBELL_VALUE = 1


class SmartEvent(IntEnum):
    """Base 1.4, Figure 146: information of a SMART / health event."""

    RELIABILITY = 0
    TEMPERATURE = 1
    SPARE = 2


class NoticeEvent(IntEnum):
    """Base 1.4, Figure 147: information of a notice."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0


class CriticalWarning(IntFlag):
    """Base 1.4, Figure 193, Critical Warning; the same bits of feature 0Bh say which of them are told by an event."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2


# --- registers: Base 1.4, 3.1 ------------------------------------------------------------------------------------


class Capabilities(Record, size=8):
    """CAP, offset 0h. Base 1.4, 3.1.1."""

    mqes = count(0, 15, 0)
    cqr = bit(0, 16)
    ams = bits(0, 18, 17)
    to = bits(0, 31, 24)  # 500 ms units
    dstrd = bits(4, 3, 0)
    nssrs = bit(4, 4)
    css = bits(0, 44, 37, size=8)
    mpsmin = bits(4, 19, 16)
    mpsmax = bits(4, 23, 20)


class Configuration(Record, size=4):
    """CC, offset 14h. Base 1.4, 3.1.5."""

    en = bit(0, 0)
    css = bits(0, 6, 4)
    mps = bits(0, 10, 7)
    ams = bits(0, 13, 11)
    shn = bits(0, 15, 14)
    iosqes = bits(0, 19, 16)
    iocqes = bits(0, 23, 20)


class ControllerStatus(Record, size=4):
    """CSTS, offset 1Ch. Base 1.4, 3.1.6."""

    rdy = bit(0, 0)
    cfs = bit(0, 1)
    shst = bits(0, 3, 2)


class AdminQueueAttributes(Record, size=4):
    """AQA, offset 24h. Base 1.4, 3.1.8."""

    asqs = count(0, 11, 0)
    acqs = count(0, 27, 16)


SHN_NONE, SHN_NORMAL, SHN_ABRUPT = 0, 1, 2
SHST_NORMAL, SHST_OCCURRING, SHST_COMPLETE = 0, 1, 2
BAR0_LEAST = 0x4000  # bytes: bits 13:4 of MLBAR are reserved (Base 1.4, 2.1.10), and Windows masks them
DOORBELLS = 0x1000  # SQ y tail at 1000h + 2y * (4 << DSTRD), CQ y head at 1000h + (2y + 1) * (4 << DSTRD)


# --- commands: Base 1.4, 4.2, 5 and 6 ------------------------------------------------------------------------------

CDW10, CDW11, CDW12, CDW13, CDW14, CDW15 = range(40, 64, 4)


class Command(Record, size=SQE_SIZE):
    """A submission queue entry, what all commands share. Base 1.4, Figure 104 to 106."""

    opcode = uint(0, 1)
    fuse = bits(0, 9, 8)
    psdt = bits(0, 15, 14)
    flags = uint(1, 1)  # FUSE, reserved bits and PSDT together: zero in every command that is served
    cid = uint(2, 2)
    nsid = uint(4, 4)
    mptr = uint(16, 8)
    prp1 = address(24)
    prp2 = address(32)
    cdw10 = uint(CDW10, 4)
    cdw11 = uint(CDW11, 4)
    cdw12 = uint(CDW12, 4)
    cdw13 = uint(CDW13, 4)
    cdw14 = uint(CDW14, 4)
    cdw15 = uint(CDW15, 4)


class CreateCq(Command):
    """Create I/O Completion Queue. Base 1.4, 5.3."""

    qid = bits(CDW10, 15, 0)
    qsize = count(CDW10, 31, 16)
    pc = bit(CDW11, 0)
    ien = bit(CDW11, 1)
    iv = bits(CDW11, 31, 16)


class CreateSq(Command):
    """Create I/O Submission Queue. Base 1.4, 5.4."""

    qid = bits(CDW10, 15, 0)
    qsize = count(CDW10, 31, 16)
    pc = bit(CDW11, 0)
    qprio = bits(CDW11, 2, 1)
    cqid = bits(CDW11, 31, 16)


class DeleteQueue(Command):
    """Delete I/O Completion Queue, Delete I/O Submission Queue. Base 1.4, 5.5 and 5.6."""

    qid = bits(CDW10, 15, 0)


class Abort(Command):
    """Base 1.4, 5.1."""

    sqid = bits(CDW10, 15, 0)
    target_cid = bits(CDW10, 31, 16)


class DoorbellBufferConfig(Command):
    """Base 1.4, 5.7: PRP1 is the Shadow Doorbell buffer, PRP2 the EventIdx buffer."""


class Identify(Command):
    """Base 1.4, 5.15."""

    cns = bits(CDW10, 7, 0)
    cntid = bits(CDW10, 31, 16)
    csi = bits(CDW11, 31, 24)


class GetLogPage(Command):
    """Base 1.4, 5.14."""

    lid = bits(CDW10, 7, 0)
    rae = bit(CDW10, 15)
    numd = count(CDW10 + 2, 31, 0)  # NUMDU:NUMDL, dwords
    lpo = uint(CDW12, 8)


class GetFeatures(Command):
    """Base 1.4, 5.13."""

    fid = bits(CDW10, 7, 0)
    sel = bits(CDW10, 10, 8)


class SetFeatures(Command):
    """Base 1.4, 5.21."""

    fid = bits(CDW10, 7, 0)
    sv = bit(CDW10, 31)


class ReadWrite(Command):
    """Read, Write, Compare, Verify, Write Zeroes. Base 1.4, 6.6 to 6.15."""

    slba = uint(CDW10, 8)
    nlb = count(CDW12, 15, 0)
    deac = bit(CDW12, 25)  # Write Zeroes
    prinfo = bits(CDW12, 29, 26)
    fua = bit(CDW12, 30)
    lr = bit(CDW12, 31)


class DatasetManagement(Command):
    """Base 1.4, 6.7."""

    nr = count(CDW10, 7, 0)
    ad = bit(CDW11, 2)


ADMIN_COMMANDS: dict[int, type[Command]] = {
    AdminOpcode.DELETE_SQ: DeleteQueue,
    AdminOpcode.CREATE_SQ: CreateSq,
    AdminOpcode.GET_LOG_PAGE: GetLogPage,
    AdminOpcode.DELETE_CQ: DeleteQueue,
    AdminOpcode.CREATE_CQ: CreateCq,
    AdminOpcode.IDENTIFY: Identify,
    AdminOpcode.ABORT: Abort,
    AdminOpcode.SET_FEATURES: SetFeatures,
    AdminOpcode.GET_FEATURES: GetFeatures,
    AdminOpcode.ASYNC_EVENT_REQUEST: Command,
    AdminOpcode.DOORBELL_BUFFER_CONFIG: DoorbellBufferConfig,
}
"""Opcode -> the layout of the command."""

NVM_COMMANDS: dict[int, type[Command]] = {
    NvmOpcode.FLUSH: Command,
    NvmOpcode.WRITE: ReadWrite,
    NvmOpcode.READ: ReadWrite,
    NvmOpcode.COMPARE: ReadWrite,
    NvmOpcode.VERIFY: ReadWrite,
    NvmOpcode.WRITE_ZEROES: ReadWrite,
    NvmOpcode.DATASET_MANAGEMENT: DatasetManagement,
}
"""Opcode -> the layout of the command, of the NVM command set."""


class DsmRange(Record, size=16):
    """One range of Dataset Management. Base 1.4, Figure 363. ``length`` in blocks, not 0's based."""

    attributes = uint(0, 4)
    length = uint(4, 4)
    slba = uint(8, 8)


class Completion(Record, size=CQE_SIZE):
    """A completion queue entry. Base 1.4, 4.6."""

    dw0 = uint(0, 4)
    dw1 = uint(4, 4)
    sqhd = uint(8, 2)
    sqid = uint(10, 2)
    cid = uint(12, 2)
    phase = bit(12, 16)
    status = named(12, 27, 17, Status)  # Status Code Type and Status Code
    more = bit(12, 30)
    dnr = bit(12, 31)
