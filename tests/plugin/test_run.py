"""``nvmeemu run``: the server lives as long as the command, whose status and signals are the user's."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmeemu.app.run import fill_in
from server.process import NVMEEMU

pytestmark = pytest.mark.long

PATIENCE = 120.0
RUN = [NVMEEMU, "run", "--disk", "mem:16M"]

# What a VM does with the drive, in few words: the command's language is of no interest to us.
USES_THE_DRIVE = """
import os, sys
from nvmeemu.testing import Driver, VfioBus
with VfioBus(os.environ["NVMEEMU_SOCKET"]) as bus:
    nvme = Driver(bus)
    nvme.enable(); nvme.create_queues()
    nvme.write(slba=8, data=b"here" * 128)
    assert sys.argv[1:] in ([], [os.environ["NVMEEMU_SOCKET"]])
"""


IS_SMALL = """
import os
from nvmeemu.testing import Driver, VfioBus
with VfioBus(os.environ["NVMEEMU_SOCKET"]) as bus:
    assert Driver(bus).capabilities.mqes == 5
"""


def run(*words: str | Path, command: list[str] = RUN) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "--", *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)


def one_line(ended: subprocess.CompletedProcess[str], status: int, text: str) -> None:
    assert ended.returncode == status
    assert text in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def servers() -> set[int]:
    """The processes of `nvmeemu serve` that this test process' children have started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"serve" in words and os.environ["PYTEST_CURRENT_TEST"].encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def test_the_command_has_a_drive_and_its_data_is_in_the_image(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    command = [NVMEEMU, "run", "--disk", str(disk), "--create", "--size", "1M"]
    ended = run(sys.executable, "-c", USES_THE_DRIVE, "{socket}", command=command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert disk.read_bytes()[8 * 512 :][:512] == b"here" * 128


def test_the_status_is_the_commands() -> None:
    assert run("sh", "-c", "echo out; echo err >&2; exit 7").returncode == 7
    ended = run("sh", "-c", "echo out; echo err >&2; kill -KILL $$")
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGKILL, "out\n", "err\n")


def test_the_placeholders() -> None:
    socket = Path("/place/nvme.sock")
    device = json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "/place/nvme.sock"}})
    memory = ["-object", "memory-backend-memfd,id=nvmeemu-memory,size=1G,share=on", "-m", "1G"]
    assert fill_in(["q", "{memory:1G}", "{nvme}"], [socket]) == [
        *("q", *memory, "-machine", "memory-backend=nvmeemu-memory", "-device", device)
    ]
    assert fill_in(["sh", "-c", "q {nvme} {x} >{socket}.log"], [socket]) == [
        *("sh", "-c", f"q -device '{device}' {{x}} >/place/nvme.sock.log")
    ]
    other = ["{}", "{nvm}", '{"driver":"nvme"}']
    assert fill_in(other, [socket]) == other


@pytest.mark.parametrize("word", ["{memory}", "{memory:}", "{memory:1}", "x{memory:0M}", "{memory:512m}"])
def test_memory_without_a_good_size_is_refused(word: str) -> None:
    one_line(run("true", word), 2, "give a size in M or G, for example {memory:1G}")


def test_bad_use_is_one_line() -> None:
    for words, text in (
        (["run"], "--disk SPEC is missing"),
        (["run", "--disk", "mem:1M"], "the command is missing"),
        (["run", "--disk", "mem:1M", "--"], "the command is missing"),
        (["run", "--disk", "mem:1M", "--ready-fd", "3", "--", "true"], "unrecognized arguments: --ready-fd 3"),
        (["run", "--disk", "mem:1M", "true"], "unrecognized arguments: true"),
    ):
        one_line(subprocess.run([NVMEEMU, *words], capture_output=True, text=True, timeout=PATIENCE), 2, text)


@pytest.mark.parametrize(
    "words", [("{qemu}",), ("sh", "-c", "exec '{qemu}' -M q35")], ids=["the command", "in a script"]
)
def test_a_qemu_that_is_too_old_is_explained(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says only: 'vfio-user-pci' is not a valid device model name."""
    qemu = tmp_path / "qemu-system-x86_64"
    old = (
        "case $1 in --version) echo QEMU emulator version 9.2.1;; *) echo no valid device model name >&2; exit 1;; esac"
    )
    qemu.write_text(f"#!/bin/sh\n{old}\n")
    qemu.chmod(0o755)
    cache = tmp_path / "nvmeemu/bin"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cure in ("scripts/setup.sh has one", f"put {cache} first in PATH"):
        ended = run(*(word.format(qemu=qemu) for word in words))
        assert ended.returncode == 1
        _, told = ended.stderr.splitlines()
        assert told == (
            f"nvmeemu run: {qemu} is version 9.2.1 without vfio-user-pci: QEMU 10.1 or newer is needed: {cure}"
        )
        cache.mkdir(parents=True, exist_ok=True)
        (cache / qemu.name).touch()
    new = qemu.read_text().replace(
        "case $1 in", 'case "$2" in vfio-user-pci,help) echo "vfio-user-pci options:"; exit;; esac; case $1 in'
    )
    qemu.write_text(new)
    assert run(*(word.format(qemu=qemu) for word in words)).stderr == "no valid device model name\n"  # another reason


def test_what_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    one_line(run("no-such-command"), 127, "nvmeemu run: no-such-command: no such command")
    plain = tmp_path / "file"
    plain.touch()
    one_line(run(plain), 126, "not an executable file")
    plain.chmod(0o755)
    plain.write_bytes(b"\x7fELF nonsense")
    one_line(run(plain), 126, "Exec format error")


def test_a_server_that_does_not_start_is_one_line_and_the_command_is_not_run(tmp_path: Path) -> None:
    command = [NVMEEMU, "run", "--disk", str(tmp_path / "none")]
    one_line(run("touch", tmp_path / "touched", command=command), 1, "none does not exist")
    one_line(run("touch", tmp_path / "touched", command=[*RUN, "--serial", "s" * 21]), 2, "bad serial")
    assert not (tmp_path / "touched").exists()


def test_a_server_that_is_lost_ends_the_command(tmp_path: Path) -> None:
    began = tmp_path / "began"
    script = f"trap 'echo ended; exit 0' TERM; touch {began}; while :; do sleep 0.05; done"
    with subprocess.Popen([*RUN, "--", "sh", "-c", script], stdout=-1, stderr=-1, text=True) as running:
        wait_for(began.exists)
        os.kill(servers().pop(), signal.SIGKILL)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (1, "ended\n")
    assert err == "nvmeemu run: nvmeemu serve ended with status -9\n"


def test_a_command_that_does_not_care_is_killed_when_its_server_is_lost(tmp_path: Path) -> None:
    began = tmp_path / "began"
    script = f"trap '' TERM; touch {began}; while :; do sleep 0.05; done"
    impatient = (
        "import sys, nvmeemu.app.run, nvmeemu.app.cli; nvmeemu.app.run.PATIENCE = 0.3; sys.exit(nvmeemu.app.cli.main())"
    )
    command = [sys.executable, "-c", impatient, *RUN[1:], "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as running:
        wait_for(began.exists)
        os.kill(servers().pop(), signal.SIGKILL)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (1, "")
    assert err == "nvmeemu run: nvmeemu serve ended with status -9\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_then_the_server(number: signal.Signals, tmp_path: Path) -> None:
    """While the command cleans up, it has its drive still."""
    began = tmp_path / "began"
    last_words = 'kill -0 "$(cat pid)" && echo still served; exit 3'
    script = f"exec 2>/dev/null; trap '{last_words}' {number.name[3:]}; touch {began}; while :; do sleep 0.05; done"
    # Whoever runs the tests may ignore it (nohup).
    command = ["env", f"--default-signal={number.name[3:]}", *RUN, "--pid-file", "pid", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=tmp_path) as running:
        wait_for(began.exists)
        running.send_signal(number)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, err) == (3, "still served\n", "")
    assert not (tmp_path / "pid").exists()  # the server has ended in good order


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_reaches_what_the_command_has_started(number: signal.Signals, tmp_path: Path) -> None:
    """A shell that ends by it would leave its VM behind, and a shell that waits for its VM would not end."""
    name = number.name[3:]
    inner = f"trap 'echo inner; exit 0' {name}; touch began; while :; do sleep 0.05; done"
    script = f"exec 2>/dev/null; trap 'echo outer' {name}; sh -c \"$1\"; exit 4"
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = ["env", f"--default-signal={name}", *RUN, "--", "sh", "-c", script, "sh", inner]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=tmp_path, env=environment) as running:
        wait_for((tmp_path / "began").exists)
        running.send_signal(number)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, err) == (4, "inner\nouter\n", "")
    assert not list((tmp_path / "tmp").iterdir())


def test_what_has_a_session_of_its_own_is_left_alone(tmp_path: Path) -> None:
    daemon = "setsid sh -c 'trap : TERM; echo $$ >pid; exec sleep 1000' >/dev/null 2>&1 &"
    with subprocess.Popen([*RUN, "--", "sh", "-c", f"{daemon} sleep 1000"], cwd=tmp_path) as running:
        wait_for(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
        running.terminate()
        assert running.wait(PATIENCE) == 128 + signal.SIGTERM
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # raises if it has gone


def test_a_signal_that_means_nothing_to_us_is_the_commands(tmp_path: Path) -> None:
    script = "trap 'echo one' USR1; trap 'exit 6' USR2; touch began; while :; do sleep 0.05; done"
    with subprocess.Popen([*RUN, "--", "sh", "-c", script], stdout=-1, stderr=-1, text=True, cwd=tmp_path) as running:
        wait_for((tmp_path / "began").exists)
        running.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        running.send_signal(signal.SIGUSR2)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, err) == (6, "one\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_signals_at_the_start_leave_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """The first ends it, and those that follow do not keep it from clearing away."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started = ["env", "--default-signal", *RUN, "--", "sleep", "1000"]  # tests in the background ignore SIGQUIT
    for delay in (0.0, 0.1, 0.2, 0.3):
        with subprocess.Popen(started, env=environment, stderr=-1, text=True) as running:
            wait_for(lambda: bool(list(tmp_path.iterdir())))
            time.sleep(delay)
            for _ in range(3):
                running.send_signal(number)
                time.sleep(0.001)
            _, err = running.communicate(timeout=PATIENCE)
        assert (running.returncode in (128 + number, -number), err) == (True, "")
        assert not list(tmp_path.iterdir())
    assert not servers()


def test_in_the_background_of_a_script_ctrl_c_is_not_for_the_command() -> None:
    """A shell without job control lets it ignore SIGINT."""
    told = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    ended = subprocess.run(
        ["env", "--ignore-signal=INT", *RUN, "--", sys.executable, "-c", told], capture_output=True, timeout=PATIENCE
    )
    assert (ended.returncode, ended.stdout) == (0, b"True\n")


def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    script = "trap 'echo caught' INT; echo began; i=0; while [ $i -lt 10 ]; do i=$((i+1)); sleep 0.1; done; exit 5"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background ignores it, and whoever is begun there
        os.execv(NVMEEMU, [*RUN, "--", "sh", "-c", script])
    said = b""
    try:
        while b"caught" not in said:
            said += os.read(terminal, 1000)
            if b"began" in said and b"^C" not in said:
                os.write(terminal, b"\x03")
        while True:
            said += os.read(terminal, 1000)
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(terminal)
    assert said.count(b"caught") == 1
    assert b"not synced" not in said


def test_nothing_is_left(tmp_path: Path) -> None:
    """No process when we are killed outright, no folder after an end in good order."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([*RUN, "--", "sleep", "1000"], env=environment) as running:
        wait_for(lambda: bool(list(tmp_path.glob("*/nvme.sock"))))
        running.kill()
    wait_for(lambda: not servers())
    ended = subprocess.run([*RUN, "--", "true"], env=environment, timeout=PATIENCE)
    assert ended.returncode == 0
    assert len(list(tmp_path.iterdir())) == 1  # that of the one that was killed


def test_limits_are_the_drives() -> None:
    assert run(sys.executable, "-c", IS_SMALL, command=[*RUN, "--mqes", "5"]).returncode == 0
