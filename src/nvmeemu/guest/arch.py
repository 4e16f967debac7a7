"""The guest architectures: one table entry each."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeemu.guest.errors import UsageError


@dataclass(frozen=True)
class UBoot:
    """Debian's U-Boot for QEMU."""

    machine: str
    rom: str  # file name in its firmware folder
    buffer: int  # an address in guest RAM that is free to use


@dataclass(frozen=True)
class Arch:
    """What one architecture needs on QEMU's command line and from the cache."""

    name: str
    uname: str  # as `uname -m` and QEMU call it
    debian: str  # the architecture as Debian names it
    triplet: str
    qemu_package: str  # Debian's qemu-system-NAME
    machine: str
    cpu: str
    console: str
    firmware: tuple[str, ...]  # the names --firmware takes; the first is the default
    uboot: UBoot | None = None

    @property
    def qemu(self) -> str:
        """The emulator's name."""
        return f"qemu-system-{self.uname}"


ARCHES = {
    arch.name: arch
    for arch in (
        Arch(
            name="x86_64",
            uname="x86_64",
            debian="amd64",
            triplet="x86_64-linux-gnu",
            qemu_package="x86",
            machine="q35,graphics=off",  # graphics=off: SeaBIOS and what it loads print on the serial line
            cpu="max,la57=off",  # five-level page tables only slow TCG down
            console="ttyS0",
            firmware=("seabios", "ovmf"),
            uboot=UBoot(machine="pc", rom="u-boot.rom", buffer=0x4000000),
        ),
        Arch(
            name="arm64",
            uname="aarch64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            qemu_package="arm",
            machine="virt",
            cpu="max,pauth-impdef=on",  # pointer authentication as the architecture has it only slows TCG down
            console="ttyAMA0",
            firmware=("none",),
            uboot=UBoot(machine="virt", rom="u-boot.bin", buffer=0x48000000),
        ),
    )
}


def find(name: str) -> Arch:
    """The table entry of one architecture."""
    if name not in ARCHES:
        raise UsageError(f"unknown architecture {name!r}: there is {', '.join(ARCHES)}")
    return ARCHES[name]
