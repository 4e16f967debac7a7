"""The architectures that the jobs know: one table entry each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvmeemu.guest.arch import X86_64, Arch
from tools.guest.errors import UsageError


@dataclass(frozen=True)
class UBoot:
    """Debian's U-Boot for QEMU."""

    machine: str
    rom: str  # file name in its firmware folder
    buffer: int  # an address in guest RAM that is free to use


@dataclass(frozen=True, kw_only=True)
class JobArch(Arch):
    """An architecture, and what the jobs have for it."""

    qemu_package: str  # Debian's qemu-system-NAME
    firmware: tuple[str, ...]  # the names --firmware takes; the first is the default
    kernel_magic: tuple[int, bytes]  # what Linux' boot protocol has at which offset of an image
    uboot: UBoot | None = None
    iommu_append: str = ""  # Linux then maps and unmaps each transfer by itself


ARCHES = {
    arch.name: arch
    for arch in (
        JobArch(
            **vars(X86_64),
            qemu_package="x86",
            firmware=("seabios", "ovmf"),
            kernel_magic=(0x202, b"HdrS"),
            uboot=UBoot(machine="pc", rom="u-boot.rom", buffer=0x4000000),
            # no_timer_check: else Linux panics when an overloaded TCG brings it no timer interrupt in 10 ms
            iommu_append="intel_iommu=on iommu=strict no_timer_check",
        ),
        JobArch(
            name="arm64",
            uname="aarch64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            qemu_package="arm",
            machine="virt",
            cpu="max,pauth-impdef=on",  # pointer authentication as the architecture has it only slows TCG down
            console="ttyAMA0",
            firmware=("none", "edk2"),
            kernel_magic=(0x38, b"ARM\x64"),
            uboot=UBoot(machine="virt", rom="u-boot.bin", buffer=0x48000000),
        ),
        JobArch(
            name="riscv64",
            uname="riscv64",
            debian="riscv64",
            triplet="riscv64-linux-gnu",
            qemu_package="riscv",
            machine="virt,aia=aplic-imsic",  # without this controller it has no message-signalled interrupts
            cpu="rv64",
            console="ttyS0",
            firmware=("none",),
            kernel_magic=(0x38, b"RSC\x05"),
            uboot=UBoot(machine="virt", rom="u-boot.bin", buffer=0x88000000),
        ),
        JobArch(
            name="s390x",  # big-endian; maps DMA in pieces of 4 KiB
            uname="s390x",
            debian="s390x",
            triplet="s390x-linux-gnu",
            qemu_package="s390x",
            machine="s390-ccw-virtio",
            cpu="max",
            console="ttysclp0",
            firmware=("none",),
            kernel_magic=(0x10008, b"S390EP"),
        ),
    )
}


def find(name: str) -> JobArch:
    """The table entry of one architecture."""
    if name not in ARCHES:
        raise UsageError(f"unknown architecture {name!r}: there is {', '.join(ARCHES)}")
    return ARCHES[name]


def of_kernel(image: Path) -> str:
    """The architecture that a Linux image is for; "" if it is none of ours."""
    with image.open("rb") as file:
        start = file.read(0x11000)
    magic = {arch.name: arch.kernel_magic for arch in ARCHES.values()}
    return next((name for name, (place, word) in magic.items() if start[place:].startswith(word)), "")
