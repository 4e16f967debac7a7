"""Commands out of records: what was fetched, with the data that moved for it and the completion that ended it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nvmeemu import regs, spec
from nvmeemu.trace.records import ClientLeft, Completion, Data, Digest, Fetch, Prp, Record, RegisterWrite, Reset


@dataclass(slots=True)
class TracedCommand:
    """A command from its fetch to its end. ``completion`` is None if it had none: a reset dropped it, or the trace ends
    before."""

    fetch: Fetch
    completion: Completion | None = None
    prp: Prp | None = None
    digests: list[Digest] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)

    @property
    def latency(self) -> int | None:
        """Nanoseconds from fetch to completion."""
        return None if self.completion is None else self.completion.time - self.fetch.time


class Matcher:
    """Puts records together; give it all records in order.

    ``pending`` are the commands under way by (SQID, CID). A CID that is used again before its command has ended is a
    mistake of the host's: the older command then counts as one without a completion.
    """

    def __init__(self) -> None:
        self.pending: dict[tuple[int, int], TracedCommand] = {}

    def feed(self, record: Record) -> list[TracedCommand]:
        """Take one record; the commands that end with it, usually none or one."""
        if isinstance(record, Fetch):
            key = record.sqid, record.cid
            before = self.pending.pop(key, None)
            self.pending[key] = TracedCommand(record)
            return [] if before is None else [before]
        if isinstance(record, Completion):
            found = self.pending.pop((record.sqid, record.cid), None)
            if found is None:
                return []
            found.completion = record
            return [found]
        if isinstance(record, (Prp, Digest, Data)):
            self._add(record)
            return []
        return self.end() if is_reset(record) else []

    def _add(self, record: Prp | Digest | Data) -> None:
        found = self.pending.get((record.sqid, record.cid))
        if found is None:
            return
        if isinstance(record, Prp):
            found.prp = record
        elif isinstance(record, Digest):
            found.digests.append(record)
        else:
            found.data.append(record)

    def end(self) -> list[TracedCommand]:
        """Everything ends here; the commands that were under way."""
        ended, self.pending = list(self.pending.values()), {}
        return ended


def written_configuration(record: RegisterWrite) -> spec.Configuration | None:
    """CC as this write sets it (bytes that it does not reach count as 0); None if it does not begin at or before CC."""
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


def commands(records: Iterable[Record]) -> Iterator[TracedCommand]:
    """The commands of a trace, each when it ends; those that never did at last."""
    matcher = Matcher()
    for record in records:
        yield from matcher.feed(record)
    yield from matcher.end()
