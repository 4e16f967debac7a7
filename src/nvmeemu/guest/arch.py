"""What an architecture is to QEMU and to Debian, and the one that the pytest plugin's guests have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """What a guest of one architecture needs on QEMU's command line and from the cache."""

    name: str
    uname: str  # as `uname -m` and QEMU call it
    debian: str  # the architecture as Debian names it
    triplet: str
    machine: str
    cpu: str
    console: str
    iommu: str = ""  # QEMU's device, if a guest can be given one

    @property
    def qemu(self) -> str:
        """The emulator's name."""
        return f"qemu-system-{self.uname}"


X86_64 = Arch(
    name="x86_64",
    uname="x86_64",
    debian="amd64",
    triplet="x86_64-linux-gnu",
    machine="q35,graphics=off",  # graphics=off: SeaBIOS and what it loads print on the serial line
    cpu="max,la57=off",  # five-level page tables only slow TCG down
    console="ttyS0",
    iommu="intel-iommu,caching-mode=on",
)
