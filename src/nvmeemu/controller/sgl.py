"""Scatter Gather Lists: where a command's data lies in guest memory. The only SGL walk of Python. Base 1.4, 4.4.

A list is read piece by piece, each descriptor once, and only until the data is covered. So a list that never ends, or
is longer than the data, does no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from nvmeemu.controller.prp import Run
from nvmeemu.ports import Host
from nvmeemu.spec import SglDescriptor, SglType, Status
from nvmeemu.spec.errors import CommandFailed

MOST_SEGMENTS = 1024  # of one transfer: the longest one takes 512 pages
MOST_DESCRIPTORS = 1 << 14
_AT_ONCE = 256  # descriptors that are read: a page of them
_SIZE = SglDescriptor.SIZE
_END = 1 << 64
_unpack = struct.Struct("<QI3xB").iter_unpack  # SglDescriptor, its types in one byte
_POINTERS = (SglType.SEGMENT << 4, SglType.LAST_SEGMENT << 4)
_LAST = SglType.LAST_SEGMENT << 4
_BUCKET = SglType.BIT_BUCKET << 4


class Pointer(NamedTuple):
    """What has the first descriptor: the byte of the command where it stands, for the error log, and the status of a
    list that is too short."""

    at: int
    too_short: Status


DATA = Pointer(24, Status.INVALID_DATA_SGL_LENGTH)
METADATA = Pointer(16, Status.INVALID_METADATA_SGL_LENGTH)

_Descriptor = tuple[int, int, int]  # address, bytes, type and subtype


def runs(host: Host, first: bytes, length: int, to_host: bool, pointer: Pointer = DATA) -> list[Run]:
    """The runs that the SGL describes whose first descriptor is given, ``length`` bytes in order: (iova, bytes).
    Neighbours are one run. Of a bit bucket the iova is None; data that goes to the controller skips it (Base 1.4,
    Figure 117). Raises CommandFailed, and HostMemoryError if the memory of a segment is missing."""
    found: list[Run] = []
    left = length
    for iova, size, kind in _blocks(host, first, pointer):
        if kind == _BUCKET and not to_host:
            continue
        if kind != _BUCKET and iova + size > _END:
            why = f"a data block from {iova:#x} on, {size:#x} bytes, goes beyond all addresses"
            raise _failed(pointer, pointer.too_short, why)
        piece = min(size, left)
        if piece:
            _add(found, None if kind == _BUCKET else iova, piece)
            left -= piece
            if not left:
                return found
    raise _failed(pointer, pointer.too_short, f"the SGL has {length - left:#x} bytes of {length:#x}")


def is_list(first: bytes) -> bool:
    """Whether this first descriptor of an SGL points to more descriptors."""
    return first[15] in _POINTERS


def _add(found: list[Run], iova: int | None, size: int) -> None:
    if found:
        start, before = found[-1]
        if (start is None and iova is None) or (start is not None and start + before == iova):
            found[-1] = start, before + size
            return
    found.append((iova, size))


def _blocks(host: Host, first: bytes, pointer: Pointer) -> Iterator[_Descriptor]:
    """The data blocks and bit buckets of an SGL, from segment to segment. A segment that does not end with a pointer is
    the end of the list."""
    ((iova, size, kind),) = _unpack(first)
    _check_type(kind, pointer)
    if kind not in _POINTERS:
        yield iova, size, kind
        return
    descriptors = MOST_DESCRIPTORS
    for _ in range(MOST_SEGMENTS):
        _check_segment(iova, size, pointer)
        is_last, following = kind == _LAST, None
        for found, is_final in _segment(host, iova, size):
            descriptors -= 1
            if descriptors < 0:
                raise _failed(pointer, Status.INVALID_SGL_COUNT, f"an SGL of more than {MOST_DESCRIPTORS} descriptors")
            _check_type(found[2], pointer)
            if found[2] not in _POINTERS:
                yield found
            elif is_last:
                raise _failed(
                    pointer, Status.INVALID_SGL_SEGMENT, f"the last segment, at {iova:#x}, has a pointer to another"
                )
            elif not is_final:
                raise _failed(
                    pointer, Status.INVALID_SGL_COUNT, f"a pointer is not the end of its segment, at {iova:#x}"
                )
            else:
                following = found
        if following is None:
            return
        iova, size, kind = following
    raise _failed(pointer, Status.INVALID_SGL_COUNT, f"an SGL of more than {MOST_SEGMENTS} segments")


def _segment(host: Host, iova: int, size: int) -> Iterator[tuple[_Descriptor, bool]]:
    """The descriptors of a segment, and whether each is the segment's last one. Raises HostMemoryError."""
    end = iova + size
    for place in range(iova, end, _AT_ONCE * _SIZE):
        piece = min(_AT_ONCE * _SIZE, end - place)
        data = b"".join(host.views(place, piece, False))
        for found in _unpack(data):
            place += _SIZE
            yield found, place == end


def _check_type(kind: int, pointer: Pointer) -> None:
    """Over PCIe there are data blocks, bit buckets and segments, at addresses."""
    if kind > _LAST or kind & 0xF:
        raise _failed(
            pointer, Status.INVALID_SGL_TYPE, f"an SGL descriptor of type {kind >> 4:X}h, subtype {kind & 0xF:X}h"
        )


def _check_segment(iova: int, size: int, pointer: Pointer) -> None:
    if not size or size % _SIZE or iova + size > _END:
        why = f"an SGL segment at {iova:#x} of {size:#x} bytes: not one or more descriptors of {_SIZE} bytes"
        raise _failed(pointer, Status.INVALID_SGL_SEGMENT, why)


def _failed(pointer: Pointer, status: Status, why: str) -> CommandFailed:
    return CommandFailed(status, location=(pointer.at, 0), why=why)
