"""``nvmeemu trace plot``: it draws every trace, however odd, and the picture shows what the trace says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from nvmeemu import trace
from nvmeemu.app.cli import main
from nvmeemu.faults import Fault, Faults
from nvmeemu.ports import PciState
from nvmeemu.spec import AdminOpcode, Command, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE
from nvmeemu.trace import picture
from nvmeemu.trace.activity import Activity, CommandKind, CommandOutcome, activity
from nvmeemu.trace.commands import commands
from nvmeemu.trace.phases import Name, Phase
from tracing import Traced, ready

pytestmark = pytest.mark.long

CORPUS = Path(__file__).parent / "corpus"
U_BOOT = str(CORPUS / "u-boot.trace.xz")
PNG = b"\x89PNG\r\n\x1a\n"
CELLS = st.tuples(st.integers(0, picture._COLUMNS - 1), st.integers(0, 1000), st.integers(1, 300))


def save(path: Path, records: list[trace.Record], description: trace.Description | None = None) -> str:
    with path.open("wb") as file:
        writer = trace.Writer(file, description or trace.Description())
        for record in records:
            writer.write(record)
    return str(path)


def seen(bench: Traced) -> Activity:
    return activity(bench.records)


@pytest.mark.parametrize("boot", ["u-boot", "linux-6.12"])
def test_a_boot_as_png_and_svg(boot: str, tmp_path: Path) -> None:
    source = str(CORPUS / f"{boot}.trace.xz")
    png, first, second = (tmp_path / name for name in ("a.png", "a.svg", "b.SVG"))
    for path in (png, first, second):
        assert main(["trace", "plot", source, "-o", str(path)]) == 0
    data = png.read_bytes()
    assert data.startswith(PNG)
    assert int.from_bytes(data[16:20], "big") > 1000, "pixels wide"
    assert ElementTree.parse(first).getroot().tag.endswith("svg")
    assert first.read_bytes() == second.read_bytes(), "the same trace gives the same file"


def test_what_the_picture_knows_is_what_the_trace_says() -> None:
    with trace.open_trace(CORPUS / "edk2.trace.xz") as reader:
        records = list(reader)
    found = activity(records)
    all_of_them = list(commands(records))
    assert len(found.start) == len(all_of_them)
    assert sum(found.end) - sum(found.start) == pytest.approx(sum(one.latency or 0 for one in all_of_them) / 1e9)
    opcodes = Counter(one.fetch.opcode for one in all_of_them if one.fetch.sqid)
    kinds = Counter(found.kind)
    assert (kinds[CommandKind.READ], kinds[CommandKind.WRITE]) == (opcodes[NvmOpcode.READ], opcodes[NvmOpcode.WRITE])
    assert kinds[CommandKind.OTHER] == opcodes[NvmOpcode.FLUSH]
    assert sum(found.nlb) * 512 == sum(one.digests[0].length for one in all_of_them if one.fetch.sqid and one.digests)
    assert len(found.registers) == sum(isinstance(one, trace.RegisterRead | trace.RegisterWrite) for one in records)
    assert found.last == records[-1].time


def test_failures_and_what_waits() -> None:
    bench = ready()
    driver = bench.driver
    driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
    before = len(seen(bench).start)
    driver.execute(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=1 << 40, nlb=1))
    found = seen(bench)
    assert len(found.start) == before + 1
    assert found.outcome[-1] == CommandOutcome.ERROR
    without_answer = [one for one in bench.records if not isinstance(one, trace.Completion)]
    assert set(activity(without_answer).outcome) == {CommandOutcome.NO_ANSWER}


def test_a_time_cut_out() -> None:
    with trace.open_trace(U_BOOT) as reader:
        records = list(reader)
    start, end = 940_000_000, 1_100_000_000
    found = activity(records, start, end)
    assert len(found.start) == sum(start <= one.fetch.time <= end for one in commands(records))
    assert all(0.94 <= one <= 1.1 for one in (*found.start, *found.interrupts, *found.registers))


@given(st.lists(CELLS, max_size=20), st.integers(0, 50), st.floats(1, 40))
def test_the_map_counts_each_command_in_each_cell_that_it_touches(
    blocks: list[tuple[int, int, int]], low: int, step: float
) -> None:
    blocks = [(column, low + first, count) for column, first, count in blocks]
    columns, first, count = (np.array(each, dtype=int) for each in (zip(*blocks, strict=True) if blocks else ((),) * 3))
    expected = np.zeros((picture._LINES, picture._COLUMNS))
    for column, begin, number in blocks:
        lines = {min(picture._LINES - 1, int((lba - low) / step)) for lba in range(begin, begin + number)}
        for line in range(min(lines), max(lines) + 1):
            expected[line, column] += 1
    assert (picture._cells(columns, first, count, low, step) == expected).all()


def test_cells_that_were_read_and_written_hide_neither() -> None:
    bench = ready()
    for opcode, slba in ((NvmOpcode.READ, 0), (NvmOpcode.WRITE, 0), (NvmOpcode.WRITE, 4000), (NvmOpcode.READ, 8000)):
        place = bench.driver.alloc(4096)
        bench.driver.succeed(bench.driver.queues[1], ReadWrite(opcode=opcode, nsid=1, prp1=place, slba=slba, nlb=1))
    made = picture.Picture(seen(bench), (0, 1))
    made.blocks({}, 1)
    counts = {label: list(image.get_array().compressed()) for image, label in made._images}
    assert counts == {"Read": [1], "Write": [1], "both": [2]}


def test_bars_that_meet_are_one_and_none_is_too_narrow() -> None:
    made = picture.Picture(Activity(), (0, 400))
    starts, ends = (np.array(each, dtype=float) for each in ((300, 10, 12, 100), (300, 20, 15, 399)))
    made._bars(0, 1, starts, ends, "black")
    made._bars(1, 1, np.array([50.0]), np.array([50.0]), "black")
    boxes = [path.get_extents() for bars in made.top.collections for path in bars.get_paths()]
    assert [(box.x0, box.x1) for box in boxes] == [(10, 20), (100, 399), (50, 51)]


def test_a_command_that_is_never_completed_hides_nothing() -> None:
    """One of 200 is dropped, another one fails: a mark where each was fetched, and a thin line while it was under way;
    what the queue does meanwhile is seen."""
    bench = ready()
    queue, place = bench.driver.queues[1], bench.driver.alloc(PAGE)
    for number in range(200):
        bench.clock.advance(0.01)
        opcode = NvmOpcode.READ if number % 2 else NvmOpcode.WRITE
        slba = 1 << 40 if number == 150 else number
        bench.driver.execute(queue, ReadWrite(opcode=opcode, nsid=1, prp1=place, slba=slba, nlb=1))
    answers = [one for one in bench.of(trace.Completion) if one.sqid == 1]
    made = picture.Picture(activity(one for one in bench.records if one != answers[100]), (0, 2))
    made._queue(1, 1)
    boxes: dict[str, list[Any]] = {}
    drawn: Any = made.top.collections
    for bars in drawn:
        boxes.setdefault(to_hex(bars.get_facecolor()[0]), []).extend(path.get_extents() for path in bars.get_paths())
    width = made._column
    failed = boxes[picture._FAILED]
    marks = [box for box in failed if box.y1 - box.y0 > 0.5]
    assert [box.x0 for box in marks] == pytest.approx([1.01, 1.51])
    assert all(box.x1 - box.x0 == pytest.approx(width) for box in marks)
    assert max(box.y1 - box.y0 for box in failed if box not in marks) < 0.1
    assert max(box.x1 for box in failed) == pytest.approx(2)
    for kind, count in ((CommandKind.READ, 100), (CommandKind.WRITE, 99)):
        seen_bars = boxes[picture._COLOURS[kind]]
        assert len(seen_bars) == count
        assert all(box.x1 - box.x0 == pytest.approx(width) for box in seen_bars)


def test_blocks_that_are_not_there_are_not_on_the_map() -> None:
    """They would make the disk, on which all others are, a line."""
    bench = ready()
    for slba in (5, 1 << 40):
        bench.driver.execute(bench.driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=slba, nlb=1))
    found = seen(bench)
    assert (list(found.slba), list(found.outcome)[-1]) == ([5], CommandOutcome.ERROR)


@pytest.mark.kills("failed-reads-are-blue")
def test_what_failed_is_red_on_the_map() -> None:
    """A read, and a write that is never completed; what succeeds in the same cells is there, too."""
    bench = ready()
    failing = Faults(bench.controller, seed=1)
    failing.add(Fault(match={"opcode": "read", "lba": 4000}, do={"status": "unrecovered_read_error"}))
    failing.add(Fault(match={"opcode": "write", "lba": 8000}, do="drop"))
    place = bench.driver.alloc(PAGE)
    for opcode, slba in ((NvmOpcode.WRITE, 0), (NvmOpcode.WRITE, 4000), (NvmOpcode.READ, 4000)):
        bench.driver.execute(bench.driver.queues[1], ReadWrite(opcode=opcode, nsid=1, prp1=place, slba=slba, nlb=4))
        bench.clock.advance(0.1)
    bench.driver.submit(bench.driver.queues[1], ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=place, slba=8000, nlb=2))
    found = seen(bench)
    assert list(found.block_outcome) == [
        CommandOutcome.SUCCESS,
        CommandOutcome.SUCCESS,
        CommandOutcome.ERROR,
        CommandOutcome.NO_ANSWER,
    ]
    made = picture.Picture(found, (0, 4))
    made.blocks({}, 1)
    (marks,) = made.map.collections
    colours: Any = marks.get_edgecolor()
    assert to_hex(colours[0]) == picture._FAILED
    offsets: Any = marks.get_offsets()
    assert [tuple(each) for each in offsets] == [(pytest.approx(0.2), 4002), (pytest.approx(0.3), 8001)]
    assert "failed" in made.map.get_title(loc="left")
    assert [label for _, label in made._images] == ["Read", "Write"]


@pytest.mark.kills("full-queues-that-hold-up-nobody")
def test_a_full_completion_queue_is_seen() -> None:
    """While commands wait for it; a queue of two entries is full after each, and holds up nobody."""
    bench = Traced()
    driver = bench.driver
    driver.enable()
    driver.create_cq(1, 3)
    sq = driver.create_sq(1, 16)
    for number in range(4):
        entry = bytes(Command(opcode=NvmOpcode.FLUSH, nsid=1, cid=number))
        bench.write_memory(sq + 64 * number, entry)
    bench.clock.advance(1)
    driver.set_reg(0x1008, 2)
    bench.clock.advance(1)
    assert seen(bench).held_up == []
    driver.set_reg(0x1008, 4)
    bench.clock.advance(2)
    driver.set_reg(0x100C, 2)
    bench.clock.advance(1)
    assert seen(bench).held_up == [(2, 4)]
    made = picture.Picture(seen(bench), (0, 5))
    assert [(lane[0], list(lane[1]), list(lane[2])) for lane in made.lanes if lane[3] == picture._FAILED] == [
        ("CQ full", [2], [4])
    ]
    made.heading("")
    assert "CQ full: 2 s" in made.summary.texts[0].get_text()


@pytest.mark.kills("no-bus-master-that-nobody-needs")
def test_a_host_without_bus_master_enable_is_seen() -> None:
    bench = Traced()
    for bus_master, seconds in ((False, 1), (True, 2), (False, 3), (True, 1)):
        bench.controller.pci_changed(PciState(bus_master, True))
        bench.clock.advance(seconds)
        if seconds > 1:
            bench.driver.set_reg(0x1000, 1)
    found = seen(bench)
    assert found.barred == [(3, 6)], "not the first second, in which nobody wanted anything"
    made = picture.Picture(found, (0, 7))
    assert [lane[0] for lane in made.lanes] == ["doorbells", "interrupts", "registers", "no bus master"]
    assert list(made.lanes[0][1]) == [3, 6]


def test_the_time_begins_with_the_first_access(tmp_path: Path) -> None:
    bench = ready()
    bench.driver.read(slba=0, blocks=1)
    late = [one._replace(time=one.time + (7_000_000_000 if number else 0)) for number, one in enumerate(bench.records)]
    assert isinstance(late[0], trace.InterruptMode | trace.DmaMap)
    spans: list[tuple[float, float]] = []
    source = save(tmp_path / "t", late)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "draw", lambda found, title, span, *rest: spans.append(span))
        for words in ([], ["--from", "1"], ["--to", "8"]):
            assert main(["trace", "plot", source, "-o", str(tmp_path / "x.png"), *words]) == 0
    assert [start for start, _ in spans] == [7, 1, 7]


def test_only_the_phases_of_its_time_are_drawn() -> None:
    made = picture.Picture(Activity(), (10, 20))
    second = 1_000_000_000
    assert made._phase(Phase(Name.KERNEL, 5 * second, 15 * second))
    assert not made._phase(Phase(Name.FIRMWARE, 0, 5 * second))
    assert [text.get_text() for text in made.top.texts] == ["kernel"]


def test_phases_without_end_are_drawn_once_where_they_are() -> None:
    many = [Phase(name, time, time + 1) for time in range(0, 50_000, 2) for name in (Name.FIRMWARE, Name.KERNEL)]
    made = picture.Picture(Activity(phases=many), (0, 50_000 / 1e9))
    made.timeline()
    assert len(made.top.collections) <= 2 * picture._COLUMNS


def test_traces_with_little_in_them(tmp_path: Path) -> None:
    """Nothing; times of five centuries; no description, or one with all that could be markup."""
    late = (1 << 64) - 1
    entry = bytes(ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=(1 << 64) - 1, nlb=65536))
    fetch = trace.Fetch(late, 0, 65535, 0, entry)
    odd = trace.Description(
        comment="$x^{ \\frac & <b> \u0e01", namespaces=[{"nsid": 1, "block_size": "?"}, {"nsid": []}]
    )
    tiny = trace.Description(namespaces=[{"nsid": 1, "blocks": 1, "block_size": 1}])
    first = fetch._replace(time=5, sqe=bytes(ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, slba=0, nlb=1)))
    for records, description in (([], odd), ([fetch], None), ([first, fetch], odd), ([first], tiny)):
        source, out = save(tmp_path / "t", list(records), description), tmp_path / "out.png"
        assert main(["trace", "plot", source, "-o", str(out)]) == 0
        assert out.read_bytes().startswith(PNG)
        out.unlink()


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ([U_BOOT, "-o", "x.pdf"], 2, "'x.pdf' must end in .png or .svg"),
        ([U_BOOT], 2, "-o"),
        ([U_BOOT, "-o", "/none/x.png"], 1, "nvmeemu trace: /none/x.png: No such file or directory\n"),
        ([U_BOOT, "-o", "/none/x.png", "--from", "2"], 1, f"{U_BOOT}: nothing at that time: it ends at 1.396777 s\n"),
        (["/none", "-o", "/none/x.png"], 1, "nvmeemu trace: /none: No such file or directory\n"),
    ],
    ids=str,
)
def test_errors_are_a_line(words: list[str], status: int, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found: int | str | None = main(["trace", "plot", *words])
    except SystemExit as end:
        found = end.code
    assert found == status
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err


def test_without_a_home_it_is_quiet(tmp_path: Path) -> None:
    """CI often has none, or one that is read-only."""
    command = [sys.executable, "-m", "nvmeemu", "trace", "plot", U_BOOT, "-o", str(tmp_path / "out.svg")]
    environment = {key: value for key, value in os.environ.items() if key not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    result = subprocess.run(command, env=environment | {"HOME": "/proc/none"}, capture_output=True, check=True)
    assert (result.stdout, result.stderr) == (b"", b"")


def test_it_names_the_extra_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["trace", "plot", U_BOOT, "-o", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err == "nvmeemu trace: plot needs matplotlib: pip install 'nvmeemu[trace]'\n"


def test_the_page_has_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its commands make them."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    text = (root / "docs/trace.md").read_text()
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("nvmeemu trace plot tests/")]
    assert len(commands) == 2
    for *command, name in commands:
        assert f"]({Path(name).relative_to('docs')})" in text
        assert main([*command, str(tmp_path / "x.png")]) == 0
        there, made = ((root / name).read_bytes(), (tmp_path / "x.png").read_bytes())
        assert there[:24] == made[:24], "a PNG of the same size"
        assert len(there) < 150 << 10
