"""Feeds a trace to a controller on virtual ports: registers, doorbells and memory maps, at the times of the trace.

Before a doorbell is rung, the entries that it tells of are put where the host had them, with their PRP lists and what
the host gave with a command. A trace has the blocks of writes only if they were recorded. Otherwise they are zeros,
and only the length of what is read is compared.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from nvmeemu import regs, spec
from nvmeemu.backend import Backend, BackendError
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.events import Event
from nvmeemu.controller.limits import Limits
from nvmeemu.controller.taps import Observer
from nvmeemu.controller.transfer import transfer_of
from nvmeemu.ports import HostMemoryError, Worker
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.testing.ports import ManualWorker, Ram, VirtualClock
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand, by_fetch, is_reset
from nvmeemu.trace.file import FIRST_VERSION, Description, Reader, TraceError
from nvmeemu.trace.recorder import Recorder, describe
from nvmeemu.trace.records import (
    AsyncEvent,
    ClientAttached,
    ClientLeft,
    DmaMap,
    DmaUnmap,
    Doorbell,
    Fetch,
    InterruptMode,
    PciChange,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
)
from nvmeemu.trace.sink import Memory

_ENTRY = 8  # bytes of a PRP list's entry
_SEGMENT = 4096  # bytes of further segments of an SGL
_SPARE = 1 << 20  # bytes for the pages of chained lists, which are in no trace
_HIGHEST = 1 << 52  # no machine has addresses above it
_DEFAULT = {"nsid": 1, "blocks": 1 << 20, "block_size": 512}
_UNSTEADY = {regs.CSTS.offset}  # registers whose value is a matter of time


@dataclass(frozen=True)
class Difference:
    """Something that was not as recorded. ``what`` is a line for a person."""

    time: int
    what: str


@dataclass
class Result:
    """The result of a replay. ``trace`` is that of the replay itself."""

    commands: int
    differences: list[Difference]
    trace: Reader


def replay(
    reader: Reader,
    backends: Iterable[Backend] = (),
    *,
    data: bool = False,
    watch: Callable[[list[Record]], Iterable[Record]] = iter,
) -> Result:
    """Play a trace to a controller like the one that was recorded, with these disks or empty ones.

    It compares the completion of each command (status, DNR, More, DW0, queue) and the registers that were read; with
    ``data`` also what the controller gave to the host. ``watch`` gets the records and passes them on as they are
    played. Raises TraceError if the trace cannot be played.
    """
    records = list(reader)
    player = _Player(reader.name, reader.description, list(backends))
    player.play(records, watch)
    return player.result(records, data)


class _Player:
    def __init__(self, name: str, description: Description, backends: list[Backend]) -> None:
        self._name = name
        self._ram = Ram(0)
        self._ram.msix_enabled = False
        self._clock = VirtualClock()
        self._worker = ManualWorker()
        try:
            limits = Limits(**{"version": FIRST_VERSION, **description.limits})
            told = {"serial": "REPLAY"} | description.identity
            cntlid = told.pop("cntlid", 1)
            namespaces = _namespaces(description, backends, limits.namespaces, self._worker)
            subsystem = Subsystem(Identity(**told), namespaces, self._clock)
            self._controller = Controller(self._ram, self._clock, subsystem, limits, cntlid=cntlid)
        except (TypeError, ValueError, BackendError) as error:
            raise TraceError(f"{name}: the device of this trace cannot be made: {error}") from None
        self._payload = description.payload
        self._time = 0  # of the record that is played, exactly
        self._sink = Memory(describe(self._controller, payload=description.payload), lambda: self._time)
        self._own_events: Counter[tuple[int, int, int]] = Counter()
        self._controller.observe(_Events(self._own_events))
        self._controller.observe(Recorder(self._sink, self._controller.state))
        self._todo: defaultdict[int, deque[tuple[int, TracedCommand]]] = defaultdict(deque)  # (life, command) by SQID
        self._life = 0
        self._spare = self._spare_at = 0

    def play(self, records: list[Record], watch: Callable[[list[Record]], Iterable[Record]]) -> None:
        """Do all that came from the host, in order."""
        for life, command in _by_life(records):
            self._todo[command.fetch.sqid].append((life, command))
        self._map_spare(records)
        for record in watch(records):
            self._time = record.time
            self._clock.advance(max(0.0, record.time / 1_000_000_000 - self._clock.now()))
            self._take(record)
            self._settle()
            self._life += is_reset(record)

    def _take(self, record: Record) -> None:
        controller = self._controller
        if isinstance(record, RegisterRead | RegisterWrite) and record.offset >= controller.bar0_size:
            raise TraceError(f"{self._name}: {words.describe(record)[1]}: the device has no registers there")
        if isinstance(record, RegisterRead):
            controller.read(record.offset, len(record.data))
        elif isinstance(record, RegisterWrite):
            controller.write(record.offset, record.data)
        elif isinstance(record, Doorbell):
            self._ring(record)
        elif isinstance(record, DmaMap | DmaUnmap):
            self._remap(record)
        elif isinstance(record, InterruptMode):
            self._ram.msix_enabled = record.msix
            controller.interrupts_changed()
        elif isinstance(record, PciChange):
            controller.pci_changed(record.state)  # what follows from it, memory above all, is in the trace, too
        elif isinstance(record, Reset):
            controller.reset()
        elif isinstance(record, ClientAttached):
            controller.taps.attached(record.name)
        elif isinstance(record, ClientLeft):
            controller.taps.left()
        elif isinstance(record, AsyncEvent):
            self._event(record)

    def _settle(self) -> None:
        while self._controller.run() or self._worker.tasks:
            self._worker.finish_all()

    def _remap(self, record: DmaMap | DmaUnmap) -> None:
        self._controller.quiesce()
        with suppress(KeyError):  # a trace that lacks its beginning
            self._ram.discard(record.iova)
        if isinstance(record, DmaMap):
            if record.iova + record.size > 1 << 64:
                raise TraceError(f"{self._name}: {words.describe(record)[1]}: that is no range")
            try:
                self._ram.map(record.iova, record.size, writable=record.writable)
            except (OSError, ValueError, OverflowError) as error:
                raise TraceError(f"{self._name}: {words.describe(record)[1]}: no room for it here: {error}") from None
        self._controller.memory_changed()

    def _map_spare(self, records: list[Record]) -> None:
        """Memory of ours, above the guest's. It is not told: the host of the trace had none there."""
        maps = [record for record in records if isinstance(record, DmaMap)]
        ends = [one.iova + one.size for one in maps if one.iova + one.size <= _HIGHEST]
        self._spare = self._spare_at = -(-max(ends, default=0) // _SPARE) * _SPARE + _SPARE
        self._ram.map(self._spare, _SPARE)
        self._ram.mirror = self._controller.taps

    def _event(self, record: AsyncEvent) -> None:
        """Repeat an event that came from outside. An event that the host has caused has happened again already."""
        key = record.type, record.info, record.log
        if self._own_events[key]:
            self._own_events[key] -= 1
            return
        with suppress(ValueError):  # a type that is not known
            kind, log = spec.EventType(record.type), spec.LogId(record.log)
            self._controller.state.events.report(Event(kind, record.info, log))
            self._own_events[key] -= 1

    # --- queues

    def _ring(self, record: Doorbell) -> None:
        state = self._controller.state
        queue = (state.cqs if record.is_cq else state.sqs).get(record.qid)
        value = record.value
        if not record.is_cq and record.qid in state.sqs:
            value = self._fill(record.qid, value)
        if queue is not None and queue.shadow is not None:
            with suppress(HostMemoryError):
                self._ram.write(queue.shadow.shadow, value.to_bytes(4, "little"))
        place = spec.DOORBELLS + (2 * record.qid + record.is_cq) * state.limits.stride
        self._controller.write(place, value.to_bytes(4, "little"))

    def _fill(self, qid: int, tail: int) -> int:
        """Put the entries into the queue that this tail gives away; the tail behind those that were ever fetched."""
        sq = self._controller.state.sqs[qid]
        if tail >= sq.entries:
            return tail  # for the controller to refuse
        todo = self._todo[qid]
        while todo and todo[0][0] < self._life:  # the controller has not fetched what the recorded one did
            todo.popleft()
        slot = sq.server.tail
        while slot != tail:
            if not todo or todo[0][0] != self._life or todo[0][1].fetch.slot != slot:
                return slot if slot != sq.server.tail else tail  # a doorbell that is refused is refused again
            _, command = todo.popleft()
            self._place(command)
            with suppress(HostMemoryError):
                self._ram.write(sq.iova + slot * spec.SQE_SIZE, command.fetch.sqe)
            slot = (slot + 1) % sq.entries
        return tail

    def _place(self, command: TracedCommand) -> None:
        """The PRP list or SGLs of a command, and what the host gave with it."""
        entry = command.fetch.command
        page_size = self._controller.state.page_size
        pieces = [one for one in command.data if not one.to_host]
        with suppress(HostMemoryError, CommandFailed):
            if command.prp is not None:
                self._write_list(entry, command.prp.runs, page_size)
            self._write_sgls(entry, command)
            if pieces:
                data = b"".join(one.data for one in pieces)
                places = transfer_of(self._ram, command.fetch.sqe, page_size).views(len(data), False)
                start = 0
                for place in places:
                    if not place.readonly:
                        place[:] = data[start : start + len(place)]
                    start += len(place)

    def _write_list(self, entry: spec.Command, runs: tuple[tuple[int, int], ...], page_size: int) -> None:
        """Write a PRP list at PRP2 that names these runs. If the list is chained, its further pages are in our own
        memory."""
        pages = [page for start, size in runs for page in range(start - start % page_size, start + size, page_size)][1:]
        place = entry.prp2
        room = (page_size - place % page_size) // _ENTRY
        while len(pages) > room:
            following = self._spare_page(page_size)
            self._ram.write(place, struct.pack(f"<{room}Q", *pages[: room - 1], following))
            pages, place, room = pages[room - 1 :], following, page_size // _ENTRY
        self._ram.write(place, struct.pack(f"<{len(pages)}Q", *pages))

    def _write_sgls(self, entry: spec.Command, command: TracedCommand) -> None:
        """Write the SGLs of a command where it says that they are. A bit bucket that moved nothing is in no trace."""
        data = [run for one in command.sgls if not one.of_metadata for run in one.runs]
        metadata = [run for one in command.sgls if one.of_metadata for run in one.runs]
        if data:
            first = spec.SglDescriptor(entry.sgl1)
            self._write_sgl(first.address, first.length // spec.SglDescriptor.SIZE, data)
        if metadata:
            self._write_sgl(entry.mptr, 1, metadata)

    def _write_sgl(self, place: int, room: int, runs: list[tuple[int | None, int]]) -> None:
        """Write descriptors of these runs into a segment that has room for so many; the others into our own memory."""
        while len(runs) > room:
            here, runs = runs[: room - 1], runs[room - 1 :]
            following, most = self._spare_page(_SEGMENT), _SEGMENT // spec.SglDescriptor.SIZE
            kind = spec.SglType.LAST_SEGMENT if len(runs) <= most else spec.SglType.SEGMENT
            pointer = spec.SglDescriptor(kind=kind, address=following, length=min(len(runs), most) * 16)
            self._ram.write(place, _descriptors(here) + bytes(pointer))
            place, room = following, most
        self._ram.write(place, _descriptors(runs))

    def _spare_page(self, page_size: int) -> int:
        """A page for a moment: they are used in turn."""
        page = self._spare_at
        self._spare_at = page + page_size
        if self._spare_at >= self._spare + _SPARE:
            self._spare_at = self._spare
        return page

    # --- what came of it

    def result(self, records: list[Record], data: bool) -> Result:
        """Compare the trace with that of the replay."""
        replayed = list(self._sink.reader())
        was, came = _by_queue(records), _by_queue(replayed)
        open_ends = _under_way(records)
        found = list(_compare_reads(records, replayed))
        for sqid, commands in was.items():
            others = came.get(sqid, [])
            for number, command in enumerate(commands):
                other = others[number] if number < len(others) else None
                if other is not None and command.fetch in open_ends:
                    continue  # what the controller would have answered is not in the trace
                what = _compare(command, other, data and (not sqid or self._payload))
                if what:
                    fetch = command.fetch
                    name = f"SQ {sqid} #{fetch.cid:04x} {words.command(sqid, fetch.sqe)}"
                    found.append(Difference(fetch.time, f"{name}: {what}"))
        found.sort(key=lambda one: one.time)
        return Result(sum(map(len, was.values())), found, self._sink.reader())


def _descriptors(runs: Iterable[tuple[int | None, int]]) -> bytes:
    """A data block or bit bucket for each run."""
    found = b""
    for iova, size in runs:
        kind = spec.SglType.BIT_BUCKET if iova is None else spec.SglType.DATA_BLOCK
        found += bytes(spec.SglDescriptor(kind=kind, address=iova or 0, length=size))
    return found


@dataclass
class _Events(Observer):
    """Counts the events that the controller itself reports."""

    counts: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def event(self, event: Event) -> None:
        self.counts[int(event.type), event.info, int(event.log)] += 1


def _namespaces(description: Description, backends: list[Backend], nn: int, worker: Worker) -> Inventory:
    """Those of the trace, with these disks in order, or empty ones. Raises TypeError, ValueError, BackendError."""
    namespaces = Inventory(nn)
    told: list[dict[str, Any]] = description.namespaces or [_DEFAULT]
    for number, one in enumerate(told):
        one = _DEFAULT | one
        if not all(isinstance(one[name], int) for name in _DEFAULT) or one["block_size"] not in (512, 4096):
            raise ValueError("a namespace without good numbers")
        backend = backends[number] if number < len(backends) else MemoryBackend(one["blocks"] * one["block_size"])
        if number >= len(backends):
            backend.volatile_cache = bool(one.get("volatile_cache", backend.volatile_cache))
            backend.read_only = bool(one.get("read_only", False))
        text = str(one.get("identity", "replay"))
        media = DiskMedia(backend, Format(one["block_size"]), worker)
        namespaces.add(Namespace(one["nsid"], media, text, _ids(one.get("ids"))))
    return namespaces


def _ids(told: Any) -> Ids:
    """As ``describe`` has them; older traces have none. Raises TypeError and ValueError."""
    if not isinstance(told, dict):
        return Ids()
    nguid, eui64, uuid = (bytes.fromhex(told.get(name, "")) for name in ("nguid", "eui64", "uuid"))
    if (len(nguid), len(eui64)) != (16, 8):
        raise ValueError("a namespace without good identifiers")
    return Ids(nguid, eui64, UUID(bytes=uuid))


def _by_life(records: Iterable[Record]) -> Iterator[tuple[int, TracedCommand]]:
    """The commands in the order in which they were fetched, each with how many resets came before."""
    records = list(records)
    fetched = by_fetch(records)
    life = 0
    for number, record in enumerate(records):
        if number in fetched:
            yield life, fetched[number]
        life += is_reset(record)


def _under_way(records: Iterable[Record]) -> set[Fetch]:
    """The commands that were when the trace ends: it was cut, or the server was killed."""
    matcher = Matcher()
    for record in records:
        matcher.feed(record)
    return {command.fetch for command in matcher.under_way()}


def _by_queue(records: Iterable[Record]) -> dict[int, list[TracedCommand]]:
    found: defaultdict[int, list[TracedCommand]] = defaultdict(list)
    for _, command in _by_life(records):
        found[command.fetch.sqid].append(command)
    return found


def _compare(was: TracedCommand, came: TracedCommand | None, data: bool) -> str:
    """What is different between two completions; empty if nothing is."""
    if came is None:
        return "was not fetched"
    if came.fetch.sqe != was.fetch.sqe:
        return f"another command came: {words.command(came.fetch.sqid, came.fetch.sqe)}"
    if (was.completion is None) != (came.completion is None):
        return "has no completion now" if came.completion is None else "had no completion"
    if was.completion is not None and came.completion is not None:
        before, now = was.completion.completion, came.completion.completion
        if (before.dw0, before.status, before.dnr, before.more) != (now.dw0, now.status, now.dnr, now.more):
            return f"was {words.completion(before)}, is {words.completion(now)}"
        if was.completion.cqid != came.completion.cqid:
            return f"completed in queue {came.completion.cqid}, not {was.completion.cqid}"
    if data:
        before_data = [(one.length, one.crc) for one in was.digests if one.to_host]
        if before_data != [(one.length, one.crc) for one in came.digests if one.to_host]:
            return "gave other data"
    return ""


def _compare_reads(records: list[Record], replayed: list[Record]) -> Iterator[Difference]:
    """Registers that read differently now, without CSTS, which depends on time."""
    pairs = zip(_reads(records), _reads(replayed), strict=True)
    for was, came in pairs:
        if was.data != came.data and was.offset not in _UNSTEADY:
            now = words.register(came.offset, came.data)
            yield Difference(was.time, f"BAR0: read {words.register(was.offset, was.data)}, now {now}")


def _reads(records: list[Record]) -> list[RegisterRead]:
    return [record for record in records if isinstance(record, RegisterRead)]
