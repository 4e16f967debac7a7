"""An installed libvfio-user is used if it fits; if not, its fault is named, and the build goes on without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeemu.spec import Command, NvmOpcode
from nvmeemu.vfio import library
from server.guest import Guest
from server.process import Served, run

pytestmark = pytest.mark.long

ASKED = (sys.executable, "-m", "nvmeemu.vfio.library")
SERVE = (sys.executable, "-m", "nvmeemu", "serve")
OLDER = "vfu_setup_device_dma(vfu_ctx_t *vfu_ctx, vfu_dma_register_cb_t"
REGIONS = "0005-regions"  # newer ones have the limit as an argument
NEWER = "vfu_setup_device_dma(vfu_ctx_t *vfu_ctx, size_t max_regions, vfu_dma_register_cb_t"
FAULTS = {
    "unmap-ranges": "it takes back single DMA regions, not ranges",
    "mapping-length": "it maps too little of a file",
    "irq-count": "it keeps the routes of interrupts",
}
NEWER_SRC = "NVMEEMU_NEWER_LIBVFIO_USER"
LIMIT = "#define LIBVFIO_USER_MAX_DMA_REGIONS 16\n"


class Installation:
    """A libvfio-user as a distribution's packages would have it; in a folder of its own."""

    def __init__(self, place: Path, sources: Path) -> None:
        self.place = place
        self.tree = place / "sources"
        for folder in ("lib", "include"):
            shutil.copytree(sources / folder, self.tree / folder)

    def make_newer(self) -> None:
        """With the limit as an argument, as upstream has it now."""
        for name in ("include/libvfio-user.h", "lib/libvfio-user.c"):
            self.change(name, OLDER, NEWER)
        self.change("include/libvfio-user.h", "#define LIB_VFIO_USER_MAJOR", LIMIT + "#define LIB_VFIO_USER_MAJOR")
        self.change("lib/libvfio-user.c", "vfu_ctx, MAX_DMA_REGIONS", "vfu_ctx, max_regions")
        self.change("lib/private.h", "#define MAX_DMA_REGIONS 16\n", "")

    def mend(self, *names: str, but: tuple[str, ...] = ()) -> None:
        """With our patches, which a distribution may take, too: those named, or all but those."""
        for patch in library.patches(self.tree):
            if (not names or patch.stem in names) and patch.stem not in but:
                subprocess.run(["patch", "-p1", "--fuzz=0", f"-i{patch}"], cwd=self.tree, check=True)

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.tree / name).read_text()
        assert old in text
        (self.tree / name).write_text(text.replace(old, new))

    def install(self) -> dict[str, str]:
        """The environment in which pkg-config, and then the loader, find it."""
        json_c = library.pkg_config("json-c")
        assert json_c is not None
        sources = [str(file) for file in (self.tree / "lib").glob("*.c") if file.name != "tran_pipe.c"]
        command = ["cc", "-shared", "-fPIC", "-w", "-D_GNU_SOURCE", f"-I{self.tree}/include", f"-I{self.tree}/lib"]
        command += [*json_c[0], *sources, "-o", f"{self.place}/libvfio-user.so", *json_c[1]]
        subprocess.run(command, check=True, capture_output=True)
        shutil.copytree(self.tree / "include", self.place / "include/vfio-user")
        (self.place / "libvfio-user.pc").write_text(
            f"libdir={self.place}\nincludedir={self.place}/include\n"
            "Name: libvfio-user\nDescription: a test's\nVersion: 0.0.1\n"
            "Cflags: -I${includedir}\nLibs: -L${libdir} -lvfio-user\n"
        )
        return {"PKG_CONFIG_PATH": str(self.place), "LD_LIBRARY_PATH": str(self.place)}


@pytest.fixture
def installation(place: Path, sources: Path) -> Installation:
    (place / "system").mkdir()
    return Installation(place / "system", sources)


def ask(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What scripts/setup.sh asks."""
    environment = environment | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.run(ASKED, env=environment, capture_output=True, text=True, check=False)


def set_up(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """scripts/setup.sh's own way to a libvfio-user; the steps that take minutes only say their names."""
    script = """
        set -euo pipefail
        . scripts/lib/common.sh
        . scripts/lib/components.sh
        make_libvfio_user() { echo "fetched"; }
        have_venv() { false; }
        make_venv() { echo "built"; }
        make_base
    """
    return subprocess.run(
        ["bash", "-c", script, "setup.sh"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def build(checkout: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """Where the package is then, and what the build has said."""
    built = _build(checkout, environment)
    assert built.returncode == 0, built.stderr
    return checkout / "package", built.stderr


def build_fails(checkout: Path, environment: dict[str, str]) -> str:
    """What the build says when it cannot be done."""
    built = _build(checkout, environment)
    assert built.returncode == 1
    assert "Traceback" not in built.stderr
    return built.stderr


def _build(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", "build", "--build-lib", "package"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def answers(package: Path, found: dict[str, str], place: Path) -> bool:
    """Whether a server with this package reads, writes and interrupts."""
    environment = found | {"PYTHONPATH": str(package)}
    served = Served(f"{place}/s", "--disk", "mem:1M", command=SERVE, environment=environment)
    try:
        guest = Guest(served.path)
        guest.submit(guest.create_queues(2, vector=1), Command(opcode=NvmOpcode.FLUSH, nsid=1))
        # One of the admin queue's may come first.
        was_interrupted = any(1 in guest.bus.wait_for_interrupt(10_000) for _ in range(2))
        guest.write(8, b"\xa5" * 4096)
        was_written = guest.read(8, 8) == b"\xa5" * 4096
        guest.leave()
        return was_interrupted and was_written and served.stop() == 0
    finally:
        served.close()


def test_one_that_fits_is_used(installation: Installation, checkout: Path, bare: dict[str, str], place: Path) -> None:
    installation.mend()
    found = installation.install()
    assert set_up(checkout, bare | found).stdout == "built\n"
    package, _ = build(checkout, bare | found)
    assert answers(package, found, place)
    result = run("--socket", place / "s", "--disk", "mem:1M", command=SERVE, environment={"PYTHONPATH": str(package)})
    assert result.returncode == 1  # it is that very library that serves
    assert "libvfio-user.so: cannot open shared object file" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_newer_signature_fits_too(installation: Installation, checkout: Path, bare: dict[str, str]) -> None:
    installation.make_newer()
    installation.mend(but=(REGIONS,))
    result = ask(checkout, bare | installation.install())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture
def newer() -> Path:
    """The sources that a QEMU from 11 on has. They are named, because Debian's servers do not keep them for long."""
    if (named := os.environ.get(NEWER_SRC)) is None:
        pytest.skip(
            f"{NEWER_SRC} does not name subprojects/libvfio-user of Debian's source package of a QEMU from 11 on"
        )
    return Path(named)


def test_the_newer_version_gets_patches_of_its_own(
    newer: Path, checkout: Path, bare: dict[str, str], place: Path
) -> None:
    """Each of them is for what it lacks as it is published, and a server with it works."""
    assert library.version(newer) == "0.2"
    (place / "system").mkdir()
    for lacking in library.patches(newer):
        shutil.rmtree(place / "system")
        (place / "system").mkdir()
        installation = Installation(place / "system", newer)
        installation.mend(but=(lacking.stem,))
        result = ask(checkout, bare | installation.install())
        assert result.returncode == 1
        assert FAULTS[lacking.stem[5:]] in result.stderr
    package, _ = build(checkout, bare | {"LIBVFIO_USER_SRC": str(newer)})
    assert answers(package, {}, place)


def test_as_published_they_lack_what_guests_with_an_iommu_need(
    installation: Installation, checkout: Path, bare: dict[str, str], sources: Path, place: Path
) -> None:
    older = installation.install()
    fetched = set_up(checkout, bare | older)
    assert fetched.stdout == "fetched\nbuilt\n"
    assert fetched.stderr == (
        "nvmeemu: the installed libvfio-user is not used: "
        "it takes 16 DMA regions, a guest with an IOMMU has 32768 and more\n"
    )
    said = build_fails(checkout, bare | older)
    assert "it takes 16 DMA regions" in said
    assert said.endswith(f"{library.MISSING}\n")
    assert not list(checkout.glob("package/nvmeemu/vfio/*.so"))


@pytest.mark.parametrize(
    ("lacking", "fault"),
    [
        (REGIONS, "it takes 16 DMA regions"),
        ("0004-unmap-ranges", FAULTS["unmap-ranges"]),
        ("0003-no-descriptor", "DMA regions, a guest with an IOMMU has"),
        ("0002-mapping-length", FAULTS["mapping-length"]),
        ("0001-irq-count", FAULTS["irq-count"]),
    ],
)
def test_the_check_knows_what_each_patch_is_for(
    installation: Installation, checkout: Path, bare: dict[str, str], lacking: str, fault: str
) -> None:
    assert {REGIONS, lacking} <= {patch.stem for patch in library.patches(installation.tree)}
    installation.mend(but=(lacking,))
    result = ask(checkout, bare | installation.install())
    assert result.returncode == 1
    assert fault in result.stderr


def test_a_tree_that_the_patches_do_not_fit_is_used_if_it_does_without_them(
    installation: Installation, tmp_path: Path
) -> None:
    installation.make_newer()
    installation.mend(but=(REGIONS,))  # upstream may mend all of that one day
    library.prepare(installation.tree, tmp_path / "copy")
    for folder in ("lib", "include"):
        for file in (installation.tree / folder).rglob("*.[ch]"):
            assert (tmp_path / "copy" / file.relative_to(installation.tree)).read_bytes() == file.read_bytes()


def test_a_tree_that_the_patches_do_not_fit_and_that_does_not_do_ends_the_build(
    installation: Installation, checkout: Path, bare: dict[str, str]
) -> None:
    installation.make_newer()
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", "build", "--build-lib", "package"],
        cwd=checkout,
        env=bare | {"LIBVFIO_USER_SRC": str(installation.tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "not a version that our patches are for (0005-regions.patch: " in result.stderr
    assert "and without them it does not do: it takes " in result.stderr
    assert "Traceback" not in result.stderr


def test_one_that_our_code_does_not_compile_with(
    installation: Installation, checkout: Path, bare: dict[str, str]
) -> None:
    installation.make_newer()
    found = installation.install()
    header = installation.place / "include/vfio-user/libvfio-user.h"
    header.write_text(header.read_text().replace(LIMIT, ""))
    result = ask(checkout, bare | found)
    assert result.returncode == 1
    assert "our code does not compile with it" in result.stderr
    assert "too few arguments to function" in result.stderr
    assert "Traceback" not in result.stderr


def test_sources_that_are_named_come_first(
    installation: Installation, checkout: Path, bare: dict[str, str], sources: Path
) -> None:
    found = bare | {"PKG_CONFIG_PATH": str(installation.place), "LIBVFIO_USER_SRC": str(sources)}
    (installation.place / "libvfio-user.pc").write_text("this would be said to be none")
    result = set_up(checkout, found)
    assert (result.stdout, result.stderr) == ("built\n", "")
