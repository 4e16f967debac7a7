"""``trace`` and ``expect`` of the plugin: what is found among the commands of a host, and what is said if it is not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from nvmeemu.faults import Fault, FaultError
from nvmeemu.pytest_plugin.bench import NvmeBench, Records
from nvmeemu.pytest_plugin.commands import FileSource, Trace
from nvmeemu.pytest_plugin.options import DriveOptions
from nvmeemu.spec import AdminOpcode, NvmOpcode, Status
from nvmeemu.testing import CommandError
from nvmeemu.trace import open_trace
from nvmeemu.trace.file import Description, Writer
from nvmeemu.trace.recorder import Recorder


@pytest.fixture
def drive(tmp_path: Path) -> NvmeBench:
    bench = NvmeBench(tmp_path, DriveOptions(size="1M"))
    bench.start()
    bench.trace.restart()
    return bench


def test_a_command_with_its_fields_and_its_end(drive: NvmeBench) -> None:
    drive.driver.write(slba=8, data=bytes(4 * 512))
    found = drive.trace.expect(op="write")
    assert (found.slba, found.nlb, found.nsid, found.sqid) == (8, 4, 1, 1)
    assert found.status == Status.SUCCESS
    assert found.completion is not None
    assert not found.completion.dnr
    assert "Write nsid=1 slba=8 nlb=4: Success" in str(found)
    with pytest.raises(AttributeError):
        found.fid  # noqa: B018


@pytest.mark.parametrize("op", ["get_features", "Get Features", "GET-FEATURES", AdminOpcode.GET_FEATURES])
def test_the_names_of_commands(drive: NvmeBench, op: str) -> None:
    drive.driver.get_feature(7)
    assert drive.trace.expect(op=op, FID="Number Of Queues").fid == 7


def test_an_enum_tells_admin_from_io(drive: NvmeBench) -> None:
    """Write and Create I/O Submission Queue have the same number."""
    drive.driver.create_queues(2)
    assert drive.trace.commands(NvmOpcode.WRITE) == []
    assert [command.qid for command in drive.trace.commands(AdminOpcode.CREATE_SQ)] == [2]


def test_fields_are_those_of_faults(drive: NvmeBench) -> None:
    for slba in (0, 10, 20):
        drive.driver.read(slba=slba, blocks=2)
    assert drive.trace.expect(op="read", lba="11-19").slba == 10
    assert [command.slba for command in drive.trace.commands("read", slba=[0, 20])] == [0, 20]
    assert drive.trace.commands(queue="io", nsid=2) == []
    with pytest.raises(FaultError, match="no command has such a field"):
        drive.trace.expect(op="read", colour="red")
    with pytest.raises(FaultError, match="'raed' is none of"):
        drive.trace.expect(op="raed")


def test_expectations_are_met_in_their_order(drive: NvmeBench) -> None:
    drive.driver.write(slba=0, data=bytes(512))
    drive.driver.read(slba=0, blocks=1)
    drive.trace.expect(op="read")
    with pytest.raises(AssertionError) as failure:
        drive.trace.expect(op="write", slba=0)
    first, *rest = str(failure.value).splitlines()
    assert first == "the host has sent no write with slba=0 in 0 s; its last commands:"
    assert "Read nsid=1 slba=0 nlb=1: Success" in rest[-1]


def test_a_new_test_begins_anew(drive: NvmeBench) -> None:
    drive.driver.write(slba=0, data=bytes(512))
    drive.trace.restart()
    assert list(drive.trace) == []
    with pytest.raises(AssertionError):
        drive.trace.expect(op="write")
    assert "Write" in drive.trace.words()  # but a failure shows what led to it


def test_a_command_without_an_end(drive: NvmeBench) -> None:
    fault = drive.faults.add(Fault(match={"opcode": "read"}, do="drop"))
    with pytest.raises(TimeoutError):
        drive.driver.read(slba=0, blocks=1)
    assert fault.hits == 1
    found = drive.trace.expect(op="read")
    assert (found.completion, found.status, found.latency) == (None, None, None)
    assert str(found).endswith("slba=0 nlb=1: no completion [fault 1: drop at execute]")


def test_only_the_last_commands_are_remembered(drive: NvmeBench) -> None:
    records = Records(drive.clock)
    drive.controller.observe(Recorder(records, drive.controller.state))
    trace = Trace(records, patience=0, remember=5)
    for slba in range(8):
        drive.driver.read(slba=slba, blocks=1)
    assert [command.slba for command in trace] == [3, 4, 5, 6, 7]
    assert trace.expect(op="read").slba == 3
    drive.driver.read(slba=9, blocks=1)
    assert [trace.expect(op="read").slba for _ in range(5)] == [4, 5, 6, 7, 9]


def test_the_trace_is_a_trace_file(drive: NvmeBench, tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        drive.driver.read(slba=1 << 20, blocks=1)
    drive.sections()
    said = drive.trace.words()
    assert "slba=1048576 nlb=1: LBA Out of Range, DNR" in said
    with open_trace(tmp_path / "nvme.trace") as trace:
        assert trace.description.namespaces[0]["blocks"] == 2048
        assert len(list(trace)) > 10


@pytest.fixture
def growing(tmp_path: Path, drive: NvmeBench) -> tuple[Path, bytes]:
    """Where a server would write its trace, and what it would write."""
    return tmp_path / "server.trace", bytes(drive.records.data)


def test_a_file_that_grows(growing: tuple[Path, bytes]) -> None:
    """Cut anywhere: before the header, in a record."""
    path, data = growing
    trace = Trace(FileSource(path, lambda text: False), patience=0)
    assert list(trace) == []
    path.touch()
    assert list(trace) == []
    with path.open("wb", buffering=0) as file:
        Writer(file, Description(), 0)
        counts = []
        for start in range(0, len(data), 7):
            file.write(data[start : start + 7])
            counts.append(len(list(trace)))
    assert counts == sorted(counts)
    assert [command.command.opcode for command in trace][:2] == [AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ]


def test_what_comes_in_time_is_found(growing: tuple[Path, bytes]) -> None:
    path, data = growing
    trace = Trace(FileSource(path, lambda text: False), patience=30)

    def write() -> None:
        time.sleep(0.1)
        with path.open("wb") as file:
            Writer(file, Description(), 0).put(data)

    thread = threading.Thread(target=write)
    thread.start()
    assert trace.expect(op="create_sq").qid == 1
    thread.join()
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"no verify in 0\.1 s"):
        trace.expect(op="verify", timeout=0.1)
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize(
    "status", ["invalid_field", "Invalid Field", Status.INVALID_FIELD, "error", ["invalid-field", 6]]
)
def test_how_a_command_ended(drive: NvmeBench, status: object) -> None:
    drive.driver.read(slba=0, blocks=1)
    with pytest.raises(CommandError):
        drive.driver.identify(0x7F)
    found = drive.trace.expect(op="Identify", status=status)
    assert (found.cns, found.status) == (0x7F, Status.INVALID_FIELD)
    drive.trace.restart()
    drive.driver.read(slba=0, blocks=1)
    assert drive.trace.commands(status=status) == []
    assert [command.slba for command in drive.trace.commands(status="ok")] == [0]
    with pytest.raises(AssertionError, match="the host has sent no read with status="):
        drive.trace.expect("read", status=status)


def test_a_command_that_has_not_ended_is_awaited(drive: NvmeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And others that come meanwhile do not make it pass unseen."""
    drive.faults.add(Fault({"opcode": "write"}, do={"delay": 1}))
    with pytest.raises(TimeoutError):
        drive.driver.write(0, bytes(512))
    drive.driver.read(slba=0, blocks=1)

    def sleep(_: float) -> None:
        drive.clock.advance(1)
        drive.settle()

    monkeypatch.setattr(time, "sleep", sleep)
    found = drive.trace.expect("write", status="ok", timeout=20)
    assert found.status == Status.SUCCESS
    assert drive.trace.expect("read", status="success").slba == 0


def test_a_pair_is_refused(drive: NvmeBench) -> None:
    with pytest.raises(FaultError, match=r'match\.lba: \(0, 7\): write "0-7" for the range'):
        drive.trace.expect("read", lba=(0, 7))
