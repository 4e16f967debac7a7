"""Known faults put into the native engine's C, to prove that the tests can fail: ``mutants.py [NAME...]``.

Each mutant of mutants.toml (conformance/anchors.py finds its place) is compiled in a temporary folder and loaded
instead of the real engine. First the two data paths are compared on a few generated commands; a mutant that survives
this meets the conformance tests and those of the engine, and then many commands. A crash and a hang are ways to be
found out, too. The unchanged engine, built in the same way, must pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "fuzz")]

from conformance import mutants  # noqa: E402
from conformance.anchors import BadMutant, Change  # noqa: E402
from conformance.mutants import Mutant  # noqa: E402

HERE = Path(__file__).parent.relative_to(ROOT)
NATIVE = "src/nvmeemu/engine/native"
MODULE = "nvmeemu.engine.native._engine"
FEW, CASES, SEED = 300, 3000, 1
_OWN = ("engine", "media", "paired", "load", "atomicity")
TESTS = (*(f"tests/native/test_{name}.py" for name in _OWN), "tests/conformance")
SECONDS = 600  # for the tests of one mutant, of real time
JOBS = 2
FLAGS = ("-std=gnu11", "-D_FILE_OFFSET_BITS=64", "-O1", "-fPIC", "-pthread", "-fvisibility=hidden", "-w")


class Builder:
    """Compiles the engine once, and of each mutant the changed file, or everything if that is a header."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._liburing = subprocess.run(("pkg-config", "--exists", "liburing"), check=False).returncode == 0
        self._root = folder / "root"  # a copy: all is compiled from the same state of the sources
        shutil.copytree(ROOT / NATIVE, self._root / NATIVE)
        self._generate()
        self._compile_all(self._root, folder)

    def _generate(self) -> None:
        from cffi import FFI

        from nvmeemu.engine.native.generate import header

        (self._folder / "nvme_spec.h").write_text(header())
        ffi = FFI()
        ffi.cdef((self._root / NATIVE / "api.h").read_text())
        ffi.set_source(MODULE, '#include "interface.h"')
        ffi.emit_c_code(str(self._folder / "_engine.c"))

    def _compile_all(self, root: Path, folder: Path) -> None:
        for source in (*sorted((root / NATIVE).glob("*.c")), self._folder / "_engine.c"):
            self._compile(root, source, folder)

    def _compile(self, root: Path, source: Path, folder: Path) -> None:
        places = (f"-iquote{root / NATIVE}", f"-I{self._folder}", f"-I{sysconfig.get_path('include')}")
        options = (*FLAGS, *places, *(("-DHAVE_LIBURING",) if self._liburing else ()))
        subprocess.run(("cc", *options, "-c", source, "-o", folder / f"{source.stem}.o"), check=True)

    def _compile_change(self, change: Change, folder: Path) -> None:
        root = folder / "root"
        shutil.copytree(self._root, root)
        (root / change.file).write_text(change.text)
        if change.file.suffix == ".h":
            self._compile_all(root, folder)
        else:
            self._compile(root, root / change.file, folder)

    def library(self, mutant: Mutant | None) -> Path:
        """The module with the mutant in it. Raises BadMutant."""
        name = mutant.name if mutant else "unchanged"
        folder = self._folder / name
        folder.mkdir()
        if mutant is not None:
            try:
                self._compile_change(mutant.change(self._root), folder)
            except subprocess.CalledProcessError:
                raise BadMutant("it does not compile") from None
        objects = {path.stem: path for place in (self._folder, folder) for path in place.glob("*.o")}
        library = folder / "_engine.so"
        liburing = ("-luring",) if self._liburing else ()
        subprocess.run(("cc", "-shared", "-pthread", "-o", library, *objects.values(), *liburing), check=True)
        return library


@dataclass
class Verdict:
    name: str
    how: str  # it was found out; empty: it was not
    fault: str = ""
    seconds: float = 0  # until then


def _judge(builder: Builder, mutant: Mutant | None) -> Verdict:
    name = mutant.name if mutant else "(unchanged)"
    try:
        library = builder.library(mutant)
    except BadMutant as error:
        return Verdict(name, "", str(error))
    command = (sys.executable, __file__, "--child", library)
    begin = time.monotonic()
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(name, "it hangs", seconds=SECONDS)
    seconds = time.monotonic() - begin
    if result.returncode < 0:
        return Verdict(name, f"it crashes (signal {-result.returncode})", seconds=seconds)
    if result.returncode == 0:
        return Verdict(name, "", seconds=seconds)
    said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    failed = [line for line in said if line.startswith(("differential: ", "FAILED "))]
    return Verdict(name, failed[0] if failed else "", "" if failed else f"no test has failed: {said[-1]}", seconds)


def loaded(name: str, library: Path) -> ModuleType:
    """The compiled module of that name that lies there, beside any other one."""
    spec = spec_from_file_location(name, library, loader=ExtensionFileLoader(name, str(library)))
    assert spec is not None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def _child(library: Path) -> int:
    """Run the tests on this engine."""
    module = loaded(MODULE, library)
    sys.modules[MODULE] = module
    if _differs(FEW):
        return 1
    options = ("-q", "-x", "-n0", "-p", "no:cacheprovider", "--tb=line", "--assert=plain", "--timeout=60")
    chosen = ("-k", "native or mapped", "--deselect", "tests/conformance/test_mutants.py")
    return int(pytest.main([*options, *chosen, *TESTS])) or int(_differs(CASES))


def _differs(cases: int) -> bool:
    from differential.run import run
    from differential.sides import Difference

    try:
        run(cases, SEED)
    except (Difference, KeyError, TimeoutError, AssertionError) as difference:  # also what Driver raises
        print(f"differential: {type(difference).__name__}: {str(difference)[:140]}")
        return True
    return False


@contextmanager
def builders() -> Iterator[Builder]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        yield Builder(Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests of the native engine against known faults.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return _child(arguments.child)
    try:
        found = mutants.load(ROOT, HERE).values()
    except BadMutant as error:
        parser.error(str(error))
    chosen = [mutant for mutant in found if not arguments.names or mutant.name in arguments.names]
    faults = 0
    with builders() as builder, ThreadPoolExecutor(JOBS) as pool:
        for verdict in pool.map(lambda mutant: _judge(builder, mutant), [None, *chosen]):
            is_wrong = bool(verdict.fault) or bool(verdict.how) == (verdict.name == "(unchanged)")
            faults += is_wrong
            what = verdict.fault or verdict.how or "nothing found"
            print(
                f"{'ERROR' if is_wrong else 'right':6} {verdict.name:40} {verdict.seconds:4.0f} s  {what}", flush=True
            )
    print(f"mutants of the engine: {len(chosen)}, {faults} errors; CPU {sum(os.times()[:4]):.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
