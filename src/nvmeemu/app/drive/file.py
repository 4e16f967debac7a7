"""The drive file: TOML with the tables of ``keys``. Each error is one line with file, line and reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvmeemu import toml
from nvmeemu.app.drive.check import BadKey, checked, unknown
from nvmeemu.app.drive.description import NO_TABLES, Drive, Tables
from nvmeemu.app.drive.keys import LISTS, TABLES, TOP
from nvmeemu.app.drive.source import Failure, Source
from nvmeemu.backend import describe
from nvmeemu.toml import Place

MOST = 1 << 20  # bytes of a file
Install = Callable[[Sequence[str], Source], None]
"""Has plugins that a file names; what they add is known in what stands below. Raises Failure."""


@dataclass(eq=False, repr=False)
class Written:
    """The keys and values of a drive file. ``name`` is what the drive is called."""

    tables: Tables
    lines: Mapping[Place, int]
    file: str
    name: str

    def drive(self, options: Tables = NO_TABLES) -> Drive:
        """The drive, where ``options`` say nothing else. Raises Failure."""
        return Drive.of(self.tables.replaced(options), Source(self.file, self.lines, options.places), self.name)


def _leave_out(paths: Sequence[str], source: Source) -> None: ...


def read(path: str, install: Install = _leave_out) -> Written:
    """Read a drive file. Its plugins are there if ``install`` has them. Raises Failure."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST + 1)
    except OSError as error:
        raise Failure(f"--drive {path}: {describe(error)}", 2) from None
    if len(content) > MOST:
        raise Failure(f"--drive {path}: more than {MOST >> 20} MiB: that is no drive file", 2)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Failure(f"{path}:{line}: no text: {error.reason}", 2) from None
    if text.startswith("\ufeff"):
        raise Failure(f"{path}:1: it begins with a byte order mark, which TOML does not have: save it without", 2)
    return parse(text, path, install)


def parse(text: str, path: str = "drive.toml", install: Install = _leave_out) -> Written:
    """Parse the text of a drive file. Raises Failure, with ``path`` and the line."""
    try:
        written, lines = toml.parse(text)
    except toml.TomlError as error:
        raise Failure(f"{path}:{error.line}: {error}", 2) from None
    source = Source(path, lines)
    for name in written:
        if name not in TABLES and name not in TABLES[TOP]:
            raise source.failure(f"{name}: {unknown(name, [*TABLES[TOP], *filter(None, TABLES)])}", name)
    top = _table(TOP, {name: value for name, value in written.items() if name not in TABLES}, source)
    install(top.get("plugins", ()), source)  # first: disks may be of their kinds
    stem = os.path.splitext(os.path.basename(path))[0]
    tables = Tables(
        _table("identity", written.get("identity", {}), source),
        _table("limits", written.get("limits", {}), source),
        _list("namespace", written, source),
        _list("controller", written, source) or [{}],
        top,
    )
    return Written(tables, lines, path, top.get("name", stem))


def _list(name: str, written: Mapping[str, Any], source: Source) -> list[dict[str, Any]]:
    tables = written.get(name, [])
    if not isinstance(tables, list):
        raise source.failure(f"{name}: begin each with [[{name}]]", name)
    return [_table(name, table, source, index) for index, table in enumerate(tables)]


def _table(name: str, table: object, source: Source, *index: int) -> dict[str, Any]:
    place: Place = (name, *index) if name else ()
    if not isinstance(table, Mapping):
        header = f"[[{name}]]" if name in LISTS else f"[{name}]"
        raise source.failure(f"{table!r} is no table: write {header}", *place)
    try:
        return checked(name, table, os.path.dirname(source.file))
    except BadKey as error:
        raise source.failure(str(error), *place, error.key) from None
