"""Format NVM of a served disk: it holds after an end of any kind, and a kill leaves the old format or the new one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.spec import Cns, FormatNvm, IdentifyNamespace, Read, Status, Write
from nvmeemu.subsystem.formats import FORMATS, OfferedFormat
from server.conftest import Attach
from server.guest import Guest
from server.process import Serve

PLAIN_4096, PROTECTED = FORMATS.index(OfferedFormat(4096)), FORMATS.index(OfferedFormat(4096, 8))
PRACT, CHECK_ALL = 1 << 29, 0b111 << 26
KILLS = 20
ENGINES = pytest.mark.parametrize("engine", ["python", "native"])


def command(number: int, **fields: Any) -> FormatNvm:
    return FormatNvm(nsid=1, lbafl=number, **fields)


def identified(guest: Guest) -> IdentifyNamespace:
    return IdentifyNamespace(guest.identify(Cns.NAMESPACE, 1))


@ENGINES
def test_a_format_holds_after_a_kill(serve: Serve, attach: Attach, disk: Path, engine: str) -> None:
    """With commands in flight, which end before it begins or fail."""
    arguments = ("--disk", disk, "--format", "allow", "--engine", engine)
    served = serve(*arguments)
    guest = attach()
    queue = guest.create_queues(2, 32)
    guest.write(0, b"x" * 4096)
    place = guest.alloc(4096)
    for slba in range(24):
        guest.submit(queue, Write(nsid=1, prp1=place, slba=8 * slba, nlb=8), ring=False)
    guest.ring_sq(queue)
    assert guest.execute(guest.admin, command(PROTECTED, pi=1)).status == Status.SUCCESS
    ends = {completion.status for completion in guest.collect(24, 2)}
    assert ends <= {Status.SUCCESS, Status.FORMAT_IN_PROGRESS, Status.INVALID_FIELD, Status.LBA_OUT_OF_RANGE}
    assert (identified(guest).flbas, identified(guest).dps, identified(guest).nuse) == (PROTECTED, 1, 0)
    guest.bus.write_memory(place, b"y" * 4096)
    write = Write(nsid=1, prp1=place, slba=7, nlb=1, fua=True)
    write.cdw12 |= PRACT
    write.cdw14 = 7
    assert guest.execute(queue, write).status == Status.SUCCESS
    served.send(signal.SIGKILL)
    served.wait()
    guest.leave()
    served = serve(*arguments)
    guest = attach()
    queue = guest.create_queues(2, 32)
    place = guest.alloc(4096)
    read = Read(nsid=1, prp1=place, slba=7, nlb=1)
    read.cdw12 |= CHECK_ALL
    read.cdw14, read.mptr = 7, guest.alloc(8)
    assert guest.execute(queue, read).status == Status.SUCCESS
    assert guest.bus.read_memory(place, 4096) == b"y" * 4096
    assert guest.bus.read_memory(read.mptr + 4, 4) == (7).to_bytes(4, "big")
    assert served.stop() == 0


@pytest.mark.long
def test_a_kill_leaves_the_old_format_or_the_new_one(serve: Serve, attach: Attach, disk: Path) -> None:
    chance = random.Random(1)
    arguments = ("--disk", disk, "--format", "allow", "--engine", "python")
    number, took = 0, 0.02  # of seconds
    for _ in range(KILLS):
        served = serve(*arguments)
        guest = attach()
        size = guest.block_size(1)
        for slba in (0, 1000, 16 * (1 << 20) // size - 1):
            guest.write(slba, b"z" * size, block_size=size)
        guest.flush()
        wanted = PLAIN_4096 - number
        began = time.monotonic()
        guest.submit(guest.admin, command(wanted, ses=1))
        time.sleep(chance.uniform(0, 1.5 * took))
        served.send(signal.SIGKILL)
        served.wait()
        guest.leave()
        took = max(0.005, min(took, time.monotonic() - began))
        served = serve(*arguments)
        guest = attach()
        found = identified(guest)
        assert found.flbas in (number, wanted)
        size = guest.block_size(1)
        content = b"z" * size if found.flbas == number else bytes(size)
        for slba in (0, 1000, found.nsze - 1):
            assert guest.read(slba, 1) == content, (found.flbas, number)
        assert found.nuse in (0, 3) or not found.flbas
        number = found.flbas
        assert served.stop() == 0
        guest.leave()
