"""From listening to the end: what it prints and logs, one client after another, its files."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shlex
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

import nvmeemu
from nvmeemu.app.control import Control
from nvmeemu.testing import CC, Driver, VfioClient
from nvmeemu.testing.client import CONFIG
from server.conftest import Attach
from server.guest import ABRUPT, Guest
from server.process import NVMEEMU, Serve, run
from server.shim import Op, Shim

pytestmark = pytest.mark.long


def test_it_prints_what_to_give_qemu(path: str, disk: Path, serve: Serve) -> None:
    served = serve("--disk", disk)
    assert f"nvmeemu {nvmeemu.__version__}: disk {disk} (16 MiB) on {path}\n" in served.announced
    assert served.device == {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}}
    _, _, pasted = served.announced.partition("QEMU: ")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {pasted}"], capture_output=True, text=True, check=True)
    arguments = words.stdout.splitlines()
    assert arguments[0] == "-object"
    assert "share=on" in arguments[1]
    name = re.search(r"id=(\w+)", arguments[1])
    assert name
    assert f"memory-backend={name[1]}" in arguments[arguments.index("-machine") + 1]
    assert json.loads(arguments[-1]) == served.device


@pytest.mark.parametrize(("option", "words"), [("--read-only", "read-only"), ("--overlay", "writes are thrown away")])
def test_it_says_how_the_disk_is_used(disk: Path, serve: Serve, option: str, words: str) -> None:
    assert words in serve("--disk", disk, option).announced


def test_a_relative_socket_path_is_printed_in_full(folder: Path, serve: Serve) -> None:
    served = serve("--disk", "mem:1M", at="with space", cwd=folder)
    assert served.device["socket"]["path"] == f"{folder}/with space"
    assert shlex.split(served.announced.splitlines()[-1])[0] == "-device"


def test_ready_fd_gets_a_line_when_a_client_can_connect_and_is_closed(path: str) -> None:
    reading, writing = os.pipe()
    arguments = [NVMEEMU, "serve", "--socket", path, "--disk", "mem:1M", "--ready-fd", str(writing)]
    with subprocess.Popen(arguments, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert os.read(reading, 100) == b"ready\n"
        VfioClient(path).close()
        assert select.select([reading], [], [], 10)[0]
        assert os.read(reading, 100) == b""
        process.terminate()
    os.close(reading)
    assert process.returncode == 0


@pytest.mark.parametrize("before", [None, "", "17\n"], ids=str)
def test_the_pid_file_is_there_as_long_as_the_server(folder: Path, serve: Serve, before: str | None) -> None:
    """It may be there, empty (mktemp, or the disk was full once) or left behind."""
    pid_file = folder / "pid"
    if before is not None:
        pid_file.write_text(before)
    served = serve("--disk", "mem:1M", "--pid-file", pid_file)
    assert int(pid_file.read_text()) == served.pid
    assert served.stop() == 0
    assert not pid_file.exists()


@pytest.mark.parametrize("where", ["s", "c"])
def test_without_a_free_descriptor_it_sleeps_and_a_client_waits(folder: Path, serve: Serve, where: str) -> None:
    served = serve("--disk", "mem:1M", "--control", folder / "c")
    taken = {int(name) for name in os.listdir(f"/proc/{served.pid}/fd")}
    free = next(number for number in count() if number not in taken)
    limits = resource.prlimit(served.pid, resource.RLIMIT_NOFILE)
    for most in (free, free + 1):
        resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(folder / where))
            second.connect(str(folder / where))
            served.wait_until_it_sleeps()
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, limits)
    with Control(folder / "c") as control:
        assert control.call("status")["faults"] == 0
    Guest(served.path).leave()
    assert served.stop() == 0


def test_whoever_looks_in_and_leaves_is_no_warning(path: str, serve: Serve) -> None:
    served = serve("--disk", "mem:1M")
    for said in (b"", b"\0" * 8):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(path)
            visitor.sendall(said)
    served.expect("a client connected, but did not get through the handshake", 2)
    assert "handshake: it said nothing" in served.log
    assert "WARNING" not in served.log
    VfioClient(path).close()
    served.expect("detached")
    assert served.stop() == 0


def test_the_log_tells_the_life_of_each_client(path: str, serve: Serve, attach: Attach) -> None:
    served = serve("--disk", "mem:1M")
    driver = attach()
    served.expect(f"attached: {Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()}")
    served.expect("controller enabled")
    driver.write(0, b"first" + bytes(507))
    driver.shut_down()
    served.expect("shutdown (normal)")
    served.expect("shutdown complete")
    driver.disable()
    served.expect("controller reset")
    driver.leave()
    served.expect("detached: ")
    again = attach()
    served.expect("attached: ", 2)
    served.expect("controller enabled", 2)
    assert again.read(0, 1)[:5] == b"first"
    again.shut_down(ABRUPT)
    served.expect("shutdown (abrupt)")
    again.bus.client.reset()
    served.expect("reset by the VMM")
    assert served.stop() == 0
    assert served.log.splitlines()[-1].endswith("INFO stopped")
    assert "WARNING" not in served.log
    assert "ERROR" not in served.log
    assert not os.path.exists(path)


def test_the_next_client_may_be_there_before_the_last_one_has_left(path: str, serve: Serve, attach: Attach) -> None:
    serve("--disk", "mem:1M")
    for number in range(3):
        driver = attach()
        driver.write(number, bytes([number]) * 512)
        driver.leave()
    driver = attach()
    assert [driver.read(number, 1)[0] for number in range(3)] == [0, 1, 2]


def test_a_client_killed_in_the_middle_of_its_work_leaves_the_server_ready(
    path: str, disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """Also with commands at the disk, whose results nobody waits for any more."""
    served = serve("--disk", disk, environment=shim.environment)
    program = (
        "import sys, time; from server.guest import Guest; from server.load import transfer\n"
        "from nvmeemu.spec import NvmOpcode\n"
        "g = Guest(sys.argv[1]); place = g.alloc(4096)\n"
        "for slba in range(40): g.submit(g.queues[1], transfer(NvmOpcode.WRITE, place, slba * 8))\n"
        "print('busy', flush=True); time.sleep(60)"
    )
    shim.hold(Op.WRITE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, env=environment) as client:
        assert client.stdout
        assert client.stdout.readline() == b"busy\n"
        shim.wait_for_held(Op.WRITE)
        client.kill()
    served.expect("detached")
    shim.release()
    driver = attach()
    driver.write(0, b"\x5a" * 512)
    assert driver.read(0, 1) == b"\x5a" * 512
    assert served.stop() == 0


def test_once_it_ends_with_its_first_client(path: str, disk: Path, serve: Serve, shim: Shim) -> None:
    served = serve("--disk", disk, "--once", environment=shim.environment)
    Guest(path).leave()
    assert served.wait() == 0
    assert shim.calls(Op.SYNC) == 1
    assert not os.path.exists(path)


def test_the_log_level_says_how_much(path: str, serve: Serve, attach: Attach) -> None:
    quiet = serve("--disk", "mem:1M", "--log-level", "warning")
    attach().leave()
    assert quiet.stop() == 0
    assert quiet.log == ""
    loud = serve("--disk", "mem:1M", "--log-level", "debug")
    driver = attach()
    driver.write(0, b"secret".ljust(512))
    assert loud.stop() == 0
    assert "DEBUG" in loud.log
    assert "secret" not in loud.log


def test_a_guest_cannot_flood_the_log(serve: Serve, attach: Attach) -> None:
    served = serve("--disk", "mem:1M")
    driver = attach()
    for number in range(2000):
        driver.bus.write_bar(0x1000 + 8 * (number % 500 + 100), b"\1\0\0\0")  # queues that are not there
        driver.bus.write_bar(CC, bytes(4))
    driver.enable()
    assert served.stop() == 0
    assert 5 < len(served.log.splitlines()) < 60


def test_version_capabilities_and_help() -> None:
    for words in ((NVMEEMU,), (NVMEEMU, "serve"), (NVMEEMU, "run")):
        assert run("--version", command=words).stdout == f"nvmeemu {nvmeemu.__version__}\n"
    for command in ((NVMEEMU,), (NVMEEMU, "serve"), (sys.executable, "-m", "nvmeemu")):
        result = run("--print-capabilities", command=command)
        capabilities = json.loads(result.stdout)
        assert (result.returncode, result.stderr) == (0, "")
        assert capabilities["type"] == "nvme"
        assert capabilities["binding"] is True
    help_text = run("--help").stdout
    for option in (
        *("--socket", "--disk", "--size", "--create", "--read-only", "--overlay", "--serial", "--model"),
        *("--block-size", "--queues", "--once", "--pid-file", "--ready-fd", "--log-level", "--vendor-id"),
    ):
        assert option in help_text


def test_each_word_of_the_capabilities_is_an_option() -> None:
    help_text = run("--help").stdout
    for feature in json.loads(run("--print-capabilities").stdout)["features"]:
        assert f"--{feature} " in help_text or f"--{feature}]" in help_text, feature


# --- who it is


def names(driver: Driver) -> dict[str, bytes]:
    controller, namespace, descriptors = driver.identify(1), driver.identify(0, 1), driver.identify(3, 1)
    uuid = descriptors[descriptors.index(b"\3\x10\0\0") + 4 :][:16]
    assert controller[516:520] == (16).to_bytes(4, "little")  # NN
    return {"serial": controller[4:24], "subnqn": controller[768:1024], "nguid": namespace[104:120], "uuid": uuid}


def test_names_are_the_same_at_each_start_and_differ_between_disks(
    folder: Path, disk: Path, serve: Serve, attach: Attach
) -> None:
    seen = []
    link = folder / "link"
    link.symlink_to(disk)
    for spec, at in ((disk, "1"), (disk, "2"), (link, "1"), ("mem:1M", "1"), ("mem:1M", "1")):
        served = serve("--disk", spec, at=f"{folder}/{at}")
        driver = attach(f"{folder}/{at}")
        seen.append(names(driver))
        assert served.stop() == 0
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[4]
    other = folder / "other"
    served = serve("--disk", other, "--create", "--size", "1M")
    seen.append(names(attach()))
    assert served.stop() == 0
    served = serve("--disk", "mem:1M", at=f"{folder}/2")
    seen.append(names(attach(f"{folder}/2")))
    for key in ("serial", "subnqn", "nguid", "uuid"):
        values = [seen[index][key] for index in (0, 3, 5, 6)]
        assert len(set(values)) == 4, key
        assert all(value.strip(b"\0 ") for value in values)


@pytest.mark.parametrize("option", ["--overlay", "--read-only"])
def test_one_disk_behind_two_servers_is_two_drives_for_a_guest(
    folder: Path, disk: Path, serve: Serve, attach: Attach, option: str
) -> None:
    """Linux refuses two controllers of one subsystem that have the same number."""
    seen = []
    for at in ("1", "2"):
        serve("--disk", disk, option, at=f"{folder}/{at}")
        seen.append(names(attach(f"{folder}/{at}")))
    assert all(seen[0][key] != seen[1][key] for key in seen[0])
    served = serve("--disk", disk, option, at=f"{folder}/3")
    third = names(attach(f"{folder}/3"))
    assert served.stop() == 0
    serve("--disk", disk, option, at=f"{folder}/3")
    assert names(attach(f"{folder}/3")) == third  # the same at each start


def test_what_a_namespace_is_known_by_can_be_given(serve: Serve, attach: Attach) -> None:
    nguid, uuid, eui64 = (
        "0011223344556677-8899aabbccddeeff",
        "01234567-89ab-cdef-0123-456789abcdef",
        "00:25:38:01:02:03:04:05",
    )
    subsystem = "nqn.2014-08.org.example:one"
    options = ("--nguid", nguid, "--uuid", uuid, "--eui64", eui64, "--subnqn", subsystem, "--cntlid", 7)
    serve("--disk", "mem:1M", "--disk", "mem:1M", *options, "--eui64", "ff" * 8, "--firmware", "FW 2.3")
    driver = attach()
    controller = driver.identify(1)
    assert controller[768:1024] == subsystem.encode().ljust(256, b"\0")
    assert controller[78:80] == b"\7\0"
    assert controller[64:72] == b"FW 2.3  "
    assert driver.get_log(3, 512)[8:16] == b"FW 2.3  "
    namespace, descriptors = driver.identify(0, 1), driver.identify(3, 1)
    wanted = [bytes.fromhex(re.sub("[-:]", "", text)) for text in (eui64, nguid, uuid)]
    assert namespace[104:128] == wanted[1] + wanted[0]
    told = [bytes((kind, len(value), 0, 0)) + value for kind, value in zip((1, 2, 3), wanted, strict=True)]
    assert descriptors.startswith(b"".join(told))
    second = driver.identify(0, 2)
    assert second[120:128] == b"\xff" * 8
    assert second[104:120] not in (wanted[1], bytes(16))


def test_names_and_ids_can_be_given(path: str, serve: Serve, attach: Attach) -> None:
    options = ("--serial", "MINE 1", "--model", "My Model", "--vendor-id", "0x1B36", "--device-id", "16")
    serve("--disk", "mem:1M", *options)
    driver = attach()
    controller = driver.identify(1)
    assert controller[:4] == b"\x36\x1b\x36\x1b"
    assert controller[4:24] == b"MINE 1".ljust(20)
    assert controller[24:64] == b"My Model".ljust(40)
    client = driver.bus.client
    assert client.read(CONFIG, 0, 4) == b"\x36\x1b\x10\x00"
    assert client.read(CONFIG, 0x2C, 4) == b"\x36\x1b\x10\x00"


def test_by_default_its_pci_ids_are_its_own(path: str, serve: Serve) -> None:
    serve("--disk", "mem:1M")
    with VfioClient(path) as client:
        assert client.read(CONFIG, 0, 2) not in (b"\x36\x1b", b"\x86\x80", b"\xff\xff", b"\0\0")
        assert client.read(CONFIG, 9, 3) == b"\x02\x08\x01"


def test_queues_and_block_size_are_as_given(serve: Serve, attach: Attach) -> None:
    serve("--disk", "mem:1M", "--queues", 3, "--block-size", 4096)
    driver = attach()
    assert driver.get_feature(7) == 2 << 16 | 2  # Number of Queues, 0's based
    assert int.from_bytes(driver.identify(0, 1)[:8], "little") == 256
    driver.write(255, b"\x5a" * 4096, block_size=4096)
    assert driver.read(255, 1, block_size=4096) == b"\x5a" * 4096


def test_without_msix_there_is_no_such_capability(path: str, serve: Serve, attach: Attach) -> None:
    serve("--disk", "mem:1M", "--no-msix")
    driver = attach(vectors=0)
    driver.write(0, b"x" * 512)
    client = driver.bus.client
    offset, found = client.read(CONFIG, 0x34, 1)[0], []
    while offset:
        found.append(client.read(CONFIG, offset, 1)[0])
        offset = client.read(CONFIG, offset + 1, 1)[0]
    assert found
    assert 0x11 not in found


def test_it_ends_well_when_nobody_reads_its_log_any_more(path: str) -> None:
    reading, writing = os.pipe()
    arguments = [NVMEEMU, "serve", "--socket", path, "--disk", "mem:1M", "--ready-fd", str(writing)]
    process = subprocess.Popen(arguments, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.close(writing)
    assert os.read(reading, 100) == b"ready\n"
    os.close(reading)
    assert process.stderr is not None
    process.stderr.close()
    process.terminate()
    assert process.wait(20) == 0
