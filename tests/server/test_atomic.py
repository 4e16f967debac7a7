"""Writes of ``atomic`` bytes are whole: for readers of another queue, and after a kill -9 in the middle of one.

The shim holds a write when half of it is on the disk. What cannot be held like that, memory, is read over and over.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from nvmeemu.app.cli import main
from nvmeemu.spec import Read, ReadWrite, Status, Write
from server.conftest import MIB, Attach
from server.guest import Guest
from server.process import Serve
from server.shim import Op, Shim

UNIT = 64 << 10
KILLS = 50
PROTECTION = ("--metadata", "8", "--protection", "1")
PRACT, CHECK_ALL = 1 << 29, 0b111 << 26


def paths(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shim", names, indirect=True)


def command(guest: Guest, kind: type[ReadWrite], place: int, size: int, slba: int = 0) -> ReadWrite:
    prp1, prp2 = guest.prps(place, size)
    return kind(nsid=1, slba=slba, nlb=size // 512, prp1=prp1, prp2=prp2)


def begin(guest: Guest, content: bytes, slba: int = 0) -> None:
    """Begin a write, on the second queue."""
    place = guest.alloc(len(content))
    guest.bus.write_memory(place, content)
    guest.submit(guest.queues[2], command(guest, Write, place, len(content), slba))


@paths("python", "io_uring", "lane")
def test_no_reader_sees_half_of_a_write(serve: Serve, attach: Attach, shim: Shim, disk: Path) -> None:
    """The far read, which comes behind, shows that the other one had the time to go wrong."""
    serve("--disk", disk, "--atomic", "64K", *shim.engine, environment=shim.environment)
    guest = attach()
    guest.create_queues(2)
    guest.write(0, b"a" * UNIT)
    shim.hold_halfway()
    begin(guest, b"b" * UNIT)
    shim.wait_for_held(Op.WRITE)
    assert disk.read_bytes()[:UNIT] == (b"b" * (UNIT // 2)).ljust(UNIT, b"a")
    place = guest.alloc(UNIT)
    read = guest.submit(guest.queues[1], command(guest, Read, place, UNIT))
    far = guest.submit(guest.queues[1], command(guest, Read, guest.alloc(512), 512, 8192))
    assert [one.cid for one in guest.collect(1)] == [far]
    shim.hold_halfway(False)
    shim.release()
    assert [(one.cid, one.status) for one in guest.collect(1)] == [(read, Status.SUCCESS)]
    assert guest.bus.read_memory(place, UNIT) == b"b" * UNIT
    assert [one.status for one in guest.collect(1, 2)] == [Status.SUCCESS]


@paths("python", "lane")
def test_a_kill_leaves_no_half_of_a_write(serve: Serve, attach: Attach, shim: Shim, disk: Path) -> None:
    """Wherever it begins in a page. ``nvmeemu image`` completes it as a start does."""
    journal = Path(f"{disk}.nvme-journal")
    arguments = ("--disk", disk, "--atomic", "64K", *shim.engine)
    expected = bytearray(disk.stat().st_size)
    for slba in (0, 131):
        served = serve(*arguments, environment=shim.environment)
        guest = attach()
        guest.create_queues(2)
        guest.write(slba, b"a" * UNIT)
        shim.hold_halfway()
        begin(guest, b"b" * UNIT, slba)
        shim.wait_for_held(Op.WRITE)
        served.send(signal.SIGKILL)
        served.wait()
        guest.leave()
        shim.forget()
        expected[512 * slba : 512 * slba + UNIT] = b"b" * UNIT
        assert disk.read_bytes() != expected
        if slba == 0:
            assert main(["image", "check", str(disk)]) == 1
            assert main(["image", "repair", str(disk)]) == 0
            assert not journal.exists()
        served = serve(*arguments)
        assert disk.read_bytes() == expected
        assert served.stop() == 0
        assert not journal.exists()


@paths("python", "io_uring")
def test_a_kill_leaves_data_and_metadata_that_fit(serve: Serve, attach: Attach, shim: Shim, disk: Path) -> None:
    """All of them are new: all guards fit, those of the half that the disk had not got, too."""
    arguments = ("--disk", disk, "--atomic", "64K", *PROTECTION, *shim.engine)
    served = serve(*arguments, environment=shim.environment)
    guest = attach()
    guest.create_queues(2)
    place = guest.alloc(UNIT)
    for content in (b"a", b"b"):
        guest.bus.write_memory(place, content * UNIT)
        write = command(guest, Write, place, UNIT)
        write.cdw12 |= PRACT
        guest.submit(guest.queues[2], write)
        if content == b"a":
            assert [one.status for one in guest.collect(1, 2)] == [Status.SUCCESS]
            shim.hold_halfway()
    shim.wait_for_held(Op.WRITE)
    served.send(signal.SIGKILL)
    served.wait()
    guest.leave()
    shim.forget()
    served = serve(*arguments)
    guest = attach()
    place = guest.alloc(UNIT)
    read = command(guest, Read, place, UNIT)
    read.cdw12 |= CHECK_ALL
    read.mptr = guest.alloc(UNIT // 512 * 8)
    assert guest.execute(guest.queues[1], read).status == Status.SUCCESS
    assert guest.bus.read_memory(place, UNIT) == b"b" * UNIT
    assert served.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("engine", ["python", "native"])
def test_at_whatever_moment_it_is_killed(serve: Serve, attach: Attach, disk: Path, engine: str) -> None:
    """Without a shim, and with many writes under way."""
    chance = random.Random(1)
    arguments = ("--disk", disk, "--atomic", "1M", "--engine", engine)
    known = [0] * 8
    for version in range(1, KILLS):
        served = serve(*arguments)
        guest = attach()
        guest.create_queues(2)
        place = guest.alloc(MIB)
        guest.bus.write_memory(place, bytes([version]) * MIB)
        for number in range(len(known)):
            guest.submit(guest.queues[2], command(guest, Write, place, MIB, 2048 * number), ring=False)
        guest.ring_sq(guest.queues[2])
        time.sleep(chance.uniform(0, 0.01))
        served.send(signal.SIGKILL)
        served.wait()
        guest.leave()
        assert main(["image", "repair", str(disk)]) == 0
        content = disk.read_bytes()
        for number, before in enumerate(known):
            found = set(content[MIB * number : MIB * (number + 1)])
            assert found in ({before}, {version}), (version, number)
            known[number] = found.pop()
