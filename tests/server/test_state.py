"""The saved state of a served drive (--state): it survives ends of any kind, and what cannot be one is refused."""

from __future__ import annotations

import resource
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nvmeemu.spec import FeatureId, LogId, SetFeatures, SmartLog, Status
from nvmeemu.state.database import Database
from server.conftest import Attach
from server.guest import Guest
from server.process import Serve, run

ENGINES = pytest.mark.parametrize("engine", ["python", "native"])
ENDS = pytest.mark.parametrize("end", ["shutdown", "SIGTERM", "SIGKILL"])


@pytest.fixture
def state(folder: Path) -> Path:
    return folder / "drive.state"


def set_saved(guest: Guest, fid: int, value: int, *, nsid: int = 0) -> Status:
    command = SetFeatures(fid=fid, sv=True, cdw11=value, nsid=nsid)
    return Status(guest.execute(guest.admin, command).status)


@ENGINES
@ENDS
def test_what_was_saved_survives_any_end(
    serve: Serve, attach: Attach, disk: Path, state: Path, engine: str, end: str
) -> None:
    """The column "shutdown + power", and the column "power cut" with and without a signal before."""
    arguments = ("--disk", disk, "--state", state, "--engine", engine)
    served = serve(*arguments)
    guest = attach()
    assert set_saved(guest, FeatureId.ERROR_RECOVERY, 7, nsid=1) == Status.SUCCESS
    assert set_saved(guest, FeatureId.VOLATILE_WRITE_CACHE, 0) == Status.SUCCESS
    guest.set_feature(FeatureId.ARBITRATION, 5)
    if end == "shutdown":
        guest.shut_down()
    served.send(signal.SIGKILL if end == "SIGKILL" else signal.SIGTERM)
    assert served.wait() == (-signal.SIGKILL if end == "SIGKILL" else 0)
    guest.leave()
    assert [path.name for path in state.parent.glob("drive.state*")] == ["drive.state"]
    served = serve(*arguments)
    guest = attach()
    assert guest.get_feature(FeatureId.ERROR_RECOVERY, nsid=1) == 7
    assert guest.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 0
    assert guest.get_feature(FeatureId.ARBITRATION) == 0
    assert served.stop() == 0


@ENGINES
@ENDS
def test_the_counters_of_a_drive_go_on_after_any_end(
    serve: Serve, attach: Attach, disk: Path, state: Path, engine: str, end: str
) -> None:
    """Exactly after an orderly end. What was counted within the last minute may be lost by a kill."""
    arguments = ("--disk", disk, "--state", state, "--engine", engine)
    served = serve(*arguments)
    guest = attach()
    for _ in range(3):
        guest.write(0, bytes(4096))
    guest.read(0, 8)
    assert guest.execute(guest.admin, SetFeatures(fid=0xC2)).status == Status.INVALID_FIELD
    if end == "shutdown":
        guest.shut_down()
    served.send(signal.SIGKILL if end == "SIGKILL" else signal.SIGTERM)
    served.wait()
    guest.leave()
    served = serve(*arguments)
    page = SmartLog(attach().get_log(LogId.SMART, 512))
    is_orderly = end != "SIGKILL"
    assert page.power_cycles == 2
    assert page.unsafe_shutdowns == (end != "shutdown")
    assert (page.host_writes, page.host_reads, page.error_log_entries) == ((3, 1, 1) if is_orderly else (0, 0, 0))
    assert served.stop() == 0
    with closing(sqlite3.connect(state)) as looking:
        ended = [row[0] is not None for row in looking.execute("SELECT ended FROM power_cycles ORDER BY number")]
    assert ended == [is_orderly, True]


def test_a_server_that_did_not_start_is_no_power_cycle(serve: Serve, disk: Path, state: Path, path: str) -> None:
    assert serve("--disk", disk, "--state", state).stop() == 0
    before = state.read_bytes()
    line = refused("--socket", path, "--disk", disk, "--state", state, "--trace", state.parent / "none" / "trace")
    assert "No such file or directory" in line
    assert state.read_bytes() == before


def test_a_server_with_a_state_sleeps_when_nothing_happens(
    serve: Serve, attach: Attach, disk: Path, state: Path
) -> None:
    served = serve("--disk", disk, "--state", state)
    guest = attach()
    guest.write(0, bytes(4096))
    served.wait_until_it_sleeps()
    content = state.stat().st_mtime_ns
    served.wait_until_it_sleeps()
    assert state.stat().st_mtime_ns == content


def test_without_a_state_the_drive_is_new_at_each_start(serve: Serve, attach: Attach, disk: Path, folder: Path) -> None:
    before = sorted(folder.iterdir())
    served = serve("--disk", disk)
    guest = attach()
    assert set_saved(guest, FeatureId.ARBITRATION, 7) == Status.SUCCESS
    guest.enable()
    assert guest.get_feature(FeatureId.ARBITRATION) == 7
    guest.leave()
    assert served.stop() == 0
    assert sorted(folder.iterdir()) == before
    served = serve("--disk", disk)
    assert attach().get_feature(FeatureId.ARBITRATION) == 0


def test_a_drive_file_has_it_beside_itself_and_an_option_overrides_it(
    serve: Serve, attach: Attach, disk: Path, folder: Path
) -> None:
    file = folder / "lab.toml"
    file.write_text(f'state = "lab.state"\n[[namespace]]\ndisk = "{disk}"\n[[controller]]\n')
    assert serve("--drive", file).stop() == 0
    assert (folder / "lab.state").exists()
    assert serve("--drive", file, "--state", folder / "other.state").stop() == 0
    assert (folder / "other.state").exists()


def refused(*arguments: object) -> str:
    """The one line that says why, without what is before the path."""
    result = run(*arguments)
    assert (result.returncode, result.stdout) in ((1, ""), (2, ""))
    (line,) = result.stderr.splitlines()
    return line


def test_two_servers_cannot_have_it(serve: Serve, disk: Path, state: Path, folder: Path) -> None:
    served = serve("--disk", disk, "--state", state)
    line = refused("--socket", folder / "t", "--disk", "mem:1M", "--state", state)
    assert line == (
        f"nvmeemu serve: --state {state}: is in use by another server: stop that one, or give each drive a state of "
        "its own"
    )
    assert served.stop() == 0


def test_the_state_of_another_drive_is_told(serve: Serve, disk: Path, state: Path, path: str) -> None:
    """A drive whose disk has moved, say, has another serial number, and may say that it is the same."""
    assert serve("--disk", disk, "--state", state, "--serial", "A1").stop() == 0
    line = refused("--socket", path, "--disk", disk, "--state", state, "--serial", "B2")
    assert "belongs to the drive with the serial number A1, and this one has B2: give --serial A1" in line
    assert serve("--disk", disk, "--state", state, "--serial", "A1").stop() == 0


def test_what_is_no_state_is_refused_in_a_line_with_its_place(path: str, disk: Path, state: Path, folder: Path) -> None:
    state.write_bytes(b"x" * 5000)
    file = folder / "lab.toml"
    file.write_text(f'state = "drive.state"\n[[namespace]]\ndisk = "{disk}"\n[[controller]]\nsocket = "s"\n')
    assert "put a backup in its place, or move it away" in refused("--drive", file)
    assert refused("--drive", file).startswith(f"nvmeemu serve: {file}:1: ")
    assert "there is no folder" in refused("--socket", path, "--disk", disk, "--state", folder / "none" / "s")
    assert "Is a directory" in refused("--socket", path, "--disk", disk, "--state", folder)


@pytest.mark.parametrize("other", ["disk", "socket", "trace", "control", "pid-file"])
def test_it_is_nothing_else_that_is_used(folder: Path, disk: Path, other: str) -> None:
    given = {"disk": str(disk), "socket": str(folder / "s")}
    given[other] = given.get(other, str(folder / "x"))
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    before = disk.read_bytes()
    line = refused(*options, "--state", given[other])
    assert "--state" in line
    assert f"--{other}" in line
    assert "give each a path of its own" in line
    assert disk.read_bytes() == before


def test_two_drives_of_a_server_have_states_of_their_own(folder: Path) -> None:
    files = []
    for name in "ab":
        files.append(folder / f"{name}.toml")
        files[-1].write_text(f'state = "s"\n[[namespace]]\ndisk = "mem:1M"\n[[controller]]\nsocket = "{name}"\n')
    assert "give each a path of its own" in refused(*(word for file in files for word in ("--drive", file)))


def test_a_change_is_durable_before_its_command_completes(
    serve: Serve, attach: Attach, disk: Path, state: Path
) -> None:
    served = serve("--disk", disk, "--state", state)
    guest = attach()
    for value in range(1, 6):
        assert set_saved(guest, FeatureId.ARBITRATION, value) == Status.SUCCESS
        copy = state.with_name("copy")
        copy.write_bytes(state.read_bytes())
        database = Database.open(str(copy))
        assert database.read()["controller.1", "feature.01.0"] == value
        database.close()
    assert served.stop() == 0


def test_a_disk_that_is_full_fails_the_command_and_is_told(
    serve: Serve, attach: Attach, disk: Path, state: Path
) -> None:
    """No file may grow beyond 100 bytes, the journal neither. Once there is room, everything goes on."""
    served = serve("--disk", disk, "--state", state)
    guest = attach()
    assert set_saved(guest, FeatureId.ARBITRATION, 1) == Status.SUCCESS
    limit = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (100, limit[1]))
    for _ in range(2):
        assert set_saved(guest, FeatureId.ARBITRATION, 2) == Status.INTERNAL_ERROR
    assert guest.get_feature(FeatureId.ARBITRATION) == 1
    served.expect(f"the saved state was not changed: {state}: ")
    resource.prlimit(served.pid, resource.RLIMIT_FSIZE, limit)
    assert set_saved(guest, FeatureId.ARBITRATION, 3) == Status.SUCCESS
    assert served.stop() == 0
    assert served.log.count("the saved state was not changed") == 1
    served = serve("--disk", disk, "--state", state)
    assert attach().get_feature(FeatureId.ARBITRATION) == 3
