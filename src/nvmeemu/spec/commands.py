"""The commands: opcodes, fields, and what else is known of each. Base 1.4, 5 and 6.

A command stands here once: ``ADMIN_COMMANDS`` and ``NVM_COMMANDS`` are what traces, faults, profiles and the tables of
handlers ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

from nvmeemu.spec.entries import CDW10, CDW11, CDW12, CDW13, CDW15, Command, Opcode
from nvmeemu.spec.features import FEATURE_NAMES
from nvmeemu.spec.identify import CNS_NAMES, Nmic
from nvmeemu.spec.layout import Record, bit, bits, count, flags, named, raw, uint
from nvmeemu.spec.logs import LOG_NAMES
from nvmeemu.spec.names import Names
from nvmeemu.tables import Extensible


class AdminOpcode(Opcode):
    """The opcodes of admin commands. Base 1.4, Figure 139."""

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
    NAMESPACE_MANAGEMENT = 0x0D
    NAMESPACE_ATTACHMENT = 0x15
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80
    GET_LBA_STATUS = 0x86


class NvmOpcode(Opcode):
    """The opcodes of the NVM command set. Base 1.4, Figure 346."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    COPY = 0x19


class CreateCq(Command):
    """Create I/O Completion Queue. Base 1.4, 5.3."""

    OPCODE = AdminOpcode.CREATE_CQ
    qid = bits(CDW10, 15, 0)
    qsize = count(CDW10, 31, 16)
    pc = bit(CDW11, 0)
    ien = bit(CDW11, 1)
    iv = bits(CDW11, 31, 16)


class CreateSq(Command):
    """Create I/O Submission Queue. Base 1.4, 5.4."""

    OPCODE = AdminOpcode.CREATE_SQ
    qid = bits(CDW10, 15, 0)
    qsize = count(CDW10, 31, 16)
    pc = bit(CDW11, 0)
    qprio = bits(CDW11, 2, 1)
    cqid = bits(CDW11, 31, 16)


class DeleteQueue(Command):
    """What Delete I/O Completion Queue and Delete I/O Submission Queue share. Base 1.4, 5.5 and 5.6."""

    qid = bits(CDW10, 15, 0)


class DeleteSq(DeleteQueue):
    """Delete I/O Submission Queue. Base 1.4, 5.6."""

    OPCODE = AdminOpcode.DELETE_SQ


class DeleteCq(DeleteQueue):
    """Delete I/O Completion Queue. Base 1.4, 5.5."""

    OPCODE = AdminOpcode.DELETE_CQ


class Abort(Command):
    """Abort of another command. Base 1.4, 5.1."""

    OPCODE = AdminOpcode.ABORT
    sqid = bits(CDW10, 15, 0)
    target_cid = bits(CDW10, 31, 16)


class AsyncEventRequest(Command):
    """Asynchronous Event Request: it completes when there is an event to tell. Base 1.4, 5.2."""

    OPCODE = AdminOpcode.ASYNC_EVENT_REQUEST


class ManagementSelect(IntEnum):
    """SEL of Namespace Management. Base 2.0, Figure 299."""

    CREATE = 0
    DELETE = 1


class NamespaceManagement(Command):
    """Namespace Management: create a namespace, as ``HostNamespace`` says, or delete one. Base 2.0, 5.23."""

    OPCODE = AdminOpcode.NAMESPACE_MANAGEMENT
    sel = bits(CDW10, 3, 0)
    csi = bits(CDW11, 31, 24)


class HostNamespace(Record, size=4096):
    """What a host says of a namespace that it wants. All else in the page is ignored. Base 2.0, Figure 301."""

    nsze = uint(0, 8)  # blocks
    ncap = uint(8, 8)
    flbas = uint(26, 1)  # ``Flbas``
    dps = uint(29, 1)  # ``Dps``
    nmic = flags(30, 1, Nmic)
    anagrpid = uint(92, 4)
    nvmsetid = uint(100, 2)
    endgid = uint(102, 2)


class AttachmentSelect(IntEnum):
    """SEL of Namespace Attachment. Base 2.0, Figure 295."""

    ATTACH = 0
    DETACH = 1


class NamespaceAttachment(Command):
    """Namespace Attachment: attach a namespace to controllers, or detach it. Its data is a ``ControllerList``. Base
    2.0, 5.22."""

    OPCODE = AdminOpcode.NAMESPACE_ATTACHMENT
    sel = bits(CDW10, 3, 0)


class DirectiveSend(Command):
    """Directive Send: an operation of a directive, with data or without. Base 1.4, 5.10. ``numd`` in dwords."""

    OPCODE = AdminOpcode.DIRECTIVE_SEND
    numd = count(CDW10, 31, 0)
    doper = bits(CDW11, 7, 0)
    dtype = bits(CDW11, 15, 8)  # ``DirectiveType``
    dspec = bits(CDW11, 31, 16)
    endir = bit(CDW12, 0)  # Identify, Enable: whether it is enabled from now on
    tdtype = bits(CDW12, 15, 8)  # and what


class DirectiveReceive(Command):
    """Directive Receive: an operation of a directive. Base 1.4, 5.9. ``numd`` in dwords."""

    OPCODE = AdminOpcode.DIRECTIVE_RECEIVE
    numd = count(CDW10, 31, 0)
    doper = bits(CDW11, 7, 0)
    dtype = bits(CDW11, 15, 8)  # ``DirectiveType``
    dspec = bits(CDW11, 31, 16)
    nsr = bits(CDW12, 15, 0)  # Streams, Allocate Resources: how many


class DoorbellBufferConfig(Command):
    """Doorbell Buffer Config: PRP1 is the Shadow Doorbell buffer, PRP2 the EventIdx buffer. Base 1.4, 5.7."""

    OPCODE = AdminOpcode.DOORBELL_BUFFER_CONFIG


class SecureErase(IntEnum):
    """SES of Format NVM: what is done to the data. Base 1.4, Figure 328."""

    NONE = 0
    USER_DATA = 1
    CRYPTOGRAPHIC = 2


class FormatNvm(Command):
    """Format NVM: a namespace gets another format, and loses its data. Base 1.4, 5.23; ``lbafu``: NVM 1.0, 4.1.1."""

    OPCODE = AdminOpcode.FORMAT_NVM
    CHANGES_MEDIA = True
    lbafl = bits(CDW10, 3, 0)
    mset = bit(CDW10, 4)  # metadata follow the data of each block in the same buffer
    pi = bits(CDW10, 7, 5)
    pil = bit(CDW10, 8)  # protection information is first in the metadata
    ses = bits(CDW10, 11, 9)
    lbafu = bits(CDW10, 13, 12)


class ActionType(IntEnum):
    """ATYPE of Get LBA Status: which blocks the host wants to know. NVM 1.0, 4.2.1; ``ALLOCATED``: NVM 1.1."""

    ALLOCATED = 0x02
    SCAN = 0x10  # those that may be unreadable, and find them
    TRACKED = 0x11  # those that are known to be so


class GetLbaStatus(Command):
    """Get LBA Status: runs of blocks (``LbaStatusHead``, then ``LbaStatusDescriptor``). NVM 1.0, 4.2.1. ``mndw``:
    dwords that the host has room for; ``rl``: blocks, 0 for all up to the end."""

    OPCODE = AdminOpcode.GET_LBA_STATUS
    slba = uint(CDW10, 8)
    mndw = count(CDW12, 31, 0)
    rl = bits(CDW13, 15, 0)
    atype = bits(CDW13, 31, 24)  # ``ActionType``


class LbaStatusHead(Record, size=8):
    """The begin of what Get LBA Status gives. NVM 1.0, Figure 113."""

    nlsd = uint(0, 4)  # descriptors that follow
    cmpc = uint(4, 1)  # ``CompletionCondition``


class CompletionCondition(IntEnum):
    """CMPC: whether there is more than the host has room for. NVM 1.0, Figure 113."""

    INCOMPLETE = 1
    COMPLETE = 2


class LbaStatusDescriptor(Record, size=16):
    """A run of blocks. NVM 1.0, Figure 114."""

    dslba = uint(0, 8)
    nlb = count(8, 31, 0)


class Identify(Command):
    """Identify: 4096 bytes that describe a controller, a namespace or what ``cns`` names. Base 1.4, 5.15."""

    OPCODE = AdminOpcode.IDENTIFY
    cns = named(CDW10, 7, 0, CNS_NAMES)
    cntid = bits(CDW10, 31, 16)
    csi = bits(CDW11, 31, 24)


class GetLogPage(Command):
    """Get Log Page. Base 1.4, 5.14. ``numd`` in dwords."""

    OPCODE = AdminOpcode.GET_LOG_PAGE
    lid = named(CDW10, 7, 0, LOG_NAMES)
    rae = bit(CDW10, 15)
    numd = count(CDW10 + 2, 31, 0)  # NUMDU:NUMDL, dwords
    lpo = uint(CDW12, 8)


class GetFeatures(Command):
    """Get Features: the value of a feature. Base 1.4, 5.13."""

    OPCODE = AdminOpcode.GET_FEATURES
    fid = named(CDW10, 7, 0, FEATURE_NAMES)
    sel = bits(CDW10, 10, 8)


class SetFeatures(Command):
    """Set Features: a new value for a feature. Base 1.4, 5.21."""

    OPCODE = AdminOpcode.SET_FEATURES
    fid = named(CDW10, 7, 0, FEATURE_NAMES)
    sv = bit(CDW10, 31)


class Flush(Command):
    """Flush: what was written before becomes durable. Base 1.4, 6.8."""

    OPCODE = NvmOpcode.FLUSH


class ReadWrite(Command):
    """What the commands that name a range of blocks share. Base 1.4, 6.6 to 6.15."""

    slba = uint(CDW10, 8)
    nlb = count(CDW12, 15, 0)
    dtype = bits(CDW12, 23, 20)  # Write: the ``DirectiveType``
    stc = bit(CDW12, 24)  # check the storage tag; NVM 1.0
    deac = bit(CDW12, 25)  # Write Zeroes
    prinfo = bits(CDW12, 29, 26)
    check_reference = bit(CDW12, 26)
    check_application = bit(CDW12, 27)
    check_guard = bit(CDW12, 28)
    pract = bit(CDW12, 29)  # the controller makes, or takes away, the protection information
    fua = bit(CDW12, 30)
    lr = bit(CDW12, 31)
    dspec = bits(CDW13, 31, 16)
    lbat = bits(CDW15, 15, 0)
    lbatm = bits(CDW15, 31, 16)


class Read(ReadWrite):
    """Read. Base 1.4, 6.9."""

    OPCODE = NvmOpcode.READ
    MOVES_BLOCKS = True


class Write(ReadWrite):
    """Write. Base 1.4, 6.15."""

    OPCODE = NvmOpcode.WRITE
    MOVES_BLOCKS = True
    CHANGES_MEDIA = True


class WriteUncorrectable(ReadWrite):
    """Write Uncorrectable: the blocks cannot be read until they are written. NVM 1.0, 3.2.7."""

    OPCODE = NvmOpcode.WRITE_UNCORRECTABLE
    CHANGES_MEDIA = True


class Compare(ReadWrite):
    """Compare: the host's data with the blocks. Base 1.4, 6.4."""

    OPCODE = NvmOpcode.COMPARE
    MOVES_BLOCKS = True


class Verify(ReadWrite):
    """Verify: the blocks can be read. Nothing is transferred. NVM 1.0, 3.2.6."""

    OPCODE = NvmOpcode.VERIFY


class WriteZeroes(ReadWrite):
    """Write Zeroes. Nothing is transferred. Base 1.4, 6.16."""

    OPCODE = NvmOpcode.WRITE_ZEROES
    CHANGES_MEDIA = True


class DatasetManagement(Command):
    """Dataset Management: up to 256 ranges, each a ``DsmRange``. Base 1.4, 6.7."""

    OPCODE = NvmOpcode.DATASET_MANAGEMENT
    CHANGES_MEDIA = True
    nr = count(CDW10, 7, 0)
    ad = bit(CDW11, 2)


class DsmRange(Record, size=16):
    """One range of Dataset Management. Base 1.4, Figure 363. ``length`` in blocks, not 0's based."""

    attributes = uint(0, 4)
    length = uint(4, 4)
    slba = uint(8, 8)


class Copy(Command):
    """Copy: the blocks of several ranges, one after the other, to one range that begins with ``sdlba``. Its data are
    ``nr`` entries: ``CopyRange``, or ``LongCopyRange`` with the formats 1 and 3. NVM 1.0, 3.2.2."""

    OPCODE = NvmOpcode.COPY
    CHANGES_MEDIA = True
    sdlba = uint(CDW10, 8)
    nr = count(CDW12, 7, 0)
    desfmt = bits(CDW12, 11, 8)
    prinfor = bits(CDW12, 15, 12)  # PRACT and PRCHK of what is read
    dtype = bits(CDW12, 23, 20)
    stcw = bit(CDW12, 24)
    stcr = bit(CDW12, 25)
    prinfow = bits(CDW12, 29, 26)  # and of what is written
    fua = bit(CDW12, 30)
    lr = bit(CDW12, 31)
    dspec = bits(CDW13, 31, 16)
    lbat = bits(CDW15, 15, 0)
    lbatm = bits(CDW15, 31, 16)


class CopyRange(Record, size=32):
    """One range of Copy, with the expected tags of its first block, for no guard or one of 16 bits (descriptor formats
    0 and 2). NVM 1.0, Figure 36. ``snsid`` and ``fco`` count with format 2."""

    snsid = uint(0, 4)
    slba = uint(8, 8)
    nlb = count(16, 15, 0, size=2)
    fco = bit(22, 15, size=2)  # only if the copy is a fast one
    elbt = uint(24, 4)
    elbat = uint(28, 2)
    elbatm = uint(30, 2)


class LongCopyRange(Record, size=40):
    """The same for a guard of 32 or 64 bits (formats 1 and 3). NVM 1.0, Figure 37. ``elbt`` is big endian."""

    snsid = uint(0, 4)
    slba = uint(8, 8)
    nlb = count(16, 15, 0, size=2)
    fco = bit(22, 15, size=2)
    elbt = raw(26, 10)
    elbat = uint(36, 2)
    elbatm = uint(38, 2)


class CommandTable(Extensible[type[Command]], Mapping[int, type[Command]]):
    """The commands of the admin queue, or those of an I/O command set, by their opcodes.

    ``names``: what the opcodes are called. A command that ``add`` adds is known by its name and fields in all that this
    process does with commands; whether a controller has it is its own command table's business.
    """

    def __init__(self, *kinds: type[Command]) -> None:
        self._kinds: dict[int, type[Command]] = {int(kind.OPCODE): kind for kind in kinds}
        self.names = Names(kind.OPCODE for kind in kinds)

    def __getitem__(self, opcode: int) -> type[Command]:
        return self._kinds[opcode]

    def __iter__(self) -> Iterator[int]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def of(self, opcode: int) -> type[Command]:
        """The layout of this command; of one that is not known, what all commands share."""
        return self._kinds.get(opcode, Command)

    def add(self, row: type[Command]) -> None:
        self.names.add(row.OPCODE)
        self._kinds[int(row.OPCODE)] = row

    def remove(self, row: type[Command]) -> None:
        self.names.remove(row.OPCODE)
        del self._kinds[row.OPCODE]


ADMIN_COMMANDS = CommandTable(
    *(DeleteSq, CreateSq, GetLogPage, DeleteCq, CreateCq, Identify, Abort, SetFeatures, GetFeatures),
    *(AsyncEventRequest, NamespaceManagement, NamespaceAttachment, DirectiveSend, DirectiveReceive),
    *(DoorbellBufferConfig, FormatNvm, GetLbaStatus),
)
NVM_COMMANDS = CommandTable(
    *(Flush, Write, Read, WriteUncorrectable, Compare, WriteZeroes, DatasetManagement, Verify, Copy),
)


def commands_of(qid: int) -> CommandTable:
    """The commands that this submission queue takes."""
    return NVM_COMMANDS if qid else ADMIN_COMMANDS
