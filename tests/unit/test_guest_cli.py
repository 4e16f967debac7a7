"""The runner's command line: what it makes of its options, and that bad use is one line and status 2."""

import signal
from pathlib import Path

import pytest

from tools.guest import cli
from tools.guest.cli import components, main, parse


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return str(path)


def test_without_arguments_it_is_the_main_job() -> None:
    settings = parse([])
    assert (settings.job, settings.smp, settings.firmware) == ("main", 1, "seabios")
    assert components(settings) == ["base", "qemu:x86", "linux:trixie:amd64", "tools:amd64"]


def test_expectations_choose_the_boot_job(disk: str) -> None:
    settings = parse(["--boot-disk", disk, "--expect", "a", "--expect", "b", "--firmware", "ovmf"])
    assert (settings.job, settings.expect) == ("boot", ("a", "b"))
    assert "ovmf" in components(settings)


def test_the_smp_job_has_two_cpus_unless_told_otherwise() -> None:
    assert parse(["--job", "smp"]).smp == 2
    assert parse(["--job", "smp", "--smp", "3"]).smp == 3


def test_values_that_look_like_options_are_taken() -> None:
    settings = parse(["--nvme-arg", "--queues", "--nvme-arg", "4", "--qemu-arg", "-S", "--append", "-- init arguments"])
    assert settings.nvme_args == ("--queues", "4")
    assert settings.qemu_args == ("-S",)
    assert settings.append == "-- init arguments"


@pytest.mark.parametrize(
    "words",
    [
        ["--no-such-option"],
        ["--job", "nix"],
        ["--smp", "0"],
        ["--smp", "many"],
        ["--mem", "512"],
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--arch", "vax"],
        ["--expect", "("],
        ["--disk", "/no/such/file"],
        ["--kernel", "/"],
        ["--serial-log", "/no/such/folder/log"],
        ["--job", "boot"],
        ["--job", "main", "--expect", "x"],
        ["--boot-disk", "DISK", "--disk", "DISK"],
        ["--boot-disk", "DISK", "--append", "x"],
        ["--peer", "qemu-nvme", "--nvme-arg", "x"],
        ["--nvme-arg"],
    ],
    ids=" ".join,
)
def test_bad_use_is_one_line_and_status_2(words: list[str], disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([disk if word == "DISK" else word for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("run_qemu_guest.sh: ")
    assert captured.err.count("\n") == 1


def test_the_signals_of_whoever_calls_it_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell cannot trap what it finds ignored: tests that came later had commands that no signal ended."""

    def interrupted(settings: object) -> int:
        cli._interrupt(signal.SIGTERM, None)

    monkeypatch.setattr(cli, "run", interrupted)
    before = [signal.getsignal(number) for number in cli.ENDING_SIGNALS]
    assert main([]) == 1
    assert [signal.getsignal(number) for number in cli.ENDING_SIGNALS] == before
