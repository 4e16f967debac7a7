"""When a fault fires, among the times that it matches."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from nvmeemu.faults.words import FaultError, fraction, number, seconds


@dataclass(frozen=True)
class When:
    """All that are given must hold. Counted are the matches, from 1 on; without anything it fires at each.

    ``nth``: only that one. ``every``: each n-th. ``after``: those after the first n. ``probability``: each by chance,
    from ``seed`` (by default from the seed of all and the fault's place among those added since the last ``clear``).
    ``times``: so often at most. ``after_seconds``: not before, since it was added. ``seconds``: so long, since it fired
    first.
    """

    nth: int | None = None
    every: int = 1
    after: int = 0
    probability: float = 1.0
    seed: int | None = None
    times: int | None = None
    after_seconds: float = 0.0
    seconds: float | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Raises FaultError."""
        parsers: dict[str, Callable[[Any], Any]] = {
            "nth": lambda value: number(value, "when.nth", 1),
            "every": lambda value: number(value, "when.every", 1),
            "after": lambda value: number(value, "when.after"),
            "probability": lambda value: fraction(value, "when.probability"),
            "seed": lambda value: number(value, "when.seed"),
            "times": lambda value: number(value, "when.times", 1),
            "after_seconds": lambda value: seconds(value, "when.after_seconds"),
            "seconds": lambda value: seconds(value, "when.seconds"),
        }
        for key in value:
            if key not in parsers:
                raise FaultError(f"when: no {key!r} there: {', '.join(parsers)}")
        found = cls(**{key: parsers[key](one) for key, one in value.items()})
        if found.nth is not None and (found.every > 1 or found.after):
            raise FaultError("when: nth is one certain time: leave out every and after")
        if found.seed is not None and "probability" not in value:
            raise FaultError("when: a seed without a probability decides nothing")
        return found

    def as_table(self) -> dict[str, Any]:
        """What it was made of."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}


class Trigger:
    """A ``When`` at work: counts, and says at which matches its fault fires."""

    def __init__(self, when: When, seed: int, now: float) -> None:
        self.when = when
        self.seen = 0
        self.hits = 0
        self._random = random.Random(seed if when.seed is None else when.seed)
        self._begin = now + when.after_seconds
        self._end: float | None = None

    def fires(self, now: float) -> bool:
        """There is a match."""
        if now < self._begin or (self._end is not None and now >= self._end):
            return False
        self.seen += 1
        when = self.when
        if when.nth is not None and self.seen != when.nth:
            return False
        if self.seen <= when.after or (self.seen - when.after) % when.every:
            return False
        if when.times is not None and self.hits >= when.times:
            return False
        if when.probability < 1 and self._random.random() >= when.probability:
            return False
        self.hits += 1
        if self._end is None and when.seconds is not None:
            self._end = now + when.seconds
        return True
