"""Checks the keys and values of one table of a drive file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nvmeemu.app.drive.keys import TABLES


class BadKey(ValueError):
    """There is no such ``key``, or it cannot have this value. The text is one line that begins with the key."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


def checked(table: str, values: Mapping[str, Any], folder: str | None = None) -> dict[str, Any]:
    """The values as the code works with them; relative paths are relative to ``folder``. Raises BadKey."""
    keys = TABLES[table]
    found = {}
    for name, value in values.items():
        if name not in keys:
            raise BadKey(name, unknown(name, keys))
        try:
            found[name] = keys[name].kind.check(value)
        except ValueError as error:
            raise BadKey(name, str(error)) from None
        if folder is not None:
            found[name] = keys[name].kind.placed(found[name], folder)
    for key in keys.values():
        if key.is_required and key.name not in values:
            raise BadKey(key.name, f"is missing: {key.about}")
    return found


def unknown(name: str, known: Iterable[str]) -> str:
    """The message about an unknown name, with the known one that it may be meant to be."""
    from difflib import get_close_matches  # start-up: most files have no such name

    known = list(known)
    near = get_close_matches(name, known, 1, 0.5)
    return f"there is no such key: is {near[0]} meant?" if near else f"there is no such key, but {', '.join(known)}"
