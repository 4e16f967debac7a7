"""Where the build takes libvfio-user from, and what it changes in it. It runs before anything is installed.

The library comes from, in this order:

1. LIBVFIO_USER_SRC, an unpacked source tree;
2. an installed library that pkg-config knows and that passes a check: it has neither a stable ABI nor a stable API, so
   our shim must compile with it; and it must do what we change in our copy for guests with an IOMMU (check_library.c
   tries it out), because those would end their QEMU without it;
3. the source tree in the cache, which scripts/setup.sh fetches.

The libraries that we know of, as they are published, fail the check: the older has room for 16 DMA regions, the newer
takes back single ones only. ``python3 -m nvmeemu.vfio.library`` says on stderr why not, exit 1, or exits with 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUR_WARNINGS = ["-Wall", "-Wextra", "-Werror"]
PACKAGES = ("libvfio-user", "vfio-user")  # upstream has no .pc file: names that distributions may choose
CHECK_TIME = 60  # seconds; it takes about one

# What we change in our copy: file, text, replacement. A version without that text is left as it is.
DMA_REGIONS = ("private.h", "#define MAX_DMA_REGIONS 16", "#define MAX_DMA_REGIONS 65536")
CHANGES = (
    # SET_IRQS without eventfds for vectors from ``start`` on must take the routes of ``count`` of them away.
    ("irq.c", "for (i = start; i < count; i++)", "for (i = start; i < (size_t)start + count; i++)"),
    # The mapping begins at a multiple of the file's block size (2 MiB for huge pages), so it has to be longer.
    ("dma.c", "ROUND_UP(region->info.iova.iov_len,", "ROUND_UP(region->info.iova.iov_len + region->offset - offset,"),
    # A mapping needs no descriptor once it is made, and a process may have fewer of these than a guest has pages.
    (
        "dma.c",
        "    dma->nregions++;\n",
        "    if (fd != -1)\n        close(fd);\n    region->fd = -1;\n    dma->nregions++;\n",
    ),
    ("dma.c", "    assert(region->fd != -1);\n\n    if (close(", "    if (region->fd != -1 && close("),
    # DMA_UNMAP takes back all regions in a range, as with Linux' VFIO: for guests with an IOMMU QEMU asks so, of ranges
    # with no, one or many regions. Only the very same range was known; what was in others stayed mapped. From the end,
    # because each removal moves what follows.
    (
        "dma.c",
        """
    for (idx = 0; idx < dma->nregions; idx++) {
        region = &dma->regions[idx];
        if (region->info.iova.iov_base != dma_addr ||
            region->info.iova.iov_len != size) {
            continue;
""",
        """
    for (idx = dma->nregions - 1; idx >= 0; idx--) {
        region = &dma->regions[idx];
        size_t start = (uintptr_t)region->info.iova.iov_base - (uintptr_t)dma_addr;
        if (start >= size || region->info.iova.iov_len > size - start) {
            continue;
""",
    ),
    (
        "dma.c",
        "idx, &dma->nregions);\n        return 0;\n    }\n    return ERROR_INT(ENOENT);\n",
        "idx, &dma->nregions);\n    }\n    return 0;\n",
    ),
)


@dataclass(frozen=True)
class Installed:
    """The flags for an installed library."""

    to_compile: list[str]
    to_link: list[str]


def find() -> Installed | Path | None:
    """An installed library or a source tree, if there is one. Exits if LIBVFIO_USER_SRC names something else."""
    if named := os.environ.get("LIBVFIO_USER_SRC"):
        if _is_tree(Path(named)):
            return Path(named).resolve()
        sys.exit(f"LIBVFIO_USER_SRC={named}: not a libvfio-user tree (no lib/libvfio-user.c)")
    if installed := installed_library():
        return installed
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeemu" / "libvfio-user"
    return cache if _is_tree(cache) else None


def _is_tree(place: Path) -> bool:
    return (place / "lib" / "libvfio-user.c").is_file()


def pkg_config(package: str) -> tuple[list[str], list[str]] | None:
    """Its flags to compile and to link, or None."""
    flags = [_ask_pkg_config(package, what) for what in ("--cflags", "--libs")]
    return None if flags[0] is None or flags[1] is None else (flags[0], flags[1])


def _ask_pkg_config(package: str, what: str) -> list[str] | None:
    try:
        return subprocess.run(["pkg-config", what, package], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None


def installed_library() -> Installed | None:
    """An installed library that fits; says on stderr of each other one why it does not."""
    for package in PACKAGES:
        flags = pkg_config(package)
        if flags is None:
            continue
        # Its own build puts the headers into a folder there.
        folders = [f"-I{folder}/vfio-user" for folder in _ask_pkg_config(package, "--variable=includedir") or ()]
        found = Installed([*flags[0], *folders], flags[1])
        misfit = _misfit(found)
        if misfit is None:
            return found
        print(f"nvmeemu: the installed {package} is not used: {misfit}", file=sys.stderr)
    return None


def _misfit(library: Installed) -> str | None:
    """What does not fit."""
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "check"
        command = [*os.environ.get("CC", "cc").split(), "-D_GNU_SOURCE", *OUR_WARNINGS, "-Wno-unused-function"]
        command += [*library.to_compile, str(HERE / "check_library.c"), "-o", str(program), *library.to_link]
        try:
            compiled = subprocess.run(command, capture_output=True, text=True, check=False)
            if compiled.returncode != 0:
                return f"our code does not compile with it:\n{compiled.stderr}"
            tried = subprocess.run(
                [program, f"{place}/s"], capture_output=True, text=True, check=False, timeout=CHECK_TIME
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if tried.returncode == 0:
        return None
    return tried.stdout.strip() or tried.stderr.strip() or f"its check ended with status {tried.returncode}"


def change_library(copy: Path) -> None:
    """16 DMA regions do not do for guests with an IOMMU (newer versions take the limit as an argument); faults."""
    knows_limit = "LIBVFIO_USER_MAX_DMA_REGIONS" in (copy / "include" / "libvfio-user.h").read_text()
    if not knows_limit and not change(copy, *DMA_REGIONS):
        sys.exit(f"this libvfio-user is unknown to us: no single line {DMA_REGIONS[1]!r} in lib/{DMA_REGIONS[0]}")
    for wanted in CHANGES:
        if not change(copy, *wanted):
            print(f"nvmeemu: libvfio-user's lib/{wanted[0]} is not as expected and is left as it is", file=sys.stderr)


def change(copy: Path, name: str, old: str, new: str) -> bool:
    """Replace the one place where ``old`` stands; False if there is none, or are several."""
    file = copy / "lib" / name
    text = file.read_text()
    if text.count(old) != 1:
        return False
    file.write_text(text.replace(old, new))
    return True


if __name__ == "__main__":
    sys.exit(installed_library() is None)
