"""Writes of ``atomic`` bytes are whole: for readers of another queue, and after a kill -9 in the middle of one.

The shim holds a write when half of it is on the disk. What cannot be held like that, memory, is read over and over.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nvmeemu.app.cli import main
from nvmeemu.spec import Read, ReadWrite, Status, Write
from server.conftest import PATHS, Attach
from server.guest import Guest
from server.process import Serve
from server.shim import Op, Shim

UNIT = 64 << 10
PROTECTION = ("--metadata", "8", "--protection", "1")
EACH_PATH = pytest.mark.parametrize("shim", PATHS, indirect=True)


def command(guest: Guest, kind: type[ReadWrite], place: int, size: int, slba: int = 0) -> ReadWrite:
    prp1, prp2 = guest.prps(place, size)
    return kind(nsid=1, slba=slba, nlb=size // 512, prp1=prp1, prp2=prp2)


def begin(guest: Guest, content: bytes, slba: int = 0) -> None:
    """Begin a write, on the second queue."""
    place = guest.alloc(len(content))
    guest.bus.write_memory(place, content)
    guest.submit(guest.queues[2], command(guest, Write, place, len(content), slba))


@pytest.mark.kills("atomic-range-try", "atomic-range-held")
@EACH_PATH
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


@pytest.mark.kills("atomic-not-kept")
@EACH_PATH
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
