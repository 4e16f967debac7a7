"""SGLs as a host makes them, good and bad ones: descriptors, segments, whole lists. Base 1.4, 4.4.

point(command, sgl(driver, [(place, 512), (None, 512), (other, 1024)]))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nvmeemu.spec import Command, Psdt, SglDescriptor, SglType
from nvmeemu.testing.driver import Driver

Piece = tuple[int | None, int]
"""A place for data, (address, bytes). Without an address it is a bit bucket."""


def data_block(address: int, length: int) -> SglDescriptor:
    """Data at this address."""
    return SglDescriptor(kind=SglType.DATA_BLOCK, address=address, length=length)


def bit_bucket(length: int) -> SglDescriptor:
    """Bytes that the host does not want."""
    return SglDescriptor(kind=SglType.BIT_BUCKET, length=length)


def segment(address: int, descriptors: int, *, is_last: bool = True) -> SglDescriptor:
    """A pointer to so many descriptors at this address."""
    kind = SglType.LAST_SEGMENT if is_last else SglType.SEGMENT
    return SglDescriptor(kind=kind, address=address, length=descriptors * SglDescriptor.SIZE)


def put(driver: Driver, descriptors: Sequence[SglDescriptor]) -> int:
    """Write a segment into memory of its own; returns its address."""
    place = driver.alloc(max(len(descriptors), 1) * SglDescriptor.SIZE, SglDescriptor.SIZE)
    driver.bus.write_memory(place, b"".join(map(bytes, descriptors)))
    return place


def sgl(driver: Driver, pieces: Iterable[Piece], *, most: int = 256) -> SglDescriptor:
    """The first descriptor of an SGL of these pieces. One piece needs no segment; more lie in segments of at most
    ``most`` descriptors (2 or more)."""
    rest = [bit_bucket(size) if address is None else data_block(address, size) for address, size in pieces]
    if len(rest) == 1:
        return rest[0]
    count = -(-(len(rest) - 1) // (most - 1)) if len(rest) > most else 1  # segments; each but the last has a pointer
    parts = [rest[index * (most - 1) : (index + 1) * (most - 1)] for index in range(count - 1)]
    parts.append(rest[(count - 1) * (most - 1) :])
    following: SglDescriptor | None = None
    for part in reversed(parts):
        here = part if following is None else [*part, following]
        following = segment(put(driver, here), len(here), is_last=following is None)
    assert following is not None
    return following


def point(command: Command, first: SglDescriptor, metadata: int | None = None) -> None:
    """Let the data of a command be where this SGL says. ``metadata``: the address of the SGL descriptor of its
    separate metadata."""
    command.psdt = Psdt.SGL if metadata is None else Psdt.SGL_BOTH
    command.sgl1 = bytes(first)
    if metadata is not None:
        command.mptr = metadata
