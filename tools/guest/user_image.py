"""Images that users bring: never written to unless that is asked for, and in whichever format QEMU knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nvmeemu.guest import cache
from nvmeemu.guest.errors import GuestError
from tools.guest.errors import UsageError

# How an image of each format begins, and what QEMU calls it.
MAGIC = {b"QFI\xfb": "qcow2", b"vhdxfile": "vhdx", b"KDMV": "vmdk", b"conectix": "vpc"}
VDI_PLACE, VDI_MAGIC = 0x40, b"\x7f\x10\xda\xbe"
PACKED = {b"\xfd7zXZ\0": "xz -dk", b"\x1f\x8b": "gunzip -k", b"PK\x03\x04": "unzip", b"\x28\xb5\x2f\xfd": "unzstd"}

# How each volume descriptor of a CD or DVD begins, after a byte (ECMA-119, 8.1; ECMA-167, 2/9.1).
CD_SECTOR, CD_FIRST, CD_DESCRIPTORS = 2048, 16, 16
CD_MAGIC = (b"CD001", b"NSR02", b"NSR03")


def format_of(path: Path) -> str:
    """QEMU's name for the image's format; "raw" if it looks like none other."""
    with path.open("rb") as image:
        start = image.read(VDI_PLACE + len(VDI_MAGIC))
    for magic, program in PACKED.items():
        if start.startswith(magic):
            raise UsageError(f"{path} is packed: unpack it first ({program})")
    if start[VDI_PLACE:] == VDI_MAGIC:
        return "vdi"
    return next((form for magic, form in MAGIC.items() if start.startswith(magic)), "raw")


def require_cd(path: Path) -> None:
    """Refuse what is no image of a CD or DVD (ISO 9660 or UDF): nothing would boot from it."""
    form = format_of(path)
    with path.open("rb") as image:
        image.seek(CD_FIRST * CD_SECTOR)
        area = image.read(CD_DESCRIPTORS * CD_SECTOR)
    if not any(area[start + 1 : start + 6] in CD_MAGIC for start in range(0, len(area), CD_SECTOR)):
        kind = "" if form == "raw" else f", but {form}"
        raise UsageError(f"--iso {path} is no image of a CD or DVD{kind}: disk images are for --boot-disk, --sata-disk")


def as_raw(path: Path, folder: Path) -> Path:
    """The image itself if it is raw, else a raw copy of it in `folder`, sparse."""
    form = format_of(path)
    if form == "raw":
        return path
    raw = folder / "converted.img"
    _qemu_img("convert", "-f", form, "-O", "raw", path, raw)
    return raw


def overlay(path: Path, folder: Path) -> Path:
    """A new qcow2 image in `folder` that takes the writes to a raw image."""
    top = folder / "overlay.qcow2"
    _qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", path.absolute(), top)
    return top


def _qemu_img(*words: str | Path) -> None:
    command = [cache.qemu("qemu-img"), *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GuestError(f"qemu-img {words[0]} failed: {last}")
