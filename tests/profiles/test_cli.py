"""``nvmeemu profile``: its commands, and profiles made of traces."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeemu.app.cli import main
from nvmeemu.profiles import Profile, breaks, built_in, load, parse, run
from nvmeemu.profiles.from_trace import profile_text
from nvmeemu.profiles.profile import NEVER
from nvmeemu.profiles.steps import ModeStep
from nvmeemu.trace import open_trace

pytestmark = pytest.mark.long

CORPUS = sorted((Path(__file__).parents[1] / "trace/corpus").glob("*.trace.xz"))
ROOT = Path(__file__).parents[2]


def says(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What it prints, on stderr if it fails."""
    assert main(["profile", *words]) == status
    printed = capsys.readouterr()
    return printed.out or printed.err


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    lines = says(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == built_in()
    text = says(capsys, "show", "windows-11")
    assert text.startswith("Windows 11 24H2 and Server 2025 stornvme\nreconstruction: ")
    assert "https://github.com/oxidecomputer/propolis/pull/1199" in text
    assert "  unreadable_register: a register does not read as the driver wrote it\n" in text
    assert "read ASQ = written" in text


def test_run_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = says(capsys, "run").splitlines()
    assert len(lines) == len(built_in())
    assert all(line.endswith("as it must be") for line in lines)


def test_run_broken(capsys: pytest.CaptureFixture[str]) -> None:
    text = says(capsys, "run", "windows-11", "--break", "Unreadable-Register", status=1)
    assert re.match(r"unreadable_register: line \d+: read ASQ = written: reads as 0x0, not 0x\d+\n", text)
    assert text.endswith("not as it must be\n")


def test_what_the_broken_device_logs_is_not_told() -> None:
    command = [sys.executable, "-m", "nvmeemu", "profile", "run", "nvme2k", "freebsd-15", "--breaks"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fatal_status" in result.stdout
    assert result.stderr == ""


def test_run_with_all_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = says(capsys, "run", "nvme2k", "--breaks").splitlines()
    assert len(lines) == len(breaks(load("nvme2k")))
    assert all(line.startswith("nvme2k: found: ") for line in lines)


def test_breaks_that_are_not_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        'title = "x"\nstanding = "source"\nsteps = "read CC"\n'
        '[[never]]\nitem = "late_answer"\nwhy = ""\nat = ""\nfault = {do = "cfs"}\n'
    )
    assert "x: NOT FOUND: late_answer" in says(capsys, "run", str(path), "--breaks", status=1)


def test_the_trace_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.trace"
    says(capsys, "run", "nvme2k", "--output", str(path))
    assert main(["replay", str(path)]) == 0
    assert "profile nvme2k" in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in CORPUS if "seabios" not in path.name], ids=lambda path: path.name)
def test_a_recorded_boot_is_a_profile(path: Path) -> None:
    with open_trace(path) as reader:
        profile = parse(profile_text(reader), "x")
    outcome = run(profile)
    assert [str(one) for one in outcome.findings] == []
    assert outcome.commands > 20
    some = breaks(profile)[:12]
    assert some
    assert all(one.found_by(run(profile, one)) for one in some)


def modes_of(profile: Profile) -> set[str]:
    """But for what cannot be seen: heads that move late, and whether a driver looks that is sent messages."""
    found = {step.text.replace(" late", "") for step in profile.steps if isinstance(step, ModeStep)}
    return found - {"polling"} if "msix" in found else found


@pytest.mark.parametrize("name", built_in())
def test_a_profile_comes_back_from_its_trace(name: str) -> None:
    """With as many commands, the same ways to learn of completions, and the answers of the first run."""
    first = run(load(name))
    again = parse(profile_text(first.trace), name)
    outcome = run(again)
    assert [str(one) for one in outcome.findings] == []
    assert outcome.commands == first.commands
    assert modes_of(again) == modes_of(load(name))


def test_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(next(path for path in CORPUS if "u-boot" in path.name))
    made = tmp_path / "mine.toml"
    says(capsys, "add", source, "--output", str(made), "--title", 'a "driver"')
    assert load(str(made)).title == 'a "driver"'
    assert "mine: 27 commands" in says(capsys, "run", str(made))
    assert "wait rdy = 1\n" in says(capsys, "add", source)
    assert "File exists" in says(capsys, "add", source, "--output", str(made), status=1)
    assert "ends in .toml" in says(capsys, "add", source, "--output", str(tmp_path / "x"), status=2)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["show", "windows-12"], "no profile 'windows-12': there are 9front, freebsd-12, "),
        (["run", "/nowhere/x.toml"], "/nowhere/x.toml: No such file or directory"),
        (["add", "/nowhere/x.trace"], "No such file or directory"),
        (["add", str(ROOT / "README.md")], "not a trace"),
    ],
)
def test_errors_are_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = says(capsys, *words, status=1)
    assert why in text
    assert text.startswith("nvmeemu profile: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["run", "--output", "x"], "name one profile"),
        (["run", "nvme2k", "--break", "x"], "--break x: nvme2k has masked_interrupt, "),
    ],
)
def test_bad_use_is_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = says(capsys, *words, status=2)
    assert why in text
    assert text.count("\n") == 1


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["profile", "--help"], ("list", "show", "run", "add")),
        (["profile", "run", "--help"], ("--break ITEM", "--breaks", "--output FILE", "Exit status")),
        (["profile", "add", "--help"], ("--output FILE", "--title TEXT", "TRACE")),
        (["--help"], ("profile", "drivers that cannot run here")),
    ):
        with pytest.raises(SystemExit):
            main(words)
        text = " ".join(capsys.readouterr().out.split())
        assert all(one in text for one in told)


def test_the_page_shows_what_its_commands_print() -> None:
    spec = importlib.util.spec_from_file_location("trace_doc", ROOT / "scripts/trace_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = ROOT / "docs/profiles.md"
    text = page.read_text()
    assert text.count("```console\n$ nvmeemu ") >= 5
    assert module.render(text) == text, "run .venv/bin/python scripts/profiles_doc.py"


def test_the_pages_items_and_example_are_true() -> None:
    text = (ROOT / "docs/profiles.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("## What is known")[0], re.MULTILINE)) == NEVER
    example = parse(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0], "example")
    assert [str(one) for one in run(example).findings] == []
    assert all(one.found_by(run(example, one)) for one in breaks(example))
