"""Python for a guest's initramfs, and the script that it runs there: verify_io.py."""

from __future__ import annotations

from pathlib import Path

from nvmeemu.guest import cache, initramfs
from nvmeemu.guest.arch import Arch
from nvmeemu.guest.cpio import Archive
from tools.guest import verify_io

PYTHON, VERIFY_IO = "python3 -I -S -B", "/verify_io.py"
LIBRARY = (
    "__future__.py",
    "os.py",
    "struct.py",
    *(f"encodings/{name}.py" for name in ("__init__", "aliases", "utf_8")),
)


def add(archive: Archive, arch: Arch) -> None:
    """Add the files of set-up's Python that verify_io.py needs. Most modules are frozen into the program."""
    root = cache.present(cache.root() / "tools-python" / arch.debian)
    program = initramfs.find(root, "python3").resolve()
    version = program.name  # python3.13
    initramfs.add_program(archive, root, arch.triplet, program, "usr/bin/python3")
    library = root / "usr" / "lib" / version
    (mmap,) = library.glob("lib-dynload/mmap.*.so")
    for path in (*(library / name for name in LIBRARY), mmap):
        archive.file(str(path.relative_to(root)), path.read_bytes())
    archive.file(VERIFY_IO, Path(verify_io.__file__).read_bytes())
