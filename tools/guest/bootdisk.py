"""Makes disk images that boot: GPT, GRUB for BIOS and for UEFI, an EFI system partition, one more partition.

Made from the host with sfdisk, mtools and grub-mkimage on a plain file: no loop device, no mount, no root.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmeemu.guest import cache
from nvmeemu.guest.errors import GuestError
from tools.guest import programs

SECTOR = 512
MIB = 1 << 20
BIOS_BOOT_START, ESP_START = MIB, 2 * MIB  # in bytes; a MiB is plenty for GRUB's core image
BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"

# Where GRUB's boot sector holds the number of the sector to load next, and that one its own first block list entry.
BOOT_NEXT, CORE_NEXT = 0x5C, 0x1F4
BOOT_CODE = 440  # bytes; behind it come the disk's signature and the partition table

MODULES = ("part_gpt", "fat", "ext2", "normal", "linux", "echo", "serial", "terminal", "test", "search", "reboot", "ls")


@dataclass(frozen=True)
class Grub:
    """One of GRUB's platforms."""

    platform: str
    debian: str
    program: str  # its place on the EFI system partition; "" for BIOS
    modules: tuple[str, ...] = ()


BIOS = Grub("i386-pc", "amd64", "", ("biosdisk", "multiboot2"))
EFI = {
    "x86_64": Grub("x86_64-efi", "amd64", "EFI/BOOT/BOOTX64.EFI", ("multiboot2",)),
    "arm64": Grub("arm64-efi", "arm64", "EFI/BOOT/BOOTAA64.EFI"),
}


def make(
    path: Path, files: Mapping[str, bytes | Path], *, esp: int, arch: str = "", rest: Path | int = MIB, config: str = ""
) -> None:
    """Make a new image at `path`.

    `files` go to the EFI system partition of `esp` bytes, by their paths there. With `arch`, GRUB is put there for
    UEFI, and for BIOS where that is; it does what `config` says. The last partition holds a copy of the file `rest`,
    or is that many bytes of nothing.
    """
    size = rest if isinstance(rest, int) else rest.stat().st_size
    with path.open("xb") as image:
        image.truncate(ESP_START + esp + size + MIB)  # a MiB at the end for the backup GPT
    _partition(path, esp)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tree = Path(folder) / "esp"
        tree.mkdir()
        for name, content in files.items():
            _put(tree / name, content)
        if arch:
            _put(tree / "grub/grub.cfg", config.encode())
            _put(tree / EFI[arch].program, _core(EFI[arch], Path(folder)))
        _fill_esp(path, esp, tree)
        if arch == "x86_64":
            _install_bios(path, _core(BIOS, Path(folder)))
    if isinstance(rest, Path):
        place = f"seek={(ESP_START + esp) // MIB}"
        programs.run("dd", f"if={rest}", f"of={path}", "bs=1M", place, "conv=notrunc,sparse")


def read(path: Path, name: str) -> bytes:
    """A file on the EFI system partition."""
    return programs.run("mtype", "-i", f"{path}@@{ESP_START}", f"::{name}")


def _partition(path: Path, esp: int) -> None:
    table = (
        f"label: gpt\n"
        f"start={BIOS_BOOT_START // SECTOR}, size={MIB // SECTOR}, type={BIOS_BOOT_TYPE}\n"
        f"start={ESP_START // SECTOR}, size={esp // SECTOR}, type=U, name=esp\n"
        f"start={(ESP_START + esp) // SECTOR}, type=L, name=root\n"
    )
    programs.run("sfdisk", "--quiet", path, input_=table.encode())


def _fill_esp(path: Path, esp: int, tree: Path) -> None:
    place = f"{path}@@{ESP_START}"
    cluster = "1" if esp < 256 * MIB else "8"  # sectors; a FAT32 has at least 65525 clusters
    programs.run("mformat", "-i", place, "-F", "-c", cluster, "-T", str(esp // SECTOR), "-v", "ESP", "::")
    programs.run("mcopy", "-i", place, "-s", "-Q", *sorted(tree.iterdir()), "::")


def _core(grub: Grub, folder: Path) -> bytes:
    """Make GRUB in one file with all its modules. It looks for its configuration on the partition it came from."""
    out = folder / grub.platform
    prefix = "/grub" if grub.program else "(hd0,gpt2)/grub"
    programs.run(
        cache.present(cache.root() / "bin" / "grub-mkimage"),
        *("-d", cache.present(cache.root() / "grub" / grub.debian / grub.platform)),
        *("-O", grub.platform, "-p", prefix, "-o", out),
        *MODULES,
        *grub.modules,
    )
    return out.read_bytes()


def _install_bios(path: Path, core: bytes) -> None:
    """Install GRUB as grub-bios-setup does: its boot sector in the MBR, the rest in the BIOS boot partition."""
    boot = bytearray(cache.present(cache.root() / "grub" / BIOS.debian / BIOS.platform / "boot.img").read_bytes())
    first = BIOS_BOOT_START // SECTOR
    struct.pack_into("<Q", boot, BOOT_NEXT, first)
    patched = bytearray(core)
    struct.pack_into("<Q", patched, CORE_NEXT, first + 1)
    if len(patched) > ESP_START - BIOS_BOOT_START:
        raise GuestError("GRUB's core image is too large for its partition")
    with path.open("r+b") as image:
        image.write(boot[:BOOT_CODE])
        image.seek(BIOS_BOOT_START)
        image.write(patched)


def _put(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        path.symlink_to(content)  # mcopy follows it
    else:
        path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a bootable image with a root file system, for scripts/setup.sh."""
    parser = argparse.ArgumentParser(prog="python -m tools.guest.bootdisk", description=main.__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="GRUB's configuration")
    parser.add_argument("--root", type=Path, required=True, help="what goes to the last partition")
    options = parser.parse_args(arguments)
    make(options.image, {}, esp=64 * MIB, arch="x86_64", rest=options.root, config=options.config.read_text())


if __name__ == "__main__":
    main()
