"""``nvmeemu serve --drive``: what a drive file says is what a host sees; ``nvmeemu schema``; ``ctl namespace add``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from nvmeemu.app.control import Control, ControlError
from nvmeemu.app.drive.file import read
from nvmeemu.app.drive.schema import schema
from nvmeemu.testing import VfioClient
from nvmeemu.testing.client import CONFIG
from server.conftest import Attach
from server.process import NVMEEMU, Serve, run
from server.test_bad_use import refused

pytestmark = pytest.mark.long

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "drive-file.md").read_text()
CTL = (NVMEEMU, "ctl")

FILE = """
[identity]
serial = "LAB-0001"
vendor_id = 0x1B36
[limits]
queues = 3
[[namespace]]
disk = "new.img"
nsid = 2
create = true
size = "2M"
block_size = 4096
[[namespace]]
disk = "disk.raw"
read_only = true
[[controller]]
socket = "s"
cntlid = 5
trace = "trace"
faults = ["faults.toml"]
control = "c"
"""


def write(folder: Path, text: str = FILE, name: str = "drive.toml") -> Path:
    (folder / "faults.toml").write_text("[[fault]]\nmatch.opcode = 'compare'\ndo = { status = 'compare_failure' }\n")
    file = folder / name
    file.write_text(text)
    return file


def test_a_host_sees_what_the_file_says(folder: Path, disk: Path, serve: Serve, attach: Attach) -> None:
    served = serve("--drive", os.path.relpath(write(folder), "/"), cwd="/")  # paths are the file's, not the process'
    assert f"disk {os.path.relpath(folder, '/')}/new.img (2 MiB), " in served.announced
    assert "disk.raw (16 MiB, read-only) on " in served.announced
    driver = attach()
    controller = driver.identify(1)
    assert controller[4:24] == b"LAB-0001".ljust(20)
    assert controller[78:80] == b"\5\0"
    assert controller[:2] == b"\x36\x1b"
    assert driver.get_feature(7) == 2 << 16 | 2  # Number of Queues, 0's based
    assert int.from_bytes(driver.identify(0, 1)[:8], "little") == 16 * MIB // 512
    assert int.from_bytes(driver.identify(0, 2)[:8], "little") == 2 * MIB // 4096
    with Control(folder / "c") as control:
        status = control.call("status")
        assert status["faults"] == 1
        assert [(one["nsid"], one["block_size"], one["read_only"]) for one in status["namespaces"]] == [
            (2, 4096, False),
            (1, 512, True),
        ]
    assert driver.bus.client.read(CONFIG, 0, 2) == b"\x36\x1b"
    driver.leave()
    assert served.stop() == 0
    assert (folder / "trace").stat().st_size


def test_the_same_drive_has_the_same_names_as_with_options(
    folder: Path, disk: Path, serve: Serve, attach: Attach
) -> None:
    seen = []
    file = write(
        folder, "[[namespace]]\ndisk = 'disk.raw'\n[[namespace]]\ndisk = 'mem:1M'\n[[controller]]\nsocket = 's'\n"
    )
    for words in (("--disk", disk, "--disk", "mem:1M"), ("--drive", file)):
        served = serve(*words)
        driver = attach()
        seen.append(
            [driver.identify(1)[4:24], driver.identify(1)[768:1024], driver.identify(3, 1), driver.identify(3, 2)]
        )
        driver.leave()
        assert served.stop() == 0
    assert seen[0] == seen[1]


def test_a_bad_file_is_bad_use(path: str, folder: Path, disk: Path) -> None:
    for old, new, said in (
        ("4096", "1000", "12: namespace 1: block_size: 1000 is neither 512 nor 4096"),
        ("faults.toml", "none.toml", f"20: controller 1: faults {folder}/none.toml: No such file or directory"),
        ('socket = "s"', 'socket = "disk.raw"', f"14: namespace 2: socket and disk are both {folder}/disk.raw: give"),
        ("read_only = true", "create = true", "14: namespace 2: create and size go together: create = true, size ="),
        ("create = true", "read_only = true", "8: namespace 1: create and size go together"),
        ("[limits]", "[limits]\nmpsmin = 3\nmpsmax = 1", "5: there is no such controller: mpsmin 3 is above mpsmax 1"),
    ):
        file = write(folder, FILE.replace(old, new, 1))
        assert refused(run("--drive", file), 2, f"nvmeemu serve: {file}:{said}")
    assert sorted(os.listdir(folder)) == ["disk.raw", "drive.toml", "faults.toml"]


@pytest.mark.parametrize(
    ("of_disk", "of_drive", "said"),
    [
        (
            "companion = 'new.img'",
            "",
            "8: namespace 1: the companion of disk {0}/disk.raw and disk are both {0}/new.img",
        ),
        ("companion = 's'", "", "16: namespace 2: socket and the companion of disk {0}/disk.raw are both {0}/s"),
        ("companion = 'x'", "state = 'x'", ": state and the companion of disk {0}/disk.raw are both {0}/x: give each"),
        ("", "state = 'disk.raw.nvme'", ": state and the companion of disk {0}/disk.raw are both {0}/disk.raw.nvme"),
    ],
)
def test_a_companion_is_nothing_else_that_is_used(
    path: str, folder: Path, disk: Path, of_disk: str, of_drive: str, said: str
) -> None:
    """Otherwise the two would write over each other, now or at the next start."""
    file = write(folder, of_drive + FILE.replace("read_only = true", f"metadata = 8\n{of_disk}", 1))
    message = refused(run("--drive", file), 2, f"nvmeemu serve: {file}:")
    assert said.format(folder) in message
    assert sorted(os.listdir(folder)) == ["disk.raw", "drive.toml", "faults.toml"]


def test_a_byte_order_mark_is_called_by_its_name(folder: Path) -> None:
    file = write(folder, "\ufeff" + FILE)
    assert refused(run("--drive", file), 2, f"nvmeemu serve: {file}:1: it begins with a byte order mark, which TOML")


def test_what_fails_is_said_with_its_place_too(folder: Path, disk: Path) -> None:
    for old, new, said in (
        ("disk.raw", "none.raw", f"14: namespace 2: disk {folder}/none.raw does not exist"),
        ('socket = "s"', f'socket = "{"s" * 108}"', f"17: controller 1: {folder}/sss"),
        ('trace = "trace"', 'trace = "none/trace"', f"19: controller 1: trace: {folder}/none/trace: No such file"),
        ('control = "c"', 'control = "none/c"', f"21: controller 1: {folder}/none/c: there is no folder {folder}/none"),
    ):
        file = write(folder, FILE.replace(old, new, 1).replace('faults = ["faults.toml"]', ""))
        message = refused(run("--drive", file), 1, f"nvmeemu serve: {file}:")
        assert message.startswith(f"nvmeemu serve: {file}:{said}"), message
        assert not (folder / "s").exists()


def test_schema_prints_what_an_editor_needs() -> None:
    result = run("schema", command=(NVMEEMU,))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == schema()
    assert run("--help", command=(NVMEEMU,)).stdout.count("schema") >= 1
    refused(run("schema", "now", command=(NVMEEMU,)), 2, "unrecognized arguments: now")


def test_run_serves_a_drive_file_where_it_wants_to(folder: Path, disk: Path) -> None:
    program = "import os, sys; print(sys.argv[1]); assert sys.argv[1] == os.environ['NVMEEMU_SOCKET']"
    for text, where in (
        ("[[namespace]]\ndisk = 'disk.raw'\n", r".*/nvmeemu-run-\w+/nvme.sock"),
        ("[[namespace]]\ndisk = 'disk.raw'\n[[controller]]\nsocket = 'here'\n", re.escape(f"{folder}/here")),
    ):
        file = write(folder, text)
        words = [NVMEEMU, "run", "--drive", str(file), "--", sys.executable, "-c", program, "{socket}"]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.fullmatch(where, ended.stdout.strip())
    file = write(folder, "[[namespace]]\ndisk = 'disk.raw'\nsiez = 3\n")
    ended = subprocess.run([NVMEEMU, "run", "--drive", str(file), "--", "true"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"{file}:3: namespace 1: siez: there is no such key: is size meant?" in ended.stderr
    assert ended.stderr.count("\n") == 1


# --- namespaces that are added have the same words


@pytest.mark.parametrize("options", [(), ("--read-only", "--block-size", "4096")])
def test_ctl_adds_namespaces_with_the_words_of_the_file(
    folder: Path, disk: Path, serve: Serve, options: tuple[str, ...]
) -> None:
    serve("--disk", disk, *options, "--control", folder / "c")

    def add(*words: str) -> subprocess.CompletedProcess[str]:
        return run("--control", folder / "c", "--json", "namespace", "add", *words, command=CTL, cwd=folder)

    for name in ("a.img", "b=c.img"):
        (folder / name).write_bytes(bytes(MIB))
    as_options_say = {"block_size": 4096 if options else 512, "read_only": bool(options)}
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    for words, expected in (
        (
            ("disk=a.img", "nsid=5", "block_size=4096", "read_only=true"),
            {"nsid": 5, "block_size": 4096, "read_only": True},
        ),
        (("b=c.img",), {"nsid": 2, "size": MIB, **as_options_say}),
        (("new.img", "create=true", "size=3M", "read_only=false"), {"nsid": 3, "size": 3 * MIB, "read_only": False}),
        (("disk=mem:2M", f"uuid={uuid}", "read_only=false", "--nsid", "9"), {"nsid": 9, "size": 2 * MIB}),
    ):
        result = add(*words)
        assert result.returncode == 0, result.stderr
        said = json.loads(result.stdout)
        assert {key: said[key] for key in expected} == expected
    with Control(folder / "c") as control:
        assert [one["nsid"] for one in control.call("status")["namespaces"]] == [1, 5, 2, 3, 9]
        with pytest.raises(ControlError, match=r"^blocksize: there is no such key: is block_size meant\?") as refusal:
            control.call("namespace.add", disk="mem:1M", blocksize=512)
        assert refusal.value.code == -32602
    for bad, said in (
        (("disk=mem:1M", "blocksize=512"), "blocksize: there is no such key: is block_size meant?"),
        (("disk=mem:1M", "block_size=513"), "block_size: 513 is neither 512 nor 4096"),
        (("block_size=512",), "disk: is missing: a raw file, a block device"),
        (("mem:1M", "disk=mem:2M"), "disk: mem:1M and mem:2M: give one"),
        (("disk=mem:1M", "nsid=7", "nsid=8"), "nsid: is given twice, 7 and 8: give it once"),
        (("mem:1M", "read_only"), "'read_only': write KEY=VALUE, for example disk=disk.img block_size=4096"),
    ):
        result = add(*bad)
        assert result.returncode == 2
        assert result.stderr == f"nvmeemu ctl: {said}" + result.stderr.removeprefix(f"nvmeemu ctl: {said}")
        assert result.stderr.count("\n") == 1


# --- the page


def test_the_committed_page_is_up_to_date() -> None:
    script = ROOT / "scripts" / "drive_file_doc.py"
    result = subprocess.run((sys.executable, script, "--check"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_examples_of_the_page_work(folder: Path, serve: Serve) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    file = write(folder, text, "lab.toml")
    jsonschema.validate(tomllib.loads(text), schema())
    drive = read(str(file)).drive()
    assert drive.controller.socket == f"{folder}/lab.sock"
    commands = [
        line.split() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]
    assert [words[:3] for words in commands] == [["nvmeemu", "serve", "--drive"]] * len(commands)
    served = serve(*commands[0][2:], at=f"{folder}/lab.sock", cwd=folder)
    VfioClient(served.path).close()
    assert served.stop() == 0
    errors = re.findall(r"^nvmeemu serve: lab.toml:(\d+): (.*)$", PAGE, re.MULTILINE)
    for (line, said), (old, new) in zip(errors, (("4096", "1000"), ("serial", "seriel")), strict=True):
        write(folder, text.replace(old, new), "lab.toml")
        result = run("--drive", "lab.toml", cwd=folder)
        assert result.stderr == f"nvmeemu serve: lab.toml:{line}: {said}\n"
