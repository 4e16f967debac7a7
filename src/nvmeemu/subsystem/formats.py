"""What a block is: its data, and the metadata that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 512  # bytes of data in a block


@dataclass(frozen=True)
class Format:
    """The format of a namespace's blocks (NVM 1.0, 5.2 Metadata; Base 1.4, Figure 245, FLBAS and LBAF).

    ``data_size``: bytes of data in a block, a power of two. ``metadata_size``: bytes of metadata of a block.
    ``is_extended``: in the host's memory a block's metadata follows its data in the same buffer; otherwise it lies in a
    buffer of its own. It says nothing of where the medium keeps it. Raises ValueError.
    """

    data_size: int = SMALLEST
    metadata_size: int = 0
    is_extended: bool = False

    def __post_init__(self) -> None:
        if self.data_size < SMALLEST or self.data_size & self.data_size - 1:
            raise ValueError(f"a block has 512 bytes of data, or twice that, and so on, not {self.data_size}")
        if not 0 <= self.metadata_size < 1 << 16:
            raise ValueError(f"a block has 0 to 65535 bytes of metadata, not {self.metadata_size}")
        if self.is_extended and not self.metadata_size:
            raise ValueError("blocks without metadata are not extended")

    @property
    def block_size(self) -> int:
        """Bytes of a block with its metadata."""
        return self.data_size + self.metadata_size
