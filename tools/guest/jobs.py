"""The smaller jobs, and the table of all."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from nvmeemu.guest import cache
from nvmeemu.guest.device import NAMESPACE
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest import interrupts
from tools.guest.boot import boot_job
from tools.guest.debian import debian_job
from tools.guest.errors import UsageError
from tools.guest.firmware import grub_job, uefi_shell_job, xen_job
from tools.guest.identify import identify
from tools.guest.lifecycle import hotplug_job, reboots_job, resets_job, restarts_job, unplug_job
from tools.guest.linux import io_job, two_job
from tools.guest.main_job import main_job, quiet_end
from tools.guest.run import Run

READS_PER_CPU = 32
REBOOT_BYTES = 1 << 20


WITH_PYTHON = ("linux", "tools", "tools-python")


@dataclass(frozen=True)
class Job:
    """A job: what to run (returns its summary), one line about it, and what it needs.

    A job keeps `run.found` up to date (guest's name if it is no Linux with our agent, data verified, resets survived):
    docs/guests.md's matrix is made from it. Tests with the fixture `drive` or `recorded` are in it.
    """

    run: Callable[[Run], str]
    about: str
    smp: int = 1
    components: tuple[str, ...] = ("linux", "tools")
    firmware: tuple[str, ...] = ("seabios", "ovmf", "edk2", "none")  # those that it works with
    timeout: float = 600
    mem: str = "512M"


def smp_job(run: Run) -> str:
    """One I/O queue pair for each CPU, and each one's interrupts arrive at its own vector."""
    cpus = run.settings.smp
    if not interrupts.has_msix(run.settings):
        raise UsageError("--job smp is about MSI-X: no --no-msix, no pci=nomsi")
    with run.boot(run.linux()) as guest:
        seen = identify(guest)
        run.say(f"{seen}")
        interrupts.check_io_queues(guest, seen, run.settings)
        for cpu in range(cpus):
            before = interrupts.by_queue(guest)
            read = f"taskset {1 << cpu:x} dd if={NAMESPACE} of=/dev/null bs=64k count={READS_PER_CPU} iflag=direct"
            guest.check(read)
            after = interrupts.by_queue(guest)
            queue = f"nvme0q{cpu + 1}"
            if after.get(queue, 0) <= before.get(queue, 0):
                raise GuestError(f"reads on CPU {cpu} raised no interrupt of {queue}")
            run.say(f"CPU {cpu}: {READS_PER_CPU} reads, {after[queue] - before.get(queue, 0)} interrupts of {queue}")
        quiet_end(guest)
        return f"{cpus} CPUs with {seen.io_queues} I/O queue pairs on Linux {guest.kernel_release}"


def reboot_job(run: Run) -> str:
    """The guest restarts: the same drive, and the same connection to it, must serve the new start."""
    write = f"head -c {REBOOT_BYTES} /dev/urandom >/data && dd if=/data of={NAMESPACE} bs=64k oflag=direct 2>&1"
    with run.boot(replace(run.linux(), reboots=True)) as guest:
        before = identify(guest)
        guest.check(write)
        written = guest.check("sha256sum </data")
        guest.reboot()
        after = identify(guest)
        if after != before:
            raise GuestError(f"after the reboot the drive is another one: {after}, before: {before}")
        if guest.check(f"head -c {REBOOT_BYTES} {NAMESPACE} | sha256sum") != written:
            raise GuestError("after the reboot the drive holds other data")
        run.found.verified, run.found.resets = True, 1
        quiet_end(guest)
        return f"Linux {guest.kernel_release} rebooted and found its {REBOOT_BYTES >> 10} KiB"


def uboot_job(run: Run) -> str:
    """U-Boot's own NVMe driver reads what the host wrote, and the host finds what U-Boot wrote."""
    arch = run.settings.arch
    if arch.uboot is None:
        raise UsageError(f"no U-Boot for {arch.name}")
    blocks, source, target = 0x20, 0x40, 0x1000
    content = os.urandom(blocks * 512)
    with run.image.open("r+b") as disk:
        disk.seek(source * 512)
        disk.write(content)
    first, second = arch.uboot.buffer, arch.uboot.buffer + 0x100000
    rom = cache.firmware(f"u-boot-{arch.name}", arch.uboot.rom)
    with run.boot(replace(run.machine, board=arch.uboot.machine, rom=rom)) as guest:
        version = guest.expect(r"^U-Boot (\d\S*)")[1]
        run.found.guest = f"U-Boot {version}"
        guest.expect("Hit any key")
        guest.send(" ")
        guest.expect("^=> ")
        commands = (
            ("nvme scan", ""),
            ("nvme info", re.escape(guest.drive.serial)),
            ("nvme device 0", ""),
            (f"nvme read {first:x} {source:x} {blocks:x}", f"{blocks} blocks read: OK"),
            (f"crc32 {first:x} {len(content):x}", f"==> {zlib.crc32(content):08x}"),
            (f"nvme write {first:x} {target:x} {blocks:x}", f"{blocks} blocks written: OK"),
            (f"nvme read {second:x} {target:x} {blocks:x}", f"{blocks} blocks read: OK"),
            (f"cmp.b {first:x} {second:x} {len(content):x}", rf"{len(content)} byte\(s\) were the same"),
        )
        for command, answer in commands:
            _type_to_uboot(guest, command, answer)
        guest.stop()
        run.say(f"U-Boot {version}: read, wrote and compared {len(content)} bytes")
    with run.image.open("rb") as disk:
        disk.seek(target * 512)
        if disk.read(len(content)) != content:
            raise GuestError("host: what U-Boot wrote is not in the image")
    run.found.verified = True
    run.say("host: found what U-Boot wrote in the image")
    return f"U-Boot {version} read and wrote {blocks} blocks, verified in the guest and on the host"


def _type_to_uboot(guest: Guest, command: str, answer: str) -> None:
    guest.send(command + "\n")
    printed = guest.expect(rf"{re.escape(command)}\n((?:.|\n)*?)^=> ", 30)[1]
    if not re.search(answer, printed):
        raise GuestError(f"U-Boot answered {command!r} with {printed.strip()!r}, without {answer!r}")


JOBS = {
    "main": Job(main_job, "Linux formats the drive, writes files, powers off, boots again and verifies them (default)"),
    "io": Job(io_job, "Linux writes, reads back and compares on all CPUs at once", components=WITH_PYTHON),
    "two": Job(two_job, "two drives on two servers in one guest", components=WITH_PYTHON),
    "resets": Job(resets_job, "every reset and removal that a guest can do, under I/O", 2, WITH_PYTHON),
    "reboots": Job(reboots_job, "20 reboots in the middle of I/O", components=WITH_PYTHON),
    "restarts": Job(restarts_job, "QEMU is killed in the middle of I/O and started again", components=WITH_PYTHON),
    "hotplug": Job(hotplug_job, "the drive is plugged into a running guest", 2, WITH_PYTHON),
    "unplug": Job(unplug_job, "it is also unplugged (with --nvme-arg --no-msix: QEMU's fault)", 2, WITH_PYTHON),
    "smp": Job(smp_job, "Linux with 2 CPUs: one queue pair for each, used", smp=2),
    "reboot": Job(reboot_job, "Linux writes, reboots and reads it back"),
    "uboot": Job(uboot_job, "U-Boot's own driver reads and writes", components=("u-boot",)),
    "uefi-shell": Job(
        uefi_shell_job,
        "EDK2's shell copies and compares files on a FAT",
        components=("disk-tools",),
        firmware=("ovmf", "edk2"),
    ),
    "grub": Job(
        grub_job,
        "GRUB on the drive loads Linux from it; writes, reboots, reads back",
        components=("linux", "tools", "disk-tools", "grub"),
        firmware=("seabios", "ovmf", "edk2"),
    ),
    "xen": Job(
        xen_job,
        "the same with Xen between GRUB and Linux",
        components=("tools", "disk-tools", "grub", "xen"),
        firmware=("seabios",),
        mem="1536M",
    ),
    "debian": Job(
        debian_job,
        "a whole Debian system, systemd and all, booted twice to a login",
        components=("debian",),
        firmware=("seabios", "ovmf"),
        timeout=1800,
    ),
    "boot": Job(
        boot_job,
        "the user's own kernel, disk or installer; chosen by --initrd, --boot-disk, --os, --expect and the like",
    ),
}
