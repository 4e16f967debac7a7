"""The headers of a companion: what it says of itself (``companion``)."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from nvmeemu.subsystem.formats import Format, Guard, Protection

HEADER = 4096  # bytes of each
_MAGIC, _VERSION = b"nvmeemu pair\n\0\0\0", 1
_FIELDS = struct.Struct("<16sIIQI")  # magic, version, CRC-32 of what follows, number, bytes of JSON


@dataclass(frozen=True)
class Contents:
    """What a companion says of itself. ``size``: bytes of the image. ``intention``: the format that blocks are being
    given; it is completed at the next start."""

    format: Format
    size: int
    intention: Format | None = None

    def to_json(self) -> bytes:
        """For the header."""
        return json.dumps(asdict(self)).encode()

    def header(self, number: int) -> bytes:
        """The header with this number."""
        text = self.to_json()
        rest = struct.pack("<QI", number, len(text)) + text
        return (struct.pack("<16sII", _MAGIC, _VERSION, zlib.crc32(rest)) + rest).ljust(HEADER, b"\0")

    @classmethod
    def of(cls, text: bytes) -> Self:
        """Raises ValueError."""
        try:
            values = json.loads(text)
            wanted = values["intention"]
            return cls(_format(values["format"]), int(values["size"]), None if wanted is None else _format(wanted))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"bad header: {error}") from None


def _format(values: dict[str, Any]) -> Format:
    protection = values["protection"]
    if protection is not None:
        protection = Protection(**{**protection, "guard": Guard(protection["guard"])})
    return Format(**{**values, "protection": protection, "guard": Guard(values["guard"])})


def header_of(slots: Iterable[bytes]) -> tuple[int, Contents]:
    """The number and the contents of the header that counts. Raises ValueError."""
    found: dict[int, Contents] = {}
    why = "it is no companion"
    for data in slots:
        if len(data) < _FIELDS.size:
            continue
        magic, version, crc, number, length = _FIELDS.unpack_from(data)
        if magic != _MAGIC:
            continue
        if version != _VERSION:
            raise ValueError(f"version {version}, and this program knows {_VERSION}")
        if length > HEADER - _FIELDS.size or zlib.crc32(data[24 : _FIELDS.size + length]) != crc:
            why = "its headers do not fit their checksums"
            continue
        found[number] = Contents.of(data[_FIELDS.size : _FIELDS.size + length])
    if not found:
        raise ValueError(why)
    return max(found.items())
