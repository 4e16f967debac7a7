"""Who a drive says it is."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

VENDOR_ID = 0x4E45  # ours: registered for nobody, so that no driver applies another device's quirks
DEVICE_ID = 0x0001
LONGEST_NQN = 223  # bytes


@dataclass(frozen=True)
class Identity:
    """Who the drive says it is. Strings as in Identify Controller: ASCII, never empty (Base 1.4, Figure 247)."""

    serial: str
    model: str = "nvmeemu NVMe Controller"
    firmware: str = "1.0"
    vendor_id: int = VENDOR_ID
    device_id: int = DEVICE_ID
    subsystem: str = ""
    nqn: str | None = None  # of the subsystem, if it is to have a certain one

    def __post_init__(self) -> None:
        for name, text, most in (
            ("serial", self.serial, 20),
            ("model", self.model, 40),
            ("firmware", self.firmware, 8),
        ):
            if not 1 <= len(text) <= most or not all(" " <= letter <= "~" for letter in text) or text != text.strip():
                raise ValueError(f"bad {name} {text!r}: give 1 to {most} printable ASCII characters")

        if self.nqn is None:
            return
        if not (self.nqn.startswith("nqn.") and self.nqn.isascii() and self.nqn.isprintable()):
            raise ValueError(f"bad NQN {self.nqn!r}: it begins with nqn. and is printable ASCII")
        if len(self.nqn) > LONGEST_NQN:
            raise ValueError(f"bad NQN: {len(self.nqn)} characters, and {LONGEST_NQN} at most can be")

    @property
    def subnqn(self) -> str:
        """NVM Subsystem NQN (Base 1.4, 7.9): the given one, or one in the UUID form, the same for the same serial
        number and model."""
        if self.nqn is not None:
            return self.nqn
        named = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.model}/{self.serial}/{self.subsystem}")
        return f"nqn.2014-08.org.nvmexpress:uuid:{named}"


def serial_of(text: str) -> str:
    """A serial number that is the same at each start for the same disk: 20 characters from what identifies it."""
    return "NE" + hashlib.sha256(text.encode()).hexdigest()[:18].upper()
