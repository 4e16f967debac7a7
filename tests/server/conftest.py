"""Fixtures of the server's tests: a served disk, a driver for it, and a disk that misbehaves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.guest import Guest
from server.process import Serve, Served
from server.shim import Shim, compile_shim

MIB = 1 << 20
Attach = Callable[..., Guest]


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a real file system (/tmp may be in memory), with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "s")


@pytest.fixture
def disk(folder: Path) -> Path:
    """16 MiB, sparse."""
    disk = folder / "disk.raw"
    disk.touch()
    with disk.open("r+b") as file:
        file.truncate(16 * MIB)
    return disk


@pytest.fixture
def serve(path: str) -> Iterator[Serve]:
    """Start a server; the arguments are the command line's, without --socket."""
    started: list[Served] = []

    def start(*arguments: object, at: str = path, **options: Any) -> Served:
        served = Served(at, *arguments, **options)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()


@pytest.fixture
def attach(path: str) -> Iterator[Attach]:
    """Connect a guest to the server."""
    guests: list[Guest] = []

    def connect(at: str = path, **options: int) -> Guest:
        guests.append(Guest(at, **options))
        return guests[-1]

    yield connect
    for guest in guests:
        guest.leave()


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


PATHS = ("python", "native", "io_uring", "lane")  # what a Shim is told


@pytest.fixture
def shim(request: pytest.FixtureRequest, shim_library: Path, folder: Path, disk: Path) -> Iterator[Shim]:
    """Between a server (started with ``*shim.engine, environment=shim.environment``) and ``disk``."""
    shim = Shim(shim_library, folder, disk, trace=True, path=getattr(request, "param", "python"))
    yield shim
    shim.release()
    shim.close()
