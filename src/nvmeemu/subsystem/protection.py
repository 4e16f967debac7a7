"""Protection information: makes and checks the guards and tags of blocks. NVM 1.0, 5.2.

A block's protection information is ``protection.size`` bytes of its metadata, all big endian:

    16-bit guard:  guard 2, application tag 2, storage and reference tag 4
    32-bit guard:  guard 4, application tag 2, storage and reference tag 10
    64-bit guard:  guard 8, application tag 2, storage and reference tag 6

The storage tag is the upper ``storage_tag_size`` bits of the last field. The guard is a CRC of the data, and of the
metadata that comes before the protection information. All functions take blocks side by side, as media have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import ErrorKind

try:
    from nvmeemu.subsystem._protection import ffi, lib
except ImportError:  # built without a C compiler
    ffi = lib = None

Buffer = bytes | bytearray | memoryview
ESCAPE = 0xFFFF
"""The application tag of a block that is not checked (with type 3: together with a reference tag of all ones)."""
_KIND_OF = {
    1: ErrorKind.GUARD_CHECK,
    2: ErrorKind.APPLICATION_TAG_CHECK,
    4: ErrorKind.REFERENCE_TAG_CHECK,
    8: ErrorKind.STORAGE_TAG_CHECK,
}


class ProtectionError(Exception):
    """A block fails a check. ``kind``: which. ``block``: its number, from the first one of the command on."""

    def __init__(self, kind: ErrorKind, block: int) -> None:
        super().__init__(kind, block)
        self.kind = kind
        self.block = block


@dataclass(frozen=True)
class Tags:
    """The tags of the first block. ``reference`` goes up by 1 with each block, except with type 3. Only the bits of the
    masks are compared."""

    reference: int = 0
    application: int = 0
    storage: int = 0
    application_mask: int = 0xFFFF
    storage_mask: int = (1 << 64) - 1


@dataclass(frozen=True)
class Checks:
    """What is checked of each block (PRCHK and STC)."""

    guard: bool = False
    application: bool = False
    reference: bool = False
    storage: bool = False

    @property
    def bits(self) -> int:
        """As the C code takes them."""
        return self.guard | self.application << 1 | self.reference << 2 | self.storage << 3


def is_available() -> bool:
    """Whether protection information can be made and checked here: its C code was built."""
    return lib is not None


def crc(guard: Guard, data: Buffer) -> int:
    """The guard of a message."""
    return int(lib.pi_crc(guard, ffi.from_buffer(data), len(data)))


def tags_of(protection: Protection, value: int, application: int = 0, application_mask: int = 0xFFFF) -> Tags:
    """The tags that a command gives for its first block. ``value`` is its initial reference tag with the storage tag
    above it: of CDW14, CDW3 and CDW2 as many low bits as the guard has tag bits (NVM 1.0, 5.2.1.4)."""
    bits = protection.reference_bits
    value &= (1 << protection.guard.tag_bits) - 1
    return Tags(value & (1 << bits) - 1, application, value >> bits, application_mask)


def has_valid_reference(protection: Protection, tags: Tags, slba: int) -> bool:
    """Whether a command that has reference tags checked may do so with this initial one: with type 1 it is the low bits
    of the first block's address, and type 3 has no such check (NVM 1.0, 5.2.1.3). Otherwise the command ends with
    Invalid Protection Information."""
    return protection.type == 2 or (
        protection.type == 1 and tags.reference == slba & (1 << protection.reference_bits) - 1
    )


def advanced(protection: Protection, tags: Tags, blocks: int) -> Tags:
    """The tags of the block that comes so many blocks later."""
    if protection.type == 3:
        return tags
    return replace(tags, reference=tags.reference + blocks & (1 << protection.reference_bits) - 1)


def generate(format: Format, data: Buffer, metadata: bytearray | memoryview, tags: Tags) -> None:
    """Write the protection information of all blocks into their metadata, and leave the rest of it as it is. Raises
    ValueError if these are no whole blocks, and BufferError if the metadata cannot be written to."""
    with _call(format, data, metadata, tags, is_writing=True) as arguments:
        lib.pi_generate(*arguments)


def generate_for_zeros(format: Format, blocks: int, tags: Tags) -> bytearray:
    """The metadata of so many blocks of zeros: zeros, with their protection information."""
    metadata, zeros = bytearray(blocks * format.metadata_size), bytes(format.data_size)
    of_tags = _of_tags(tags)
    with ffi.from_buffer("uint8_t[]", zeros) as data, ffi.from_buffer("uint8_t[]", metadata) as place:
        of_blocks = ffi.new("struct pi_blocks *", (data, place, 0, format.metadata_size, blocks))
        lib.pi_generate(_of_format(format), of_blocks, of_tags)
    return metadata


def check(format: Format, data: Buffer, metadata: Buffer, tags: Tags, checks: Checks) -> None:
    """Check all blocks, in their order. Raises ProtectionError for the first one that fails: with the first check that
    it fails, of guard, application, storage and reference tag in this order. ValueError: these are no whole blocks."""
    if not checks.bits:
        return
    failed = ffi.new("uint32_t *")
    with _call(format, data, metadata, tags) as arguments:
        block = lib.pi_check(*arguments, checks.bits, failed)
    if failed[0]:
        raise ProtectionError(_KIND_OF[failed[0]], block)


def _of_tags(tags: Tags) -> Any:
    values = (tags.reference, tags.storage, tags.storage_mask, tags.application, tags.application_mask)
    return ffi.new("struct pi_tags *", values)


@contextmanager
def _call(
    format: Format, data: Buffer, metadata: Buffer, tags: Tags, *, is_writing: bool = False
) -> Iterator[tuple[Any, ...]]:
    """What the C functions take."""
    count = _count(format, data, metadata)
    of_tags = _of_tags(tags)
    with (
        ffi.from_buffer("uint8_t[]", data) as at_data,
        ffi.from_buffer("uint8_t[]", metadata, require_writable=is_writing) as at_metadata,
    ):
        blocks = ffi.new("struct pi_blocks *", (at_data, at_metadata, format.data_size, format.metadata_size, count))
        yield _of_format(format), blocks, of_tags


@cache
def _of_format(format: Format) -> Any:
    """As the C functions take it. There are few formats, and many commands."""
    protection = format.protection
    if protection is None:
        raise ValueError("the format has no protection information")
    return ffi.new(
        "struct pi_format *",
        (
            format.data_size,
            format.metadata_size,
            protection.guard,
            protection.type,
            protection.storage_tag_size,
            protection.is_first,
        ),
    )


def _count(format: Format, data: Buffer, metadata: Buffer) -> int:
    """The number of blocks. C believes it, so these have to be whole ones."""
    count = len(data) // format.data_size
    if len(data) != count * format.data_size or len(metadata) != count * format.metadata_size:
        raise ValueError(f"{len(data)} bytes of data and {len(metadata)} of metadata are no whole blocks")
    return count


# --- metadata beside the data, and in the same buffer


def interleave(format: Format, data: Buffer, metadata: Buffer) -> bytearray:
    """The blocks as an extended format has them in the host's memory: each block's metadata behind its data. Raises
    ValueError if these are no whole blocks."""
    count = _count(format, data, metadata)
    found = bytearray(count * format.block_size)
    view = memoryview(found)
    _copy(view, format.block_size, data, format.data_size, format.data_size, count)
    _copy(view[format.data_size :], format.block_size, metadata, format.metadata_size, format.metadata_size, count)
    return found


def split(format: Format, buffer: Buffer) -> tuple[bytearray, bytearray]:
    """The data and the metadata of what an extended format has in one buffer. Raises ValueError if these are no whole
    blocks."""
    count = len(buffer) // format.block_size
    if len(buffer) != count * format.block_size:
        raise ValueError(f"{len(buffer)} bytes are no whole blocks")
    data, metadata = bytearray(count * format.data_size), bytearray(count * format.metadata_size)
    view = memoryview(buffer)
    _copy(data, format.data_size, view, format.block_size, format.data_size, count)
    _copy(metadata, format.metadata_size, view[format.data_size :], format.block_size, format.metadata_size, count)
    return data, metadata


def _copy(to: Buffer, to_stride: int, source: Buffer, stride: int, size: int, count: int) -> None:
    """``count`` pieces of ``size`` bytes, which begin so many bytes after each other."""
    if count:
        with ffi.from_buffer("uint8_t[]", to) as there, ffi.from_buffer("uint8_t[]", source) as here:
            lib.pi_copy(there, to_stride, here, stride, size, count)
