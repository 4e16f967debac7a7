"""The pool of a drive: what a guest has made there survives ends of any kind, with its blocks and attachments."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from conformance.namespace_commands import attach as attach_namespace
from conformance.namespace_commands import capacity, create, created, delete, detach, nsids, succeeds
from nvmeemu.app.control import Control, ControlError
from nvmeemu.spec import Cns, IdentifyNamespace, Status
from server.conftest import Attach
from server.process import Serve, run
from server.test_bad_use import refused

MIB = 1 << 20
ENGINES = pytest.mark.parametrize("engine", ["python", "native"])


@pytest.fixture
def drive(folder: Path, disk: Path) -> Path:
    file = folder / "drive.toml"
    file.write_text('pool = "pool"\ncapacity = "64M"\n[[namespace]]\ndisk = "disk.raw"\n[[controller]]\nsocket = "s"\n')
    return file


def images(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pool").iterdir() if ".raw" in path.name)


@pytest.mark.parametrize(
    ("end", "engine"), [("shutdown", "native"), ("SIGTERM", "python"), ("SIGKILL", "python"), ("SIGKILL", "native")]
)
def test_what_a_guest_has_made_is_there_after_any_end(
    serve: Serve, attach: Attach, folder: Path, drive: Path, engine: str, end: str
) -> None:
    """With its number, identifiers, format, blocks and attachment; also the attachment of the user's disk."""
    served = serve("--drive", drive, "--engine", engine)
    guest = attach()
    first, second = created(guest, 2048, nmic=1), created(guest, 256, flbas=5)
    for nsid in (first, second):
        succeeds(attach_namespace(guest, nsid, 1))
    succeeds(detach(guest, 1, 1))
    succeeds(detach(guest, second, 1))
    guest.write(7, b"7" * 512, nsid=first)
    guest.flush(first)
    before = [guest.identify(Cns.ALLOCATED_NAMESPACE, nsid) for nsid in (1, first, second)]
    room = capacity(guest)
    if end == "shutdown":
        guest.shut_down()
    served.send(signal.SIGKILL if end == "SIGKILL" else signal.SIGTERM)
    served.wait()
    guest.leave()
    served = serve("--drive", drive, "--engine", engine)
    guest = attach()
    assert (nsids(guest), nsids(guest, Cns.ALLOCATED_NAMESPACES)) == ([first], [1, first, second])
    assert [guest.identify(Cns.ALLOCATED_NAMESPACE, nsid) for nsid in (1, first, second)] == before
    assert capacity(guest) == room
    assert guest.read(6, 3, nsid=first) == bytes(512) + b"7" * 512 + bytes(512)
    for nsid in (first, second):
        succeeds(delete(guest, nsid))
    assert served.stop() == 0
    served = serve("--drive", drive, "--engine", engine)
    assert nsids(attach(), Cns.ALLOCATED_NAMESPACES) == [1]
    assert images(folder) == []
    assert served.stop() == 0


def test_the_files_are_sparse_and_go_with_their_namespace(
    serve: Serve, attach: Attach, folder: Path, drive: Path
) -> None:
    serve("--drive", drive)
    guest = attach()
    nsid = created(guest, 65536)
    uuid = images(folder)[0].removesuffix(".raw")
    succeeds(attach_namespace(guest, nsid, 1))
    assert UUID(uuid).bytes in guest.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
    assert images(folder) == [f"{uuid}.raw", f"{uuid}.raw.nvme"]
    assert (folder / "pool" / f"{uuid}.raw").stat().st_size == 32 * MIB
    assert sum(os.stat(folder / "pool" / name).st_blocks for name in images(folder)) * 512 < MIB
    succeeds(delete(guest, nsid))
    deadline = time.monotonic() + 60
    while images(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert images(folder) == []


def test_two_servers_cannot_share_a_pool(serve: Serve, folder: Path, drive: Path) -> None:
    serve("--drive", drive)
    other = folder / "other.toml"
    other.write_text('pool = "pool"\ncapacity = "64M"\nstate = "o.state"\n[[controller]]\nsocket = "o"\n')
    refused(run("--drive", other), 1, f"{other}:1: pool {folder}/pool is in use by another server: give each a pool")
    refused(run("--drive", drive, "--drive", other), 2, f"are both {folder}/pool")


def test_a_disk_that_the_user_lets_go_can_be_deleted_and_stays_what_it_is(
    serve: Serve, attach: Attach, folder: Path, disk: Path, drive: Path
) -> None:
    drive.write_text(drive.read_text().replace('"disk.raw"', '"disk.raw"\ndelete = "allow"'))
    content = disk.read_bytes()
    served = serve("--drive", drive)
    guest = attach()
    room = capacity(guest)
    succeeds(delete(guest, 1))
    assert capacity(guest) == (room[0], room[0])
    for _ in range(2):
        guest.leave()
        assert served.stop() == 0
        served = serve("--drive", drive)
        guest = attach()
        assert nsids(guest, Cns.ALLOCATED_NAMESPACES) == []
        assert capacity(guest) == (room[0], room[0])
    assert disk.read_bytes() == content


def test_a_disk_that_is_not_let_go_stays(serve: Serve, attach: Attach, drive: Path) -> None:
    serve("--drive", drive)
    completion = delete(guest := attach(), 1)
    assert (completion.status, completion.dnr) == (Status.OPERATION_DENIED, True)
    assert IdentifyNamespace(guest.identify(Cns.NAMESPACE, 1)).nsze


def test_a_pool_alone_is_a_drive(serve: Serve, attach: Attach) -> None:
    served = serve("--pool", "mem:1G")
    guest = attach()
    assert nsids(guest, Cns.ALLOCATED_NAMESPACES) == []
    assert capacity(guest) == (1 << 30, 1 << 30)
    succeeds(attach_namespace(guest, created(guest, 8), 1))
    guest.write(0, bytes(512))
    assert served.stop() == 0


@pytest.mark.parametrize(
    ("top", "namespace", "said"),
    [
        ('pool = "p"', "", "1: pool {}/p: how much may guests create there? Give capacity SIZE"),
        ('capacity = "1G"', "", "1: capacity is for a pool: give pool PATH"),
        ('pool = "mem:1M"\ncapacity = "1G"', "", "2: pool mem:1M has its size in its name: leave out capacity"),
        ('pool = "mem:many"', "", "1: pool mem:many: bad size 'many'"),
        ('pool = "p"\ncapacity = 5000', "", "2: capacity: 5000 bytes are no multiple of 4096"),
        ('pool = "mem:5000"', "", "1: pool: 5000 bytes are no multiple of 4096"),
        ("", 'delete = "allow"', "4: namespace 1: delete allow is for a drive with a pool: give pool PATH"),
    ],
)
def test_what_cannot_be_is_said_with_its_place(folder: Path, disk: Path, top: str, namespace: str, said: str) -> None:
    file = folder / "drive.toml"
    file.write_text(f'{top}\n[[namespace]]\ndisk = "disk.raw"\n{namespace}\n[[controller]]\nsocket = "s"\n')
    refused(run("--drive", file), 2, f"nvmeemu serve: {file}:{said.format(folder)}")
    assert not (folder / "p").exists()


def test_what_does_not_fit_what_was_made_is_refused(
    serve: Serve, attach: Attach, folder: Path, disk: Path, drive: Path
) -> None:
    served = serve("--drive", drive)
    created(attach(), 8)
    assert served.stop() == 0
    whole = drive.read_text()
    without = whole.replace('pool = "pool"\ncapacity = "64M"', 'state = "pool/drive.state"')
    for text, said in (
        (without, "pool is missing: namespace 2"),
        (f"{whole}[limits]\nmax_namespaces = 1\n", "namespace 2 of the pool is more than max_namespaces, 1"),
        (
            whole.replace('"disk.raw"', '"disk.raw"\nnsid = 2'),
            "2 is a namespace that a guest has made",
        ),
    ):
        drive.write_text(text)
        refused(run("--drive", drive), 1, said)
    drive.write_text(whole)
    (missing,) = [name for name in images(folder) if name.endswith(".nvme")]
    (folder / "pool" / missing).rename(folder / "elsewhere")
    refused(run("--drive", drive), 1, f"{missing} is missing: put it back beside")
    (folder / "elsewhere").rename(folder / "pool" / missing)
    serve("--drive", drive)
    assert nsids(attach(), Cns.ALLOCATED_NAMESPACES) == [1, 2]


def test_what_was_trash_when_the_power_went_is_discarded(
    serve: Serve, attach: Attach, folder: Path, drive: Path
) -> None:
    """And what the user has put there is not touched."""
    served = serve("--drive", drive)
    created(attach(), 8)
    assert served.stop() == 0
    kept = images(folder)
    rubbish = "01234567-89ab-4def-8123-456789abcdef"
    for name in (f"{rubbish}.raw", f"{rubbish}.raw.nvme", "notes.txt", "mine.raw"):
        (folder / "pool" / name).write_bytes(b"x" * 512)
    with closing(sqlite3.connect(folder / "pool" / "drive.state")) as database:
        database.execute("insert into state values ('trash', ?, 1)", (rubbish,))
        database.commit()
    served = serve("--drive", drive)
    assert images(folder) == sorted([*kept, "mine.raw"])
    assert (folder / "pool" / "notes.txt").exists()
    assert served.stop() == 0
    with closing(sqlite3.connect(folder / "pool" / "drive.state")) as database:
        assert not database.execute("select * from state where scope = 'trash'").fetchall()


def test_a_full_pool_says_so(serve: Serve, attach: Attach, drive: Path) -> None:
    serve("--drive", drive)
    assert create(attach(), (64 * MIB >> 9) + 1).status == Status.INSUFFICIENT_CAPACITY


def test_the_control_socket_leaves_a_guests_namespaces_alone(
    serve: Serve, attach: Attach, folder: Path, drive: Path
) -> None:
    serve("--drive", drive, "--control", folder / "c")
    nsid = created(attach(), 8)
    with Control(folder / "c") as client:
        assert [one["nsid"] for one in client.call("status")["namespaces"]] == [1, nsid]
        for method in ("namespace.remove", "namespace.resize"):
            with pytest.raises(ControlError, match="is a guest's"):
                client.call(method, nsid=nsid)
        assert client.call("namespace.add", disk="mem:1M")["nsid"] == 3
