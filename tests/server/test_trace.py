"""``serve --trace``: what is in the file when all goes well, when the server is killed, and when the disk is full."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import pytest

from nvmeemu import trace
from nvmeemu.spec import NvmOpcode
from nvmeemu.trace.commands import commands
from server.conftest import Attach
from server.process import Serve, run
from server.test_bad_use import refused

pytestmark = pytest.mark.long

MIB = 1 << 20


def read(path: Path) -> list[trace.Record]:
    with trace.open_trace(path) as found:
        return list(found)


@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_client_from_attach_to_leaving(serve: Serve, attach: Attach, folder: Path, engine: str) -> None:
    file = folder / "t"
    server = serve("--disk", "mem:16M", "--trace", file, "--once", "--engine", engine)
    guest = attach()
    guest.write(slba=0, data=b"x" * 512)
    guest.read(slba=0, blocks=1)
    guest.leave()
    assert server.wait() == 0
    found = read(file)
    assert isinstance(found[0], trace.ClientAttached)
    assert sum(isinstance(one, trace.ClientLeft) for one in found) == 1
    assert [one.fetch.opcode for one in commands(found) if one.fetch.sqid] == [NvmOpcode.WRITE, NvmOpcode.READ]
    assert all(one.completion for one in commands(found))


def test_a_killed_server_leaves_all_but_the_last_moment(serve: Serve, attach: Attach, folder: Path) -> None:
    file = folder / "t"
    server = serve("--disk", "mem:16M", "--trace", file)
    guest = attach()
    guest.read(slba=0, blocks=1)
    time.sleep(1.5)
    server.send(signal.SIGKILL)
    server.wait()
    last = list(commands(read(file)))[-1]
    assert (last.fetch.sqid, last.fetch.opcode) == (1, NvmOpcode.READ)
    assert last.completion is not None


def test_a_full_disk_ends_the_trace_and_nothing_else(serve: Serve, attach: Attach, folder: Path) -> None:
    """The limit of a file's size stands for it: a write that is cut short, and then an error."""
    file = folder / "t"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, 100_001))

    server = serve("--disk", "mem:16M", "--trace", file, "--once", preexec_fn=limit)
    guest = attach()
    for number in range(1000):
        guest.write(slba=number, data=number.to_bytes(512, "little"))
        assert guest.read(slba=number, blocks=1) == number.to_bytes(512, "little")
    guest.leave()
    assert server.wait() == 0
    assert server.log.count("File too large: it ends here") == 1
    assert file.stat().st_size == 100_001
    with trace.open_trace(file) as found:
        assert len(list(found)) > 400
        assert found.is_cut


def test_bad_places_for_a_trace(folder: Path, disk: Path) -> None:
    path = folder / "s"
    options = ("--socket", path, "--disk", "mem:16M")
    refused(run(*options, "--trace", disk), 2, "--trace", "a file that is no trace")
    refused(run(*options, "--trace", folder), 1, "--trace", "Is a directory")
    refused(run(*options, "--trace", folder / "none" / "t"), 1, "--trace", "No such file")
    refused(run(*options, "--trace-payload"), 2, "--trace FILE")
