"""Faults on purpose are seen as such by whoever looks at a trace: nobody takes them for bugs of the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmeemu import trace
from nvmeemu.app.cli import main
from nvmeemu.faults import Fault, Faults
from nvmeemu.pytest_plugin.bench import NvmeBench
from nvmeemu.pytest_plugin.options import DriveOptions
from nvmeemu.spec import Completion, ReadWrite
from nvmeemu.testing import CAP
from nvmeemu.text import plain
from nvmeemu.trace import words
from nvmeemu.trace.activity import activity
from nvmeemu.trace.commands import commands
from nvmeemu.trace.file import Description, Writer
from tracing import Traced, ready

SAID = 'fault 1 "no disk": lose at backend'


def broken() -> Traced:
    """Two writes that are lost, a third one, and a read of a register that lies."""
    bench = ready()
    faults = Faults(bench.controller)
    faults.add(Fault({"opcode": "write"}, do="lose", when={"times": 2}, name="no disk"))
    faults.add(Fault({"register": "cap"}, do={"set": {"to": 7}}, when={"times": 1}))
    for slba in range(3):
        bench.clock.advance(1)
        bench.driver.write(slba, bytes(512))
    bench.driver.reg(CAP)
    return bench


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "broken.trace"
    with path.open("wb") as opened:
        writer = Writer(opened, Description())
        for record in broken().records:
            writer.write(record)
    return str(path)


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["trace", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_show_has_a_line_for_each_time(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line.split(maxsplit=1)[1] for line in lines(capsys, "show", file) if " fault " in line]
    assert len(said) == 3
    assert said[0].startswith(f"{SAID.replace('fault', 'fault ', 1)}: SQ 1 #")
    assert said[0].endswith(" Write nsid=1 slba=0 nlb=1")
    assert said[2] == "fault  2: set.to=7 at register: read CAP+0"


def test_show_with_a_filter_has_those_of_the_commands(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, "show", file, "--opcode", "write")
    assert sum(" lose at backend: " in line for line in found) == 2
    assert not any("set.to" in line for line in found)


def test_grep_says_it_of_each_command(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, "grep", file, "Write nsid")
    assert [line.endswith(f"[{SAID}]") for line in found] == [True, True, False]
    assert lines(capsys, "grep", file, "lose at") == found[:2]


def test_stats_count_them(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, "stats", file)
    table = found[found.index("Faults on purpose") :]
    (row,) = [line.split() for line in table if "no disk" in line]
    assert row[-5:] == ["2", "1.000000", "s", "2.000000", "s"]
    assert any(line.split()[:4] == ["2:", "set.to=7", "at", "register"] for line in table)
    later = lines(capsys, "stats", file, "--from", "1.5")
    (row,) = [line.split() for line in later if "no disk" in line]
    assert row[-5] == "1"


def test_a_trace_without_faults_says_nothing_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = str(Path(__file__).parent / "corpus" / "u-boot.trace.xz")
    assert not any(
        "fault " in line or "Faults" in line for line in lines(capsys, "stats", corpus) + lines(capsys, "grep", corpus)
    )


def test_the_export_has_a_track_of_them(file: str, tmp_path: Path) -> None:
    schema = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    output = tmp_path / "out"
    assert main(["trace", "export", "--perfetto", file, "-o", str(output)]) == 0
    packets = schema.Trace.FromString(output.read_bytes()).packet
    (track,) = [one.track_descriptor.uuid for one in packets if one.track_descriptor.name == "faults"]
    events = [one.track_event for one in packets if one.HasField("track_event")]
    assert [one.name.partition(": SQ")[0] for one in events if one.track_uuid == track] == [
        *[SAID.removeprefix("fault ")] * 2,
        "2: set.to=7 at register: read CAP+0",
    ]
    notes = [note for one in events for note in one.debug_annotations]
    assert [note.string_value for note in notes if note.name == "fault"] == [SAID, SAID]


def test_the_picture_has_a_row_for_them() -> None:
    pytest.importorskip("matplotlib")
    from nvmeemu.trace import picture

    found = activity(broken().records)
    assert list(found.faults) == [1, 2, 3]
    made = picture.Picture(found, (0, 3))
    made.heading("")
    made.timeline()
    labels = [one.get_text() for one in made.top.get_yticklabels()]
    assert labels[-1] == "faults"
    assert "3 faults on purpose" in made.summary.texts[0].get_text()
    without = picture.Picture(activity(ready().records), (0, 3))
    without.timeline()
    assert "faults" not in [one.get_text() for one in without.top.get_yticklabels()]


def test_the_report_of_a_failed_test_says_it(tmp_path: Path) -> None:
    drive = NvmeBench(tmp_path, DriveOptions(size="1M"))
    drive.start()
    drive.faults.add(Fault({"opcode": "write"}, do="lose", name="no disk"))
    drive.faults.add(Fault({"register": "cap"}, do={"set": {"to": 7}}))
    drive.driver.write(0, bytes(512))
    drive.driver.reg(CAP)
    sections = drive.trace.sections(AssertionError())
    assert f"Success after 0 ns [{SAID}]" in sections["the last commands"].splitlines()[-1]
    assert [line.partition("fault ")[2] for line in sections["the last faults that fired"].splitlines()] == [
        f'1 "no disk": lose at backend: SQ 1 #{drive.trace.commands("write")[0].cid:04x} Write nsid=1 slba=0 nlb=1',
        "2: set.to=7 at register: read CAP+0",
    ]
    assert drive.trace.commands("write")[0].faults == [SAID]


def test_a_hostile_text_does_not_command_the_terminal() -> None:
    record = trace.Injection(0, 0, 1, 1, 0, 0, False, ("\x1b[2J",) * 4)
    assert plain("".join(words.describe(record))) == "".join(words.describe(record))


def test_a_difference_that_is_on_purpose_is_marked(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = ready()
    for slba in range(3):
        bench.clock.advance(1)
        bench.driver.write(slba, bytes(512))
    bench.driver.reg(CAP)
    path = tmp_path / "whole.trace"
    with path.open("wb") as opened:
        writer = Writer(opened, Description())
        for record in bench.records:
            writer.write(record)
    assert main(["trace", "diff", str(path), file]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if SAID in line]
    assert len(found) == 2


def test_with_one_cid_twice_each_keeps_its_own() -> None:
    entry = bytes(ReadWrite(opcode=2, nsid=1, cid=5))

    def fires(at: str) -> trace.Injection:
        return trace.Injection(0, 0, 1, 1, 1, 5, True, (at, "drop", "", ""))

    first, second = trace.Fetch(0, 0, 1, 0, entry), trace.Fetch(1, 0, 1, 1, entry)
    ended = trace.Completion(2, 0, 1, 0, bytes(Completion(cid=5, sqid=1)))
    found = list(commands([first, second, fires("execute"), fires("completion"), ended]))
    assert [[one.at for one in command.injections] for command in found] == [["completion"], ["execute"]]
