"""Scatter Gather Lists: their descriptors, and what a controller takes. Base 1.4, 4.4 and Figure 247, SGLS."""

from __future__ import annotations

from enum import IntEnum

from nvmeemu.spec.layout import Record, address, bit, bits, uint


class Psdt(IntEnum):
    """PRP or SGL for Data Transfer: what the data pointer and the metadata pointer of a command are. Base 1.4, Figure
    104."""

    PRP = 0b00  # and MPTR is the address of the metadata
    SGL = 0b01  # the same
    SGL_BOTH = 0b10  # MPTR is the address of an SGL descriptor
    RESERVED = 0b11


class SglType(IntEnum):
    """SGL Descriptor Type. Base 1.4, Figure 115. Keyed and transport blocks are for fabrics."""

    DATA_BLOCK = 0x0
    BIT_BUCKET = 0x1
    SEGMENT = 0x2
    LAST_SEGMENT = 0x3
    KEYED_DATA_BLOCK = 0x4
    TRANSPORT_DATA_BLOCK = 0x5
    VENDOR = 0xF


class SglDescriptor(Record, size=16):
    """An SGL descriptor. Base 1.4, Figure 114. ``length`` in bytes; ``kind`` is an ``SglType``. The one subtype of PCIe
    is 0, an address."""

    address = address(0)
    length = uint(8, 4)
    subtype = bits(15, 3, 0, size=1)
    kind = bits(15, 7, 4, size=1)


class Sgls(Record, size=4):
    """SGL Support of Identify Controller. ``support``: 1 any address and length, 2 dwords only."""

    support = bits(0, 1, 0)
    keyed = bit(0, 2)
    threshold = bits(0, 15, 8)  # descriptors in a segment that are best
    bit_bucket = bit(0, 16)
    mptr_any_byte = bit(0, 17)  # contiguous metadata of a command with an SGL may begin at any byte
    longer_than_data = bit(0, 18)
    mptr_is_sgl = bit(0, 19)  # PSDT 10b
    offset = bit(0, 20)
    transport = bit(0, 21)


SGLS_ANY_BYTE = 1  # of ``support``
