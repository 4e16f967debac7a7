"""The controller's registers: their fields, the values that these have, and where the doorbells are. Base 1.4, 3.1."""

from __future__ import annotations

from enum import IntFlag

from nvmeemu.spec.layout import Record, bit, bits, count

VERSIONS = {"1.2": 0x00010200, "1.3": 0x00010300, "1.4": 0x00010400, "2.0": 0x00020000}
"""VS, and VER of Identify Controller, for each version of the Base specification that a controller may state: MJR in
bits 31:16, MNR in 15:8, TER in 7:0. Base 2.0, 3.1.3.2."""
CLASS_CODE = 0x010802  # mass storage, non-volatile memory, NVM Express
PAGE_MIN = 4096  # CAP.MPSMIN = 0: the unit of MDTS, whatever CC.MPS says
BAR0_LEAST = 0x4000  # bytes: bits 13:4 of MLBAR are reserved (Base 1.4, 2.1.10), and Windows masks them
DOORBELLS = 0x1000  # SQ y tail at 1000h + 2y * (4 << DSTRD), CQ y head at 1000h + (2y + 1) * (4 << DSTRD)
SHN_NONE, SHN_NORMAL, SHN_ABRUPT = 0, 1, 2
SHST_NORMAL, SHST_OCCURRING, SHST_COMPLETE = 0, 1, 2


class CommandSets(IntFlag):
    """CAP.CSS: what CC.CSS can be. Base 1.4, 3.1.1; bits 6 and 7: Base 2.0."""

    NVM = 1 << 0
    AS_IDENTIFIED = 1 << 6  # those that Identify Controller lists (CNS 1Ch)
    NONE = 1 << 7  # the admin command set alone


CSS_NVM, CSS_ALL, CSS_ADMIN = 0, 6, 7  # CC.CSS: the NVM command set; all that Identify lists; no I/O command set


class Capabilities(Record, size=8):
    """CAP, Controller Capabilities, 64 bits at offset 0h. Base 1.4, 3.1.1."""

    mqes = count(0, 15, 0)
    cqr = bit(0, 16)
    ams = bits(0, 18, 17)
    to = bits(0, 31, 24)  # 500 ms units
    dstrd = bits(4, 3, 0)
    nssrs = bit(4, 4)
    css = bits(0, 44, 37, size=8)  # ``CommandSets``
    mpsmin = bits(4, 19, 16)
    mpsmax = bits(4, 23, 20)
    crms = bits(4, 28, 27)  # ``ReadyModes``; Base 2.0, 3.1.3.1


class ReadyModes(IntFlag):
    """CAP.CRMS: what "ready" can mean after an enable. Base 2.0, 3.1.3.1."""

    WITH_MEDIA = 1 << 0  # CSTS.RDY says that all namespaces are ready
    INDEPENDENT_OF_MEDIA = 1 << 1


class ReadyTimeouts(Record, size=4):
    """CRTO, offset 68h, in 500 ms: how long a host has to wait for CSTS.RDY, with media and independent of media. Base
    2.0, 3.1.3.21."""

    crwmt = bits(0, 15, 0)
    crimt = bits(0, 31, 16)


class Configuration(Record, size=4):
    """CC, Controller Configuration, 32 bits at offset 14h. Base 1.4, 3.1.5."""

    en = bit(0, 0)
    css = bits(0, 6, 4)
    mps = bits(0, 10, 7)
    ams = bits(0, 13, 11)
    shn = bits(0, 15, 14)
    iosqes = bits(0, 19, 16)
    iocqes = bits(0, 23, 20)


class ControllerStatus(Record, size=4):
    """CSTS, Controller Status, 32 bits at offset 1Ch. Base 1.4, 3.1.6."""

    rdy = bit(0, 0)
    cfs = bit(0, 1)
    shst = bits(0, 3, 2)


class AdminQueueAttributes(Record, size=4):
    """AQA, Admin Queue Attributes, 32 bits at offset 24h. Base 1.4, 3.1.8."""

    asqs = count(0, 11, 0)
    acqs = count(0, 27, 16)
