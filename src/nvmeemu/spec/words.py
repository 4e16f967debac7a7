"""NVMe in words: the names, fields and statuses that ``spec`` declares, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from nvmeemu import regs, spec
from nvmeemu.spec.layout import Field, Number
from nvmeemu.spec.layout import Record as Layout
from nvmeemu.spec.names import Names

_ACRONYMS = {"AER", "CID", "CQ", "CSI", "LBA", "NVM", "PRP", "SMART", "SQ", "UUID"}
_SMALL = {"OF", "TO"}
REGISTER_FIELDS: dict[str, type[Layout]] = {
    "CAP": spec.Capabilities,
    "CC": spec.Configuration,
    "CSTS": spec.ControllerStatus,
    "AQA": spec.AdminQueueAttributes,
}
_COMMAND_DWORDS = 40  # where CDW10 begins
_DWORDS = (1 << 8 * spec.SQE_SIZE) - (1 << 8 * _COMMAND_DWORDS)  # the bits of all of them


def words(member: Enum) -> str:
    """A constant's name as a person writes it: GET_LOG_PAGE is ``Get Log Page``."""
    return _words(member.name)


@cache
def _words(name: str) -> str:
    return " ".join(
        part if part in _ACRONYMS else part.lower() if number and part in _SMALL else part.capitalize()
        for number, part in enumerate(name.split("_"))
    )


def opcode(sqid: int, number: int) -> str:
    """``Identify``, or the number of an opcode that is not known."""
    known = spec.commands_of(sqid).names.get(number)
    return f"{'I/O' if sqid else 'admin'} opcode {number:02X}h" if known is None else words(known)


def status(number: int) -> str:
    """``Invalid Field``, or Status Code Type and Status Code of one that is not known."""
    known = spec.STATUSES.get(number)
    return f"status type {number >> 8}h code {number & 0xFF:02X}h" if known is None else words(known)


def command_of(sqid: int, sqe: bytes) -> spec.Command:
    """The entry as the command that it is, with the fields of its own."""
    return spec.commands_of(sqid).of(sqe[0])(sqe)


def command(sqid: int, sqe: bytes, *, is_whole: bool = False) -> str:
    """``Identify Controller``, ``Read nsid=1 slba=2048 nlb=8``: the name, and the fields that this command has; those
    that are 0 only if ``is_whole``."""
    found = command_of(sqid, sqe)
    parts = [opcode(sqid, sqe[0])]
    kind: Any = type(found)
    plain_fields, fields_with_names = _own_fields(kind)
    parts += [named(name, field.get(sqe), names) for name, field, names in fields_with_names]
    if found.nsid or is_whole:
        parts.append("nsid=all" if found.nsid == spec.BROADCAST else f"nsid={found.nsid}")
    for name, field, is_number in plain_fields:
        value = field.get(sqe)
        if value or (is_number and (is_whole or name in _ALWAYS)):
            parts.append(f"{name}={value:d}" if is_number else name)
    if sqe[1]:
        parts += [f"fuse={found.fuse}", f"psdt={found.psdt}"]
    if is_whole and isinstance(found, spec.SetFeatures) and not found.cdw11:
        parts.append("cdw11=0x0")  # the value of most features
    return " ".join([*parts, *_rest(found)])


_ALWAYS = {"slba", "qid"}  # fields whose 0 says something


def named(name: str, value: int, names: Names) -> str:
    """The value of a field that has names for its values: ``SMART``, or ``lid=C5h`` of one that is not known."""
    known = names.get(value)
    return f"{name}={value:02X}h" if known is None else words(known)


_Plain = tuple[str, Field[Any], bool]
_WithNames = tuple[str, Field[Any], Names]


@cache
def _own_fields(kind: Any) -> tuple[tuple[_Plain, ...], tuple[_WithNames, ...]]:
    """The fields that only this kind of command has: (name, field, whether it is a number), and those with names for
    their values: (name, field, names)."""
    plain: list[_Plain] = []
    with_names: list[_WithNames] = []
    for name, field in kind.own_fields():
        if isinstance(field, Number) and field.names is not None:
            with_names.append((name, field, field.names))
        else:
            plain.append((name, field, isinstance(field, Number)))
    return tuple(plain), tuple(with_names)


@cache
def _undeclared_bits(kind: Any) -> int:
    """The bits of the command dwords that no field of its own covers; the entry as a number."""
    found = 0
    for name, field in kind.own_fields():
        if isinstance(field, Number):
            found |= (1 << field.high - field.low + 1) - 1 << field.low << field.offset * 8
        else:
            found |= int(kind(**{name: True}))
    return _DWORDS & ~found


def _rest(found: spec.Command) -> Iterator[str]:
    """The command dwords that say more than the declared fields."""
    kind: Any = type(found)
    rest = int(found) & _undeclared_bits(kind)
    if not rest:
        return
    for number, offset in enumerate(range(_COMMAND_DWORDS, spec.SQE_SIZE, 4), 10):
        value = rest >> offset * 8 & 0xFFFFFFFF
        if value:
            yield f"cdw{number}={value:#x}"


def entry(sqid: int, sqe: bytes, *, is_whole: bool = False) -> str:
    """``#0005 Read nsid=1 slba=0 nlb=8 prp1=0x1000``: a submission queue entry."""
    said = f"{command(sqid, sqe, is_whole=is_whole)} {pointers(sqe, is_whole=is_whole)}"
    return f"#{spec.Command(sqe).cid:04x} {said}".rstrip()


def doorbell(number: int) -> str:
    """``the tail doorbell of SQ 1``: the one of this number, from 0 on."""
    return f"the head doorbell of CQ {number >> 1}" if number & 1 else f"the tail doorbell of SQ {number >> 1}"


def field(found: spec.Command, location: tuple[int, int]) -> str:
    """``prp1=0x1003``: the field at this byte and bit (Parameter Error Location), not a dword of all."""
    kind: Any = type(found)
    place = location[0] * 8 + location[1]
    names = [name for name, one in kind.fields() if isinstance(one, Number) and one.offset * 8 + one.low == place]
    names.sort(key=lambda name: hasattr(spec.Command, name))
    return f"{names[0]}={getattr(found, names[0]):#x}" if names else f"byte {location[0]}"


def pointers(sqe: bytes, *, is_whole: bool = False) -> str:
    """The data pointer of a command, if it has any, or if ``is_whole``: PRP1 and PRP2, or an SGL descriptor."""
    entry = spec.Command(sqe)
    if entry.psdt:
        return f"sgl1={_descriptor(spec.SglDescriptor(entry.sgl1))}"
    return " ".join(f"{name}={value:#x}" for name in ("prp1", "prp2") if (value := getattr(entry, name)) or is_whole)


def _descriptor(one: spec.SglDescriptor) -> str:
    """``last_segment(0x1000, 32)``: kind, address, bytes."""
    kinds = {kind.value: kind.name.lower() for kind in spec.SglType}
    return f"{kinds.get(one.kind, f'type {one.kind:X}h')}({one.address:#x}, {one.length})"


def completion(entry: spec.Completion) -> str:
    """Status with DNR and More, and DW0 if it says something: ``Invalid Field, DNR, More``."""
    return _completion_words(entry.status, entry.dnr, entry.more, entry.dw0)


@lru_cache(1024)  # there are millions, and few different ones
def _completion_words(number: int, dnr: bool, more: bool, dw0: int) -> str:
    parts = [status(number)]
    parts += [name for name, is_set in (("DNR", dnr), ("More", more)) if is_set]
    if dw0:
        parts.append(f"dw0={dw0:#x}")
    return ", ".join(parts)


def register(offset: int, data: bytes) -> str:
    """``CC = 0x460001 (en mps=0 ...)``; what is no whole register is bytes at an offset."""
    value = int.from_bytes(data, "little")
    for known in regs.REGISTERS:
        if (known.offset, known.size) == (offset, len(data)):
            kind = REGISTER_FIELDS.get(known.name)
            return f"{known.name} = {value:#x}" + (f" ({_set_fields(kind.of(value))})" if kind and value else "")
        if known.offset < offset + len(data) and offset < known.offset + known.size and len(data) <= known.size:
            return f"{known.name}+{offset - known.offset} = {value:#x} ({len(data)} bytes)"
    shown = f"{value:#x} ({len(data)} bytes)" if len(data) <= 8 else f"{len(data)} bytes"
    return f"BAR0+{offset:#x} = {shown}"


def _set_fields(entry: Layout) -> str:
    """The fields that are not 0."""
    found = ((name, getattr(entry, name), field) for name, field in entry.fields())
    return " ".join(f"{name}={value:d}" if isinstance(field, Number) else name for name, value, field in found if value)


def size(number: int) -> str:
    """Bytes, in the largest unit that fits: ``4 KiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or number % 1024:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} TiB"


def duration(nanoseconds: float) -> str:
    """``3.2 µs``, ``15 ms``, ``2.1 s``: three digits are enough for a person."""
    for unit, scale in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < 999.5 * scale:
            return f"{nanoseconds / scale:.3g} {unit}"
    return f"{nanoseconds / 1_000_000_000:.3g} s"
