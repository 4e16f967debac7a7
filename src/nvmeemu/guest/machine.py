"""The guest machine: its parts, and QEMU's command line for it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmeemu.app import process, vmm
from nvmeemu.guest import cache
from nvmeemu.guest.arch import X86_64, Arch
from nvmeemu.guest.errors import GuestError

UEFI = {"ovmf": "OVMF", "edk2": "AAVMF"}  # by the name that --firmware takes: how Debian's files begin
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """One virtual machine, without its drive."""

    qemu: Path
    arch: Arch = X86_64
    smp: int = 1
    mem: str = "512M"
    accel: str = "tcg"
    board: str = ""  # instead of the architecture's usual one
    firmware: str = ""
    rom: Path | None = None  # in place of the firmware (U-Boot)
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    iommu: bool = False  # the guest maps each page that the drive may touch
    hugepages: bool = False
    reboots: bool = False  # else QEMU ends when the guest does that
    extra: tuple[str, ...] = ()

    def command(self, drive: Sequence[str], console_fd: int, monitor_fd: int, folder: Path) -> list[str]:
        """QEMU's command line; `folder` is for what this one run may write to."""
        accel = "tcg,thread=multi" if self.accel == "tcg" else self.accel
        words = [str(self.qemu), "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-action", "reboot=reset" if self.reboots else "reboot=shutdown"]
        words += ["-machine", f"{self.board or self.arch.machine},memory-backend=m", "-accel", accel]
        words += ["-cpu", _cpu(self.arch, self.accel), "-smp", str(self.smp), "-m", self.mem]
        # vfio-user: the drive's process maps the guest's memory, so that must be a shared file
        huge = ",hugetlb=on" if self.hugepages else ""
        words += ["-object", f"memory-backend-memfd,id=m,size={self.mem},share=on{huge}"]
        words += ["-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"]
        words += ["-chardev", f"socket,id=monitor,fd={monitor_fd}", "-qmp", "chardev:monitor"]
        words += self._boot(folder)
        if self.iommu:
            words += ["-device", self.arch.iommu]  # before the devices behind it
        return words + list(drive) + list(self.extra)

    def _boot(self, folder: Path) -> list[str]:
        words = []
        if self.rom:
            words += ["-bios", str(self.rom)]
        elif self.firmware in UEFI:
            name = UEFI[self.firmware]
            variables = folder / "uefi-vars.fd"
            if not variables.exists():
                shutil.copyfile(cache.firmware(f"{name}_VARS.fd"), variables)
            code = cache.firmware(f"{name}_CODE.fd")
            words += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_quoted(code)}"]
            words += ["-drive", f"if=pflash,format=raw,unit=1,file={_quoted(variables)}"]
        if self.kernel:
            words += ["-kernel", str(self.kernel), "-append", self.append]
        if self.initrd:
            words += ["-initrd", str(self.initrd)]
        return words


def _cpu(arch: Arch, accel: str) -> str:
    return arch.cpu if accel == "tcg" else "host"


def _default_kernel(arch: Arch) -> Path:
    return cache.root() / "linux" / f"{cache.DEFAULT_SUITE}-{arch.debian}" / "vmlinuz"


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's own way to put a comma into an option


def require_vfio_user(qemu: Path) -> None:
    """Refuse a QEMU that cannot be a vfio-user client. Raises GuestError."""
    if obstacle := vmm.obstacle(qemu):
        raise GuestError(obstacle)


def choose_accel(wanted: str, arch: Arch, qemu: Path, kernel: Path | None = None) -> str:
    """The accelerator to use; "auto" takes KVM only if a guest (`kernel`, by default set-up's) really runs under it.

    Raises GuestError if KVM is wanted, and none does.
    """
    if wanted == "tcg":
        return wanted
    obstacle = _kvm_obstacle(arch, qemu, kernel or _default_kernel(arch), is_wanted=wanted == "kvm")
    if obstacle and wanted == "kvm":
        raise GuestError(f"KVM does not work here: {obstacle}; TCG works everywhere")
    return "tcg" if obstacle else "kvm"


def _kvm_obstacle(arch: Arch, qemu: Path, kernel: Path, *, is_wanted: bool) -> str:
    """Why no guest runs under KVM, "" if one does. A "no" of this boot of the host is believed, because it can take
    seconds, but not where KVM is wanted: the host may have been too busy."""
    if os.uname().machine != arch.uname:
        return f"this host is no {arch.name}"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "there is no /dev/kvm that we may use"
    if not kernel.exists():
        return "there is no Linux to try it with"
    note = cache.root() / f"kvm-{arch.name}"
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = note.read_text().split() if note.exists() else []
    if len(known) != 2 or known[0] != host or (is_wanted and known[1] == "no"):
        known = [host, "yes" if linux_comes_up(arch, qemu, "kvm", kernel) else "no"]
        with contextlib.suppress(OSError):
            note.write_text(" ".join(known) + "\n")
    return "" if known[1] == "yes" else "/dev/kvm is there, but Linux does not come up under it"


def linux_comes_up(arch: Arch, qemu: Path, accel: str, kernel: Path | None = None) -> bool:
    """Whether Linux comes up under this accelerator, as far as the search for its root file system.

    /dev/kvm can be there and open, firmware can run, and Linux still not: nested machines emulate only some of it.
    """
    command = [str(qemu), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", arch.machine]
    command += ["-accel", accel, "-cpu", _cpu(arch, accel), "-m", "256M", "-serial", "stdio"]
    command += ["-kernel", str(kernel or _default_kernel(arch)), "-append", f"console={arch.console} panic=-1"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=process.dies_with_us(),
    ) as qemu_process:
        assert qemu_process.stdout is not None
        try:
            said = _read_until(qemu_process.stdout.fileno(), re.compile(rb"Unable to mount root|KVM internal error"))
        finally:
            qemu_process.kill()
    return b"Unable to mount root" in said


def _read_until(source: int, wanted: re.Pattern[bytes]) -> bytes:
    end = time.monotonic() + PROBE_SECONDS
    said = b""
    while not wanted.search(said) and select.select([source], [], [], max(0.0, end - time.monotonic()))[0]:
        data = os.read(source, 65536)
        if not data:
            break
        said += data
    return said
