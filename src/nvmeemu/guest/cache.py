"""Where `scripts/setup.sh` leaves what the guests are made of. The layout is the interface between the two."""

from __future__ import annotations

import shutil
from pathlib import Path

from nvmeemu.app import vmm
from nvmeemu.guest.errors import GuestError

DEFAULT_SUITE = "trixie"


def root() -> Path:
    """The cache folder."""
    return vmm.cache()


def qemu(program: str) -> Path:
    """The QEMU that set-up chose, else one on PATH."""
    chosen = root() / "bin" / program
    if chosen.exists():
        return chosen
    found = shutil.which(program)
    if found is None:
        raise GuestError(f"no {program}: run scripts/setup.sh")
    return Path(found)


def kernel(debian_arch: str, suite: str = DEFAULT_SUITE) -> Path:
    """The Linux kernel image of one Debian suite and architecture."""
    return present(root() / "linux" / f"{suite}-{debian_arch}" / "vmlinuz")


def modules_of(kernel_image: Path) -> Path | None:
    """The folder with the modules of a kernel, if it is one of set-up's."""
    return kernel_image.parent if (kernel_image.parent / "modules").is_dir() else None


def firmware(*parts: str) -> Path:
    """A firmware file."""
    return present(root().joinpath("firmware", *parts))


def tools(debian_arch: str) -> Path:
    """The unpacked root with the programs for the guest's initramfs."""
    return present(root() / "tools" / debian_arch)


def present(path: Path) -> Path:
    """The path itself, if set-up has put something there."""
    if not path.exists():
        raise GuestError(f"{path} is missing: run scripts/setup.sh")
    return path
