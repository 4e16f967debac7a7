"""``serve --trace``: what is in the file when all goes well, when the server is killed, and when the disk is full."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from nvmeemu import trace
from nvmeemu.spec import NvmOpcode
from nvmeemu.testing import VfioBus
from nvmeemu.testing.client import BAR0, COMMAND, CONFIG
from nvmeemu.trace import words
from nvmeemu.trace.commands import commands
from nvmeemu.vfio.pci import PM
from server.conftest import Attach
from server.process import NVMEEMU, Serve, run
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


def test_what_the_host_lets_the_function_do(serve: Serve, path: str, folder: Path) -> None:
    """Firmware that never sets Bus Master Enable, and whatever else takes the memory away or gives it back."""
    file = folder / "t"
    server = serve("--disk", "mem:16M", "--trace", file, "--once")
    with VfioBus(path, ram=4 << 20) as bus:
        client = bus.client
        client.write(CONFIG, COMMAND, b"\x02\x00")
        client.write(BAR0, 0x1000, b"\x01\x00\x00\x00")  # a doorbell
        client.write(CONFIG, 0x0C, b"\x10")  # the size of a cache line: nothing that acts
        client.enable_bus_master()
        client.write(CONFIG, PM + 4, b"\x03\x00")
        client.write(CONFIG, PM + 4, b"\x00\x00")
        bus.function_level_reset()
        client.enable_bus_master()
        client.reset()
    assert server.wait() == 0
    kinds = (trace.ClientAttached, trace.ClientLeft, trace.PciChange, trace.DmaMap, trace.DmaUnmap, trace.Reset)
    told = [words.describe(one) for one in read(file) if isinstance(one, (*kinds, trace.Doorbell))]
    ready = [("PCI", "bus master on, memory space on, D0"), ("DMA", "map 0x0, 4 MiB")]
    assert told[0][1].startswith("attached: ")
    assert told[1:] == [
        ("PCI", "bus master off, memory space off, D0"),
        *ready,
        ("PCI", "bus master off, memory space on, D0"),
        ("DMA", "unmap 0x0"),
        ("SQ 0", "tail 1"),
        *ready,
        ("PCI", "bus master on, memory space on, D3hot"),
        ("DMA", "unmap 0x0"),
        *ready,
        ("PCI", "function level reset, bus master off, memory space off, D0"),
        ("reset", "the function is reset"),
        ("DMA", "unmap 0x0"),
        *ready,
        ("PCI", "bus master off, memory space off, D0"),
        ("DMA", "unmap 0x0"),
        ("reset", "the function is reset"),
        ("reset", "the function is reset"),
        ("client", "left"),
        ("reset", "the function is reset"),  # at the server's end
    ]


@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_killed_server_leaves_all_but_the_last_moment(
    serve: Serve, attach: Attach, folder: Path, engine: str
) -> None:
    """50 ms; other tests may have the CPU for longer, so one of three shall do."""
    found = []
    for attempt in range(3):
        file, at = folder / f"t{attempt}", str(folder / f"s{attempt}")
        server = serve("--disk", "mem:16M", "--trace", file, "--engine", engine, at=at)
        attach(at).read(slba=0, blocks=1)
        time.sleep(0.25)
        server.send(signal.SIGKILL)
        server.wait()
        last = list(commands(read(file)))[-1]
        found.append((last.fetch.sqid, last.fetch.opcode, last.completion is not None))
        if found[-1] == (1, NvmOpcode.READ, True):
            return
    raise AssertionError(found)


def test_a_full_disk_ends_the_trace_and_nothing_else(serve: Serve, attach: Attach, folder: Path) -> None:
    """A file system of 128 KiB, that only the server sees; also for one who may not mount any (a user namespace)."""
    (folder / "small").mkdir()
    alone = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
    mount = f"mount -t tmpfs -o size=128k tmpfs {folder}/small"
    command = (*alone, "sh", "-c", f'{mount} && exec "$@"', "sh", NVMEEMU, "serve")
    server = serve("--disk", "mem:16M", "--trace", folder / "small/t", command=command)
    guest = attach()
    told = "t: No space left on device: it ends here; the guest goes on"
    for number in range(1000):
        guest.write(slba=number, data=number.to_bytes(512, "little"))
        assert guest.read(slba=number, blocks=1) == number.to_bytes(512, "little")
    server.expect(told)
    file = Path(f"/proc/{server.pid}/root{folder}/small/t")
    assert 100_000 < file.stat().st_size <= 128 << 10
    found = read(file)
    assert len(found) > 400
    assert sum(isinstance(one, trace.Completion) and one.status == 0 for one in found) > 100
    guest.leave()
    assert server.stop() == 0
    assert server.log.count(told) == server.log.count("No space left") == 1


def test_a_file_that_may_not_grow_ends_the_trace_and_nothing_else(serve: Serve, attach: Attach, folder: Path) -> None:
    """A write that is cut short, and then an error."""
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
