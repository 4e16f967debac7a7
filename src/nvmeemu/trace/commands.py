"""Puts the records of each command together: the fetch, the data that moved, and the completion that ended it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nvmeemu import regs, spec
from nvmeemu.trace.records import (
    ClientLeft,
    Completion,
    Data,
    Digest,
    Fetch,
    Injection,
    MetadataDigest,
    Prp,
    Record,
    RegisterWrite,
    Reset,
    Sgl,
)


@dataclass(slots=True)
class TracedCommand:
    """A command from its fetch to its end. ``completion`` is None if there was none: a reset dropped the command, or
    the trace ends before."""

    fetch: Fetch
    completion: Completion | None = None
    prp: Prp | None = None
    sgls: list[Sgl] = field(default_factory=list)
    digests: list[Digest | MetadataDigest] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)  # faults on purpose that fired at it

    @property
    def latency(self) -> int | None:
        """Nanoseconds from fetch to completion."""
        return None if self.completion is None else self.completion.time - self.fetch.time


_Key = tuple[int, int]  # SQID, CID
_OfData = Prp | Sgl | Digest | MetadataDigest | Data


class Matcher:
    """Puts records together; give it all records in order. ``newest`` is the command that was fetched last.

    A host may use a CID again before its command has ended (nvme2k does). Then completions belong to the commands in
    the order of their fetches, and data belongs to the oldest command that moves data that way.
    """

    def __init__(self) -> None:
        self.newest: TracedCommand | None = None
        self._oldest: dict[_Key, TracedCommand] = {}  # under way
        self._others: dict[_Key, list[TracedCommand]] = {}  # with the CID of one that is under way, in order

    def feed(self, record: Record) -> list[TracedCommand]:
        """Take one record; returns the commands that end with it, usually none or one."""
        if isinstance(record, Fetch):
            key = record.sqid, record.cid
            self.newest = TracedCommand(record)
            if key in self._oldest:
                self._others.setdefault(key, []).append(self.newest)
            else:
                self._oldest[key] = self.newest
            return []
        if isinstance(record, Completion):
            key = record.sqid, record.cid
            found = self._oldest.pop(key, None)
            if found is None:
                return []
            if key in self._others:
                self._follow(key)
            found.completion = record
            return [found]
        if isinstance(record, (Prp, Sgl, Digest, MetadataDigest, Data)):
            self._add(record)
            return []
        if isinstance(record, Injection):
            self._inject(record)
            return []
        return self.end() if is_reset(record) else []

    def _follow(self, key: _Key) -> None:
        """The oldest of this CID has ended: the next one is the oldest now."""
        others = self._others[key]
        self._oldest[key] = others.pop(0)
        if not others:
            del self._others[key]

    def _add(self, record: _OfData) -> None:
        key = record.sqid, record.cid
        found = self._oldest.get(key)
        if found is None:
            return
        if key in self._others:
            found = next((one for one in (found, *self._others[key]) if _moves(one, record)), found)
        if isinstance(record, Prp):
            found.prp = record
        elif isinstance(record, Sgl):
            found.sgls.append(record)
        elif isinstance(record, (Digest, MetadataDigest)):
            found.digests.append(record)
        else:
            found.data.append(record)

    def _inject(self, record: Injection) -> None:
        key = record.sqid, record.cid
        if record.of_command and key in self._oldest:
            is_new = record.at in _AT_BEGIN and key in self._others
            (self._others[key][-1] if is_new else self._oldest[key]).injections.append(record)

    def under_way(self) -> Iterator[TracedCommand]:
        """The commands that have not ended."""
        for key, command in self._oldest.items():
            yield command
            yield from self._others.get(key, ())

    def end(self) -> list[TracedCommand]:
        """End here; returns the commands that were under way."""
        ended = list(self.under_way())
        self._oldest, self._others = {}, {}
        return ended


_AT_BEGIN = ("fetch", "execute", "backend")  # faults there fire before the next command is fetched


def _moves(command: TracedCommand, record: _OfData) -> bool:
    """Whether this record of data can be of that command, and is not there yet."""
    ways = spec.DataTransfer.of(command.fetch.opcode)
    if isinstance(record, Prp):
        return bool(ways) and command.prp is None
    if isinstance(record, Sgl):  # they come before the digest
        return bool(ways) and not any(isinstance(one, MetadataDigest) == record.of_metadata for one in command.digests)
    if not ways & (spec.DataTransfer.TO_HOST if record.to_host else spec.DataTransfer.TO_CONTROLLER):
        return False
    if isinstance(record, Data):
        return True
    return all(type(one) is not type(record) or one.to_host != record.to_host for one in command.digests)


def written_configuration(record: RegisterWrite) -> spec.Configuration | None:
    """CC as this write sets it; bytes that it does not reach count as 0. None if the write does not begin at CC or
    before it."""
    start = regs.CC.offset - record.offset
    if not 0 <= start < len(record.data):
        return None
    return spec.Configuration.of(int.from_bytes(record.data[start : start + regs.CC.size], "little"))


def is_reset(record: Record) -> bool:
    """Whether it ends all commands: a reset of the function, or CC.EN becoming (or staying) 0."""
    if isinstance(record, RegisterWrite):
        written = written_configuration(record)
        return written is not None and not written.en
    return isinstance(record, (Reset, ClientLeft))


def by_fetch(records: Iterable[Record]) -> dict[int, TracedCommand]:
    """All that is known of the command of each fetch, by the number of its record."""
    matcher = Matcher()
    found = {}
    for number, record in enumerate(records):
        matcher.feed(record)
        if isinstance(record, Fetch) and matcher.newest is not None:
            found[number] = matcher.newest
    return found


def commands(records: Iterable[Record]) -> Iterator[TracedCommand]:
    """The commands of a trace, each when it ends, and last the ones that never ended."""
    matcher = Matcher()
    for record in records:
        yield from matcher.feed(record)
    yield from matcher.end()
