"""The registers of a controller: their values, and which bits the host may write. Base 1.4, 3.1.

This module knows bytes only. The controller knows what a write means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvmeemu.spec import DOORBELLS


@dataclass(frozen=True)
class Register:
    """A register; ``writable`` is the mask of bits that the host may write, all others are read-only or reserved."""

    name: str
    offset: int
    size: int
    writable: int = 0
    is_command: bool = False  # ones that are written act; bytes that are not written are zeros


CAP = Register("CAP", 0x00, 8)
VS = Register("VS", 0x08, 4)
INTMS = Register("INTMS", 0x0C, 4, 0xFFFFFFFF, is_command=True)
INTMC = Register("INTMC", 0x10, 4, 0xFFFFFFFF, is_command=True)
CC = Register("CC", 0x14, 4, 0x00FFFFF1)
CSTS = Register("CSTS", 0x1C, 4)
NSSR = Register("NSSR", 0x20, 4)
AQA = Register("AQA", 0x24, 4, 0x0FFF0FFF)
ASQ = Register("ASQ", 0x28, 8, ~0xFFF & 0xFFFFFFFFFFFFFFFF)
ACQ = Register("ACQ", 0x30, 8, ~0xFFF & 0xFFFFFFFFFFFFFFFF)
CRTO = Register("CRTO", 0x68, 4)  # Base 2.0
REGISTERS = (CAP, VS, INTMS, INTMC, CC, CSTS, NSSR, AQA, ASQ, ACQ, CRTO)


class RegisterFile:
    """The values of all registers, readable at any offset and width; everything undeclared reads as zero."""

    def __init__(self) -> None:
        self._data = bytearray(DOORBELLS)

    def __getitem__(self, register: Register) -> int:
        return int.from_bytes(self._data[register.offset : register.offset + register.size], "little")

    def __setitem__(self, register: Register, value: int) -> None:
        self._data[register.offset : register.offset + register.size] = value.to_bytes(register.size, "little")

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size]).ljust(size, b"\0")

    def written(self, offset: int, data: bytes) -> Iterator[tuple[Register, int]]:
        """The registers that a write touches, each with its new value. Bytes that the write does not reach, and
        read-only bits, keep their values, so a 64-bit register can be written by halves in either order. Stores
        nothing."""
        end = offset + len(data)
        for register in REGISTERS:
            first, last = max(offset, register.offset), min(end, register.offset + register.size)
            if first < last:
                old = 0 if register.is_command else self[register]
                changed = bytearray(old.to_bytes(register.size, "little"))
                changed[first - register.offset : last - register.offset] = data[first - offset : last - offset]
                value = int.from_bytes(changed, "little")
                yield register, old & ~register.writable | value & register.writable
