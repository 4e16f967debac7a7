"""How faults are written: numbers, names and times, the same in Python, TOML and JSON. Bad ones raise FaultError."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

from nvmeemu.spec import Opcode, names

RANGE = re.compile(r"\s*(\d\w*)\s*-\s*(\d\w*)\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


class FaultError(ValueError):
    """A fault that cannot be: one line that says what is wrong, and what would do."""


def plain(value: Any) -> Any:
    """As TOML and JSON have it: an opcode by its name, other enums as numbers, a list for a set or tuple."""
    if isinstance(value, Opcode):
        return value.name.lower()
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(one) for one in value), key=str)
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def check_pairs(match: Mapping[str, Any]) -> None:
    """(0, 7) may be meant for two numbers, or for all from the one to the other: FaultError."""
    for key, value in match.items():
        if isinstance(value, tuple) and len(value) == 2 and all(type(one) is int for one in value):
            low, high = value
            raise FaultError(f'match.{key}: {value!r}: write "{low}-{high}" for the range, [{low}, {high}] for the two')


def number(value: Any, what: str, least: int = 0, most: int = (1 << 64) - 1) -> int:
    """An int, or a text like "0x1f"."""
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,40}|[0-9]{1,40}", value):
        value = int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FaultError(f"{what}: {value!r} is no whole number")
    if not least <= value <= most:
        raise FaultError(f"{what}: {value} is not within {least}..{most}")
    return value


def seconds(value: Any, what: str) -> float:
    """A number of seconds, or a text like "250ms"."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min)", value)
        if match is None:
            raise FaultError(f'{what}: {value!r} is no time: give seconds, or a text like "250ms"')
        value = float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise FaultError(f"{what}: {value!r} is no time in seconds")
    return float(value)


def fraction(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FaultError(f"{what}: {value!r} is no probability from 0 to 1")
    return float(value)


def flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise FaultError(f"{what}: {value!r} is neither true nor false")
    return value


def named(value: Any, what: str, kind: Iterable[IntEnum], most: int) -> int:
    """A number, or a name of these, however it is spelled (``names``)."""
    if isinstance(value, str) and not names.is_number(value):
        found = names.member(kind, value)
        if found is None:
            raise FaultError(f"{what}: {value!r} is none of {names.known(kind)}")
        return found
    return number(value, what, 0, most)


def choice(value: Any, what: str, choices: Sequence[str]) -> str:
    found = names.choice(choices, value) if isinstance(value, str) else None
    if found is None:
        raise FaultError(f"{what}: {value!r} is none of {', '.join(choices)}")
    return found


def table(value: Any, what: str) -> dict[str, Any]:
    """With its names as we write them."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise FaultError(f"{what}: {value!r} is no table of names and values")
    found = {names.key(key): one for key, one in value.items()}
    if len(found) < len(value):
        raise FaultError(f"{what}: {', '.join(value)}: one of them is there twice")
    return found


@dataclass(frozen=True)
class Numbers:
    """A set of numbers: some, a range, or all with certain bits."""

    some: frozenset[int] = frozenset()
    low: int = 1
    high: int = 0
    mask: int = 0
    value: int = 0

    def __contains__(self, number: int | None) -> bool:
        if number is None:
            return False
        if self.mask:
            return number & self.mask == self.value
        return number in self.some or self.low <= number <= self.high

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any number from ``first`` to ``last`` is in it."""
        if self.mask:
            return any(number in self for number in range(first, last + 1))
        is_in_range = self.low <= self.high and self.low <= last and first <= self.high
        return is_in_range or any(first <= number <= last for number in self.some)


def numbers(
    value: Any, what: str, kind: Iterable[IntEnum] | None = None, least: int = 0, most: int = (1 << 64) - 1
) -> Numbers:
    """One number (or name), a list of them, a range "8-15", or ``{mask = 0xff, value = 7}``: none outside of what there
    can be, ``least`` to ``most``."""
    if isinstance(value, Mapping):
        return _masked(value, what, (1 << most.bit_length()) - 1)
    if isinstance(value, str) and (match := RANGE.fullmatch(value)):
        low, high = (number(one, what, least, most) for one in match.groups())
        if low > high:
            raise FaultError(f"{what}: {value!r} ends before it begins")
        return Numbers(low=low, high=high)
    if isinstance(value, list | tuple | set | frozenset):
        found = [numbers(one, what, kind, least, most) for one in value]
        if not found or any(one.mask or one.low <= one.high for one in found):
            raise FaultError(f"{what}: {value!r}: a list has single numbers")
        return Numbers(frozenset().union(*(one.some for one in found)))
    if isinstance(value, bool):
        value = int(value)
    if kind is not None:
        return Numbers(frozenset({named(value, what, kind, most)}))
    return Numbers(frozenset({number(value, what, least, most)}))


def blocks(value: Any, what: str) -> Numbers:
    """One block, a list of them, or a range."""
    found = numbers(value, what)
    if found.mask:
        raise FaultError(f"{what}: give a block, a list or a range")
    return found


def spoiling(what: str, argument: Any, options: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, int]:
    """How bytes go wrong, ``kinds`` or "flip" if nothing was said, and how many ``bits`` to flip."""
    kind = choice("flip" if argument is True else argument, what, kinds)
    if "bits" in options and kind != "flip":
        raise FaultError("do.bits: how many to flip: leave it out with " + kind)
    return kind, number(options.get("bits", 1), "do.bits", 1, 1 << 16)


def _masked(value: Mapping[str, Any], what: str, ones: int) -> Numbers:
    if set(value) != {"mask", "value"}:
        raise FaultError(f"{what}: {dict(value)!r}: give mask and value")
    mask, wanted = number(value["mask"], f"{what}.mask", 1, ones), number(value["value"], f"{what}.value")
    if wanted & ~mask:
        raise FaultError(f"{what}.value: {wanted:#x} has bits that the mask {mask:#x} has not: nothing can be so")
    return Numbers(mask=mask, value=wanted)
