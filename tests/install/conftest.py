"""What a user installs from and into, without what this machine has set up already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
BUILT = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")


@pytest.fixture
def place() -> Iterator[Path]:
    """With a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def bare(place: Path) -> dict[str, str]:
    """An environment in which there is no libvfio-user: an empty cache. (pip's own one stays where it is.)"""
    cache = place / "cache"
    cache.mkdir()
    pip = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False)
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PIP_CACHE_DIR": pip.stdout.strip()}
    environment.pop("LIBVFIO_USER_SRC", None)
    return environment


@pytest.fixture
def checkout(place: Path) -> Path:
    """A copy as git has it: what is built in it is gone with it."""
    copy = place / "checkout"
    for folder in ("src", "scripts", "tools"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=BUILT)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(CHECKOUT / name, copy)
    return copy


@pytest.fixture(scope="session")
def sources() -> Path:
    """libvfio-user's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeemu" / "libvfio-user"
    tree = Path(os.environ.get("LIBVFIO_USER_SRC") or cache)
    assert (tree / "lib").is_dir(), "no sources of libvfio-user: run scripts/setup.sh libvfio-user"
    return tree
