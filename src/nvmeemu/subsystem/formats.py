"""What a block is: its data, the metadata that goes with it, and how both are protected."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

SMALLEST = 512  # bytes of data in a block
PLAIN_FORMATS = 16  # the first ones, which every host can use
_PROTECTED_BY_LONG_GUARDS = 4096  # bytes of data in a block, at least


class Guard(IntEnum):
    """Protection Information Format (PIF): the guard of a block's protection information. NVM 1.0, 5.2.1."""

    CRC16 = 0
    CRC32 = 1
    CRC64 = 2

    @property
    def size(self) -> int:
        """Bytes of the protection information."""
        return 8 if self is Guard.CRC16 else 16

    @property
    def tag_bits(self) -> int:
        """Bits of storage and reference tag together."""
        return {Guard.CRC16: 32, Guard.CRC32: 80, Guard.CRC64: 48}[self]

    @property
    def storage_tag_sizes(self) -> range:
        """The bits that a storage tag can have (NVM 1.0, Figure 119, STS)."""
        return {Guard.CRC16: range(33), Guard.CRC32: range(16, 65), Guard.CRC64: range(49)}[self]


@dataclass(frozen=True)
class OfferedFormat:
    """A format that namespaces can have: a row of LBAF and ELBAF in Identify Namespace (NVM 1.0, Figures 98 and 119).
    ``guard`` and ``storage_tag_size`` hold if protection is switched on."""

    data_size: int = SMALLEST
    metadata_size: int = 0
    guard: Guard = Guard.CRC16
    storage_tag_size: int = 0

    @property
    def needs_extension(self) -> bool:
        """Whether a host has to know of extended LBA formats to use it (LBAFEE of Host Behavior Support)."""
        return self.guard is not Guard.CRC16 or self.storage_tag_size != 0

    @property
    def can_be_protected(self) -> bool:
        """Whether its metadata has room for protection information."""
        return self.metadata_size >= self.guard.size


@dataclass(frozen=True)
class Protection:
    """Protection information that is switched on (NVM 1.0, 5.2.1): of type 1, 2 or 3, in the first or the last bytes of
    the metadata. Raises ValueError."""

    type: int
    guard: Guard = Guard.CRC16
    storage_tag_size: int = 0
    is_first: bool = False

    def __post_init__(self) -> None:
        if self.type not in (1, 2, 3):
            raise ValueError(f"protection information is of type 1, 2 or 3, not {self.type}")
        sizes = self.guard.storage_tag_sizes
        if self.storage_tag_size not in sizes:
            most = f"{sizes.start} to {sizes.stop - 1}"
            raise ValueError(f"a storage tag has {most} bits here, not {self.storage_tag_size}")
        if self.is_first and self.guard is not Guard.CRC16:
            raise ValueError("protection information with a guard of 32 or 64 bits lies last in the metadata")

    @property
    def size(self) -> int:
        """Bytes of it in a block's metadata."""
        return self.guard.size

    @property
    def reference_bits(self) -> int:
        """Bits of the reference tag."""
        return self.guard.tag_bits - self.storage_tag_size


@dataclass(frozen=True)
class Format:
    """The format of a namespace's blocks (NVM 1.0, 5.2 Metadata; Base 1.4, Figure 245, FLBAS and LBAF).

    ``data_size``: bytes of data in a block, a power of two. ``metadata_size``: bytes of metadata of a block.
    ``is_extended``: in the host's memory a block's metadata follows its data in the same buffer; otherwise it lies in a
    buffer of its own. It says nothing of where the medium keeps it. ``protection``: None if it is switched off.
    ``guard`` and ``storage_tag_size``: of the protection, or what it would have. Raises ValueError.
    """

    data_size: int = SMALLEST
    metadata_size: int = 0
    is_extended: bool = False
    protection: Protection | None = None
    guard: Guard = Guard.CRC16
    storage_tag_size: int = 0

    def __post_init__(self) -> None:
        if self.protection is not None:
            object.__setattr__(self, "guard", self.protection.guard)
            object.__setattr__(self, "storage_tag_size", self.protection.storage_tag_size)
        if self.data_size < SMALLEST or self.data_size & self.data_size - 1:
            raise ValueError(f"a block has 512 bytes of data, or twice that, and so on, not {self.data_size}")
        if not 0 <= self.metadata_size < 1 << 16:
            raise ValueError(f"a block has 0 to 65535 bytes of metadata, not {self.metadata_size}")
        if self.is_extended and not self.metadata_size:
            raise ValueError("blocks without metadata are not extended")
        if self.protection is not None:
            self._check(self.protection)

    def _check(self, protection: Protection) -> None:
        if self.metadata_size < protection.size:
            raise ValueError(f"{self.metadata_size} bytes of metadata have no room for {protection.size} of protection")
        if protection.guard is not Guard.CRC16 and self.data_size < _PROTECTED_BY_LONG_GUARDS:
            raise ValueError("a guard of 32 or 64 bits is for blocks of 4096 bytes or more")

    @property
    def offered(self) -> OfferedFormat:
        """The row of the table that it is of."""
        return OfferedFormat(self.data_size, self.metadata_size, self.guard, self.storage_tag_size)

    @property
    def block_size(self) -> int:
        """Bytes of a block with its metadata."""
        return self.data_size + self.metadata_size

    @property
    def protection_offset(self) -> int:
        """Where the protection information begins in a block's metadata, in bytes. 0 without any."""
        if self.protection is None or self.protection.is_first:
            return 0
        return self.metadata_size - self.protection.size


FORMATS = (
    OfferedFormat(512),
    OfferedFormat(512, 8),
    OfferedFormat(512, 16),
    OfferedFormat(512, 64),
    OfferedFormat(4096),
    OfferedFormat(4096, 8),
    OfferedFormat(4096, 16),
    OfferedFormat(4096, 64),
    OfferedFormat(4096, 16, Guard.CRC64),
    OfferedFormat(4096, 64, Guard.CRC64),
    OfferedFormat(4096, 16, Guard.CRC32, 16),
    OfferedFormat(4096, 64, Guard.CRC32, 16),
    OfferedFormat(4096, 16, Guard.CRC64, 16),
    OfferedFormat(4096, 8, Guard.CRC16, 16),
)
"""Those that namespaces can be given, by their numbers (the LBA format of FLBAS)."""
