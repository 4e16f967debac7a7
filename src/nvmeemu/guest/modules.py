"""Kernel modules for the initramfs: which files, in which order they load."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

from nvmeemu.guest.errors import GuestError

# What the guest's jobs need of a kernel; what is built in is left out. crc32c: ext4 asks for it by an alias.
WANTED = ("nvme", "crc32c_generic", "ext4")


def load_order(kernel: Path, names: Iterable[str] = WANTED) -> list[Path]:
    """The module files in the order in which they are loaded. `kernel` is a folder that set-up made, with `modules` in
    it. Raises GuestError."""
    (folder,) = (kernel / "modules").iterdir()
    depends = _dependencies(folder)
    builtin = {_name(line) for line in (folder / "modules.builtin").read_text().split()}
    order: dict[str, None] = {}
    for name in names:
        if name in depends:
            order |= dict.fromkeys(depends[name])
        elif name not in builtin and name != "crc32c_generic":  # newer kernels have it as a library
            raise GuestError(f"{folder} has no module {name}")
    return [folder / path for path in order]


def content(path: Path) -> bytes:
    """The content of a module file, unpacked."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _dependencies(folder: Path) -> dict[str, list[str]]:
    """For each module's name the files to load, its own last. A line of modules.dep has them the other way round."""
    found = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        found[_name(path)] = [*reversed(needed.split()), path]
    return found


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")
