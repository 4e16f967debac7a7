"""Operating systems that a user brings on an image: what machine each gets, its screen, what to expect of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded, GuestTimeout
from nvmeemu.guest.guest import Guest

NEVER = r"(?!)"  # matches nothing: to wait while the console, the drive and the kernel's complaints are watched
KEY_SECONDS = 90.0  # for so long a key is pressed at an installer's "press any key to boot from CD"


@dataclass(frozen=True)
class System:
    """The defaults for one operating system; each can be changed on the command line."""

    title: str
    firmware: str
    mem: str
    smp: int
    display: str
    expect: tuple[str, ...]  # on the serial console; empty if it says nothing there
    timeout: float  # seconds, for an emulated CPU
    words: tuple[str, ...] = ()  # for QEMU
    drive: tuple[str, ...] = ()  # for nvmeemu serve; --nvme-arg comes after them
    any_key: bool = False  # its CD asks for one


SYSTEMS = {
    # Without a screen its UEFI loader and its kernel take the serial line for their console.
    "freebsd": System("FreeBSD", "ovmf", "1G", 1, "none", (r"login: ",), 1800),
    # It keeps local time in the clock. Nothing is said on the serial line: the screen tells. It asks for every NSID
    # up to NN, and has shown all of them as disks (github.com/spdk/spdk/issues/2058).
    "windows": System(
        *("Windows", "ovmf", "4G", 2, "vnc", (), 7200, ("-rtc", "base=localtime"), ("--max-namespaces", "1")),
        any_key=True,
    ),
}

# A tablet: its pointer is where the viewer's is.
SCREEN = ("-device", "VGA", "-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd")
SCREEN_BOARD = "q35"  # the architecture's own sends what BIOS prints to the serial line


def screen(socket: Path) -> tuple[str, ...]:
    """QEMU's arguments for a screen, which any VNC viewer shows that takes a UNIX socket."""
    return (*SCREEN, "-vnc", f"unix:{_quoted(socket)}")


def cd(path: Path) -> tuple[str, ...]:
    """A CD in a SATA drive, tried after the NVMe drive: an installer's disk is empty first, and boots afterwards."""
    drive = f"if=none,id=cd,media=cdrom,readonly=on,format=raw,file={_quoted(path)}"
    return ("-drive", drive, "-device", "ide-cd,drive=cd,bootindex=2")


def sata_disk(path: Path, form: str, *, write: bool) -> tuple[str, ...]:
    """A SATA disk that the system is on, for a system that shall find the NVMe drive as a second disk."""
    snapshot = "off" if write else "on"
    drive = f"if=none,id=sata,format={form},snapshot={snapshot},file={_quoted(path)}"
    return ("-drive", drive, "-device", "ide-hd,drive=sata,bootindex=1")


def screenshot(guest: Guest, path: Path, deadline: Deadline) -> None:
    """What the screen shows, as a PNG."""
    guest.monitor.execute("screendump", {"filename": str(path.absolute()), "format": "png"}, deadline)


def press(guest: Guest, key: str, deadline: Deadline) -> None:
    """Press and let go of a key, by QEMU's name for it."""
    guest.monitor.execute("send-key", {"keys": [{"type": "qcode", "data": key}]}, deadline)


def press_for_the_cd(guest: Guest) -> None:
    """ "Press any key to boot from CD or DVD": a key each second, while that question can come."""
    end = Deadline(min(KEY_SECONDS, guest.deadline.left()))
    with contextlib.suppress(GuestEnded):  # what it has printed is still to be looked at
        while end.left() > 0:
            press(guest, "spc", guest.deadline)
            watch(guest, 1.0)


def press_power_button(guest: Guest) -> None:
    """As on a real machine: the system shuts itself down."""
    guest.monitor.execute("system_powerdown", {}, guest.deadline)


def watch(guest: Guest, seconds: float) -> None:
    """Let the guest run; raises if it ends, if the drive dies, or at the run's own time limit."""
    try:
        guest.expect(NEVER, seconds)
    except GuestTimeout:
        guest.deadline.check("the end of the guest")


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace(",", ",,")
