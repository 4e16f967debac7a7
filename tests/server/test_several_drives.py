"""Several drives in one process: what happens to one is nothing to the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmeemu.app.control import Control, ControlError
from nvmeemu.app.control.messages import INVALID_PARAMS
from nvmeemu.app.ending import SAME_WISH
from nvmeemu.spec import NvmOpcode
from nvmeemu.testing import CommandError, Refused, VfioClient
from nvmeemu.trace import Reader
from server.conftest import Attach
from server.guest import Guest
from server.load import transfer
from server.process import NVMEEMU, Serve, Served, run
from server.shim import Op, Shim
from server.test_bad_use import refused

pytestmark = pytest.mark.long

MIB = 1 << 20
CTL = (NVMEEMU, "ctl")


def write(folder: Path, name: str, disk: Path | str, more: str = "", of_disk: str = "") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(
        f'[identity]\nserial = "{name}"\n[[namespace]]\ndisk = "{disk}"\n{of_disk}\n'
        f'[[controller]]\nsocket = "{name}"\ncontrol = "{name}.ctl"\n{more}\n'
    )
    return file


@pytest.fixture
def other(folder: Path) -> Path:
    disk = folder / "other.raw"
    disk.touch()
    os.truncate(disk, 8 * MIB)
    return disk


def start(serve: Serve, folder: Path, *files: Path, **options: object) -> Served:
    words = [word for file in files for word in ("--drive", str(file))]
    return serve(*words, at=f"{folder}/{files[0].stem}", drives=len(files), **options)


def identity(guest: Guest) -> bytes:
    return guest.identify(1)[4:24].rstrip()


def test_each_has_its_own_of_everything(folder: Path, disk: Path, other: Path, serve: Serve, attach: Attach) -> None:
    (folder / "f.toml").write_text("[[fault]]\nmatch.opcode = 'write'\ndo = { status = 'write_fault' }\n")
    files = [
        write(folder, "a", disk, "trace = 'a.trace'\nfaults = ['f.toml']"),
        write(folder, "b", other, "trace = 'b.trace'\nengine = 'python'", "block_size = 4096"),
    ]
    served = start(serve, folder, *files)
    assert [line.split()[-1] for line in served.announced.splitlines()[::3]] == [f"{folder}/a", f"{folder}/b"]
    one, two = attach(f"{folder}/a"), attach(f"{folder}/b")
    assert (identity(one), identity(two)) == (b"a", b"b")
    assert int.from_bytes(one.identify(0, 1)[:8], "little") == 16 * MIB // 512
    assert int.from_bytes(two.identify(0, 1)[:8], "little") == 8 * MIB // 4096
    with pytest.raises(CommandError):
        one.write(0, bytes(512))
    two.write(0, b"2" * 4096, block_size=4096)
    with Control(folder / "a.ctl") as control:
        assert (control.call("status")["drive"], control.call("status")["serial"]) == ("a", "a")
        control.call("fault.remove")
        control.call("namespace.add", disk="mem:1M")
    with Control(folder / "b.ctl") as control:
        status = control.call("status")
        assert (status["drive"], status["faults"], len(status["namespaces"])) == ("b", 0, 1)
    one.write(0, b"1" * 512)
    one.leave()
    assert two.read(0, 1, block_size=4096) == b"2" * 4096
    two.leave()
    assert served.stop() == 0
    assert disk.read_bytes()[:512] == b"1" * 512
    assert other.read_bytes()[:4096] == b"2" * 4096
    for name, engine in (("a", None), ("b", "python")):
        with open(folder / f"{name}.trace", "rb") as file:
            description = Reader(file).description
            assert (description.identity["serial"], description.drive) == (name, name)
            assert engine in (None, description.engine)


def test_a_killed_client_of_one_is_nothing_to_the_other(
    folder: Path, disk: Path, other: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """Also with commands at its disk, which stalls."""
    served = start(serve, folder, write(folder, "a", disk), write(folder, "b", other), environment=shim.environment)
    two = attach(f"{folder}/b")
    program = (
        "import sys, time; from server.guest import Guest; from server.load import transfer\n"
        "from nvmeemu.spec import NvmOpcode\n"
        "g = Guest(sys.argv[1]); place = g.alloc(4096)\n"
        "for slba in range(40): g.submit(g.queues[1], transfer(NvmOpcode.WRITE, place, slba * 8))\n"
        "print('busy', flush=True); time.sleep(60)"
    )
    shim.hold(Op.WRITE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", program, f"{folder}/a"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as client:
        assert client.stdout
        assert client.stdout.readline() == b"busy\n"
        shim.wait_for_held(Op.WRITE)
        two.write(1, b"2" * 512)
        client.kill()
    served.expect("detached")
    for number in range(50):
        two.write(number, bytes([number]) * 512)
        assert two.read(number, 1) == bytes([number]) * 512
    shim.release()
    one = attach(f"{folder}/a")
    one.write(0, b"1" * 512)
    assert one.read(0, 1) == b"1" * 512
    assert served.stop() == 0


def test_a_blocked_disk_of_one_is_nothing_to_the_other(
    folder: Path, disk: Path, other: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    served = start(serve, folder, write(folder, "a", disk), write(folder, "b", other), environment=shim.environment)
    one, two = attach(f"{folder}/a"), attach(f"{folder}/b")
    shim.hold(Op.READ)
    shim.hold(Op.WRITE)
    place = one.alloc(4096)
    for slba in range(100):
        one.submit(one.queues[1], transfer(NvmOpcode.WRITE, place, slba * 8))
    shim.wait_for_held(Op.WRITE)
    two.write(0, b"2" * 512)
    assert two.read(0, 1) == b"2" * 512
    two.disable()
    two.enable()
    with Control(folder / "b.ctl") as control:
        control.call("namespace.add", disk="mem:1M")
        control.call("namespace.remove", nsid=2)
    with pytest.raises(Refused):
        VfioClient(f"{folder}/a")  # its drive is taken: to be told so takes no disk
    assert shim.held(Op.WRITE)  # whoever waits for that disk waits still
    shim.release()
    assert served.stop() == 0


def test_a_stranger_that_says_nothing_to_one_does_not_hold_up_the_other(
    folder: Path, serve: Serve, attach: Attach
) -> None:
    served = start(serve, folder, write(folder, "a", "mem:1M"), write(folder, "b", "mem:1M"))
    two = attach(f"{folder}/b")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"{folder}/a")
        stranger.sendall(b"\0")
        two.write(0, b"2" * 512)
        assert two.read(0, 1) == b"2" * 512
        assert served.stop() == 0


def test_sigterm_syncs_all_and_a_stalled_disk_keeps_no_other_from_it(
    folder: Path, disk: Path, other: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    for is_stalled in (False, True):
        files = write(folder, "a", disk), write(folder, "b", other)
        served = start(serve, folder, *files, environment=shim.environment)
        before = shim.calls(Op.SYNC)
        for name in "ab":
            attach(f"{folder}/{name}").write(0, name.encode() * 512)
        if not is_stalled:
            assert served.stop() == 0
            assert shim.calls(Op.SYNC) == before + 1  # the shim knows of the first one
        else:
            shim.hold(Op.SYNC)
            served.send(signal.SIGTERM)
            shim.wait_for_held(Op.SYNC)
            served.expect(f"syncing {disk}; a second signal")  # not of the other one, which is synced
            time.sleep(SAME_WISH + 0.1)
            served.send(signal.SIGTERM)
            assert served.wait() == 1
            assert served.log.splitlines()[-1].endswith(f"ended by a second signal: not synced: {disk}")
            shim.release()
        assert not {"a", "b"} & set(os.listdir(folder))
        assert disk.read_bytes()[:512] == b"a" * 512
        assert other.read_bytes()[:512] == b"b" * 512


def test_once_ends_when_each_has_had_a_client(folder: Path, serve: Serve) -> None:
    files = write(folder, "a", "mem:1M"), write(folder, "b", "mem:1M")
    words = [word for file in files for word in ("--drive", str(file))]
    served = serve(*words, "--once", at=f"{folder}/a", drives=2)
    for _ in range(2):
        Guest(f"{folder}/a").leave()
    served.expect("detached", 2)
    Guest(f"{folder}/b").leave()
    assert served.wait() == 0


def test_drives_can_share_a_control_socket(folder: Path, serve: Serve, attach: Attach) -> None:
    files = [write(folder, name, "mem:1M") for name in "ab"]
    for file in files:
        file.write_text(file.read_text().replace(f"{file.stem}.ctl", "ctl"))
    served = start(serve, folder, *files)
    with Control(folder / "ctl") as control:
        control.call("fault.add", drive="b", match={"opcode": "write"}, do={"status": "write_fault"})
        assert [control.call("status", drive=name)["faults"] for name in "ab"] == [0, 1]
        for parameters, said in (
            ({}, "is missing"),
            ({"drive": "c"}, "'c' is none of them"),
            ({"drive": []}, r"\[\] is"),
        ):
            with pytest.raises(ControlError, match=f"^drive: {said}.*: there are a, b$") as refusal:
                control.call("status", **parameters)
            assert refusal.value.code == INVALID_PARAMS
    attach(f"{folder}/a").write(0, bytes(512))
    with pytest.raises(CommandError):
        attach(f"{folder}/b").write(0, bytes(512))
    words = ("--control", folder / "ctl")
    assert "serial: b\n" in run(*words, "--drive", "b", "status", command=CTL).stdout
    refused(run(*words, "status", command=CTL), 2, "nvmeemu ctl: drive: is missing: there are a, b")
    assert served.stop() == 0
    assert "ctl" not in os.listdir(folder)


def test_a_disk_that_is_added_is_no_other_drives(folder: Path, disk: Path, other: Path, serve: Serve) -> None:
    """Whichever of the two was opened first; the message has the words of keys."""
    served = start(serve, folder, write(folder, "a", disk), write(folder, "b", other))
    for name, taken, owner in (("a", other, "b"), ("b", disk, "a")):
        with Control(folder / f"{name}.ctl") as control:
            said = f"^disk {taken} is {taken} of the drive {owner}: share it with read_only or overlay in both$"
            with pytest.raises(ControlError, match=said):
                control.call("namespace.add", disk=str(taken))
            with pytest.raises(ControlError, match=r'create = true, size = "10G"$'):
                control.call("namespace.add", disk=str(folder / "none.img"))
    assert served.stop() == 0


# --- what cannot be


@pytest.mark.parametrize("of_disk", ["", "read_only = true", "overlay = true"])
def test_two_drives_cannot_write_to_one_image(folder: Path, disk: Path, of_disk: str) -> None:
    link = folder / "link.raw"
    link.symlink_to(disk)
    first = write(folder, "a", disk)
    for name in ("disk.raw", "link.raw", f"raw:{disk}"):
        second = write(folder, "b", name, of_disk=of_disk)
        for files in ((first, second), (second, first)):
            words = [word for file in files for word in ("--drive", str(file))]
            message = refused(run(*words), 2, f"nvmeemu serve: {files[1]}:4: namespace 1: disk ")
            assert f" of the drive {files[0].stem}: share it with read_only or overlay in both" in message
            assert not {"a", "b", "a.ctl", "b.ctl"} & set(os.listdir(folder))


def test_two_drives_can_share_what_neither_writes(folder: Path, disk: Path, serve: Serve, attach: Attach) -> None:
    files = write(folder, "a", disk, of_disk="overlay = true"), write(folder, "b", disk, of_disk="read_only = true")
    served = start(serve, folder, *files)
    one, two = attach(f"{folder}/a"), attach(f"{folder}/b")
    one.write(0, b"1" * 512)
    assert two.read(0, 1) == bytes(512)
    assert one.identify(3, 1) != two.identify(3, 1)
    assert served.stop() == 0


def test_a_namespace_that_is_added_is_no_other_drives(folder: Path, disk: Path, other: Path, serve: Serve) -> None:
    served = start(serve, folder, write(folder, "a", disk), write(folder, "b", other))
    result = run("--control", folder / "b.ctl", "namespace", "add", disk, command=CTL)
    assert result.returncode == 1
    assert f"disk {disk} is {disk} of the drive a: share it" in result.stderr
    assert served.stop() == 0


def test_one_bad_file_means_that_nothing_starts(folder: Path, disk: Path, other: Path) -> None:
    first = write(folder, "a", "new.raw", "trace = 'a.trace'", 'create = true\nsize = "1M"')
    good = write(folder, "b", other).read_text()
    for old, bad, said in (
        ("[identity]", "[identty]", "b.toml:1: identty: there is no such key: is identity meant?"),
        ("other.raw", "new.raw", "b.toml:4: namespace 1: disk "),
        ('"b"\ncontrol', '"a"\ncontrol', "b.toml:7: controller 1: socket of "),
        ('serial = "b"', 'serial = "b"\n[limits]\nmpsmax = 1\nmpsmin = 2', "b.toml:3: there is no such controller"),
        ("[[controller]]", "[[controller]]\nfaults = ['none']", "b.toml:7: controller 1: faults "),
    ):
        second = folder / "b.toml"
        second.write_text(good.replace(old, bad))
        assert second.read_text() != good
        result = run("--drive", first, "--drive", second)
        refused(result, 2, said)
        assert not {"new.raw", "a", "b", "a.ctl", "b.ctl", "a.trace"} & set(os.listdir(folder))
