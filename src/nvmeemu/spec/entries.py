"""The entries of submission and completion queues: what all commands and completions share. Base 1.4, 4.2 and 4.6."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from nvmeemu.spec.layout import Field, Record, address, bit, bits, named, raw, uint
from nvmeemu.spec.statuses import STATUSES

SQE_SIZE = 64
CQE_SIZE = 16
BROADCAST = 0xFFFFFFFF  # the NSID that means all namespaces
CDW10, CDW11, CDW12, CDW13, CDW14, CDW15 = range(40, 64, 4)


class DataTransfer(IntFlag):
    """Which way a command's data goes: bits 1:0 of every opcode. Base 1.4, Figure 105."""

    NONE = 0
    TO_CONTROLLER = 1 << 0
    TO_HOST = 1 << 1
    BOTH = TO_CONTROLLER | TO_HOST

    @classmethod
    def of(cls, opcode: int) -> DataTransfer:
        """The direction that the opcode of an unknown command says."""
        return cls(opcode & cls.BOTH)


class Fuse(IntEnum):
    """Whether a command is one of the two of a fused operation. Base 1.4, Figure 104."""

    NONE = 0b00
    FIRST = 0b01
    SECOND = 0b10
    RESERVED = 0b11


class Opcode(IntEnum):
    """The base of enums of opcodes: one enum names those of the admin queue, one those of each I/O command set."""


class Command(Record, size=SQE_SIZE):
    """A submission queue entry, what all commands share. Base 1.4, Figure 104 to 106.

    A command is a class of its own, with its fields, its ``OPCODE`` (one that is made has it already) and what else is
    known of it: all that traces, faults and profiles know.
    """

    OPCODE: ClassVar[Opcode]
    MOVES_BLOCKS: ClassVar[bool] = False
    """Whether its data is the content of the blocks that it names."""
    CHANGES_MEDIA: ClassVar[bool] = False
    """Whether it can change the content of blocks."""

    opcode = uint(0, 1)
    fuse = bits(0, 9, 8)  # ``Fuse``
    psdt = bits(0, 15, 14)  # ``Psdt``
    flags = uint(1, 1)  # FUSE, reserved bits and PSDT together
    cid = uint(2, 2)
    nsid = uint(4, 4)
    cdw2 = uint(8, 4)
    cdw3 = uint(12, 4)
    mptr = uint(16, 8)
    prp1 = address(24)
    sgl1 = raw(24, 16)  # an ``SglDescriptor``, in the place of both PRPs, unless PSDT is 0
    prp2 = address(32)
    cdw10 = uint(CDW10, 4)
    cdw11 = uint(CDW11, 4)
    cdw12 = uint(CDW12, 4)
    cdw13 = uint(CDW13, 4)
    cdw14 = uint(CDW14, 4)
    cdw15 = uint(CDW15, 4)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "OPCODE" in vars(cls):
            cls.BLANK = bytes(cls(opcode=cls.OPCODE))

    @classmethod
    def own_fields(cls) -> Iterator[tuple[str, Field[Any]]]:
        """The fields that not every command has."""
        return ((name, field) for name, field in cls.fields() if not hasattr(Command, name))


class Completion(Record, size=CQE_SIZE):
    """A completion queue entry. Base 1.4, 4.6."""

    dw0 = uint(0, 4)
    dw1 = uint(4, 4)
    sqhd = uint(8, 2)
    sqid = uint(10, 2)
    cid = uint(12, 2)
    phase = bit(12, 16)
    status = named(12, 27, 17, STATUSES)  # Status Code Type and Status Code
    more = bit(12, 30)
    dnr = bit(12, 31)
