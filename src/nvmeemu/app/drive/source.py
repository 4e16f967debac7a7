"""Where a drive is described, for messages: in a file, line by line, or with options of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvmeemu.app.drive.keys import LISTS, TABLES

if TYPE_CHECKING:
    from nvmeemu.toml import Place

_NAMES = {key.option: key.name for keys in TABLES.values() for key in keys.values()}  # of keys, by their options


class Failure(Exception):
    """A drive cannot be served. The text is one line for the user.

    ``status`` is the exit status: 2 for bad use, else 1. ``is_placed``: the text already says which part of which
    drive it is about.
    """

    def __init__(self, text: str, status: int = 1, *, is_placed: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.is_placed = is_placed


@dataclass(eq=False, repr=False)
class Source:
    """Without a ``file`` all is the command line's, which calls a key ``--read-only`` that is ``read_only`` in a file.
    ``overridden`` are the keys that options give instead of the file."""

    file: str = ""
    lines: Mapping[Place, int] = field(default_factory=dict)
    overridden: Set[Place] = frozenset()

    def failure(self, text: str, *place: str | int, status: int = 2) -> Failure:
        """What to raise when what is described there cannot be. ``text`` has the command line's words; where it begins
        with an option, the place is that of this key."""
        option = re.match(r"--([a-z0-9-]+)", text)
        if option and option[1] in _NAMES and not (place and place[-1] in _NAMES.values()):
            place = (*place, _NAMES[option[1]])
        if not self.file or place in self.overridden:
            return Failure(text, status, is_placed=True)
        from nvmeemu.toml import line_of  # start-up: most drives are as they should be

        where = f"{self.file}:{line_of(self.lines, place)}"
        return Failure(f"{where}: {_called(place)}{in_keys(text)}", status, is_placed=True)

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """A context. A Failure in it that does not say its place gets this one."""
        try:
            yield
        except Failure as failure:
            if failure.is_placed:
                raise
            raise self.failure(str(failure), *place, status=failure.status) from None


def in_keys(text: str) -> str:
    """A message about options, with the names that a drive file has for them."""
    text = re.sub(r"--create --size (\w+)", r'create = true, size = "\1"', text)
    return re.sub(r"(?<![\w-])--([a-z0-9-]+)", lambda match: _NAMES.get(match[1], match[0]), text)


def _called(place: Place) -> str:
    if len(place) > 1 and place[0] in LISTS:
        return f"{place[0]} {int(place[1]) + 1}: "
    return f"{place[0]}: " if len(place) > 1 else ""
