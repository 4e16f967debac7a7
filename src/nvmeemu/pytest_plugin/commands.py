"""``trace`` and ``expect``: the commands that the host has sent, and the next ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from nvmeemu import spec
from nvmeemu.faults.match import Match
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.words import check_pairs, table
from nvmeemu.trace import commands, file, records, words

LOOK_AGAIN = 0.02  # seconds; the server writes its trace every 50 ms
LATE = 20.0  # seconds; a server whose disk is full or that is killed writes no more
REMEMBERED = 100_000  # commands
SHOWN = 20

Op = str | spec.Opcode


class RecordSource(Protocol):
    """Where records come from. It may give half a record; the rest comes with the next bytes."""

    def more(self) -> bytes:
        """The bytes that have come since the last call."""
        ...

    def mark(self) -> str | None:
        """The text of a remark that comes behind all that the drive has seen until now. None if all is here already."""
        ...


class FileSource:
    """A trace that a server is writing. ``note`` has the server put a remark there, and returns whether it can."""

    def __init__(self, path: Path, note: Callable[[str], bool]) -> None:
        self.path = path
        self._note = note
        self._position = 0
        self._numbers = count(1)

    def mark(self) -> str | None:
        text = f"pytest is at {next(self._numbers)}"
        return text if self._note(text) else None

    def more(self) -> bytes:
        if not self._position:
            if not self.path.exists() or not self.path.stat().st_size:
                return b""
            with file.open_trace(self.path) as reader:
                self._position = reader.position
        with self.path.open("rb") as trace:
            trace.seek(self._position)
            data = trace.read()
        self._position += len(data)
        return data


class HostCommand:
    """A command that the host has sent, and how it ended.

    The fields that this kind of command has are attributes of it: ``nsid``, ``slba``, ``nlb``, ``cdw10``, ...
    """

    def __init__(self, traced: commands.TracedCommand) -> None:
        self._traced = traced
        self.command = words.command_of(traced.fetch.sqid, traced.fetch.sqe)

    @property
    def sqid(self) -> int:
        """The submission queue; 0 is the admin queue."""
        return self._traced.fetch.sqid

    @property
    def time(self) -> float:
        """Seconds since the trace began."""
        return self._traced.fetch.time / 1e9

    @property
    def completion(self) -> spec.Completion | None:
        """The completion queue entry; None if there is none (yet)."""
        return None if self._traced.completion is None else self._traced.completion.completion

    @property
    def status(self) -> int | None:
        """A ``spec.Status``, or Status Code Type and Status Code of one that is not in there."""
        return None if self.completion is None else self.completion.status

    @property
    def latency(self) -> float | None:
        """Seconds from its fetch to its completion."""
        return None if self._traced.latency is None else self._traced.latency / 1e9

    @property
    def faults(self) -> list[str]:
        """The faults on purpose that have fired at it, in words: number, name, action and place."""
        return [words.injection(one) for one in self._traced.injections]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.command, name)

    def __str__(self) -> str:
        ended = "no completion" if self.completion is None else words.completion(self.completion)
        if self.latency is not None:
            ended += f" after {words.duration(self.latency * 1e9)}"
        where = f"SQ {self.sqid}" if self.sqid else "admin"
        said = words.command(self.sqid, self._traced.fetch.sqe)
        injected = words.injections(self._traced.injections)
        return f"{self.time:10.6f} s  {where:6} #{self._traced.fetch.cid:04x} {said}: {ended}{injected}"

    __repr__ = __str__


class NothingSent(AssertionError):
    """The command that ``expect`` waited for did not come. The message has the last commands of ``trace``."""

    def __init__(self, text: str, trace: Trace) -> None:
        super().__init__(text)
        self.trace = trace


class Trace:
    """The commands that the host has sent to one drive since the test began (``list(trace)``)."""

    def __init__(self, source: RecordSource, patience: float, remember: int = REMEMBERED) -> None:
        self._source = source
        self._patience = patience
        self._rest = b""
        self._awaited: str | None = None  # the remark behind what we want to have
        self._matcher = commands.Matcher()
        self._found: deque[HostCommand] = deque(maxlen=remember)
        self._injected: deque[str] = deque(maxlen=SHOWN)
        self._count = 0  # of all that ever were in ``_found``
        self._begin = 0  # where this test's commands begin
        self._next = 0  # where ``expect`` goes on

    def __iter__(self) -> Iterator[HostCommand]:
        """In the order in which the controller fetched them."""
        self._catch_up()
        return iter(self._since(self._begin))

    def commands(self, op: Op | None = None, **fields: Any) -> list[HostCommand]:
        """Those with this ``op`` and these fields, as ``expect`` takes them."""
        wanted = _match(op, fields)
        return [command for command in self if _fits(command, wanted)]

    def restart(self) -> None:
        """Forget what was sent until now, as at the beginning of each test."""
        self._catch_up()
        self._begin = self._next = self._count

    def expect(self, op: Op | None = None, *, timeout: float | None = None, **fields: Any) -> HostCommand:
        """The next command with this ``op`` (``"write"``, ``"Get Log Page"``, ``NvmOpcode.READ``) and these fields.

        Fields and values are those of a fault's ``match``: ``queue``, ``nsid``, ``lba="0-7"``, ``fid=[7, 11]``,
        ``cdw10={"mask": 0xff, "value": 2}``, ...; ``status="invalid_field"`` (or ``"ok"``, ``"error"``) asks how it has
        ended. The search goes on behind the command that was found before, so that
        several calls check an order. Raises AssertionError if there is none yet and none comes in ``timeout`` seconds.
        """
        wanted = _match(op, fields)
        patience = self._patience if timeout is None else timeout
        end = time.monotonic() + patience
        self._catch_up()
        place = self._next
        open_ones: list[tuple[int, HostCommand]] = []  # have not ended when they were looked at
        while True:
            place = max(place, self._oldest)
            new = list(enumerate(self._since(place), place + 1))
            place += len(new)
            looked_at, open_ones = [*open_ones, *new], []
            for behind, command in looked_at:
                fits = _fits(command, wanted)
                if fits:
                    self._next = behind
                    return command
                if fits is None:
                    open_ones.append((behind, command))
            if time.monotonic() >= end:
                raise NothingSent(_missing(wanted, patience, self.words()), self)
            time.sleep(LOOK_AGAIN)
            self._read()

    def words(self, last: int = SHOWN) -> str:
        """The last commands, one on a line."""
        self._catch_up()
        return "\n".join(map(str, list(self._found)[-last:]))

    def sections(self, error: BaseException) -> dict[str, str]:
        """For the report of a test that ended with ``error``, without what that error says already."""
        last = "" if isinstance(error, NothingSent) and error.trace is self else self.words()
        return {"the last commands": last, "the last faults that fired": "\n".join(self._injected)}

    def __repr__(self) -> str:
        return f"<Trace: {self._count - self._begin} commands of this test have been looked at>"

    @property
    def _oldest(self) -> int:
        return self._count - len(self._found)

    def _since(self, place: int) -> list[HostCommand]:
        return [] if place == self._count else list(self._found)[max(0, place - self._oldest) :]

    def _catch_up(self) -> None:
        """Read all that the drive has seen until now. A server writes its trace a moment later."""
        self._awaited = self._source.mark()
        end = time.monotonic() + LATE
        self._read()
        while self._awaited is not None and time.monotonic() < end:
            time.sleep(LOOK_AGAIN)
            self._read()

    def _read(self) -> None:
        data = self._rest + self._source.more()
        place = 0
        while len(data) - place >= records.HEADER.size:
            length = records.HEADER.unpack_from(data, place)[1]
            if place + length > len(data):
                break
            self._take(records.decode(data, place, place + length))
            place += length
        self._rest = data[place:]

    def _take(self, record: records.Record) -> None:
        self._matcher.feed(record)
        if isinstance(record, records.Fetch) and self._matcher.newest is not None:
            self._found.append(HostCommand(self._matcher.newest))
            self._count += 1
        elif isinstance(record, records.Injection):
            self._injected.append(f"{record.time / 1e9:10.6f} s  {' '.join(words.describe(record))}")
        elif isinstance(record, records.Note) and record.text == self._awaited:
            self._awaited = None


def _match(op: Op | None, fields: dict[str, Any]) -> Match:
    """A command's match, as of a fault. Raises FaultError for one that no command can meet."""
    named = table(fields, "fields")
    if op is not None:
        named["opcode"] = op if isinstance(op, str) else op.name
    check_pairs(named)
    return Match(At.COMPLETION if "status" in named else At.FETCH, named)


def _fits(command: HostCommand, match: Match) -> bool | None:
    """Whether the command fits. None: how it ends is asked for, and it has not ended."""
    if match.at == At.COMPLETION and command.status is None:
        return None
    return Passage(match.at, command.sqid, command.command, command.status) in match


def _missing(match: Match, seconds: float, words: str) -> str:
    table = dict(match.table)
    what = str(table.pop("opcode", "command"))
    fields = ", ".join(f"{name}={value!r}" for name, value in table.items())
    seen = f"its last commands:\n{words}" if words else "nor any other command"
    return f"the host has sent no {what}{' with ' * bool(fields)}{fields} in {seconds:g} s; {seen}"


Expect = Callable[..., HostCommand]
