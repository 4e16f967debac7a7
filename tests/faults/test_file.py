"""Faults in a file, on the command line, and by scenario."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.rig import BLOCK, NEW, Rig
from nvmeemu.faults import FaultError
from nvmeemu.faults.file import load, of_words, parse
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.spec import Command, Status
from nvmeemu.testing import CAP, CC, CSTS
from server.process import run

GOOD = """\
seed = 7

[[fault]]
name = "a bad block"
match = { opcode = "read", lba = "100-107" }
do = { status = "unrecovered_read_error" }

[[fault]]
do.smart.spare = 5
at = "now"

[[fault]]
at = "completion"
do = ["duplicate", { set = { dw0 = 1 } }]
  [fault.match]
  queue = "io"
  [fault.when]
  probability = 0.25
"""


def test_a_file_is_the_same_as_faults_made_in_python() -> None:
    found = parse(GOOD)
    assert found.seed == 7
    assert [fault.as_table() for fault in found.faults] == [
        {
            "name": "a bad block",
            "match": {"opcode": "read", "lba": "100-107"},
            "at": "execute",
            "do": {"status": "unrecovered_read_error"},
            "when": {},
        },
        {"match": {}, "at": "now", "do": {"smart": {"spare": 5}}, "when": {}},
        {
            "match": {"queue": "io"},
            "at": "completion",
            "do": ["duplicate", {"set": {"dw0": 1}}],
            "when": {"probability": 0.25},
        },
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("seed = 1\n\n[[fault]\n", 3, "Expected ']]'"),
        ("seed = 1\nseeds = 2\n", 2, "seeds: there are seed and [[fault]]"),
        ("\nseed = -1\n", 2, "seed: -1 is not within"),
        ("[fault]\ndo = 'drop'\n", 1, "begin each fault with [[fault]]"),
        ("[[fault]]\ndo = 'drop'\n[[fault]]\nname = 'x'\ndo = 'burn'\n", 5, "do: 'burn' is none of status, "),
        ("[[fault]]\n\nmatch.opcode = 'wrote'\ndo = 'drop'\n", 3, "match.opcode: 'wrote'"),
        ("[[fault]]\ndo = { status = 3 }\nmatch = { queue = 1, lba = '9-1' }\n", 3, "match.lba: '9-1'"),
        ("[[fault]]\ndo='drop'\n[fault.when]\nevery = 1\nnth = 0\n", 5, "when.nth: 0"),
        ("# one\n[[fault]]\ndo = { delay = 'x' }\n[[fault]]\ndo = { delay = 1 }\n", 3, "do.delay: 'x'"),
        ("[[fault]]\ndo = 'delay'\nat = 'dma'\n", 2, "do: delay needs a value, for example do.delay=250ms"),
        ("[[fault]]\nname = 'twice'\ndo = 'duplicate'\nat = 'dma'\n", 1, "duplicate at dma: nobody can see"),
        ("[[fault]]\ndo = 'drop'\nwhere = 3\n", 3, "where: a fault has"),
        ("[[fault]]\ndo = 5\n", 2, "do: 5 is no table"),
        ("[[fault]]\n  # do = 'drop'\n\ndo = 'burn'\n", 4, "do: 'burn' is none of"),
        ("[[fault]]\nmatch = { nsid = '0b1' }\ndo = 'drop'\n", 2, "match.nsid: '0b1' is no whole number"),
        ("[[fault]]\ndo = 'drop'\nmatch.nsid = " + "9" * 5000, 3, "Exceeds the limit"),
        ("fault = " + "[" * 5000 + "]" * 5000, 1, "tables or lists within each other, too deep"),
        (
            "[[fault]]\ndo = 'drop'\nmatch.opcode = 'identify'\nmatch.slba = 3\n",
            4,
            "match.slba: no command that the rest",
        ),
        ("[[fault]]\ndo = 'drop'\nmatch.cid = 70000\n", 3, "match.cid: 70000 is not within 0..65535"),
        (
            "[[fault]]\ndo = 'drop'\n[fault.match]\ncdw10 = { mask = 0xff, value = 0x100 }\n",
            4,
            "match.cdw10.value: 0x100",
        ),
        ("# \x85\u2028\n[[fault]]\ndo = { set = { to = 256 } }\n", 3, "do.set: 256 does not fit to"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_reason(tmp_path: Path, text: str, line: int, reason: str) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(text)
    with pytest.raises(FaultError) as refused:
        load(str(file))
    where, _, said = str(refused.value).partition(": ")
    assert where.startswith(f"{file}:")
    assert said.startswith(reason)
    if not reason.startswith("duplicate") or line != 1:
        assert where == f"{file}:{line}"


def test_a_fault_of_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text("seed = 1\nfault = [\n { do = 'drop' },\n { do = 'burn' }\n]\n")
    with pytest.raises(FaultError, match=r"faults.toml:4: do: 'burn'"):
        load(str(file))


def test_the_server_refuses_it_as_bad_use(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text("[[fault]]\ndo = 'burn'\n")
    for spec, said in (
        (file, f"--faults: {file}:2: do: 'burn' is none of"),
        (tmp_path / "none", f"--faults {tmp_path / 'none'}: No such file or directory"),
        ("scenario:none", "--faults: no scenario 'none': there are flaky"),
    ):
        result = run("--socket", tmp_path / "s", "--disk", "mem:1M", "--faults", spec)
        assert result.returncode == 2
        assert result.stderr.startswith(f"nvmeemu serve: {said}")
        assert result.stderr.count("\n") == 1


def test_files_with_different_seeds_are_refused(tmp_path: Path) -> None:
    options: list[object] = []
    for seed in (1, 2):
        (tmp_path / f"{seed}.toml").write_text(f"seed = {seed}\n")
        options += ["--faults", tmp_path / f"{seed}.toml"]
    result = run("--socket", tmp_path / "s", "--disk", "mem:1M", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("nvmeemu serve: --faults: the files have different seeds")
    assert result.stderr.count("\n") == 1


def test_words_of_the_command_line_are_a_fault() -> None:
    words = ["match.opcode=write", "match.lba=8-15", "do.status=write_fault", "do.dnr=true", "when.nth=3"]
    assert of_words(words) == {
        "match": {"opcode": "write", "lba": "8-15"},
        "do": {"status": "write_fault", "dnr": True},
        "when": {"nth": 3},
    }
    assert of_words(["do=drop", 'match.opcode=["read", "write"]']) == {
        "do": "drop",
        "match": {"opcode": ["read", "write"]},
    }
    for bad in (["do"], ["do=drop", "do=drop"], ["=3"]):
        with pytest.raises(FaultError):
            of_words(bad)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_can_be_loaded_and_breaks_something(rig: Rig, name: str) -> None:
    for fault in load(f"scenario:{name}").faults:
        rig.faults.add(fault)
    for number in range(300):
        rig.submit(rig.read() if number % 2 else rig.write())
        rig.completions()
        rig.bench.clock.advance(0.2)
        rig.bench.settle()
    assert any(fault.hits for fault in rig.faults)
    assert SCENARIOS[name].__doc__


def _statuses(rig: Rig, number: int) -> list[int]:
    """Of so many writes, each given a second."""
    found = []
    for _ in range(number):
        rig.submit(rig.write())
        found += [completion.status for completion in rig.later(1)]
    return found


def test_the_flaky_drive_fails_some_commands_and_works_otherwise(rig: Rig) -> None:
    for fault in load("scenario:flaky").faults:
        rig.faults.add(fault)
    statuses = _statuses(rig, 500)
    assert len(statuses) == 500
    assert 0 < statuses.count(Status.INTERNAL_ERROR) < 40


def test_the_dying_drive_ends_read_only(rig: Rig) -> None:
    for fault in load("scenario:dying").faults:
        rig.faults.add(fault)
    assert rig.driver.get_log(2, 512)[3] == 5
    statuses = _statuses(rig, 2001)
    assert Status.WRITE_FAULT in statuses
    assert statuses[-1] == Status.NAMESPACE_WRITE_PROTECTED


def test_the_hot_drive_is_slow_until_it_has_cooled_down(rig: Rig) -> None:
    for fault in load("scenario:throttling").faults:
        rig.faults.add(fault)
    rig.await_events()
    for _ in range(100):
        rig.run(rig.write())
    assert rig.events() == [0x020101]  # temperature above the threshold
    rig.submit(rig.write())
    assert rig.completions() == []
    assert len(rig.later(0.02)) == 1
    rig.bench.clock.advance(10)
    assert rig.run(rig.write()).status == Status.SUCCESS
    assert rig.bench.subsystem.health.temperature < 320


def _latency(rig: Rig, command: Command) -> int:
    """Of a command that succeeds, in milliseconds of the clock."""
    rig.submit(command)
    for passed in range(1000):
        for completion in rig.completions():
            assert completion.status == Status.SUCCESS
            return passed
        rig.bench.clock.advance(0.001)
        rig.bench.settle()
    raise AssertionError("no completion within a second")


def test_the_slow_drive_takes_50_to_150_ms_and_succeeds(rig: Rig) -> None:
    for fault in load("scenario:slow").faults:
        rig.faults.add(fault)
    latencies = [_latency(rig, rig.read() if number % 2 else rig.write()) for number in range(40)]
    assert 50 <= min(latencies) < 75
    assert 125 < max(latencies) <= 151  # the clock is turned in whole milliseconds
    assert rig.disk() == NEW * BLOCK


def test_the_drive_that_is_pulled_reads_all_ones_and_stays_away(rig: Rig) -> None:
    for fault in load("scenario:removal").faults:
        rig.faults.add(fault)
    assert _statuses(rig, 99) == [Status.SUCCESS] * 99
    assert rig.driver.status.rdy
    rig.submit(rig.write())
    for _ in range(2):
        assert rig.driver.reg(CSTS) == 0xFFFFFFFF
        assert rig.driver.reg(CAP, 8) == (1 << 64) - 1
        rig.driver.set_reg(CC, 0)
        assert rig.later(3600) == []


def test_the_stuck_reset_is_one_whose_rdy_stays_1(rig: Rig) -> None:
    for fault in load("scenario:stuck-reset").faults:
        rig.faults.add(fault)
    assert _statuses(rig, 99) == [Status.SUCCESS] * 99
    rig.submit(rig.write())
    assert rig.later(3600) == []
    rig.driver.set_reg(CC, rig.driver.reg(CC) & ~1)
    for _ in range(2):
        assert rig.driver.status.rdy
        assert not rig.driver.reg(CC) & 1
        rig.later(3600)
    with pytest.raises(TimeoutError):
        rig.driver.enable()
