"""Builds the two cffi modules; the rest is in pyproject.toml.

nvmeemu.native._engine is the native engine. It is built where there is a C compiler, and uses liburing (to wait for
many disks at once) and libisal (checksums for traces) where they are installed; without it `nvmeemu serve` works,
slower.

nvmeemu.vfio._libvfio_user is libvfio-user and our binding. The library comes from, in this order: LIBVFIO_USER_SRC (an
unpacked tree), the cache that scripts/setup.sh fills, a system library that pkg-config knows and that passes a
compile-and-link check. With none of them the package is built without the binding; `nvmeemu serve` then says what is
missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULE = "nvmeemu.vfio._libvfio_user"
ENGINE = "nvmeemu.native._engine"
HERE = Path(__file__).resolve().parent
VFIO = HERE / "src" / "nvmeemu" / "vfio"
NATIVE = HERE / "src" / "nvmeemu" / "native"
SOURCES = ("dma", "irq", "libvfio-user", "migration", "pci", "pci_caps", "tran", "tran_sock")
OUR_WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# The library's own files: no warnings of theirs in our builds; its asserts stay, because an abort is better than
# corrupted memory; its functions are not exported from the module.
THEIR_FLAGS = ["-w", "-UNDEBUG", "-fvisibility=hidden"]
# What we change in our copy of them: file, text, replacement. A version without that text is left as it is.
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


def source_tree() -> Path | None:
    """The library's unpacked sources, if there are any."""
    named = os.environ.get("LIBVFIO_USER_SRC")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeemu" / "libvfio-user"
    tree = Path(named) if named else cache
    if (tree / "lib" / "libvfio-user.c").is_file():
        return tree.resolve()
    if named:
        sys.exit(f"LIBVFIO_USER_SRC={named}: not a libvfio-user tree (no lib/libvfio-user.c)")
    return None


def pkg_config(package: str) -> tuple[list[str], list[str]] | None:
    """Its flags to compile and to link, or None."""
    flags = []
    for what in ("--cflags", "--libs"):
        try:
            flags.append(
                subprocess.run(["pkg-config", what, package], capture_output=True, text=True, check=True).stdout
            )
        except (OSError, subprocess.CalledProcessError):
            return None
    return flags[0].split(), flags[1].split()


def system_library() -> tuple[list[str], list[str]] | None:
    """The flags for an installed libvfio-user that our shim compiles and links with: it has no stable ABI or API."""
    for package in ("libvfio-user", "vfio-user"):
        flags = pkg_config(package)
        if flags is None:
            continue
        probe = f'#include "{VFIO / "shim.h"}"\n' + (
            'int main(void) { return nvmeemu_setup_dma(vfu_create_ctx(VFU_TRANS_SOCK, "", 0, NULL,'
            " VFU_DEV_TYPE_PCI), NULL, NULL) | nvmeemu_setup_region(NULL, 0, 0, NULL, 0); }\n"
        )
        compile_flags = [*flags[0], "-I/usr/include/vfio-user"]
        command = [os.environ.get("CC", "cc"), "-x", "c", "-", "-o", os.devnull, *compile_flags, *OUR_WARNINGS]
        checked = subprocess.run([*command, *flags[1]], input=probe, capture_output=True, text=True, check=False)
        if checked.returncode == 0:
            return compile_flags, flags[1]
        print(f"nvmeemu: the installed {package} does not fit:\n{checked.stderr}", file=sys.stderr)
    return None


class BuildModules(build_ext):
    """Generates the binding of each module, and compiles it together with what it binds."""

    def build_extension(self, ext: Any) -> None:
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        self.force = True  # it takes seconds, and a header or the library's place may have changed
        if ext.name == ENGINE:
            self._prepare_engine(ext, work)
        else:
            ext.sources = [_bind(MODULE, VFIO / "api.h", "shim.h", work)]
            ext.extra_compile_args = [*ext.extra_compile_args, f"-I{VFIO}", *OUR_WARNINGS]
            if tree := source_tree():
                self._compile_library(ext, tree, work / "libvfio-user")
        super().build_extension(ext)

    def _prepare_engine(self, ext: Any, work: Path) -> None:
        sys.path.insert(0, str(HERE / "src"))
        from nvmeemu.native.generate import header

        (work / "nvme_spec.h").write_text(header())
        ext.sources = [
            _bind(ENGINE, NATIVE / "api.h", "engine.h", work),
            *(os.path.relpath(source, HERE) for source in sorted(NATIVE.glob("*.c"))),
        ]
        macros, libraries = [], []
        for library in ("liburing", "libisal"):
            if found := pkg_config(library):
                macros += [f"-DHAVE_{library.upper()}", *found[0]]
                libraries += found[1]
        flags = ["-std=gnu11", "-D_FILE_OFFSET_BITS=64", "-pthread", "-fvisibility=hidden", *macros, *OUR_WARNINGS]
        ext.extra_compile_args = [f"-I{work}", f"-I{NATIVE}", *flags]
        ext.extra_link_args = ["-pthread", *libraries]

    def _compile_library(self, ext: Any, tree: Path, copy: Path) -> None:
        json_c = pkg_config("json-c")
        if json_c is None:
            sys.exit("libvfio-user needs json-c: install pkg-config and json-c's headers (Debian: libjson-c-dev)")
        shutil.rmtree(copy, ignore_errors=True)
        for part in ("lib", "include"):
            shutil.copytree(tree / part, copy / part)
        change_library(copy)
        compiler: Any = self.compiler
        includes = [f"-I{copy / 'include'}", f"-I{copy / 'lib'}"]
        objects = compiler.compile(
            [str(copy / "lib" / f"{name}.c") for name in SOURCES],
            output_dir="/",  # the sources' absolute paths stand below it: the objects lie beside them, in our copy
            macros=[("_GNU_SOURCE", None)],
            extra_postargs=[*includes, *json_c[0], *THEIR_FLAGS],
        )
        ext.extra_objects = objects
        ext.extra_compile_args = [*includes, "-DNVMEEMU_OWN_LIBRARY", *ext.extra_compile_args]
        ext.extra_link_args = json_c[1]


def _bind(module: str, api: Path, header: str, work: Path) -> str:
    """Generates the C source of a cffi module; its path."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(api.read_text())
    ffi.set_source(module, f'#include "{header}"')
    generated = work / f"{module.rpartition('.')[2]}.c"
    ffi.emit_c_code(str(generated))
    return str(generated)


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


def extensions() -> list[Extension]:
    """The engine, and the binding if the library is there."""
    engine = Extension(ENGINE, sources=[], optional=True)
    if source_tree():
        return [engine, Extension(MODULE, sources=[])]
    if flags := system_library():
        return [engine, Extension(MODULE, sources=[], extra_compile_args=flags[0], extra_link_args=flags[1])]
    print("nvmeemu: no libvfio-user found (LIBVFIO_USER_SRC=DIR): built without its binding", file=sys.stderr)
    return [engine]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildModules})
