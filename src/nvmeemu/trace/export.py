"""``nvmeemu trace export``: a trace for ui.perfetto.dev: tracks, slices, counters, instants.

The messages are those of Perfetto's own schemas (PyPI's ``perfetto``), in order of time, many to a write.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any, BinaryIO

from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand
from nvmeemu.trace.extra import check_output, require, writing
from nvmeemu.trace.file import Reader, open_trace
from nvmeemu.trace.phases import Phases
from nvmeemu.trace.records import Completion, Data, Digest, Doorbell, Fetch, Prp, Record
from nvmeemu.trace.terminal import heading, with_progress

_EXPORT = """\
Write a trace for https://ui.perfetto.dev, which opens it in the browser (nothing is sent): a track for each queue with
a slice for each command from fetch to completion, how many were under way at once, the phases of the boot, register
accesses, interrupts, memory maps and resets. A click on a command shows its fields, its data and its completion.
"""
_SCHEMA = "perfetto.protos.perfetto.trace.perfetto_trace_pb2"
_SEQUENCE = 1  # all packets are of one
_ROOT = 1  # uuid of the track that all others are under
_AT_ONCE = 4096  # packets to a write
_TRACKS = {"BAR0": "registers", "IRQ": "interrupts", "DMA": "memory maps", "PCI": "PCI", "fault": "faults"}
_ORDER = ("phases", "faults", "controller", "registers", "interrupts", "memory maps", "PCI")  # then the queues


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser."""
    parser = parsers.add_parser("export", help="for the trace viewer Perfetto", description=_EXPORT)
    parser.add_argument(
        "--perfetto", metavar="FILE", dest="file", required=True, help="a trace, compressed or not; -: stdin"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    schema = require(_SCHEMA, "export")
    check_output(arguments.file, arguments.output)
    with open_trace(arguments.file) as reader, writing(arguments.output), open(arguments.output, "wb") as file:
        write(schema, reader, file)
    return 0


def write(schema: Any, reader: Reader, file: BinaryIO) -> None:
    """Write the whole trace. A Perfetto trace is a message of packets, and messages may follow each other in a file."""
    export = Export(schema)
    export.begin(reader)
    for record in with_progress(reader, prints=False):
        export.feed(record)
        if len(export.trace.packet) >= _AT_ONCE:
            file.write(export.taken())
    export.end()
    file.write(export.taken())


class Export:
    """Adds packets to ``trace``: call ``begin``, then ``feed`` with all records in order, then ``end``. Meanwhile the
    packets may be ``taken``.

    Slices of one Perfetto track have to nest, and commands overlap in any way. So each queue has as many tracks as
    commands were under way at once, all of one name, which the viewer shows together.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self.trace = schema.Trace()
        self._matcher = Matcher()
        self._phases = Phases()
        self._last = 0
        self._tracks: dict[tuple[str, int], int] = {}  # uuid by name and lane
        self._lane_of: dict[int, int] = {}  # by the id of a Fetch
        self._lanes: Counter[int] = Counter()  # by SQID: how many it has
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # of them, as a heap

    def taken(self) -> bytes:
        """The packets so far, encoded; others come after them."""
        encoded: bytes = self.trace.SerializeToString()
        self.trace = self._schema.Trace()  # Clear() would keep the memory of all that ever was in it
        return encoded

    def begin(self, reader: Reader) -> None:
        """What was traced, and when."""
        first = self._packet()
        first.sequence_flags = self._schema.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        descriptor = first.track_descriptor
        descriptor.uuid = _ROOT
        descriptor.name = heading(reader)
        descriptor.child_ordering = self._schema.TrackDescriptor.EXPLICIT
        if reader.started:
            snapshot = self._packet().clock_snapshot
            for clock, time in (("BOOTTIME", 0), ("REALTIME", reader.started)):
                number = self._schema.BuiltinClock.Value(f"BUILTIN_CLOCK_{clock}")
                snapshot.clocks.add(clock_id=number, timestamp=time)

    def feed(self, record: Record) -> None:
        """Take one record."""
        self._last = record.time
        self._phases.feed(record)
        changed = set()
        for command in self._matcher.feed(record):
            self._end_command(command, record.time)
            changed.add(command.fetch.sqid)
        if isinstance(record, Fetch):
            self._begin_command(record)
            changed.add(record.sqid)
        elif not isinstance(record, (Completion, Prp, Digest, Data, Doorbell)):
            where, what = words.describe(record)
            name = what if where in _TRACKS or where == "reset" else f"{where}: {what}"
            self._event(record.time, "INSTANT", _TRACKS.get(where, "controller"), name=name)
        for sqid in changed:
            self._count(sqid, record.time)

    def end(self) -> None:
        """What is still under way ends where the trace does."""
        for command in self._matcher.end():
            self._end_command(command, self._last)
        for phase in self._phases.end(self._last):
            self._event(phase.start, "SLICE_BEGIN", "phases", name=phase.name)
            self._event(phase.end, "SLICE_END", "phases")

    def _begin_command(self, fetch: Fetch) -> None:
        free = self._free[fetch.sqid]
        if free:
            lane = heappop(free)
        else:
            lane = self._lanes[fetch.sqid]
            self._lanes[fetch.sqid] += 1
        self._lane_of[id(fetch)] = lane
        name = words.opcode(fetch.sqid, fetch.opcode)
        event = self._event(fetch.time, "SLICE_BEGIN", f"SQ {fetch.sqid}", lane, name=name)
        self._note(event, "command", words.command(fetch.sqid, fetch.sqe))
        self._note(event, "cid", fetch.cid)
        self._note(event, "slot", fetch.slot)

    def _end_command(self, command: TracedCommand, time: int) -> None:
        """``time``: when it ended, by a completion or by a reset."""
        fetch = command.fetch
        lane = self._lane_of.pop(id(fetch))
        heappush(self._free[fetch.sqid], lane)
        event = self._event(time, "SLICE_END", f"SQ {fetch.sqid}", lane)
        for name, value in _end_notes(command):
            self._note(event, name, value)

    def _count(self, sqid: int, time: int) -> None:
        under_way = self._lanes[sqid] - len(self._free[sqid])
        self._event(time, "COUNTER", f"SQ {sqid} depth", counter_value=under_way)

    def _event(self, time: int, kind: str, track: str, lane: int = 0, **fields: Any) -> Any:
        uuid = self._tracks.get((track, lane)) or self._make_track(track, lane, kind == "COUNTER")
        packet = self._packet()
        packet.timestamp = time
        event = packet.track_event
        event.type = self._schema.TrackEvent.Type.Value(f"TYPE_{kind}")
        event.track_uuid = uuid
        for name, value in fields.items():
            setattr(event, name, value)
        return event

    def _make_track(self, name: str, lane: int, is_counter: bool) -> int:
        uuid = self._tracks[name, lane] = _ROOT + 1 + len(self._tracks)
        descriptor = self._packet().track_descriptor
        descriptor.uuid = uuid
        descriptor.parent_uuid = _ROOT
        descriptor.name = name
        if name in _ORDER:
            rank = _ORDER.index(name)
        else:
            rank = len(_ORDER) + 2 * int(name.split()[1]) + is_counter
        descriptor.sibling_order_rank = rank
        if is_counter:
            descriptor.counter.unit = self._schema.CounterDescriptor.UNIT_COUNT
        else:
            descriptor.sibling_merge_behavior = self._schema.TrackDescriptor.SIBLING_MERGE_BEHAVIOR_BY_TRACK_NAME
        return uuid

    def _packet(self) -> Any:
        return self.trace.packet.add(trusted_packet_sequence_id=_SEQUENCE)

    @staticmethod
    def _note(event: Any, name: str, value: str | int) -> None:
        note = event.debug_annotations.add(name=name)
        if isinstance(value, str):
            note.string_value = value
        else:
            note.uint_value = value


def _end_notes(command: TracedCommand) -> Iterator[tuple[str, str | int]]:
    """What is known of a command when it has ended."""
    if pointers := words.pointers(command.fetch.sqe):
        yield "pointers", pointers
    if command.prp is not None:
        yield "PRP list", words.describe(command.prp)[1].partition(": ")[2]
    for sgl in command.sgls:
        yield "SGL", words.describe(sgl)[1].partition(": ")[2]
    for digest in command.digests:
        yield "data", words.describe(digest)[1].partition(" ")[2]
    for injection in command.injections:
        yield "fault", words.injection(injection)
    done = command.completion
    yield "completion", "none" if done is None else words.completion(done.completion)
