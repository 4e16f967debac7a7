"""Protection information: the CRCs, where each field lies, and what each check finds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nvmeemu.controller.media_status import STATUS_OF
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import ErrorKind
from nvmeemu.subsystem.protection import (
    Checks,
    ProtectionError,
    Tags,
    check,
    crc,
    generate,
    has_valid_reference,
    interleave,
    split,
    tags_of,
)

UP = bytes(range(256))
ALL = Checks(guard=True, application=True, reference=True, storage=True)
VECTORS = [
    (b"123456789", 0xD0DB, 0xE3069283, 0xAE8B14860A799888),
    (bytes(512), 0x0000, 0x30FCEDC0, 0x1DE60E2868A782E9),
    (b"\xff" * 512, 0xE6A1, 0x5BD99297, 0x5277682DDAEB44B6),
    (UP * 2, 0x4F10, 0xAE10EE5A, 0x65F48632094A1B07),
    (bytes(4096), 0x0000, 0x98F94189, 0x6482D367EB22B64E),
    (b"\xff" * 4096, 0x8B5D, 0x25C1FE13, 0xC0DDBA7302ECA3AC),
    (UP * 16, 0x8F6D, 0x9C71FE32, 0x3E729F5F6750449C),
    (UP[::-1] * 16, 0x0430, 0x214941A8, 0x9A2DF64B8E9E517E),
    (bytes(512) + b"\1" * 8, 0x0238, 0xED3B362F, 0x3CC9DEB3AAF648B3),
]
FORMATS = [
    Format(512, 8, protection=Protection(1)),
    Format(512, 64, protection=Protection(2, is_first=True)),
    Format(4096, 8, protection=Protection(1, storage_tag_size=16)),
    Format(4096, 16, protection=Protection(3)),
    Format(4096, 16, protection=Protection(1, Guard.CRC32, 16)),
    Format(4096, 64, protection=Protection(2, Guard.CRC32, 64)),
    Format(4096, 16, protection=Protection(1, Guard.CRC64)),
    Format(4096, 64, protection=Protection(3, Guard.CRC64, 48)),
]


@pytest.mark.parametrize(("data", "crc16", "crc32", "crc64"), VECTORS)
def test_each_guard_of_known_messages(data: bytes, crc16: int, crc32: int, crc64: int) -> None:
    assert [crc(guard, data) for guard in Guard] == [crc16, crc32, crc64]


@pytest.mark.parametrize(
    ("format", "data", "tags", "wanted"),
    [
        (Format(512, 8, protection=Protection(1)), UP * 2, Tags(5, 0x1234), "4F10 1234 00000005"),
        (
            Format(4096, 16, protection=Protection(1, Guard.CRC64)),
            b"\xff" * 4096,
            Tags(0x10, 0x1234),
            "C0DDBA7302ECA3AC 1234 000000000010",
        ),
        (
            Format(4096, 16, protection=Protection(1, Guard.CRC64, 16)),
            b"\xff" * 4096,
            Tags(0x10, 0x1234, 0xBEEF),
            "C0DDBA7302ECA3AC 1234 BEEF00000010",
        ),
    ],
)
def test_known_tuples(format: Format, data: bytes, tags: Tags, wanted: str) -> None:
    metadata = bytearray(format.metadata_size)
    generate(format, data, metadata, tags)
    assert metadata.hex().upper() == wanted.replace(" ", "")


def test_the_guard_covers_the_metadata_before_the_protection_information() -> None:
    format = Format(512, 16, protection=Protection(1))
    metadata = bytearray(UP[:16])
    generate(format, UP * 2, metadata, Tags())
    assert metadata[:8] == UP[:8]
    assert metadata[8:10].hex() == "297a"
    first = replace(format, protection=Protection(1, is_first=True))
    metadata = bytearray(16)
    generate(first, UP * 2, metadata, Tags())
    assert metadata == bytes.fromhex("4f10") + bytes(14)


def test_a_guard_of_data_and_metadata_with_64_bits() -> None:
    format = Format(4096, 32, protection=Protection(1, Guard.CRC64))
    metadata = bytearray(32)
    generate(format, b"\xff" * 4096, metadata, Tags())
    assert metadata[16:24].hex() == "3b09c808d7c6e555"


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_what_is_made_passes_and_each_changed_byte_is_found(format: Format) -> None:
    """In the block where it is, and as what it is: the reference tag wraps in its width on the way."""
    protection = format.protection
    assert protection is not None
    chance = random.Random(1)
    bits = protection.reference_bits
    tags = Tags(max(0, (1 << min(bits, 64)) - 2), 0x1234, chance.getrandbits(protection.storage_tag_size or 1) & ~1)
    tags = replace(tags, storage=tags.storage if protection.storage_tag_size else 0)
    data, metadata = chance.randbytes(4 * format.data_size), bytearray(chance.randbytes(4 * format.metadata_size))
    generate(format, data, metadata, tags)
    checks = replace(ALL, reference=protection.type != 3)
    check(format, data, metadata, tags, checks)
    guard, end = protection.size - 2 - protection.guard.tag_bits // 8, protection.size
    for where, kinds in (
        (0, {ErrorKind.GUARD_CHECK}),
        (guard, {ErrorKind.APPLICATION_TAG_CHECK}),
        (guard + 2, {ErrorKind.STORAGE_TAG_CHECK if protection.storage_tag_size else ErrorKind.REFERENCE_TAG_CHECK}),
        (end - 1, {ErrorKind.REFERENCE_TAG_CHECK if bits else ErrorKind.STORAGE_TAG_CHECK}),
    ):
        if protection.type == 3 and kinds == {ErrorKind.REFERENCE_TAG_CHECK}:
            continue
        broken = bytearray(metadata)
        broken[2 * format.metadata_size + format.protection_offset + where] ^= 0x01
        with pytest.raises(ProtectionError) as caught:
            check(format, data, broken, tags, checks)
        assert caught.value.kind in kinds
        assert caught.value.block == 2
    torn = bytearray(data)
    torn[3 * format.data_size + 7] ^= 0x80
    with pytest.raises(ProtectionError) as caught:
        check(format, torn, metadata, tags, checks)
    assert (caught.value.kind, caught.value.block) == (ErrorKind.GUARD_CHECK, 3)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_block_with_the_escape_value_is_not_checked(format: Format) -> None:
    """With type 3 the reference tag and the storage tag have to be all ones, too."""
    protection = format.protection
    assert protection is not None
    metadata = bytearray(b"\xff" * format.metadata_size)
    check(format, bytes(format.data_size), metadata, Tags(7, 1), ALL)
    metadata[format.protection_offset + protection.size - 1] = 0
    if protection.type != 3:
        check(format, bytes(format.data_size), metadata, Tags(7, 1), ALL)
    else:
        with pytest.raises(ProtectionError):
            check(format, bytes(format.data_size), metadata, Tags(7, 1), ALL)


def test_only_the_bits_of_the_masks_are_compared() -> None:
    format = Format(4096, 8, protection=Protection(1, storage_tag_size=8))
    metadata = bytearray(8)
    generate(format, bytes(4096), metadata, Tags(1, 0xABCD, 0x5A))
    expected = Tags(1, 0xAB00, 0x50, application_mask=0xFF00, storage_mask=0xF0)
    check(format, bytes(4096), metadata, expected, ALL)
    for wrong in (replace(expected, application=0xAC00), replace(expected, storage=0x60)):
        with pytest.raises(ProtectionError):
            check(format, bytes(4096), metadata, wrong, ALL)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_extended_blocks_are_data_and_metadata_in_turn(size: int) -> None:
    format = Format(512, size, is_extended=True)
    chance = random.Random(2)
    data, metadata = chance.randbytes(3 * 512), chance.randbytes(3 * size)
    whole = interleave(format, data, metadata)
    rows = (data[at * 512 : (at + 1) * 512] + metadata[at * size : (at + 1) * size] for at in range(3))
    assert whole == b"".join(rows)
    assert [bytes(one) for one in split(format, whole)] == [data, metadata]
    assert not any(split(format, b""))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Protection(0), "type 1, 2 or 3, not 0"),
        (lambda: Protection(1, Guard.CRC32, 15), "16 to 64 bits here, not 15"),
        (lambda: Protection(1, Guard.CRC64, 49), "0 to 48 bits here, not 49"),
        (lambda: Protection(1, Guard.CRC64, is_first=True), "lies last"),
        (lambda: Format(512, 0, protection=Protection(1)), "no room for 8"),
        (lambda: Format(4096, 8, protection=Protection(1, Guard.CRC64)), "no room for 16"),
        (lambda: Format(512, 16, protection=Protection(1, Guard.CRC64)), "blocks of 4096 bytes"),
    ],
)
def test_formats_that_cannot_be(make: object, why: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=why):
        make()


@pytest.mark.kills("storage-tags-below-reference-tags", "tags-of-more-bits-than-there-are")
@pytest.mark.parametrize(
    ("protection", "reference", "storage"),
    [
        (Protection(1), 0xCCCCDDDD, 0),
        (Protection(1, storage_tag_size=16), 0xDDDD, 0xCCCC),
        (Protection(1, storage_tag_size=32), 0, 0xCCCCDDDD),
        (Protection(1, Guard.CRC32, 16), 0x8888BBBBCCCCDDDD, 0x7777),
        (Protection(1, Guard.CRC32, 64), 0xDDDD, 0x77778888BBBBCCCC),
        (Protection(1, Guard.CRC64), 0xBBBBCCCCDDDD, 0),
        (Protection(1, Guard.CRC64, 16), 0xCCCCDDDD, 0xBBBB),
        (Protection(1, Guard.CRC64, 48), 0, 0xBBBBCCCCDDDD),
    ],
)
def test_a_command_gives_both_tags_in_one_field(protection: Protection, reference: int, storage: int) -> None:
    """Of which the guard says how many bits count."""
    tags = tags_of(protection, 0x66667777_8888BBBB_CCCCDDDD, 0x1234, 0xFF)
    assert tags == Tags(reference, 0x1234, storage, 0xFF)


@pytest.mark.kills("any-reference-tag-with-type-1", "all-bits-of-the-address", "reference-checks-with-type-3")
def test_reference_tags_that_a_command_may_have_checked() -> None:
    slba = 0x1_2345_6789_ABCD
    for guard, size, low in (
        (Guard.CRC16, 0, 0x6789ABCD),
        (Guard.CRC16, 32, 0),
        (Guard.CRC32, 16, 0x1_2345_6789_ABCD),
        (Guard.CRC64, 0, 0x2345_6789_ABCD),
        (Guard.CRC64, 40, 0xCD),
    ):
        for type in (1, 2, 3):
            protection = Protection(type, guard, size)
            assert has_valid_reference(protection, Tags(low), slba) == (type != 3)
            assert has_valid_reference(protection, Tags(low + 1), slba) == (type == 2)


@pytest.mark.kills("storage-tag-errors-are-guard-errors")
def test_each_check_has_its_status() -> None:
    assert [STATUS_OF[kind] & 0xFF for kind in ErrorKind if kind.value.endswith(" check")] == [0x82, 0x83, 0x84, 0x88]
