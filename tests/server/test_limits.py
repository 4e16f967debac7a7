"""The limits of the command line are those of the drive that a host finds, and they bind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmeemu.spec import AdminOpcode, Cns, Command, CreateCq, IdentifyController, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Driver, VfioBus
from server.process import Serve, run

SMALL = ("--mqes", 8, "--mdts", 2, "--aerl", 1, "--cap-to", 9, "--mpsmin", 1, "--mpsmax", 2, "--dstrd", 3)
LARGE = ("--mqes", 65536, "--mdts", 9, "--aerl", 256, "--cap-to", 255, "--mpsmax", 0, "--max-namespaces", 255)
REFUSED: dict[tuple[object, ...], str] = {
    ("--mpsmin", 3, "--mpsmax", 2): "there is no such controller: mpsmin 3 is above mpsmax 2",
    ("--mpsmin", 1, "--mdts", 9): "there is no such controller: mdts 9 is too large for pages of 8 KiB",
    ("--dstrd", 1, "--doorbells", "mapped"): "--doorbells mapped: they lie side by side: leave out --dstrd",
}


@pytest.mark.parametrize("engine", ["native", "python"])
def test_small_limits_bind(serve: Serve, disk: Path, path: str, engine: str) -> None:
    serve("--disk", disk, "--engine", engine, *SMALL, "--max-namespaces", 1)
    with VfioBus(path) as bus:
        driver = Driver(bus)
        driver.enable()
        offered = driver.capabilities
        assert (offered.mqes, offered.to, offered.dstrd) == (8, 9, 3)
        assert (offered.mpsmin, offered.mpsmax) == (1, 2)
        page = IdentifyController(driver.identify(Cns.CONTROLLER))
        assert (page.mdts, page.aerl, page.nn) == (2, 1, 1)
        long = CreateCq(opcode=AdminOpcode.CREATE_CQ, qid=1, qsize=9, pc=True, prp1=driver.alloc(2 * PAGE))
        assert driver.execute(driver.admin, long).status == Status.INVALID_QUEUE_SIZE
        pair = driver.create_queues(1, 8)
        for slba in range(20):
            driver.write(slba, bytes([slba]) * 512)
            assert driver.read(slba, 1) == bytes([slba]) * 512
        assert len(driver.read(0, 64)) == 32 << 10  # 2^2 pages of 8 KiB
        place = driver.alloc(64 << 10)
        command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, nlb=65)
        command.prp1, command.prp2 = driver.prps(place, 65 * 512)
        assert driver.execute(pair, command).status == Status.INVALID_FIELD
        assert driver.execute(pair, Command(opcode=NvmOpcode.FLUSH, nsid=2)).status == Status.INVALID_NAMESPACE
        waiting = Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST)
        driver.submit(driver.admin, waiting)
        assert driver.execute(driver.admin, Command(bytes(waiting))).status == Status.AER_LIMIT_EXCEEDED
        with pytest.raises(TimeoutError, match="cfs=True"):
            driver.enable(mps=0)


def test_large_limits_hold(serve: Serve, path: str) -> None:
    disks = [word for _ in range(70) for word in ("--disk", "mem:1M")]
    serve(*disks, *LARGE)
    with VfioBus(path) as bus:
        driver = Driver(bus)
        driver.enable()
        offered = driver.capabilities
        assert (offered.mqes, offered.to, offered.mpsmax) == (65536, 255, 0)
        page = IdentifyController(driver.identify(Cns.CONTROLLER))
        assert (page.mdts, page.aerl, page.nn) == (9, 256, 255)
        driver.create_queues(1, 4096)
        for nsid in (1, 64, 65, 70):  # the engine in C knows 64
            driver.write(nsid, bytes([nsid]) * 1024, nsid=nsid)
            assert driver.read(nsid, 2, nsid=nsid) == bytes([nsid]) * 1024
        assert driver.identify(Cns.NAMESPACE, 255) == bytes(PAGE)


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(path: str, options: tuple[object, ...]) -> None:
    result = run("--socket", path, "--disk", "mem:1M", *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert REFUSED[options] in result.stderr
    assert result.stderr.count("\n") == 1
