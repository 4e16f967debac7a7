"""Which shared libraries a program needs, read from its ELF headers (works for any architecture, runs nothing)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB = 0, 1, 5


@dataclass(frozen=True)
class Needs:
    """The dynamic linker (None for a static program) and the names of the libraries."""

    interpreter: str | None
    libraries: tuple[str, ...]


def needs(path: Path) -> Needs:
    """Read one 64-bit ELF file; anything else (a script, say) needs nothing."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return Needs(None, ())
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + "Q", data, 32)
    size, count = struct.unpack_from(order + "HH", data, 54)
    # each: type, flags, offset, virtual address, physical address, size in the file, size in memory, alignment
    headers = [struct.unpack_from(order + "IIQQQQQQ", data, table + index * size) for index in range(count)]
    loads = [header for header in headers if header[0] == PT_LOAD]
    interpreter = None
    libraries: tuple[str, ...] = ()
    for kind, _, offset, _, _, length, _, _ in headers:
        if kind == PT_INTERP:
            interpreter = _text(data, offset)
        elif kind == PT_DYNAMIC:
            pairs = list(struct.iter_unpack(order + "QQ", data[offset : offset + length // 16 * 16]))
            libraries = _libraries(data, pairs, loads)
    return Needs(interpreter, libraries)


def _libraries(data: bytes, pairs: list[tuple[int, ...]], loads: list[tuple[int, ...]]) -> tuple[str, ...]:
    wanted = []
    strings = 0
    for tag, value in pairs:
        if tag == DT_NULL:
            break
        if tag == DT_NEEDED:
            wanted.append(value)
        elif tag == DT_STRTAB:
            strings = _file_offset(value, loads)
    return tuple(_text(data, strings + value) for value in wanted)


def _file_offset(address: int, loads: list[tuple[int, ...]]) -> int:
    for _, _, offset, virtual, _, length, _, _ in loads:
        if virtual <= address < virtual + length:
            return offset + address - virtual
    return address


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
