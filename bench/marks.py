"""Marks: what a number should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A bound for a number."""

    limit: float
    is_least: bool = False
    is_inclusive: bool = True

    def is_met(self, value: float) -> bool:
        if self.is_least:
            return value >= self.limit
        return value <= self.limit if self.is_inclusive else value < self.limit

    def __str__(self) -> str:
        sign = ">=" if self.is_least else "<=" if self.is_inclusive else "<"
        return f"{sign} {self.limit:g}"
