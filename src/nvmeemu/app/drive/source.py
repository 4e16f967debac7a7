"""Where a drive is described, for messages: in a file, line by line, or with options of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

from nvmeemu.app.drive.keys import LISTS, TABLES

_KEYS = {key for keys in TABLES.values() for key in keys}
Place = tuple[str | int, ...]
"""The way to a value: ``("namespace", 1, "block_size")`` is of the second namespace."""


class Failure(Exception):
    """Cannot serve; the text is the line for the user. ``status`` is 2 for bad use, else 1. ``is_placed``: it says
    which part of which drive."""

    def __init__(self, text: str, status: int = 1, *, is_placed: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.is_placed = is_placed


@dataclass(frozen=True)
class Source:
    """Without a ``file`` all is the command line's, which calls a key ``--read-only`` that is ``read_only`` in a file.
    ``overridden`` are the keys that options give instead of the file."""

    file: str = ""
    lines: Mapping[Place, int] = field(default_factory=dict)
    overridden: Set[Place] = frozenset()

    def failure(self, text: str, *place: str | int, status: int = 2) -> Failure:
        """What to raise when what is described there cannot be. ``text`` has the command line's words; where it begins
        with an option, the place is that of this key."""
        if (option := re.match(r"--([a-z0-9-]+)", text)) and not (place and place[-1] in _KEYS):
            place = (*place, option[1].replace("-", "_"))
        if not self.file or place in self.overridden:
            return Failure(text, status, is_placed=True)
        return Failure(f"{self.file}:{self._line(place)}: {_called(place)}{in_keys(text)}", status, is_placed=True)

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """What fails in here, without having said where, fails there."""
        try:
            yield
        except Failure as failure:
            if failure.is_placed:
                raise
            raise self.failure(str(failure), *place, status=failure.status) from None

    def _line(self, place: Place) -> int:
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def in_keys(text: str) -> str:
    """A message about options, in the words of a file."""
    return re.sub(r"(?<![\w-])--([a-z][a-z0-9-]*)", lambda match: match[1].replace("-", "_"), text)


def _called(place: Place) -> str:
    if len(place) > 1 and place[0] in LISTS:
        return f"{place[0]} {int(place[1]) + 1}: "
    return f"{place[0]}: " if place and place[0] else ""
