"""Writes the first inputs of fuzz_engine.c that chance hardly finds, or a merge would drop: ``seeds.py DIR``.

They reach no line that others do not, but are next to what a fault would spoil: data that lies in the page in which a
region of memory ends; blocks up to 2^64; doorbells of main's, and the last ones of their page.
"""

from __future__ import annotations

import sys
from pathlib import Path

MAPPED = 0x10  # in the first byte: doorbells are mapped
SUBMIT, LIST, DOORBELL = 0, 6, 0x29
READ, WRITE, FLUSH, ZEROES, DATASET = 0, 1, 3, 6, 7
REGION_END = 0xD0  # page_of's choice
KIB = 2  # blocks
BLOCK, LAST_SEGMENT = 0, 1  # choices of point_at_sgl


def instruction(operation: int, *args: int) -> bytes:
    return bytes((operation, *args)).ljust(16, b"\0")


SGL_LIST = instruction(LIST, 0, 0, *range(10), 0, 0, 1)  # data blocks of a page


def transfer(opcode: int, kib: int, first: int, second: int = 0, has_list: bool = False, from_end: int = 0) -> bytes:
    """Of the namespace in memory, from block 0 on or from so many before 2^64; rung at once."""
    slba = (from_end - 1, 0x80) if from_end else (0, 0)
    return instruction(SUBMIT, opcode, 0, 1, first, 4 * has_list, 0, second, 0, *slba, kib * KIB - 1, 0, 0, 1)


def by_sgl(opcode: int, kib: int, kind: int, size: int, first: int = 0) -> bytes:
    """The same with an SGL: a data block of so many 512 bytes, or a segment of so many descriptors."""
    return instruction(SUBMIT, opcode, 0, 1, first, kind, size, 0, 0, 0, 0, kib * KIB - 1, 0, 0, 1 | 4)


def other(opcode: int, nsid: int, first: int = 0, bits: int = 0) -> bytes:
    """Of a namespace: one that transfers no blocks; ``bits`` are of the highest byte of dword 12."""
    return instruction(SUBMIT, opcode, 0, nsid, 0, 0, 0, 0, 0, 3, first, 7, bool(bits), bits, 3)


def programs() -> dict[str, list[bytes]]:
    found = {}
    for name, opcode in (("read", READ), ("write", WRITE)):
        found[f"region-end-{name}"] = [transfer(opcode, 4, REGION_END)]
        found[f"last-blocks-{name}"] = [transfer(opcode, 4, 0, from_end=blocks) for blocks in (8, 7)]
        found[f"region-end-second-{name}"] = [transfer(opcode, 8, 0, REGION_END)]
        found[f"region-end-list-{name}"] = [
            instruction(LIST, 0, 0, *[REGION_END] * 10),
            transfer(opcode, 12, 0, 0, has_list=True),
        ]
    for nsid in (1, 4, 5):
        for kind, bits in (("", 0), ("-fua", 0x40), ("-deac", 0x02)):
            found[f"zeroes-{nsid}{kind}"] = [other(ZEROES, nsid, bits=bits)]
        found[f"flush-{nsid}"] = [other(FLUSH, nsid)]
        for many in (0, 15):
            found[f"ranges-{nsid}-{many}"] = [other(DATASET, nsid, first=many | 0x40)]
    for number in (0, 1, 6, 7):
        found[f"main-{number}"] = [instruction(DOORBELL, number, 0, 4, 3)]
    for place in (7, 8):  # the last one of the page, and the first one behind it
        found[f"page-end-{place}"] = [instruction(DOORBELL, 0xE0, place, how, 3) for how in (3, 1, 4)]
    for name, opcode in (("read", READ), ("write", WRITE)):
        for pages in (1, 2, 15):
            found[f"sgl-{pages}-{name}"] = [SGL_LIST, by_sgl(opcode, 4 * pages, LAST_SEGMENT, 16)]
            found[f"sgl-longer-{pages}-{name}"] = [SGL_LIST, by_sgl(opcode, 4 * pages - 1, LAST_SEGMENT, pages)]
        found[f"sgl-too-short-{name}"] = [SGL_LIST, by_sgl(opcode, 12, LAST_SEGMENT, 2)]
        found[f"sgl-empty-{name}"] = [SGL_LIST, by_sgl(opcode, 4, LAST_SEGMENT, 0)]
        found[f"sgl-block-{name}"] = [by_sgl(opcode, 4, BLOCK, 8)]
        found[f"sgl-short-block-{name}"] = [by_sgl(opcode, 4, BLOCK, 7)]
        found[f"sgl-region-end-{name}"] = [by_sgl(opcode, 4, BLOCK, 8, first=REGION_END)]
    return found


def main(folder: str) -> None:
    for name, instructions in programs().items():
        for kind, header in (("trapped", 0), ("mapped", MAPPED)):
            (Path(folder) / f"{name}-{kind}").write_bytes(bytes([header]) + b"".join(instructions))


if __name__ == "__main__":
    main(*sys.argv[1:])
