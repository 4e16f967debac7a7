"""Register accesses of any size and place: which of their bytes a fault is about, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nvmeemu import regs
from nvmeemu.faults.match import register_place
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.words import FaultError, number
from nvmeemu.spec import words

Patch = dict[int, tuple[int, int]]
"""By the byte of BAR0: which of its bits are set, and to what."""


def patch_of(values: Mapping[str, int], matched: Mapping[str, Any]) -> Patch:
    """What ``do.set`` asks for, fields or ``value``, of the register in ``match`` or of any that has the field. Empty:
    a ``value`` for whatever is accessed. Raises FaultError."""
    place = register_place(matched["register"], "match.register") if "register" in matched else None
    found: Patch = {}
    for key, value in values.items():
        if key != "value":
            known = [one for one in regs.REGISTERS if place in (None, (one.offset, one.size)) and _has(one, key)]
            if not known:
                which = f"{matched['register']}" if place is not None else "CAP, CC, CSTS or AQA"
                raise FaultError(f"do.set: {key!r} is no field of {which}: or give value")
            for register in known:
                _add_field(found, register, key, value)
        elif place is not None:
            offset, size = place
            content = number(value, "do.set", 0, (1 << 8 * size) - 1).to_bytes(size, "little")
            found |= {offset + index: (0xFF, byte) for index, byte in enumerate(content)}
    return found


def patched(patch: Patch, offset: int, data: bytes) -> bytes:
    """The new content of ``data`` at ``offset``."""
    found = bytearray(data)
    for index in range(len(found)):
        mask, content = patch.get(offset + index, (0, 0))
        found[index] = found[index] & ~mask | content
    return bytes(found)


def only(passage: Passage, part: slice) -> Passage:
    """The access, as if only these of its bytes were accessed."""
    size = part.stop - part.start
    value = None if passage.value is None else passage.value >> 8 * part.start & (1 << 8 * size) - 1
    return replace(passage, offset=passage.offset + part.start, size=size, value=value)


def _has(register: regs.Register, key: str) -> bool:
    """Whether it has such a field."""
    kind = words.REGISTER_FIELDS.get(register.name)
    return kind is not None and any(name == key for name, _ in kind.fields())


def _add_field(patch: Patch, register: regs.Register, key: str, value: int) -> None:
    for offset, mask, content in _bytes_of(register, key, value):
        old_mask, old = patch.get(offset, (0, 0))
        patch[offset] = old_mask | mask, old & ~mask | content


def _bytes_of(register: regs.Register, key: str, value: int) -> Iterator[tuple[int, int, int]]:
    """Place, bits and content of the bytes of BAR0 that hold a field, once it has this value."""
    kind = words.REGISTER_FIELDS[register.name]
    blank, marked = kind.of(0), kind.of((1 << 8 * kind.SIZE) - 1)
    for record in (blank, marked):
        record.data = bytearray(record.data)
        try:
            setattr(record, key, value)
        except ValueError as error:
            raise FaultError(f"do.set: {error}") from None
    for index, (low, high) in enumerate(zip(bytes(blank), bytes(marked), strict=True)):
        mask = ~(low ^ high) & 0xFF  # what is the same on any ground is the field's
        if mask:
            yield register.offset + index, mask, low
