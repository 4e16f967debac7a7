"""Protection information again, slowly: what NVM 1.0, 5.2 says, a bit at a time. The C code is compared with it."""

from __future__ import annotations

from functools import lru_cache

from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import ErrorKind
from nvmeemu.subsystem.protection import Checks, Tags

# Bits, polynomial; reflected ones begin with all ones and end inverted
POLYNOMIALS = {Guard.CRC16: (16, 0x8BB7), Guard.CRC32: (32, 0x1EDC6F41), Guard.CRC64: (64, 0xAD93D23594C93659)}


def _mirrored(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


@lru_cache(maxsize=64)
def crc(guard: Guard, message: bytes) -> int:
    width, polynomial = POLYNOMIALS[guard]
    is_reflected = guard is not Guard.CRC16
    ones = (1 << width) - 1
    register = ones if is_reflected else 0
    for byte in message:
        register ^= (_mirrored(byte, 8) if is_reflected else byte) << width - 8
        for _ in range(8):
            register = register << 1 ^ polynomial if register >> width - 1 else register << 1
            register &= ones
    return _mirrored(register, width) ^ ones if is_reflected else register


def _protection(format: Format) -> Protection:
    assert format.protection is not None
    return format.protection


def _guard(format: Format, data: bytes, metadata: bytes) -> int:
    protection = _protection(format)
    before = b"" if protection.is_first else metadata[: format.metadata_size - protection.size]
    return crc(protection.guard, data + before)


def _reference(format: Format, tags: Tags, block: int) -> int:
    protection = _protection(format)
    return (tags.reference + (block if protection.type != 3 else 0)) % (1 << protection.reference_bits)


def fields(format: Format, metadata: bytes) -> tuple[int, int, int, int]:
    """Guard, application, storage and reference tag of a block."""
    protection = _protection(format)
    place = 0 if protection.is_first else format.metadata_size - protection.size
    found = int.from_bytes(metadata[place : place + protection.size], "big")
    found, space = divmod(found, (1 << protection.guard.tag_bits))
    return found >> 16, found & 0xFFFF, *divmod(space, (1 << protection.reference_bits))


def generated(format: Format, data: bytes, metadata: bytes, tags: Tags, block: int) -> bytes:
    """The metadata of one block with its protection information in it."""
    protection = _protection(format)
    storage = tags.storage % (1 << protection.storage_tag_size)
    value = _guard(format, data, metadata) << 16 | tags.application
    value = value << protection.guard.tag_bits | storage << protection.reference_bits | _reference(format, tags, block)
    written = value.to_bytes(protection.size, "big")
    return written + metadata[len(written) :] if protection.is_first else metadata[: -len(written)] + written


def failure(format: Format, data: bytes, metadata: bytes, tags: Tags, checks: Checks, block: int) -> ErrorKind | None:
    """What one block fails first."""
    protection = _protection(format)
    guard, application, storage, reference = fields(format, metadata)
    has_all_ones = (
        storage == (1 << protection.storage_tag_size) - 1 and reference == (1 << protection.reference_bits) - 1
    )
    if application == 0xFFFF and (protection.type != 3 or has_all_ones):
        return None
    if checks.guard and guard != _guard(format, data, metadata):
        return ErrorKind.GUARD_CHECK
    if checks.application and application & tags.application_mask != tags.application & tags.application_mask:
        return ErrorKind.APPLICATION_TAG_CHECK
    wanted = tags.storage % (1 << protection.storage_tag_size)
    if checks.storage and storage & tags.storage_mask != wanted & tags.storage_mask:
        return ErrorKind.STORAGE_TAG_CHECK
    if checks.reference and reference != _reference(format, tags, block):
        return ErrorKind.REFERENCE_TAG_CHECK
    return None
