"""TOML for users: where each key stands, errors with their line, and tables written as KEY=VALUE words.

``tomllib`` reads it and says what is wrong with it, but not where a value stands that is well written and cannot be.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]
"""The way to a value: ``("fault", 1, "match", "lba")`` is a key in the second of the tables [[fault]]."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'", re.DOTALL
)
_PLAIN = re.compile(r"[^,\]}\n#]*")
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)")


class TomlError(ValueError):
    """What is no TOML, and its ``line``."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def parse(text: str) -> tuple[dict[str, Any], dict[Place, int]]:
    """The tables, and the line of each key, table and item of a list. Raises TomlError."""
    try:
        tables = _loads(text)
        return tables, _Places(text.replace("\r\n", "\n")).lines
    except RecursionError:
        raise TomlError(1, "tables or lists within each other, too deep") from None
    except ValueError as error:  # TOMLDecodeError; or a number too long for Python
        reason, line = str(error).partition(";")[0], len(text.splitlines())
        if found := _AT_LINE.search(reason):
            reason, line = reason.replace(found[0], ""), int(found[1])
        raise TomlError(line, reason) from None


def line_of(lines: Mapping[Place, int], place: Place) -> int:
    """The line of this value or, if it is not there, of what it would be in."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def of_words(words: Sequence[str], example: str) -> dict[str, Any]:
    """The table of words like ``match.opcode=write when.nth=3``: TOML, whose texts need no quotes. Raises ValueError,
    whose text is one line with the ``example``."""
    import json  # start-up, as below

    lines = []
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: write KEY=VALUE, for example {example}")
        if key in given:
            raise ValueError(f"{key}: is given twice, {given[key]} and {value}: give it once")
        given[key] = value
        if not _is_toml(value):
            value = json.dumps(value.strip(), ensure_ascii=False)
        lines.append(f"{key}={value}")
    try:
        return _loads("\n".join(lines))
    except ValueError as error:
        raise ValueError(f"{' '.join(' '.join(words).split())}: {error}") from None


def _loads(text: str) -> dict[str, Any]:
    import tomllib  # start-up: most servers read no TOML

    return tomllib.loads(text)


def _is_toml(value: str) -> bool:
    try:
        _loads(f"x={value}")
    except (ValueError, RecursionError):
        return False
    return "\n" not in value


class _Places:
    """Goes through a text that is known to be TOML; the only question is where each key stands."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._counts: dict[Place, int] = {}  # of the tables of each list
        table: Place = ()
        while self._next():
            if text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _next(self) -> str:
        """The next character that means something; nothing at the end."""
        self._at = self._match(_SPACE).end()
        return self._text[self._at : self._at + 1]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        assert match is not None
        return match

    def _note(self, place: Place) -> None:
        """It stands here, and so does what it is in, if that has not stood anywhere before."""
        line = bisect_right(self._ends, self._at) + 1
        for length in range(len(place), 0, -1):
            self.lines.setdefault(place[:length], line)

    def _header(self) -> Place:
        is_list = self._text.startswith("[[", self._at)
        start, self._at = self._at, self._at + 1 + is_list
        *outer, last = self._key()
        end, self._at = self._at, start
        place: Place = ()
        for name in outer:
            place = self._in(place, name)
        if is_list:
            self._counts[*place, last] = self._counts.get((*place, last), 0) + 1
        place = self._in(place, last)
        self._note(place)
        self._next()
        self._at = self._text.index("]", end) + 1 + is_list
        return place

    def _in(self, place: Place, name: str) -> Place:
        """A table, or the last one of a list."""
        place = (*place, name)
        return (*place, self._counts[place] - 1) if place in self._counts else place

    def _pair(self, table: Place) -> None:
        start = self._at
        place = (*table, *self._key())
        end, self._at = self._at, start
        self._note(place)
        self._at = self._text.index("=", end) + 1
        self._value(place)

    def _key(self) -> list[str]:
        """One name, or several with dots between them."""
        names = []
        while True:
            if self._next() in "\"'":
                text = self._match(_TEXT)
                names.append(str(_loads(f"x={text[0]}")["x"]))
            else:
                text = self._match(_BARE)
                names.append(text[0])
            self._at = text.end()
            if self._next() != ".":
                return names
            self._at += 1

    def _value(self, place: Place) -> None:
        first = self._next()
        if first in "[{":
            self._at += 1
            self._inside(place, "]" if first == "[" else "}")
        else:
            self._at = self._match(_TEXT if first in "\"'" else _PLAIN).end()

    def _inside(self, place: Place, end: str) -> None:
        """The items of a list, or the pairs of a table in braces."""
        index = 0
        while (first := self._next()) != end:
            if first == ",":
                self._at += 1
            elif end == "}":
                self._pair(place)
            else:
                self._note((*place, index))
                self._value((*place, index))
                index += 1
        self._at += 1
