"""Tables to which a user's file may add rows of its own, in one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

R = TypeVar("R")


class Extensible(Generic[R]):
    """``add`` is for what is there as long as the process is, ``extended`` for a part of that, a test say."""

    def add(self, row: R) -> None:
        """One row more. Raises ValueError if its number or its name is another's."""
        raise NotImplementedError

    def remove(self, row: R) -> None:
        """As if it had never been added. Raises KeyError."""
        raise NotImplementedError

    @contextmanager
    def extended(self, *rows: R) -> Iterator[None]:
        """With these, until the block ends."""
        added: list[R] = []
        try:
            for row in rows:
                self.add(row)
                added.append(row)
            yield
        finally:
            for row in added:
                self.remove(row)


class Row(Protocol):
    """``number``: the opcode or identifier that a host asks for."""

    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=Row)


class Table(Extensible[N], dict[int, N]):
    """Rows by their numbers."""

    def __init__(self, *rows: N) -> None:
        super().__init__({row.number: row for row in rows})

    def add(self, row: N) -> None:
        if row.number in self:
            raise ValueError(f"{row}: there is {self[row.number]} with this number already")
        self[row.number] = row

    def remove(self, row: N) -> None:
        del self[row.number]
