"""What a drive remembers over a power cycle: the scopes and names of its saved state, and a state in memory.

A name in the saved state is a promise to drives that exist already. Who gives a name another meaning adds a step to
``state.database.MIGRATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from nvmeemu.ports import Changes, SavedState, StateError, Value

DRIVE = "drive"
HEALTH = "health"


def of_controller(cntlid: int) -> str:
    """The scope of a controller."""
    return f"controller.{cntlid}"


def of_namespace(nsid: int) -> str:
    """The scope of a namespace. It ends with the namespace (``forgotten``)."""
    return f"namespace.{nsid}"


def forgotten(state: SavedState, scope: str) -> dict[tuple[str, str], Value | None]:
    """The changes that leave nothing of a scope."""
    return {(scope, name): None for name in state.scope(scope)}


V = TypeVar("V", int, str, bytes)


@dataclass(frozen=True)
class SavedValue(Generic[V]):
    """A value of the saved state. ``default`` holds, and says the type, while nothing was saved."""

    scope: str
    name: str
    default: V

    @property
    def key(self) -> tuple[str, str]:
        return self.scope, self.name

    def of(self, state: SavedState) -> V:
        """The value that was saved. Raises StateError if it has another type."""
        found = state.get(self.scope, self.name)
        if found is None:
            return self.default
        if not isinstance(found, type(self.default)):
            raise StateError(f"{self.name} of {self.scope} is {found!r}, and no {type(self.default).__name__}")
        return found


_IN_USE = "in_use."


def in_use(cntlid: int, is_in_use: bool) -> Changes:
    """Whether a controller was enabled and has not been shut down since: power that goes then is an unsafe shutdown."""
    return {(HEALTH, f"{_IN_USE}{cntlid}"): int(is_in_use)}


def ended_in_use(state: SavedState) -> Changes:
    """The changes that say that no controller is in use. Empty, if none was."""
    found = state.scope(HEALTH)
    return {(HEALTH, name): 0 for name, value in found.items() if name.startswith(_IN_USE) and value}


def write_protection(nsid: int) -> SavedValue[int]:
    """The write protection that a host has given a namespace (``spec.WriteProtection``)."""
    return SavedValue(of_namespace(nsid), "write_protection", 0)


SERIAL = SavedValue(DRIVE, "serial", "")
"""The serial number of the drive that the state belongs to."""


class MemoryState:
    """A ``SavedState`` that ends with the process, for drives without a file for it."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Value]] = {}

    def get(self, scope: str, name: str) -> Value | None:
        return self._values.get(scope, {}).get(name)

    def scope(self, scope: str) -> dict[str, Value]:
        return dict(self._values.get(scope, {}))

    def save(self, changes: Changes, done: Callable[[BaseException | None], None]) -> None:
        self.put(changes)
        done(None)

    def put(self, changes: Changes) -> None:
        """The values from now on."""
        for (scope, name), value in changes.items():
            if value is None:
                self._values.get(scope, {}).pop(name, None)
            else:
                self._values.setdefault(scope, {})[name] = value
