"""Jobs in which firmware and boot loaders use the drive: the UEFI shell on a FAT, and GRUB that loads Linux."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nvmeemu.guest import cache
from nvmeemu.guest.device import NAMESPACE
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from nvmeemu.guest.machine import Machine
from tools.guest import bootdisk
from tools.guest.errors import UsageError
from tools.guest.identify import identify
from tools.guest.main_job import quiet_end
from tools.guest.run import Run

ESP = 64 << 20
FIRMWARE_SECONDS = 180.0  # on a busy machine
SIZES = {"one.bin": 1, "page.bin": 4097, "big.bin": (2 << 20) + 511}  # bytes; the last takes many commands
WRITTEN = 4 << 20  # what Linux writes behind the system partition and finds again

# The shell runs this by itself, at each boot. `comp` sets lasterror, and says so in words that change with versions.
STARTUP = """\
@echo -off
fs0:
if exist first.txt then
  goto second
endif
mkdir copies
for %a in one.bin page.bin big.bin
  cp -q %a copies\\%a
endfor
echo "first boot"  >a first.txt
goto verify
:second
echo "second boot" >a second.txt
:verify
for %a in one.bin page.bin big.bin
  comp %a copies\\%a
  if %lasterror% ne 0 then
    echo "@@ %a DIFFERS"
  else
    echo "@@ %a is the same"
  endif
endfor
echo "@@ verified"
reset -s
"""

GRUB_CONFIG = """\
{terminal}
echo "@@ GRUB on $grub_platform"
{load}
echo "@@ starting"
boot
"""
LINUX = "linux /vmlinuz {arguments}\ninitrd /initrd"
XEN = """\
multiboot2 /xen dom0_mem=768M console=com1 com1=115200,8n1
module2 /vmlinuz {arguments}
module2 /initrd"""
SERIAL_TERMINAL = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial"


def uefi_shell_job(run: Run) -> str:
    """EDK2's own driver is used: its shell copies files on a FAT. After a power-off the shell and the host compare
    them."""
    contents = {name: os.urandom(size) for name, size in SIZES.items()}
    _new_image(run)
    bootdisk.make(run.image, {"startup.nsh": STARTUP.replace("\n", "\r\n").encode(), **contents}, esp=ESP)
    machine = replace(run.machine, firmware=run.settings.firmware)
    for boot in ("first", "second"):
        with run.boot(machine) as guest:
            _await_shell(run, guest)
            run.found.guest = "UEFI shell of EDK2"
            for name in contents:
                guest.expect(f"@@ {name} is the same")
            guest.expect("@@ verified")
            guest.wait_for_end()
        run.say(f"{boot} boot: files copied and compared")
    for name, content in contents.items():
        if bootdisk.read(run.image, f"copies/{name}") != content:
            raise GuestError(f"host: what the shell wrote to copies/{name} is not in the image")
    for boot in ("first", "second"):
        if boot.encode() not in bootdisk.read(run.image, f"{boot}.txt"):
            raise GuestError(f"host: {boot}.txt is not what the shell wrote")
    run.found.verified, run.found.resets = True, 1
    return f"the UEFI shell wrote {sum(SIZES.values()) >> 10} KiB to a FAT, verified after a power-off and on the host"


def _await_shell(run: Run, guest: Guest) -> None:
    """EDK2's shell gives up before its banner if it cannot clear the screen: once, on a very busy machine."""
    begun = guest.expect("UEFI Interactive Shell|failed to start .*EFI Internal Shell.*Device Error", FIRMWARE_SECONDS)
    if begun[0].startswith("failed"):
        run.say("the UEFI shell did not reach its console: resetting the machine")
        guest.monitor.execute("set-action", {"reboot": "reset"}, guest.deadline)  # this once, it is no end
        guest.monitor.execute("system_reset", {}, guest.deadline)
        guest.monitor.await_event("RESET", guest.deadline)
        guest.monitor.execute("set-action", {"reboot": "shutdown"}, guest.deadline)
        guest.expect("UEFI Interactive Shell", FIRMWARE_SECONDS)


def grub_job(run: Run) -> str:
    """GRUB on the drive loads Linux from the drive. Linux writes to the drive, reboots through GRUB, and reads the
    data back."""
    linux = run.linux()
    assert linux.kernel is not None
    assert linux.initrd is not None
    load = LINUX.format(arguments=linux.append)
    return _from_grub(run, linux, {"vmlinuz": linux.kernel, "initrd": linux.initrd}, load, "")


def xen_job(run: Run) -> str:
    """GRUB loads Xen, and Xen starts Linux. Its first domain has the drive, and interrupts come through Xen."""
    linux = run.linux(kernel=cache.present(cache.root() / "xen" / "vmlinuz"))
    assert linux.kernel is not None
    assert linux.initrd is not None
    files = {"xen": linux.kernel.parent / "xen", "vmlinuz": linux.kernel, "initrd": linux.initrd}
    # Kernel messages come without carriage returns here, so the console's reader cannot tell warnings from output.
    load = XEN.format(arguments=linux.append.replace("console=ttyS0", "console=hvc0") + " loglevel=4")
    return _from_grub(run, linux, files, load, "Xen, ")


def _from_grub(run: Run, linux: Machine, files: dict[str, Path], load: str, below: str) -> str:
    _new_image(run)
    terminal = SERIAL_TERMINAL if run.settings.firmware == "seabios" else ""  # UEFI's own console is the serial line
    config = GRUB_CONFIG.format(terminal=terminal, load=load)
    bootdisk.make(run.image, files, esp=ESP, arch=run.settings.arch.name, rest=2 * WRITTEN, config=config)
    machine = replace(linux, kernel=None, initrd=None, append="", reboots=True)
    with run.boot(machine) as guest:
        grub = _through_grub(guest)
        run.say(f"{grub} has loaded {below}Linux; {identify(guest)}")
        guest.check(f"head -c {WRITTEN} /dev/urandom >/data && dd if=/data of={NAMESPACE}p3 bs=64k conv=fsync 2>&1")
        written = guest.check("sha256sum </data")
        guest.reboot()
        _through_grub(guest)
        if guest.check(f"head -c {WRITTEN} {NAMESPACE}p3 | sha256sum") != written:
            raise GuestError("after the reboot the drive holds other data")
        run.found.verified, run.found.resets = True, 1
        release = guest.kernel_release
        quiet_end(guest)
    run.found.guest = f"{grub}, {below}Linux {release}"
    return (
        f"{grub} loaded {below}Linux {release}, which wrote {WRITTEN >> 20} MiB, rebooted the same way and found them"
    )


def _through_grub(guest: Guest) -> str:
    platform = guest.expect(r"@@ GRUB on (\S+)", FIRMWARE_SECONDS)[1]
    guest.expect("@@ starting", FIRMWARE_SECONDS)
    return f"GRUB ({platform})"


def _new_image(run: Run) -> None:
    if run.settings.disk:
        raise UsageError(f"--job {run.settings.job} makes its own disk: no --disk")
    run.image.unlink()
