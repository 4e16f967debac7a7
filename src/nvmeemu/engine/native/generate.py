"""Writes nvme_spec.h, the engine's view of the specification, from ``spec``.

``python -m nvmeemu.engine.native.generate`` prints it.
The build calls it, so that a structure or an opcode stays declared once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum

from nvmeemu import spec
from nvmeemu.spec.layout import Field, Number, Record

CONSTANTS = ("SQE_SIZE", "CQE_SIZE", "PAGE_MIN", "DOORBELLS", "BAR0_LEAST", "BROADCAST")
ENUMS: tuple[type[IntEnum], ...] = (spec.NvmOpcode, spec.Fuse, spec.Psdt, spec.SglType)
RECORDS: tuple[type[Record], ...] = (
    *(spec.ReadWrite, spec.DatasetManagement, spec.DsmRange, spec.Completion),
    spec.SglDescriptor,
)

HEAD = """\
/* Made from spec/ by generate.py: change it there. */

#ifndef NVMEEMU_NVME_SPEC_H
#define NVMEEMU_NVME_SPEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structures of the specification are little-endian");
"""


def header() -> str:
    """The text of nvme_spec.h."""
    lines = [HEAD]
    lines += [f"#define NVME_{name} {getattr(spec, name)}" for name in CONSTANTS]
    for kind in ENUMS:
        prefix = f"NVME_{_snake(kind.__name__).upper()}"
        lines += ["", *(f"#define {prefix}_{member.name} {member.value:#04x}" for member in kind)]
    for record in RECORDS:
        lines += ["", *_record(record)]
    return "\n".join([*lines, "", "#endif", ""])


def _record(record: type[Record]) -> Iterator[str]:
    name = f"nvme_{_snake(record.__name__)}"
    whole = list(_whole_fields(record))
    yield f"struct {name} {{"
    end = 0
    for field in whole:
        if field.offset > end:
            yield f"    uint8_t reserved_{end}[{field.offset - end}];"
        yield f"    uint{field.size * 8}_t {field.name};"
        end = field.offset + field.size
    if end < record.SIZE:
        yield f"    uint8_t reserved_{end}[{record.SIZE - end}];"
    yield "};"
    yield f'_Static_assert(sizeof(struct {name}) == {record.SIZE}, "{record.__name__}");'
    for field in whole:
        yield f'_Static_assert(offsetof(struct {name}, {field.name}) == {field.offset}, "{field.name}");'
    for member, any_field in record.fields():
        if not isinstance(any_field, Number) and any_field.size > 1:
            continue  # bytes as they are
        low, width = _place(record, any_field)
        yield f"#define {name.upper()}_{member.upper()}_BIT {low}"
        yield f"#define {name.upper()}_{member.upper()}_WIDTH {width}"
        if isinstance(any_field, Number) and any_field not in whole:
            yield from _getter(name, any_field)


def _whole_fields(record: type[Record]) -> Iterator[Number]:
    """The fields that can be members of a C structure: whole integers that do not overlap, long ones first."""
    numbers = [field for _, field in record.fields() if isinstance(field, Number)]
    end = 0
    for field in sorted(numbers, key=lambda field: (field.offset, -field.size)):
        fills = not field.zero_based and field.low == 0 and field.high == field.size * 8 - 1
        if fills and field.offset >= end and field.size in (1, 2, 4, 8) and field.offset % field.size == 0:
            yield field
            end = field.offset + field.size


def _place(record: type[Record], field: Field[int]) -> tuple[int, int]:
    """The lowest bit of a field, counted from the beginning of the record, and its width."""
    if isinstance(field, Number):
        return field.offset * 8 + field.low, field.high - field.low + 1
    probe = record()
    setattr(probe, field.name, True)
    return int(probe).bit_length() - 1, 1


def _getter(name: str, field: Number) -> Iterator[str]:
    kind = f"uint{field.size * 8}_t"
    value = f"(word >> {field.low} & {(1 << field.high - field.low + 1) - 1:#x})"
    yield f"static inline uint64_t {name}_{field.name}(const void *record)"
    yield "{"
    yield f"    {kind} word;"
    yield f"    memcpy(&word, (const uint8_t *)record + {field.offset}, sizeof(word));"
    yield f"    return {value} + 1;" if field.zero_based else f"    return {value};"
    yield "}"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


if __name__ == "__main__":
    print(header(), end="")
