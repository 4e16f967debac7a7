"""The options of the command line that describe a drive, made of the keys of drive files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from nvmeemu.app.drive.keys import TABLES, Key

GROUPS = ("disk", "device", "limits", "process", "trace", "faults and control")
"""Of --help. What else is the process' own joins the fourth one."""


def add(groups: Iterable[argparse._ArgumentGroup]) -> None:
    """The options of each of these groups."""
    by_title = {group.title: group for group in groups}
    for key in _keys():
        if (group := by_title.get(key.group)) is not None:
            keywords = {"help": key.help, **key.kind.option()}
            if key.is_each or key.is_required:
                keywords["action"] = "append"
            group.add_argument(f"--{key.option}", **keywords)


def names() -> list[str]:
    """All of them."""
    return [key.option for key in _keys() if key.group in GROUPS]


def _keys() -> Iterator[Key]:
    for keys in TABLES.values():
        yield from keys.values()
