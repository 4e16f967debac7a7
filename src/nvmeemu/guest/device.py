"""The drive as a guest's Linux shows it."""

from __future__ import annotations

from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest

NAMESPACE = "/dev/nvme0n1"


def wait_for_device(guest: Guest, path: str, seconds: int = 30) -> None:
    """Wait until the kernel has made a block device: it probes drives while init already runs."""
    if guest.run(f"for i in $(seq {seconds}0); do [ -b {path} ] && exit; sleep 0.1; done; exit 1").status != 0:
        raise GuestError(f"the guest's kernel shows no {path}")
