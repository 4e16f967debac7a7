"""The file of a saved state, as a blocking object: what is in it, its versions, its lock, and what cannot be one.

Each change is one transaction. The journal is SQLite's plain one (``journal_mode = DELETE``): it is there during a
change only, so between changes the one file is all that there is, to copy or to move. ``synchronous = EXTRA`` syncs
the folder, too, when the journal is removed. Otherwise a power cut of the machine might bring the journal back, and
it would undo a change that a host was told is durable. A write-ahead log would sync once less, and leave two files
more; a drive saves too seldom for that.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

from nvmeemu.backend import describe
from nvmeemu.backend.claim import locked
from nvmeemu.ports import Changes, StateError, Value

APPLICATION_ID = 0x6E766D65  # "nvme", in the header of the file
PATIENCE = 10  # seconds that a change waits for somebody who reads the file with sqlite3
ADVICE = "put a backup in its place, or move it away to begin as new"
_MAGIC = b"SQLite format 3\0"
_SCHEMA = """
CREATE TABLE state (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    value ANY NOT NULL,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
"""
_LIFE = """
CREATE TABLE power_cycles (
    number INTEGER PRIMARY KEY,
    began TEXT NOT NULL,
    ended TEXT
) STRICT;
"""
MIGRATIONS: Sequence[str] = (_SCHEMA, _LIFE)
"""The steps from each version of the file to the next one: the first makes version 1 of an empty file. A step that was
released is never changed."""
VERSION = len(MIGRATIONS)

MOST_POWER_CYCLES = 1000  # whose times are kept
_BEGIN = (
    "INSERT INTO power_cycles (began) VALUES (datetime('now'))",
    f"DELETE FROM power_cycles WHERE number <= (SELECT max(number) FROM power_cycles) - {MOST_POWER_CYCLES}",
)
_END = ("UPDATE power_cycles SET ended = datetime('now') WHERE number = (SELECT max(number) FROM power_cycles)",)


class Database:
    """An open file. Any thread may call it, one at a time."""

    def __init__(self, connection: sqlite3.Connection, close_lock: Callable[[], None]) -> None:
        self._connection = connection
        self._close_lock = close_lock

    @classmethod
    def open(cls, path: str) -> Database:
        """Open the file, and bring it to this version; make it if it is not there. Raises StateError."""
        try:
            if not os.path.lexists(path):
                _make(path)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(describe(error)) from None
        try:
            _check(fd)
            connection = sqlite3.connect(
                f"file:{quote(os.path.abspath(path))}?mode=rw",
                PATIENCE,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
        except (OSError, sqlite3.Error) as error:
            os.close(fd)
            raise StateError(describe(error) if isinstance(error, OSError) else str(error)) from None
        except StateError:
            os.close(fd)
            raise
        database = cls(connection, lambda: os.close(fd))
        try:
            _bring_up(connection, fd)
        except (StateError, sqlite3.Error) as error:
            database.close()
            raise error if isinstance(error, StateError) else _refused(error) from None
        return database

    def read(self) -> Mapping[tuple[str, str], Value]:
        """All that is in it. Raises StateError."""
        try:
            rows = self._connection.execute("SELECT scope, name, value FROM state").fetchall()
        except sqlite3.Error as error:
            raise _refused(error) from None
        for scope, name, value in rows:
            if not isinstance(value, int | str | bytes):
                raise StateError(f"{name} of {scope} is {value!r}, which no drive saves: {ADVICE}")
        return {(scope, name): value for scope, name, value in rows}

    def begin(self, changes: Changes) -> None:
        """Power comes: note the time, with these changes. Raises StateError."""
        self.write(changes, _BEGIN)

    def end(self, changes: Changes) -> None:
        """An orderly end: note the time, with these changes. Raises StateError."""
        self.write(changes, _END)

    def write(self, changes: Changes, more: Sequence[str] = ()) -> None:
        """Make all these changes, durably, or none of them. Raises StateError."""
        removed = [key for key, value in changes.items() if value is None]
        others = [(*key, value) for key, value in changes.items() if value is not None]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM state WHERE scope = ? AND name = ?", removed)
            self._connection.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", others)
            for statement in more:
                self._connection.execute(statement)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise StateError(str(error)) from None

    def close(self) -> None:
        self._connection.close()
        self._close_lock()


def _make(path: str) -> None:
    """Make a new file at once: with its schema, or not at all."""
    with sqlite3.connect(":memory:") as memory:
        _migrate(memory, 0)
        content = memory.serialize()
    memory.close()
    folder_name, name = os.path.split(path)
    fd, new = tempfile.mkstemp(".new", f"{name}.", folder_name or ".")
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(new, path)
    except OSError:
        os.unlink(new)
        raise
    folder = os.open(folder_name or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _put_in_place(new: str, path: str) -> None:
    """Unless another server has been faster: the file that is there is kept. Raises OSError."""
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        os.rename(new, path)  # a file system without links
        return
    os.unlink(new)


def _check(fd: int) -> None:
    """Raise StateError for what is no saved state, or is another server's; OSError if there are no locks."""
    if not locked(fd, length=1):  # SQLite's own locks are far behind it, so that sqlite3 can read meanwhile
        raise StateError("is in use by another server: stop that one, or give each drive a state of its own")
    header = os.pread(fd, len(_MAGIC), 0)
    if not header:
        raise StateError(f"is empty, so it was cut off: {ADVICE}")
    if header != _MAGIC:
        raise StateError(f"is no saved state of a drive, but something else: give another path, or {ADVICE}")


def _bring_up(connection: sqlite3.Connection, fd: int) -> None:
    """Raises StateError, and sqlite3.Error."""
    connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA;")
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StateError("is a database of another program: give another path")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StateError(
            f"is of version {version}, made by a newer nvmeemu, and this one knows versions up to {VERSION}: start the "
            "newer one, or give another path"
        )
    problems = [text for (text,) in connection.execute("PRAGMA integrity_check(1)")]
    if problems == ["ok"] and not _is_whole(fd):
        problems = ["cut off"]
    if problems != ["ok"]:
        raise StateError(f"is damaged ({problems[0].splitlines()[0]}): {ADVICE}")
    _migrate(connection, version)


def _is_whole(fd: int) -> bool:
    """Whether the file has all pages that its header says. SQLite takes a part of the last page for none."""
    page_size, pages = struct.unpack(">16xH10xI", os.pread(fd, 32, 0))
    return os.fstat(fd).st_size == int(page_size * pages)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """From this version to ours, in one transaction."""
    if version == VERSION:
        return
    steps = "".join(MIGRATIONS[version:])
    pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
    connection.executescript(f"BEGIN; {steps} {pragmas} COMMIT;")


def _refused(error: sqlite3.Error) -> StateError:
    if isinstance(error, sqlite3.OperationalError):  # a full disk, a folder that cannot be written to, ...
        return StateError(str(error))
    return StateError(f"is damaged ({error}): {ADVICE}")
