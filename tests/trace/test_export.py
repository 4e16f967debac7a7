"""``nvmeemu trace export``, read back with Perfetto's own schemas as its viewer reads it."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema

from nvmeemu import trace
from nvmeemu.app.cli import main
from nvmeemu.spec import AdminOpcode, Command
from nvmeemu.trace import export, words
from nvmeemu.trace.commands import commands
from nvmeemu.trace.phases import phases
from tracing import Traced, ready

CORPUS = Path(__file__).parent / "corpus"
BOOTS = sorted(path.name.partition(".trace")[0] for path in CORPUS.glob("*.xz"))
SECOND = 1_000_000_000


@dataclass
class Slice:
    """A slice as the viewer makes it of its begin and its end."""

    name: str
    start: int
    notes: dict[str, Any]
    depth: int
    end: int = 0


@dataclass
class Seen:
    """A Perfetto trace, put together by the rules of track events: an end ends the innermost slice of its track."""

    names: dict[int, str] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    slices: defaultdict[str, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    instants: defaultdict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    counters: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    realtime: int = 0

    def lanes(self, name: str) -> int:
        return list(self.names.values()).count(name)


def read(data: bytes) -> Seen:
    seen, stacks = Seen(), defaultdict[int, list[Slice]](list)
    packets = schema.Trace.FromString(data).packet
    assert {packet.trusted_packet_sequence_id for packet in packets} == {1}
    for packet in packets:
        if packet.HasField("track_descriptor"):
            one = packet.track_descriptor
            assert one.uuid not in seen.names
            seen.names[one.uuid], seen.parents[one.uuid] = one.name, one.parent_uuid
        for clock in packet.clock_snapshot.clocks:
            if clock.clock_id == schema.BUILTIN_CLOCK_REALTIME:
                seen.realtime = clock.timestamp
    events = [packet for packet in packets if packet.HasField("track_event")]
    for packet in sorted(events, key=lambda packet: packet.timestamp):  # stable, as the viewer's
        _take(seen, stacks[packet.track_event.track_uuid], packet.timestamp, packet.track_event)
    assert not any(stacks.values()), "slices that never end"
    return seen


def _take(seen: Seen, stack: list[Slice], time: int, event: Any) -> None:
    name = seen.names[event.track_uuid]
    if event.type == event.TYPE_SLICE_BEGIN:
        stack.append(Slice(event.name, time, _notes(event), len(stack)))
        seen.slices[name].append(stack[-1])
    elif event.type == event.TYPE_SLICE_END:
        ended = stack.pop()
        ended.end = time
        ended.notes |= _notes(event)
    elif event.type == event.TYPE_COUNTER:
        seen.counters[name].append((time, event.counter_value))
    else:
        assert event.type == event.TYPE_INSTANT
        seen.instants[name].append((time, event.name))


def _notes(event: Any) -> dict[str, Any]:
    return {one.name: one.string_value or one.uint_value for one in event.debug_annotations}


def exported(bench: Traced) -> Seen:
    file = BytesIO()
    export.write(schema, bench.memory.reader(), file)
    return read(file.getvalue())


def test_overlapping_commands_get_lanes_of_their_own() -> None:
    bench = ready()
    driver, advance = bench.driver, bench.clock.advance
    before = len(exported(bench).slices["SQ 0"])
    for number in range(3):
        advance(1)
        driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, cid=0x100 + number))
    advance(1)
    driver.execute(driver.admin, Command(opcode=AdminOpcode.GET_FEATURES, cdw10=1))
    advance(1)
    bench.controller.reset()
    seen = exported(bench)
    waits = seen.slices["SQ 0"][before : before + 3]
    assert [one.name for one in waits] == ["Async Event Request"] * 3
    assert len({one.end for one in waits}) == 1, "the reset ends them"
    assert [one.end - one.start for one in waits] == [4 * SECOND, 3 * SECOND, 2 * SECOND]
    assert {one.notes["completion"] for one in waits} == {"none"}
    assert {one.depth for slices in seen.slices.values() for one in slices} == {0}
    assert seen.lanes("SQ 0") == 4
    assert seen.lanes("SQ 1") <= 1
    assert [value for _, value in seen.counters["SQ 0 depth"]][-6:] == [1, 2, 3, 4, 3, 0]


def test_a_cid_that_is_used_again_ends_the_older_command() -> None:
    bench = ready()
    for _ in range(2):
        bench.clock.advance(1)
        bench.driver.submit(bench.driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, cid=0x100))
    older, newer = exported(bench).slices["SQ 0"][-2:]
    assert older.end == newer.start == newer.end


def test_what_a_command_says_of_itself() -> None:
    bench = ready()
    bench.driver.write(slba=5, data=b"x" * 64 * 1024)
    (seen,) = exported(bench).slices["SQ 1"]
    assert seen.name == "Write"
    assert seen.notes["command"] == "Write nsid=1 slba=5 nlb=128"
    assert seen.notes["PRP list"] == "64 KiB in 1 run"
    assert seen.notes["data"].startswith("64 KiB to the controller, crc ")
    assert seen.notes["completion"] == "Success"


@pytest.mark.parametrize("boot", BOOTS)
def test_a_boot_as_the_viewer_shows_it(boot: str, tmp_path: Path) -> None:
    source, out = str(CORPUS / f"{boot}.trace.xz"), tmp_path / "out"
    assert main(["trace", "export", "--perfetto", source, "-o", str(out)]) == 0
    seen = read(out.read_bytes())
    with trace.open_trace(source) as reader:
        records = list(reader)
        assert seen.realtime == reader.started
    found = list(commands(records))
    for sqid in {one.fetch.sqid for one in found}:
        slices = seen.slices[f"SQ {sqid}"]
        mine = [one for one in found if one.fetch.sqid == sqid]
        assert Counter((one.name, one.start) for one in slices) == Counter(
            (words.opcode(sqid, one.fetch.opcode), one.fetch.time) for one in mine
        )
        assert sum(one.end - one.start for one in slices if one.notes["completion"] != "none") == sum(
            one.latency or 0 for one in mine
        )
        _check_counter(seen, sqid)
    assert {one.depth for slices in seen.slices.values() for one in slices} == {0}
    assert [(one.name, one.start, one.end) for one in seen.slices["phases"]] == phases(records)
    assert len(seen.instants["interrupts"]) == sum(
        isinstance(one, trace.Interrupt | trace.InterruptMode) for one in records
    )
    resets = [one.time for one in records if isinstance(one, trace.Reset)]
    assert [time for time, what in seen.instants["controller"] if "reset" in what] == resets
    root = next(uuid for uuid, parent in seen.parents.items() if not parent)
    assert {parent for uuid, parent in seen.parents.items() if uuid != root} == {root}


def _check_counter(seen: Seen, sqid: int) -> None:
    """At each time the counter is how many slices are open, and as many lanes there are as it ever was."""
    changes = Counter[int]()
    for one in seen.slices[f"SQ {sqid}"]:
        changes[one.start] += 1
        changes[one.end] -= 1
    counter = dict(seen.counters[f"SQ {sqid} depth"])
    depth = 0
    for time in sorted(changes):
        depth += changes[time]
        assert counter[time] == depth
    assert depth == 0
    assert seen.lanes(f"SQ {sqid}") == max(value for _, value in seen.counters[f"SQ {sqid} depth"])


def test_errors_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bench, path = ready(), tmp_path / "t"
    with path.open("wb") as file:
        writer = trace.Writer(file, bench.memory.reader().description)
        for record in bench.records:
            writer.write(record)
    size = path.stat().st_size

    def fails(output: Path, status: int = 1) -> str:
        assert main(["trace", "export", "--perfetto", str(path), "-o", str(output)]) == status
        return capsys.readouterr().err

    assert fails(path, 2) == f"nvmeemu trace: {path}: this is the trace itself\n"
    assert path.stat().st_size == size
    assert fails(tmp_path / "none/there") == f"nvmeemu trace: {tmp_path}/none/there: No such file or directory\n"
    assert fails(Path("/dev/full")) == "nvmeemu trace: /dev/full: No space left on device\n"
    monkeypatch.setitem(sys.modules, export._SCHEMA, None)
    assert fails(tmp_path / "out") == "nvmeemu trace: export needs perfetto: pip install 'nvmeemu[trace]'\n"
    assert not (tmp_path / "out").exists()
