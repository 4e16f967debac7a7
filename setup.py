"""Builds the four cffi modules; the rest is in pyproject.toml.

nvmeemu.engine.native._engine is the native engine. It is built where there is a C compiler, and uses liburing (to
wait for many disks at once) and libisal (checksums for traces) where they are installed; without it `nvmeemu serve`
works, slower.

nvmeemu.subsystem._protection makes and checks protection information, with libisal where it is installed. It is built
where there is a C compiler; without it no namespace has protection information.

nvmeemu.backend._block_map has the states of blocks that Python and the engine share; it goes with the engine.
nvmeemu.backend._atomicity keeps reads and writes of a disk apart, and has the journal of writes that a kill must not
cut. It is built where there is a C compiler; without it only a block is atomic, if nobody reads it meanwhile.

nvmeemu.vfio._libvfio_user is libvfio-user and our binding; nvmeemu.vfio.library tells where the library comes from.
With none, the build says so and ends; with LIBVFIO_USER_SRC=none the package is built without the binding, and
`nvmeemu serve` says what is missing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
from nvmeemu.vfio import library  # of this tree, which is not installed yet

MODULE = "nvmeemu.vfio._libvfio_user"
ENGINE = "nvmeemu.engine.native._engine"
PROTECTION = "nvmeemu.subsystem._protection"
BLOCK_MAP = "nvmeemu.backend._block_map"
ATOMICITY = "nvmeemu.backend._atomicity"
OUR_FLAGS = ("-std=gnu11", "-D_FILE_OFFSET_BITS=64", "-fvisibility=hidden")  # its names are nobody else's
HERE = Path(__file__).resolve().parent
VFIO = HERE / "src" / "nvmeemu" / "vfio"
NATIVE = HERE / "src" / "nvmeemu" / "engine" / "native"


class BuildModules(build_ext):
    """Generates the binding of each module, and compiles it together with what it binds."""

    def run(self) -> None:
        self.library = library.find()
        if self.library is None:
            print("nvmeemu: built without libvfio-user, as LIBVFIO_USER_SRC=none wants it", file=sys.stderr)
            self.extensions = [ext for ext in self.extensions if ext.name != MODULE]
        super().run()

    def build_extension(self, ext: Any) -> None:
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        self.force = True  # it takes seconds, and a header or the library's place may have changed
        if ext.name == ENGINE:
            self._prepare_engine(ext, work)
        elif ext.name == PROTECTION:
            self._prepare_part(ext, work, "protection", "libisal")
        elif ext.name == BLOCK_MAP:
            self._prepare_part(ext, work, "block_map")
        elif ext.name == ATOMICITY:
            self._prepare_atomicity(ext, work)
        else:
            ext.sources = [_bind(MODULE, "shim.h", work, VFIO / "api.h")]
            ext.extra_compile_args = [f"-I{VFIO}", *library.OUR_WARNINGS]
            if isinstance(self.library, library.Installed):
                ext.extra_compile_args += self.library.to_compile
                ext.extra_link_args = self.library.to_link
            elif self.library is not None:
                self._compile_library(ext, self.library, work / "libvfio-user")
        super().build_extension(ext)

    def _prepare_engine(self, ext: Any, work: Path) -> None:
        from nvmeemu.engine.native.generate import header

        (work / "nvme_spec.h").write_text(header())
        ext.sources = [
            _bind(ENGINE, "interface.h", work, NATIVE / "api.h"),
            *(os.path.relpath(source, HERE) for source in sorted(NATIVE.glob("*.c"))),
        ]
        self._use_libraries(ext, "liburing", "libisal")
        ext.extra_compile_args += [f"-I{work}", "-pthread"]
        ext.extra_link_args += ["-pthread"]

    def _prepare_part(self, ext: Any, work: Path, part: str, *libraries: str) -> None:
        """A part of the engine that Python uses, too."""
        header = f"{part}.h"
        ext.sources = [_bind(ext.name, header, work, NATIVE / header), os.path.relpath(NATIVE / f"{part}.c", HERE)]
        self._use_libraries(ext, *libraries)

    def _prepare_atomicity(self, ext: Any, work: Path) -> None:
        names = ("ranges", "journal")
        both = work / "atomicity.h"
        both.write_text("".join(f'#include "{name}.h"\n' for name in names))
        ext.sources = [
            _bind(ATOMICITY, both.name, work, *(NATIVE / f"{name}.h" for name in names)),
            *(os.path.relpath(NATIVE / f"{name}.c", HERE) for name in names),
        ]
        self._use_libraries(ext)
        ext.extra_compile_args += [f"-I{work}"]

    def _use_libraries(self, ext: Any, *names: str) -> None:
        """The flags for C code of ours, and for those of these libraries that are installed."""
        ext.extra_compile_args = [f"-iquote{NATIVE}", *OUR_FLAGS, *library.OUR_WARNINGS]
        for name in names:
            if found := library.pkg_config(name):
                ext.extra_compile_args += [f"-DHAVE_{name.upper()}", *found[0]]
                ext.extra_link_args += found[1]

    def _compile_library(self, ext: Any, tree: Path, copy: Path) -> None:
        json_c = library.pkg_config("json-c")
        if json_c is None:
            sys.exit("libvfio-user needs json-c: install pkg-config and json-c's headers (Debian: libjson-c-dev)")
        library.prepare(tree, copy)
        compiler: Any = self.compiler
        includes = [f"-I{copy / 'include'}", f"-I{copy / 'lib'}"]
        objects = compiler.compile(
            [str(source) for source in library.sources(copy)],
            output_dir="/",  # the sources' absolute paths stand below it: the objects lie beside them, in our copy
            macros=[("_GNU_SOURCE", None)],
            extra_postargs=[*includes, *json_c[0], *library.THEIR_FLAGS],
        )
        ext.extra_objects = objects
        ext.extra_compile_args = [*includes, "-DNVMEEMU_OWN_LIBRARY", *ext.extra_compile_args]
        ext.extra_link_args = json_c[1]


def _bind(module: str, header: str, work: Path, *apis: Path) -> str:
    """Generates the C source of a cffi module; its path."""
    from cffi import FFI

    ffi = FFI()
    for api in apis:
        ffi.cdef(re.sub(r"^#(?!define \w+ ).*\n", "", api.read_text(), flags=re.MULTILINE))  # it takes constants only
    ffi.set_source(module, f'#include "{header}"')
    generated = work / f"{module.rpartition('.')[2]}.c"
    ffi.emit_c_code(str(generated))
    return str(generated)


setup(
    ext_modules=[
        Extension(ENGINE, sources=[], optional=True),
        Extension(PROTECTION, sources=[], optional=True),
        Extension(BLOCK_MAP, sources=[], optional=True),
        Extension(ATOMICITY, sources=[], optional=True),
        Extension(MODULE, sources=[]),
    ],
    cmdclass={"build_ext": BuildModules},
)
