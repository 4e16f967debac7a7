"""Names of numbers, as people write them: with spaces, ``_``, ``-`` or nothing between the words, in small or large
letters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

from nvmeemu.tables import Extensible

E = TypeVar("E", bound=IntEnum)


class Names(Extensible[IntEnum]):
    """What the numbers of one kind are called: the members of the specification's enum, and those that ``add`` adds.

    ``members`` are all of them by number; only ``add`` and ``remove`` change it.
    """

    def __init__(self, members: Iterable[IntEnum] = ()) -> None:
        self.members: dict[int, IntEnum] = {int(one): one for one in members}

    def __iter__(self) -> Iterator[IntEnum]:
        return iter(self.members.values())

    def __contains__(self, number: object) -> bool:
        return number in self.members

    def get(self, number: int) -> IntEnum | None:
        """The member with this number."""
        return self.members.get(number)

    def add(self, row: IntEnum) -> None:
        """It has a name from now on, in everything that this process reads or writes."""
        for other in self:
            if other == row or bare(other.name) == bare(row.name):
                raise ValueError(f"{row.name} ({row:#x}): there is {other.name} ({other:#x}) already")
        self.members[int(row)] = row

    def remove(self, row: IntEnum) -> None:
        del self.members[row]


def bare(name: str) -> str:
    """What all spellings of a name have in common."""
    return re.sub(r"[\s_-]", "", name).casefold()


def key(name: str) -> str:
    """As the key of a table or the name of a field is written: ``after_seconds``, ``mqes``."""
    return re.sub(r"[\s-]", "_", name).casefold()


def member(kind: Iterable[E], name: str) -> E | None:
    """The constant that is meant."""
    return next((one for one in kind if bare(one.name) == bare(name)), None)


def is_number(text: str) -> bool:
    """Whether it is meant for a number: no name begins with a digit."""
    return text[:1].isdigit()


def choice(choices: Iterable[str], name: str) -> str | None:
    """The one of these names that is meant."""
    return next((one for one in choices if bare(one) == bare(name)), None)


def known(*kinds: Iterable[IntEnum]) -> str:
    """All of their names, for a message."""
    return ", ".join(one.name.lower() for kind in kinds for one in kind)
