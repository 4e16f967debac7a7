"""``pip install .`` into an empty virtual environment, as a user does it, and what the installed command then says."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nvmeemu.vfio import library
from server.guest import Guest
from server.process import Served, run

pytestmark = pytest.mark.long


def install(checkout: Path, place: Path, environment: dict[str, str]) -> Path:
    """The new environment. Nothing is in it, not even pip."""
    venv = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], env=environment, check=True)
    installed = pip_install(venv, checkout, environment)
    assert installed.returncode == 0, installed.stderr + installed.stdout
    return venv


def pip_install(venv: Path, checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--disable-pip-version-check")
    return subprocess.run(
        [*pip, "."], cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def test_with_the_librarys_sources_it_serves(checkout: Path, place: Path, bare: dict[str, str], sources: Path) -> None:
    venv = install(checkout, place, bare | {"LIBVFIO_USER_SRC": str(sources)})
    served = Served(f"{place}/s", "--disk", "mem:1M", command=(f"{venv}/bin/nvmeemu", "serve"))
    try:
        guest = Guest(served.path)
        guest.write(8, b"\xa5" * 4096)
        assert guest.read(8, 8) == b"\xa5" * 4096
        guest.leave()
        assert served.stop() == 0
    finally:
        served.close()
    packages = next(venv.glob("lib/python*/site-packages"))
    (licenses,) = packages.glob("nvmeemu-*.dist-info/licenses")
    assert "Nutanix" in (licenses / "src/nvmeemu/vfio/LICENSE.libvfio-user").read_text()
    assert (licenses / "LICENSE").read_text() == (checkout / "LICENSE").read_text()
    assert (packages / "nvmeemu/vfio/LICENSE.libvfio-user").is_file()


def test_without_them_it_says_what_is_missing(checkout: Path, place: Path, bare: dict[str, str]) -> None:
    venv = install(checkout, place, bare | {"LIBVFIO_USER_SRC": "none"})
    result = run("--socket", place / "s", "--disk", "mem:1M", command=(f"{venv}/bin/nvmeemu", "serve"))
    assert result.returncode == 1
    assert result.stderr == (
        "nvmeemu serve: the libvfio-user binding is not built (not compiled): run scripts/setup.sh, "
        "or install again with LIBVFIO_USER_SRC=DIR naming libvfio-user's sources\n"
    )
    assert result.stdout == ""


def test_pip_tells_what_is_missing_and_where_it_comes_from(checkout: Path, place: Path, bare: dict[str, str]) -> None:
    """Of a build that succeeds pip shows nothing: whoever was not told would meet it at the first ``nvmeemu serve``."""
    venv = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], env=bare, check=True)
    result = pip_install(venv, checkout, bare)
    assert result.returncode == 1
    said = " ".join((result.stderr + result.stdout).split())
    assert " ".join(library.MISSING.split()) in said
    assert "Traceback" not in said


def test_a_wheel_holds_the_package_and_nothing_that_lies_beside_it(
    checkout: Path, place: Path, bare: dict[str, str]
) -> None:
    """The maintainers' guest jobs in tools/ are not for users, neither beside the package nor within it."""
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "-w", place, ".")
    environment = bare | {"LIBVFIO_USER_SRC": "none"}
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, timeout=280)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    assert {name.parts[0] for name in names} == {"nvmeemu", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    ours = {name.relative_to("nvmeemu") for name in names if name.parts[0] == "nvmeemu" and name.suffix == ".py"}
    assert ours == {path.relative_to(checkout / "src/nvmeemu") for path in (checkout / "src/nvmeemu").rglob("*.py")}
    assert (checkout / "tools/guest/jobs.py").is_file()
    assert not {name.name for name in ours if name.parts[0] == "guest"} & {"jobs.py", "matrix.py", "cli.py"}
