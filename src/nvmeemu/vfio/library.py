"""Where the build takes libvfio-user from, and what it changes in it. It runs before anything is installed.

The library comes from, in this order:

1. LIBVFIO_USER_SRC, an unpacked source tree, or "none": a package without ``nvmeemu serve`` is wanted;
2. an installed library that pkg-config knows and that passes a check;
3. the source tree in the cache, which scripts/setup.sh fetches.

patches/ mends what is wrong in the versions that Debian's QEMU sources contain, 0.1 (QEMU 10) and 0.2 (QEMU 11); each
patch says why. A source tree that all patches for its version fit gets all of them. Any other tree is used as it is if
it passes the check, and otherwise the build ends.

The check: the library has neither a stable ABI nor a stable API, so our shim must compile with it, with either
signature of vfu_setup_device_dma. And it must do what the patches are for (check_library.c tries that out as a
client), because guests with an IOMMU would end their QEMU without it. The libraries that we know of, as they are
published, fail: the older has room for 16 DMA regions, the newer takes back single ones only.
``python3 -m nvmeemu.vfio.library`` says on stderr why an installed library does not fit, exit 1, or exits with 0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUR_WARNINGS = ["-Wall", "-Wextra", "-Werror"]
PACKAGES = ("libvfio-user", "vfio-user")  # upstream has no .pc file: names that distributions may choose
MISSING = """\
nvmeemu needs libvfio-user for "nvmeemu serve", and there is none that can be used. Do one of these:
  scripts/setup.sh libvfio-user      fetches its sources, once, to where this build finds them
  LIBVFIO_USER_SRC=DIR pip install . with DIR: subprojects/libvfio-user of Debian's source package of QEMU
  LIBVFIO_USER_SRC=none pip install . without "nvmeemu serve" (traces, profiles, drives in a test's process)"""
CHECK_TIME = 60  # seconds; it takes about one

PATCHES = HERE / "patches"  # a folder for each version
_VERSION = re.compile(r"^#define LIB_VFIO_USER_(?:MAJOR|MINOR) (\d+)$", re.MULTILINE)
NOT_OURS = "tran_pipe.c"  # the library's own tests use it
# The library's own files: no warnings of theirs in our builds; its asserts stay, because an abort is better than
# corrupted memory; its functions are not exported from the module.
THEIR_FLAGS = ["-w", "-UNDEBUG", "-fvisibility=hidden"]


@dataclass(frozen=True)
class Installed:
    """The flags for an installed library."""

    to_compile: list[str]
    to_link: list[str]


def find() -> Installed | Path | None:
    """An installed library or a source tree; None if none is wanted. Exits if there is none, or if LIBVFIO_USER_SRC
    names something else."""
    if named := os.environ.get("LIBVFIO_USER_SRC"):
        if named == "none":
            return None
        if _is_tree(Path(named)):
            return Path(named).resolve()
        sys.exit(f"LIBVFIO_USER_SRC={named}: not a libvfio-user tree (no lib/libvfio-user.c)")
    if installed := installed_library():
        return installed
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeemu" / "libvfio-user"
    return cache if _is_tree(cache) else sys.exit(MISSING)


def _is_tree(place: Path) -> bool:
    return (place / "lib" / "libvfio-user.c").is_file()


def pkg_config(package: str) -> tuple[list[str], list[str]] | None:
    """The flags to compile and to link with a package, or None if pkg-config does not know it."""
    flags = [_ask_pkg_config(package, what) for what in ("--cflags", "--libs")]
    return None if flags[0] is None or flags[1] is None else (flags[0], flags[1])


def _ask_pkg_config(package: str, what: str) -> list[str] | None:
    try:
        return subprocess.run(["pkg-config", what, package], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None


def installed_library() -> Installed | None:
    """An installed library that passes the check. For each one that does not, stderr says why."""
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
        command = [*_compiler(), "-D_GNU_SOURCE", *OUR_WARNINGS, "-Wno-unused-function"]
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


def version(tree: Path) -> str:
    """The version that the header of a source tree tells, such as 0.1."""
    return ".".join(_VERSION.findall((tree / "include" / "libvfio-user.h").read_text()))


def patches(tree: Path) -> list[Path]:
    """Ours for the version of a source tree; none if we know none."""
    return sorted((PATCHES / version(tree)).glob("*.patch"))


def prepare(tree: Path, copy: Path) -> None:
    """Make a copy of a source tree that is fit for us. Exits if the tree neither takes our patches nor passes the check
    as it is."""
    _copy_tree(tree, copy)
    misfit = _mend(copy)
    if misfit is None:
        return
    _copy_tree(tree, copy)  # without the patches before the one that did not fit
    lack = _misfit_of_tree(copy)
    if lack is not None:
        sys.exit(
            f"libvfio-user in {tree} is not a version that our patches are for ({misfit}), and without them it does "
            f"not do: {lack}\nUse the copy that scripts/setup.sh libvfio-user fetches"
        )


def _mend(copy: Path) -> str | None:
    """Apply the patches for its version; what does not fit."""
    found = patches(copy)
    for patch in found:
        refusal = _apply(copy, patch)
        if refusal is not None:
            return f"{patch.name}: {refusal}"
    return None if found else f"it is {version(copy)}"


def _copy_tree(tree: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("lib", "include"):
        shutil.copytree(tree / part, copy / part)


def _apply(copy: Path, patch: Path) -> str | None:
    """Why the patch does not fit; None if it has been applied. No line of its context may differ (no fuzz)."""
    command = ["patch", "--strip=1", "--fuzz=0", "--batch", "--forward", f"--input={patch}"]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit("libvfio-user has to be patched: install patch (Debian: patch)")
    return None if done.returncode == 0 else " ".join(done.stdout.split("\n", 2)[1:2]) or done.stderr.strip()


def sources(tree: Path) -> list[Path]:
    """The C files that make the library."""
    return [file for file in sorted((tree / "lib").glob("*.c")) if file.name != NOT_OURS]


def _misfit_of_tree(tree: Path) -> str | None:
    """What does not fit of a source tree, as it is."""
    json_c = pkg_config("json-c") or ([], [])
    with tempfile.TemporaryDirectory() as place:
        built = Path(place) / "libvfio-user.so"
        includes = [f"-I{tree / 'include'}", f"-I{tree / 'lib'}"]
        command = [*_compiler(), "-shared", "-fPIC", *THEIR_FLAGS[:2], "-D_GNU_SOURCE", *includes, *json_c[0]]
        command += [*map(str, sources(tree)), "-o", str(built), *json_c[1]]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode != 0:
            return f"it does not compile:\n{compiled.stderr}"
        return _misfit(Installed(includes[:1], [str(built), f"-Wl,-rpath,{place}"]))


def _compiler() -> list[str]:
    return os.environ.get("CC", "cc").split()


if __name__ == "__main__":
    sys.exit(installed_library() is None)
