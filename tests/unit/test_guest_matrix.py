"""The matrix of guests: made from records, a run's newest one counts."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.guest import matrix, record

ONE = record.Record(
    options="--job grub",
    job="grub",
    drive="nvmeemu",
    guest="GRUB (pc), Linux 6.12",
    arch="x86_64",
    firmware="seabios",
    smp=1,
    accel="tcg",
    passed=True,
    boots=1,
    verified=True,
    resets=1,
    seconds=20.0,
    cpu_seconds=11.6,
    verdict="guest: PASS (...)",
)
PEER = replace(ONE, drive="qemu-nvme", passed=False, verdict="guest: FAIL (a | b)")


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "records"
    ONE.append(path)
    PEER.append(path)
    assert record.load(path) == [ONE, PEER]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", ""),
        ("--peer qemu-nvme --job grub --keep", "--job grub"),
        ("--job grub --result-json=/x --timeout 9 --smp 2", "--job grub --smp 2"),
        ("--boot-disk /tmp/1/disk --accel tcg", "--boot-disk disk"),
    ],
)
def test_a_run_is_known_by_what_it_tests(words: str, options: str) -> None:
    assert record.identity(words.split()) == options


def test_the_newest_record_counts() -> None:
    newer = replace(ONE, cpu_seconds=5.0)
    assert matrix.merge([ONE, PEER], [newer]) == [newer, PEER]


def test_a_row_tells_both_drives() -> None:
    (row,) = matrix.table([ONE, PEER]).splitlines()[2:]
    assert row == (
        "| GRUB (pc), Linux 6.12 | x86_64 | SeaBIOS | 1 | `--job grub` | 1 | yes | 1 | 12 | fails: a \\| b |"
    )


def test_a_failure_of_our_drive_is_told() -> None:
    row = matrix.table([replace(ONE, passed=False, verdict="guest: FAIL (timeout)")]).splitlines()[-1]
    assert "**fails**: timeout" in row
    assert row.endswith("| not run |")


def test_only_what_is_between_the_marks_changes() -> None:
    document = f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n"
    assert matrix.insert(document, "new\n") == f"before\n{matrix.BEGIN}\nnew\n{matrix.END}\nafter\n"
