"""Trace files: a header that describes the device, then records, each with its length; see docs/trace-format.md.

A file that ends in the middle of a record, because the server was killed or the disk was full, is read up to the
record before. Files compressed with gzip, bzip2 or xz are read as they are.
"""

from __future__ import annotations

import bz2
import fcntl
import gzip
import json
import lzma
import os
import stat
import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from nvmeemu.trace.records import HEADER, Record, decode, encode, split

MAGIC = b"\x89NVMT\r\n\x1a"  # not text, and damaged visibly by whatever takes it for text
FIRST_VERSION = "1.4"  # what a controller stated when no trace said it yet (``Limits.version``)
VERSION = (1, 3)  # a reader understands its own major version, and passes over what later minor ones have added
_HEADER = Struct("<8sHHIQ")  # magic, major, minor, bytes of the description, start in ns since 1970
_MOST_DESCRIPTION = 1 << 20
_CHUNK = 1 << 20
_TIME = itemgetter(0)
_LATEST = 1_000_000_000  # ns that a lane's records may come after later ones of others
_LOOK_AGAIN = 0.05  # seconds between two looks at a file that is followed
STDIN = "-"
_COMPRESSED: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)


class TraceError(Exception):
    """This is no trace, or none that we can read. The text is one line for the user."""


class BadUse(TraceError):
    """A request that could never work, or that would destroy a file: exit status 2."""


@dataclass
class Description:
    """What was traced, so that it can be understood and replayed. It is the JSON in the header of the file.

    ``identity`` and ``limits`` are the fields of the classes of these names. Each of the ``namespaces`` has ``nsid``,
    ``blocks``, ``block_size``, ``identity`` (the text its names come from), ``read_only`` and ``volatile_cache``.
    Unknown fields stay empty.
    """

    program: str = ""
    comment: str = ""
    drive: str = ""  # its name in the process that served it; ``identity`` has the controller's number, ``cntlid``
    engine: str = "python"
    payload: bool = False  # whether the blocks of reads and writes are in the trace
    identity: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    namespaces: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Leaves out keys that it does not know. Raises ValueError."""
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("not an object")
        known = {one.name: one for one in fields(cls)}
        made = cls()
        for name, value in values.items():
            if name in known:
                if type(value) is not type(getattr(made, name)):
                    raise ValueError(f"bad {name}")
                setattr(made, name, value)
        if not all(isinstance(one, dict) for one in made.namespaces):
            raise ValueError("bad namespaces")
        return made

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


class Writer:
    """Writes a trace into ``file``, which the caller owns and flushes. ``write`` takes a record, ``put`` records as
    bytes. Every method may raise OSError."""

    def __init__(self, file: BinaryIO, description: Description, started: int = 0) -> None:
        """``started``: the time of the records' time 0, in nanoseconds since 1970."""
        self._file = file
        text = description.to_json()
        file.write(_HEADER.pack(MAGIC, *VERSION, len(text), started) + text)

    def write(self, record: Record) -> None:
        """Raises ValueError for a record of more than 65535 bytes."""
        self._file.write(encode(record))

    def put(self, data: bytes) -> None:
        """Write whole records that are encoded already."""
        self._file.write(data)


class BinarySource(Protocol):
    """A binary file that gives what it has: ``io.BufferedReader``, ``io.BytesIO``, ``gzip.GzipFile``, ..."""

    def read1(self, size: int, /) -> bytes: ...
    def tell(self) -> int: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Reader:
    """The records of a trace, in the order of their times. Raises TraceError for a file that is no trace.

    Iterate once. Then ``is_cut`` tells whether the file ends in the middle of a record, and ``position`` how many
    uncompressed bytes were read. ``raw_position`` is the place in the file itself, for progress. With ``follow`` the
    reader continues at the end of the file until nobody writes there any more; the last second of records comes then.
    """

    def __init__(
        self, file: BinarySource, name: str = "trace", raw: BinarySource | None = None, *, follow: bool = False
    ) -> None:
        self._file = file
        self._raw = raw or file
        self._follows = follow
        self.name = name
        self.is_cut = False
        self.position = 0
        self._damage: TraceError | None = None
        header = self._read_header(_HEADER.size)
        if header[: len(MAGIC)] != MAGIC and not (self.is_cut and MAGIC.startswith(header)):
            raise TraceError(f"{name}: not a trace")
        if len(header) < _HEADER.size:
            raise TraceError(f"{name}: a trace that was cut within its header")
        _, major, minor, length, self.started = _HEADER.unpack(header)
        if major != VERSION[0]:
            raise TraceError(f"{name}: a trace of version {major}.{minor}; this program reads {VERSION[0]}.x")
        if length > _MOST_DESCRIPTION:
            raise TraceError(f"{name}: the description in its header is damaged: {length} bytes")
        text = self._read_header(length)
        if len(text) < length:
            raise TraceError(f"{name}: a trace that was cut within its header")
        try:
            self.description = Description.from_json(text)
        except ValueError as error:
            raise TraceError(f"{name}: the description in its header is damaged: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    @property
    def raw_position(self) -> int:
        return self._raw.tell()

    @property
    def raw_size(self) -> int:
        """Bytes of the file, 0 if nobody knows (a pipe)."""
        try:
            return os.fstat(self._raw.fileno()).st_size
        except OSError:  # io.UnsupportedOperation, of a file in memory, is an OSError
            return 0

    def __iter__(self) -> Iterator[Record]:
        """The records in order. In the file, records of several lanes may stand up to a second too late, so they are
        sorted; that costs almost nothing if they are in order. Raises TraceError where the file is damaged, after all
        records before."""
        waiting: list[Record] = []
        for batch in self._batches():
            if not batch:  # no more is coming for now
                yield from waiting
                waiting.clear()
                continue
            waiting += batch
            waiting.sort(key=_TIME)
            bound = waiting[-1][0] - _LATEST
            if waiting[0][0] < bound:
                ready = bisect_left(waiting, bound, key=_TIME)
                yield from waiting[:ready]
                del waiting[:ready]
        yield from waiting
        if self._damage is not None:
            raise self._damage

    def _batches(self) -> Iterator[list[Record]]:
        """The records as they stand in the file, many at a time, up to its end or to ``_damage``. An empty batch means
        that a followed file had nothing new for longer than the records of a lane may be late."""
        rest = b""
        quiet = 0
        while (data := self._read(_CHUNK)) or self._is_being_written():
            if not data:
                quiet += 1
                if quiet * _LOOK_AGAIN * 1_000_000_000 > _LATEST:
                    quiet = 0
                    yield []
                time.sleep(_LOOK_AGAIN)
                continue
            quiet = 0
            data = rest + data
            batch, good = [], 0
            try:
                for start, end in split(data):
                    batch.append(decode(data, start, end))
                    good = end
            except ValueError as error:
                if not any(data[good : good + HEADER.size]):
                    self.is_cut = True  # the machine went down: the file is longer than what was written to the disk
                else:
                    where = self.position - len(data) + good
                    self._damage = TraceError(f"{self.name}: damaged at byte {where}: {error}")
            if batch:
                yield batch
            if self.is_cut or self._damage is not None:
                return
            rest = data[good:]
        self.is_cut = self.is_cut or bool(rest)

    def _is_being_written(self) -> bool:
        """Whether more may come of a file that is followed. Its writer holds a lock (``sink``)."""
        if not self._follows or self.is_cut or self._damage is not None:
            return False
        if self.raw_size < self.raw_position:
            self._damage = TraceError(f"{self.name}: another trace was begun there")
            return False
        try:
            fcntl.flock(self._raw.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # the writer has it, or there are no locks there: until the reader is ended
            return True
        fcntl.flock(self._raw.fileno(), fcntl.LOCK_UN)
        return self._raw.tell() < self.raw_size  # what it wrote before it let go

    def _read(self, size: int) -> bytes:
        """Some bytes, at most ``size``; none at the end, or at ``_damage``."""
        try:
            data = self._file.read1(size)
        except EOFError:  # compressed, and cut: what came before has been read
            self.is_cut = True
            return b""
        except (OSError, lzma.LZMAError, zlib.error) as error:
            self._damage = TraceError(f"{self.name}: cannot be read: {getattr(error, 'strerror', None) or error}")
            return b""
        self.position += len(data)
        return data

    def _read_header(self, size: int) -> bytes:
        """These bytes, or fewer at the end."""
        found = b""
        while len(found) < size and (data := self._read(size - len(found))):
            found += data
        if self._damage is not None:
            raise self._damage
        return found


def open_trace(path: str | Path, *, follow: bool = False) -> Reader:
    """Open a trace, compressed or not; "-" is stdin. With ``follow`` the reader continues while somebody writes the
    trace. Raises TraceError, also for a file that is not there."""
    name = str(path)
    try:
        return _open(name, follow)
    except TraceError as error:
        if name.endswith(".toml"):
            raise TraceError(
                f"{error}; a driver profile is for 'nvmeemu profile run': --output makes a trace"
            ) from None
        raise


def _open(name: str, follow: bool) -> Reader:
    try:
        if name == STDIN:
            name, raw = "stdin", open(0, "rb", closefd=False)  # noqa: SIM115  # the Reader's
        else:
            raw = open(name, "rb")  # noqa: SIM115  # the Reader's
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror}") from None
    try:
        beginning = raw.peek(8)  # a pipe has no way back
        for magic, opener in _COMPRESSED:
            if beginning.startswith(magic):
                if follow:
                    raise BadUse(f"{name}: compressed: nobody goes on writing it")
                return Reader(opener(raw), name, raw)
        return Reader(raw, name, follow=follow and stat.S_ISREG(os.fstat(raw.fileno()).st_mode))  # a pipe ends itself
    except OSError as error:
        raw.close()
        raise TraceError(f"{name}: {error.strerror or error}") from None
    except TraceError:
        raw.close()
        raise
