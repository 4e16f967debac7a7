"""The plugin's server, used as its users use it: remarks in the trace, faults through the control socket."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app.control import ControlError
from nvmeemu.app.serving import ServerEnded
from nvmeemu.faults import Fault, FaultError
from nvmeemu.faults.file import scenario
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.pytest_plugin import Expect, NvmeFaults, NvmeServer, Serve, Trace
from nvmeemu.spec import Cns, IdentifyController
from nvmeemu.testing import CommandError, Driver
from nvmeemu.trace import Note, open_trace


def test_a_remark_stands_behind_what_came_before(nvme_server: NvmeServer, trace: Trace) -> None:
    nvme_server.driver.read(slba=3, blocks=1)
    nvme_server.control.call("trace.note", text="half way")
    nvme_server.driver.read(slba=4, blocks=1)
    assert [command.slba for command in trace.commands("read")] == [3, 4]
    with open_trace(nvme_server.folder / "nvme.trace") as file:
        records = list(file)
    remarks = [record.text for record in records if isinstance(record, Note)]
    assert "half way" in remarks
    with pytest.raises(ControlError, match="at most 1000 characters"):
        nvme_server.control.call("trace.note", text="x" * 1001)
    with pytest.raises(ControlError, match="at most 1000 characters"):
        nvme_server.control.call("trace.note", text=7)


LIMITS = {"queues": 3, "mqes": 16, "mdts": 4, "aerl": 2, "cap_to": 5, "mpsmin": 1, "mpsmax": 1, "dstrd": 1}


def found(driver: Driver) -> dict[str, int]:
    """What a host finds of these limits."""
    page, offered = IdentifyController(driver.identify(Cns.CONTROLLER)), driver.capabilities
    return {
        "queues": driver.io_queues(),
        "mqes": offered.mqes,
        "mdts": page.mdts,
        "aerl": page.aerl,
        "cap_to": offered.to,
        "mpsmin": offered.mpsmin,
        "mpsmax": offered.mpsmax,
        "dstrd": offered.dstrd,
        "max_namespaces": page.nn,
    }


@pytest.mark.nvmeemu(size="1M", max_namespaces=4, **LIMITS)
def test_limits_are_those_of_the_drive(request: pytest.FixtureRequest) -> None:
    for fixture in ("nvme", "nvme_server"):
        driver = request.getfixturevalue(fixture).driver
        assert found(driver) == {**LIMITS, "max_namespaces": 4}, fixture
        driver.write(8, bytes(8 << 10))
        with pytest.raises(CommandError, match="INVALID_QUEUE_SIZE"):
            driver.create_queues(2, 17)


@pytest.mark.nvmeemu(size="1M", serve=["--engine", "auto"])
def test_faults_of_a_server(nvme_server: NvmeServer, faults: NvmeFaults, expect: Expect) -> None:
    drive = nvme_server.driver
    once = faults.add(Fault(match={"opcode": "write"}, do={"status": "write_fault"}, when={"times": 1}))
    always = faults.add({"match": {"opcode": "read", "lba": "8-15"}, "do": {"status": "unrecovered_read_error"}})
    with pytest.raises(CommandError, match="WRITE_FAULT"):
        drive.write(slba=8, data=bytes(512))
    drive.write(slba=8, data=bytes(512))
    with pytest.raises(CommandError, match="UNRECOVERED_READ_ERROR"):
        drive.read(slba=0, blocks=16)
    assert (once.hits, once.seen, always.hits) == (1, 2, 1)
    assert [expect(op="write").status != 0 for _ in range(2)] == [True, False]
    with pytest.raises(FaultError, match="explode"):
        faults.add({"do": "explode"})
    faults.remove(always)
    drive.read(slba=0, blocks=16)
    assert (always.hits, always.seen) == (1, 1)
    with pytest.raises(KeyError):
        faults.remove(always)
    faults.clear()
    assert once.hits == 1
    lost = faults.add({"do": "drop"})
    nvme_server.control.call("fault.remove")
    with pytest.raises(LookupError, match="was removed"):
        lost.hits  # noqa: B018


def test_all_scenarios_can_be_added_to_a_server(faults: NvmeFaults, nvme_server: NvmeServer) -> None:
    for name in SCENARIOS:
        for fault in scenario(name):
            faults.add(fault)
        assert nvme_server.control.call("status")["faults"] > 0, name
        faults.clear()


def test_a_killed_server_does_not_hang_the_report(nvme_serve: Serve) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(nvme_serve(size="1M"))
        server.driver.read(slba=3, blocks=1)
        list(server.trace)
        server.process.kill()
        server.process.wait()
        assert "Read nsid=1 slba=3 nlb=1: Success" in server.trace.words()
        with pytest.raises(ServerEnded, match="status -9"):
            stack.close()


DRIVE = """
[identity]
serial = "FROM A FILE"
[limits]
queues = 5
mqes = 16
[[namespace]]
disk = "raw:disk.img"
nsid = 2
create = true
size = "2M"
block_size = 4096
[[namespace]]
disk = "mem:1M"
[[controller]]
socket = "elsewhere"
trace = "elsewhere.trace"
faults = ["scenario:flaky"]
"""


def test_a_drive_can_be_that_of_a_drive_file(tmp_path: Path, nvme_serve: Serve) -> None:
    """What the marker says of limits is meant; where it listens, and records, is the plugin's business."""
    file = tmp_path / "lab.toml"
    file.write_text(DRIVE)
    with nvme_serve(drive=file, queues=3) as server:
        assert server.disk == tmp_path / "disk.img"
        assert len(server.control.call("fault.list")) == len(SCENARIOS["flaky"]())
        server.control.call("fault.remove")
        assert IdentifyController(server.driver.identify(Cns.CONTROLLER)).sn == "FROM A FILE"
        assert found(server.driver)["queues"] == 3
        assert found(server.driver)["mqes"] == 16
        server.driver.write(slba=1, data=b"4" * 4096, nsid=2, block_size=4096)
        server.driver.read(slba=0, blocks=1, nsid=1)
        assert [command.nsid for command in server.trace.commands("read")] == [1]
        assert server.socket.exists()
    assert server.disk.read_bytes()[4096:8192] == b"4" * 4096
    assert not (tmp_path / "elsewhere.trace").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drive": "FILE", "size": "1M"}, "drive= and size=: the drive file says what its disks are"),
        ({"drive": "FILE", "block_size": 512}, "drive= and block_size=: the drive file says"),
        ({"drive": "/none"}, "drive: --drive /none: No such file or directory"),
        ({"drive": "BAD"}, "drive: BAD:1: identty: there is no such key: is identity meant?"),
    ],
)
def test_a_drive_file_that_cannot_be_is_refused(
    tmp_path: Path, nvme_serve: Serve, options: dict[str, Any], said: str
) -> None:
    names = {"FILE": DRIVE, "BAD": "[identty]\n"}
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    place = str(tmp_path / options["drive"]) if options["drive"] in names else options["drive"]
    with pytest.raises(pytest.fail.Exception) as refused, nvme_serve(**{**options, "drive": place}):
        pass
    assert str(refused.value).replace(f"{tmp_path}/", "").startswith(said)
