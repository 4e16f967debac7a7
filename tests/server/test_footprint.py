"""What a server costs: measured and reported (``pytest -rP``, or the JUnit properties), and what it must not do:
wake while idle, grow, or leak."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from nvmeemu.spec import Command, NvmOpcode, Status
from nvmeemu.testing import PAGE, VfioClient
from server.conftest import Attach
from server.guest import Guest
from server.load import run_batch, transfer
from server.process import Serve, Served

pytestmark = pytest.mark.long

COMMANDS = 100_000
BATCH = 50
MOST_GROWTH = 4096  # KiB

Report = Callable[[str, object], None]


@pytest.fixture
def report(record_property: Report) -> Report:
    def tell(name: str, value: object) -> None:
        record_property(name, value)
        print(f"{name}: {value}")

    return tell


def descriptors(served: Served) -> int:
    return len(os.listdir(f"/proc/{served.pid}/fd"))


def test_start_up_is_reported(path: str, serve: Serve, report: Report) -> None:
    walls, cpus = [], []
    for _ in range(3):
        begin, children = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        served = serve("--disk", "mem:1G")
        VfioClient(path).close()
        walls.append(time.monotonic() - begin)
        assert served.stop() == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime)
    report("start-up, process to first client (ms)", round(median(walls) * 1000))
    report("start-up and end, CPU (ms)", round(median(cpus) * 1000))


def test_an_idle_server_sleeps(disk: Path, serve: Serve, attach: Attach, report: Report) -> None:
    served = serve("--disk", disk)
    guest = attach()
    guest.write(0, bytes(512))
    switches, cpu = served.status("voluntary_ctxt_switches"), served.cpu_seconds()
    time.sleep(1)  # what happens in a second without events: nothing
    report("idle, wake-ups per second", served.status("voluntary_ctxt_switches") - switches)
    report("idle, CPU seconds per second", round(served.cpu_seconds() - cpu, 2))
    report("idle, resident (KiB)", served.status("VmRSS"))
    report("idle, resident and its own (KiB)", served.status("RssAnon"))
    assert served.status("voluntary_ctxt_switches") - switches < 5


def load(guest: Guest, number: int) -> None:
    """Reads, writes, flushes, and errors, of a few pages of the disk."""
    place = guest.alloc(2 * PAGE)
    commands: list[Command] = [transfer(NvmOpcode.READ, place, 8 * index, 2 * PAGE) for index in range(BATCH - 6)]
    commands += [transfer(NvmOpcode.WRITE, place, 8 * index) for index in range(4)]
    commands += [Command(opcode=0x55, nsid=1), Command(opcode=NvmOpcode.FLUSH, nsid=0xFFFFFFFF)]
    for _ in range(number // BATCH):
        for command in commands:
            command.cid = 0
        completions = run_batch(guest, commands)
        failed = [completion.status for completion in completions if completion.status]
        assert failed == [Status.INVALID_OPCODE]


@pytest.mark.parametrize("spec", ["mem:16M", "file"])
def test_it_does_not_grow_over_many_commands(
    disk: Path, serve: Serve, attach: Attach, report: Report, spec: str
) -> None:
    served = serve("--disk", disk if spec == "file" else spec)
    guest = attach()
    number = COMMANDS if spec == "mem:16M" else COMMANDS // 10  # each of its writes goes to a thread
    load(guest, number // 10)
    anonymous, threads, files = served.status("RssAnon"), served.status("Threads"), descriptors(served)
    cpu = served.cpu_seconds()
    load(guest, number)
    growth = served.status("RssAnon") - anonymous
    report(f"{spec}: growth over {number} commands (KiB)", growth)
    report(f"{spec}: CPU per command (us)", round((served.cpu_seconds() - cpu) / number * 1e6, 1))
    assert growth < MOST_GROWTH
    assert served.status("Threads") <= max(threads, 10)
    assert descriptors(served) == files


def test_guests_that_come_and_go_leave_nothing(disk: Path, serve: Serve, path: str, report: Report) -> None:
    served = serve("--disk", disk, "--log-level", "error")
    sizes, files = [], []
    for _ in range(60):
        guest = Guest(path, ram=4 << 20)
        guest.write(0, bytes(PAGE))
        assert guest.read(0, 8) == bytes(PAGE)
        sizes.append(served.status("RssAnon"))
        files.append(descriptors(served))
        guest.leave()
    report("growth over 50 guests (KiB)", sizes[-1] - sizes[9])
    assert sizes[-1] - sizes[9] < MOST_GROWTH
    assert files[-1] == files[9]
