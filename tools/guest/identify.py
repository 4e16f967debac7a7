"""Does the guest see the drive that it was given? The kernel's view, nvme-cli's, and ours must agree."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nvmeemu.guest.device import NAMESPACE, wait_for_device
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest import image

CONTROLLER = "/dev/nvme0"
SYSFS = "/sys/class/nvme/nvme0"


@dataclass(frozen=True)
class Identity:
    """What the kernel says of the drive."""

    model: str
    serial: str
    firmware: str
    io_queues: int
    size: int

    def __str__(self) -> str:
        text = f"{self.model}, serial {self.serial}, firmware {self.firmware}"
        return f"{text}, {self.size >> 20} MiB, {self.io_queues} I/O queue pair(s)"


def identify(guest: Guest) -> Identity:
    """Wait for the drive, compare all views of it."""
    wait_for_device(guest, NAMESPACE)
    if guest.check(f"cat {SYSFS}/state").strip() != "live":
        raise GuestError("the guest's kernel does not call the controller live")
    model, serial, firmware = (
        guest.check(f"cat {SYSFS}/{name}").strip() for name in ("model", "serial", "firmware_rev")
    )
    queues = int(guest.check(f"cat {SYSFS}/queue_count")) - 1  # without the admin queue
    size = int(guest.check("cat /sys/block/nvme0n1/size")) * 512
    seen = Identity(model, serial, firmware, queues, size)
    _agree("serial number", seen.serial, guest.drive.serial)
    _agree("size", seen.size, image.size(guest.drive.image))
    controller = _nvme(guest, f"id-ctrl {CONTROLLER}")
    for name, value in (("sn", serial), ("mn", model), ("fr", firmware)):
        _agree(name, str(controller[name]).strip(), value)
    namespace = _nvme(guest, f"id-ns {NAMESPACE}")
    formats = namespace["lbafs"]
    block_size = 1 << formats[namespace["flbas"] & 0xF]["ds"]
    _agree("size by nvme-cli", namespace["nsze"] * block_size, size)
    return seen


def _nvme(guest: Guest, arguments: str) -> dict[str, Any]:
    text = guest.check(f"nvme {arguments} --output-format=json")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise GuestError(f"nvme {arguments} printed no JSON: {text[:60]!r}") from error
    return dict(answer)


def _agree(what: str, seen: object, expected: object) -> None:
    if seen != expected:
        raise GuestError(f"the drive's {what} in the guest is {seen!r}, not {expected!r}")
