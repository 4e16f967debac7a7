"""QEMU's own NVMe controller in the drive's place, to compare with."""

from __future__ import annotations

import json
from pathlib import Path

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import SERIAL


class PeerDrive:
    """QEMU's controller on an image of the format `form`; a `GuestDrive`."""

    def __init__(self, image: Path, *, bootable: bool = False, serial: str = SERIAL, form: str = "raw") -> None:
        self.image = image
        self._form = form
        self.serial = serial
        self._boot = {"bootindex": 0} if bootable else {}

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        """It is part of QEMU: nothing is to be started."""
        node = {"driver": self._form, "node-name": self.serial, "file": {"driver": "file", "filename": str(self.image)}}
        device = {"driver": "nvme", "drive": self.serial, "serial": self.serial, **self._boot}
        return ["-blockdev", json.dumps(node), "-device", json.dumps(device)]

    def check(self) -> None:
        """It cannot die without QEMU."""

    def finish(self) -> None:
        """It ended with QEMU."""

    def kill(self) -> None:
        """It ends with QEMU."""
