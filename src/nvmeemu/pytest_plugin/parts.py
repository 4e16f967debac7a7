"""The parts of a guest: QEMU, a kernel, an initramfs with our shell agent. They are found, or named as missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvmeemu.guest import cache, initramfs, libraries
from nvmeemu.guest import machine as machines
from nvmeemu.guest.arch import X86_64 as ARCH
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.machine import Machine
from nvmeemu.vfio import BindingMissing, binding

HOST = Path("/")


@dataclass(frozen=True)
class Wanted:
    """What the options and the ini file name. None: look in the usual places."""

    qemu: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    accel: str = "auto"


def machine(wanted: Wanted, folder: Path, host: Path = HOST) -> Machine:
    """The machine of a guest, without a drive. ``folder`` gets the initramfs, if one has to be made. Raises
    GuestError, which says what is missing and how to get it."""
    libraries.require()
    qemu = wanted.qemu or cache.qemu(ARCH.qemu)
    machines.require_vfio_user(qemu)
    kernel = wanted.kernel or cache.kernel(ARCH.debian)
    initrd = wanted.initrd or _initramfs(kernel, folder / "initrd", host)
    accel = machines.choose_accel(wanted.accel, ARCH, qemu, kernel)
    return Machine(qemu, ARCH, accel=accel, kernel=kernel, initrd=initrd)


def require_server() -> None:
    """Raises GuestError if ``nvmeemu serve`` cannot work here."""
    try:
        binding.require()
    except BindingMissing as missing:
        raise GuestError(str(missing)) from None


def _initramfs(kernel: Path, path: Path, host: Path) -> Path:
    """Made from set-up's programs or, where there are none, from the host's own."""
    tools = cache.root() / "tools" / ARCH.debian
    if not tools.is_dir():
        tools = host
    path.write_bytes(initramfs.build(tools, ARCH.triplet, cache.modules_of(kernel)))
    return path
