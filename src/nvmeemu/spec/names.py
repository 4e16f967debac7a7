"""Names as people write them: with spaces, ``_``, ``-`` or nothing between the words, in small or large letters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeVar

E = TypeVar("E", bound=IntEnum)


def bare(name: str) -> str:
    """What all spellings of a name have in common."""
    return re.sub(r"[\s_-]", "", name).casefold()


def key(name: str) -> str:
    """As the key of a table or the name of a field is written: ``after_seconds``, ``mqes``."""
    return re.sub(r"[\s-]", "_", name).casefold()


def member(kind: type[E], name: str) -> E | None:
    """The constant that is meant."""
    return next((one for one in kind if bare(one.name) == bare(name)), None)


def is_number(text: str) -> bool:
    """Whether it is meant for a number: no name begins with a digit."""
    return text[:1].isdigit()


def choice(choices: Iterable[str], name: str) -> str | None:
    """The one of these names that is meant."""
    return next((one for one in choices if bare(one) == bare(name)), None)


def known(*kinds: type[IntEnum]) -> str:
    """All of their names, for a message."""
    return ", ".join(one.name.lower() for kind in kinds for one in kind)
