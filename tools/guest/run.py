"""One run of the script: what was asked for, its folder, its drive image, and the guests booted in it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nvmeemu.guest import cache, initramfs
from nvmeemu.guest import machine as machines
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import SERIAL, GuestDrive, ServedDrive
from nvmeemu.guest.guest import COMPLAINTS, Guest
from nvmeemu.guest.machine import Machine
from tools.guest import image, record, user_image
from tools.guest.arches import ARCHES, JobArch
from tools.guest.peer import PeerDrive
from tools.guest.python import add as add_python
from tools.guest.systems import SYSTEMS

DISK_SIZE = 256 << 20
KERNEL_ARGUMENTS = "loglevel=5 panic=-1"  # warnings and worse; a panic ends QEMU


@dataclass(frozen=True)
class Settings:
    """The settings of a run, checked."""

    job: str = "main"
    arch: JobArch = ARCHES["x86_64"]
    disk: Path | None = None
    linux: str = cache.DEFAULT_SUITE
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    firmware: str = ""
    os: str = ""  # one of systems.SYSTEMS
    boot_disk: Path | None = None
    sata_disk: Path | None = None
    iso: Path | None = None
    write: bool = False  # keep what is written to boot_disk or sata_disk
    display: str = "none"
    screenshot: Path | None = None
    power_button: float | None = None  # seconds
    smp: int = 1
    mem: str = "512M"
    iommu: bool = False
    hugepages: bool = False
    accel: str = "auto"
    timeout: float = 600
    expect: tuple[str, ...] = ()
    keep: bool = False
    serial_log: Path | None = None
    nvme_args: tuple[str, ...] = ()
    peer: str = ""
    qemu_args: tuple[str, ...] = ()
    qemu: Path | None = None
    result_json: Path | None = None
    options: str = ""  # all of the above as it was written, for the record

    @property
    def drive_args(self) -> tuple[str, ...]:
        """The arguments of nvmeemu serve: those that suit the system, then those that the user gave."""
        return (*(SYSTEMS[self.os].drive if self.os else ()), *self.nvme_args)


class Run:
    """A run in progress. All its files are in `folder`, each guest's logs in a folder of its own there."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.deadline = Deadline(settings.timeout)
        self.console_log = settings.serial_log or folder / "console.log"
        self.console_log.write_bytes(b"")
        self.boots = 0
        self.found = record.Found()
        self._last: Guest | None = None
        self._cpu_seconds = record.children_cpu_seconds()
        self._began = time.monotonic()
        qemu = settings.qemu or cache.qemu(settings.arch.qemu)
        if not settings.peer:
            machines.require_vfio_user(qemu)
        accel = machines.choose_accel(settings.accel, settings.arch, qemu)
        self.image = settings.disk or folder / "disk.img"
        self._overlay = False
        if settings.boot_disk:
            self.image = user_image.as_raw(settings.boot_disk, folder)
            self._overlay = self.image == settings.boot_disk and not settings.write
            if self._overlay and settings.peer:
                self.image = user_image.overlay(self.image, folder)
        if not self.image.exists():
            image.create(self.image, DISK_SIZE)
        self.machine = Machine(
            qemu,
            settings.arch,
            settings.smp,
            settings.mem,
            accel,
            iommu=settings.iommu,
            hugepages=settings.hugepages,
            extra=settings.qemu_args,
        )

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Report progress."""
        print(f"[{self.seconds():5.1f} s] {text}", flush=True)

    def linux(self, *, python: bool = False, kernel: Path | None = None) -> Machine:
        """The machine with a Linux kernel and our own initramfs, with Python in it if wanted."""
        kernel = kernel or self.settings.kernel or cache.kernel(self.settings.arch.debian, self.settings.linux)
        return self.custom(kernel, self._initramfs(kernel, python))

    def custom(self, kernel: Path | None, initrd: Path | None) -> Machine:
        """The machine with the kernel and initrd given."""
        arch = self.settings.arch
        words = (f"console={arch.console}", KERNEL_ARGUMENTS, arch.iommu_append if self.machine.iommu else "")
        append = " ".join(word for word in (*words, self.settings.append) if word)
        return replace(self.machine, firmware=self.settings.firmware, kernel=kernel, initrd=initrd, append=append)

    def boot(self, machine: Machine, complaints: str = COMPLAINTS, drive: GuestDrive | None = None) -> Guest:
        """A new guest on the run's image, with a fresh drive or the one given; a context manager."""
        self.boots += 1
        folder = self.folder / f"boot-{self.boots}"
        drive = drive or self.drive()
        self._last = Guest(machine, drive, folder, self.deadline, complaints=complaints, console_log=self.console_log)
        return self._last

    def record(self, passed: bool, verdict: str) -> record.Record:
        """What there is to keep of this run."""
        settings, found = self.settings, self.found
        linux = f"Linux {self._last.kernel_release}" if self._last and self._last.kernel_release else ""
        return record.Record(
            options=settings.options,
            job=settings.job,
            drive=settings.peer or "nvmeemu",
            guest=found.guest or linux,
            arch=settings.arch.name,
            firmware=settings.firmware,
            smp=settings.smp,
            accel=self.machine.accel,
            passed=passed,
            boots=self.boots,
            verified=found.verified,
            resets=found.resets,
            seconds=round(self.seconds(), 1),
            cpu_seconds=round(record.children_cpu_seconds() - self._cpu_seconds, 1),
            verdict=verdict,
        )

    def drive(self, disk: Path | None = None, serial: str = SERIAL) -> GuestDrive:
        """A drive as it was asked for, with the run's image or another one."""
        settings = self.settings
        bootable = settings.boot_disk is not None
        if settings.peer:
            form = "qcow2" if self._overlay and not disk else "raw"
            return PeerDrive(disk or self.image, bootable=bootable, serial=serial, form=form)
        arguments = (*settings.drive_args, *(("--serial", serial) if disk else ()))
        if self._overlay and not disk:
            arguments += ("--overlay",)
        return ServedDrive(disk or self.image, arguments, bootable=bootable)

    def _initramfs(self, kernel: Path, python: bool) -> Path:
        path = self.folder / "initrd"
        if not path.exists():
            arch = self.settings.arch
            more = partial(add_python, arch=arch) if python else None
            modules = cache.modules_of(kernel)
            path.write_bytes(initramfs.build(cache.tools(arch.debian), arch.triplet, modules, more=more))
        return path
