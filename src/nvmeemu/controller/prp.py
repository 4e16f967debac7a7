"""Physical Region Pages: where a command's data lies in guest memory. The only PRP walk. Base 1.4, 4.3."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from nvmeemu.ports import Host
from nvmeemu.spec import Status
from nvmeemu.spec.errors import CommandFailed

Run = tuple[int | None, int]
"""A place in guest memory: its iova (None: nowhere, a bit bucket of an SGL) and bytes."""
_ENTRY = 8


def runs(host: Host, prp1: int, prp2: int, length: int, page_size: int) -> list[tuple[int, int]]:
    """The runs that PRP1 and PRP2 describe, ``length`` bytes in order: (iova, bytes). Pages that follow each other are
    one run. Raises CommandFailed(INVALID_PRP_OFFSET), and HostMemoryError if the memory of a PRP list is missing."""
    if prp1 & 3:
        raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(24, 0), why="no multiple of 4")
    if length <= page_size - (prp1 & page_size - 1):
        return [(prp1, length)]
    found = []
    start, size = prp1, page_size - (prp1 & page_size - 1)
    left = length - size
    pages: Iterable[int]
    if left <= page_size:
        if prp2 & page_size - 1:
            why = f"no multiple of the page size, {page_size:#x}"
            raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(32, 0), why=why)
        pages = (prp2,)
    else:
        pages = _list(host, prp2, -(-left // page_size), page_size)
    for page in pages:
        piece = min(left, page_size)
        if page == start + size:
            size += piece
        else:
            found.append((start, size))
            start, size = page, piece
        left -= piece
    found.append((start, size))
    return found


def _list(host: Host, pointer: int, pages: int, page_size: int) -> Iterator[int]:
    """The ``pages`` entries of a PRP list. It may start anywhere in a page; only the last entry *of the page* is a
    pointer to more, and only if more than one page is still to come."""
    if pointer & _ENTRY - 1:
        why = f"the PRP list at {pointer:#x}: no multiple of 8"
        raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(32, 0), why=why)
    while pages:
        room = (page_size - (pointer & page_size - 1)) // _ENTRY
        number = min(room, pages)
        data = b"".join(host.views(pointer, number * _ENTRY, False))
        entries = struct.unpack(f"<{number}Q", data)
        for index, entry in enumerate(entries):
            if entry & page_size - 1:
                where = f"the PRP list's entry at {pointer + index * _ENTRY:#x} is {entry:#x}"
                why = f"{where}: no multiple of the page size, {page_size:#x}"
                raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(32, 0), why=why)
        if pages > room:
            pointer = entries[-1]
            entries = entries[:-1]
        pages -= len(entries)
        yield from entries
