"""The runner can fail: it finds lies and damage, keeps time limits, says why, and leaves nothing running."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guest import boot_sector
from guest.conftest import SCRIPT, Script
from tools.guest import cli, image, main_job
from tools.guest.run import Run

PEER = ("--peer", "qemu-nvme")


def damage(run: Run) -> None:
    """Change one bit in the middle of the largest file, in the raw image."""
    folder = run.folder / "to-damage"
    image.extract(run.image, image.partition(run.image), folder)
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    middle = len(content) // 2 // 4096 * 4096
    disk = bytearray(run.image.read_bytes())
    place = disk.find(content[middle : middle + 4096])
    assert place > 0
    disk[place + 1234] ^= 1
    run.image.write_bytes(disk)


@pytest.mark.parametrize("step", ["second_boot", "on_host"])
def test_one_wrong_bit_in_a_file_is_found(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_tmp: Path
) -> None:
    """Before the second boot the guest must find it, after it the host."""
    original = getattr(main_job, step)

    def damaged(run: Run, expected: dict[str, str]) -> object:
        damage(run)
        return original(run, expected)

    monkeypatch.setattr(main_job, step, damaged)
    monkeypatch.setattr("tempfile.tempdir", str(own_tmp))
    assert cli.main([*PEER, "--accel", "tcg"]) == 1
    printed = capsys.readouterr().out
    where = {"second_boot": "guest, after the power-off", "on_host": "host, in the raw image"}[step]
    verdict = printed.splitlines()[-1]
    assert verdict.startswith(f"guest: FAIL ({where}: the contents of ")
    assert f"the files are kept in {own_tmp}" in printed
    assert "--- the console's last lines" in printed


def test_a_drive_that_forgets_is_found(script: Script) -> None:
    """--overlay throws away what the guest writes: all goes well until the second boot."""
    ended = script("--nvme-arg", "--overlay")
    assert ended.status == 1
    assert "boot 1: partitioned, formatted" in ended.out
    assert ended.verdict == "guest: FAIL (the guest's kernel shows no /dev/nvme0n1p1)"


def test_a_server_that_cannot_start_is_the_reason(script: Script) -> None:
    ended = script("--nvme-arg", "--no-such-option")
    assert ended.status == 1
    assert ended.verdict.startswith("guest: FAIL (nvmeemu serve ended with status 2: ")


def test_a_qemu_that_cannot_start_is_the_reason(script: Script) -> None:
    ended = script(*PEER, "--job", "uboot", "--qemu-arg", "-no-such-option")
    assert ended.status == 1
    assert ended.verdict.startswith("guest: FAIL (QEMU ended with status 1: ")
    assert "-no-such-option" in ended.verdict


def test_a_guest_that_ends_before_it_prints_what_is_expected_fails(
    script: Script, tmp_path: Path, own_tmp: Path
) -> None:
    disk = boot_sector.write(tmp_path / "disk")
    ended = script(*PEER, "--boot-disk", disk, "--expect", boot_sector.GREETING, "--expect", "no such text")
    assert ended.status == 1
    assert ended.verdict == "guest: FAIL (the guest ended before it printed 'no such text')"
    assert boot_sector.GREETING in ended.out.partition("--- the console's last lines")[2]
    (kept,) = own_tmp.iterdir()
    assert f"the files are kept in {kept}" in ended.out
    assert boot_sector.GREETING in (kept / "console.log").read_text()


def test_expectations_are_met_in_their_order_only(script: Script, tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk")
    ended = script(*PEER, "--boot-disk", disk, "--expect", boot_sector.GREETING, "--expect", "SeaBIOS")
    assert ended.status == 1


def test_a_hanging_guest_ends_with_the_time_limit(script: Script, tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk", boot_sector.STAY)
    log = tmp_path / "serial.log"
    ended = script(*PEER, "--boot-disk", disk, "--timeout", "5", "--serial-log", log)
    assert ended.status == 1
    assert ended.verdict == "guest: FAIL (timeout: the end of the guest did not come in 5 s)"
    assert boot_sector.GREETING in log.read_text()


def test_a_guest_that_reboots_has_not_powered_itself_off(script: Script, tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk", boot_sector.RESET)
    ended = script(*PEER, "--boot-disk", disk)
    assert ended.status == 1
    assert ended.verdict == "guest: FAIL (the guest did not power itself off: QEMU ended with 'guest-reset')"


def test_a_kernel_panic_fails_at_once(script: Script) -> None:
    ended = script(*PEER, "--append", "rdinit=/no/such/init")
    assert ended.status == 1
    assert ended.verdict.startswith("guest: FAIL (the guest's kernel says: Kernel panic")


def test_a_disk_with_data_is_not_formatted(script: Script, tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk")
    before = disk.read_bytes()
    ended = script(*PEER, "--disk", disk)
    assert ended.status == 2
    assert "is not empty" in ended.err
    assert ended.out == ""
    assert disk.read_bytes() == before


def test_bad_use_is_told_before_set_up(script: Script) -> None:
    ended = script("--no-such-option")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1


def test_help_needs_no_set_up(script: Script) -> None:
    ended = script("--help")
    assert ended.status == 0
    assert "guest: PASS" in ended.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("peer", [(), PEER], ids=["nvmeemu", "qemu-nvme"])
def test_nothing_is_left_running(number: signal.Signals, peer: tuple[str, ...], tmp_path: Path, own_tmp: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk", boot_sector.STAY)
    log = tmp_path / "serial.log"
    command: list[str | Path] = [SCRIPT, *peer, "--boot-disk", disk, "--serial-log", log]
    environment = os.environ | {"TMPDIR": str(own_tmp)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as runner:
        wait_for(lambda: log.exists() and boot_sector.GREETING in log.read_text(errors="replace"))
        children = children_of(runner.pid)
        assert len(children) == (1 if peer else 2)
        runner.send_signal(number)
        printed, _ = runner.communicate(timeout=30)
    wait_for(lambda: not any(is_running(pid) for pid in children))
    if number != signal.SIGKILL:
        assert runner.returncode == 1
        assert printed.splitlines()[-1] == "guest: FAIL (interrupted)"
        assert list(own_tmp.iterdir()) == []


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
