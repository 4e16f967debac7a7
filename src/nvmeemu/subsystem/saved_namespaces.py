"""What the saved state says of namespaces: those that hosts have made, attachments, and what is to be discarded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from nvmeemu.ports import Changes, SavedState, StateError, Value
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.saved import SavedValue, of_namespace

_TRASH = "trash"
_DELETED = "deleted"


def trash(name: str) -> SavedValue[int]:
    """1: what has this name in the pool is not, or no more, a namespace."""
    return SavedValue(_TRASH, name, 0)


def all_trash(state: SavedState) -> list[str]:
    """The names in the pool of what is to be discarded."""
    return list(state.scope(_TRASH))


def deleted(identity: str) -> SavedValue[int]:
    """Bytes of a disk of the user's whose namespace a host has deleted."""
    return SavedValue(_DELETED, identity, 0)


@dataclass(frozen=True)
class SavedNamespace:
    """A namespace in the saved state. ``pool_name``: a host has made it, and it takes ``capacity`` bytes; its format is
    the business of what lies in the pool. Otherwise ``disk`` is the user's, and only the attachment counts.
    ``controllers`` None: all."""

    pool_name: str = ""
    disk: str = ""
    capacity: int = 0
    is_shared: bool = False
    controllers: frozenset[int] | None = frozenset()

    @classmethod
    def of(cls, state: SavedState, nsid: int) -> Self | None:
        """None: nothing was saved of a namespace with this NSID. Raises StateError for what cannot be."""
        scope = of_namespace(nsid)
        attached = SavedValue(scope, "controllers", "all").of(state)
        made = cls(
            pool_name=SavedValue(scope, "pool", "").of(state),
            disk=SavedValue(scope, "disk", "").of(state),
            capacity=SavedValue(scope, "capacity", 0).of(state),
            is_shared=bool(SavedValue(scope, "shared", 0).of(state)),
            controllers=None if attached == "all" else _numbers(attached),
        )
        return made if made.pool_name or made.disk else None


def _numbers(text: str) -> frozenset[int]:
    if not all(word.isdecimal() for word in text.split()):
        raise StateError(f"{text!r} is no list of controllers")
    return frozenset(map(int, text.split()))


def as_saved(namespace: Namespace) -> Changes:
    """The changes that save a namespace which a host has made."""
    assert namespace.pool_name is not None
    values: dict[str, Value] = {
        "pool": namespace.pool_name,
        "capacity": namespace.capacity,
        "shared": int(namespace.is_shared),
    }
    scope = of_namespace(namespace.nsid)
    return {(scope, name): value for name, value in values.items()} | attachment(namespace, namespace.controllers or ())


def attachment(namespace: Namespace, cntlids: Iterable[int]) -> dict[tuple[str, str], Value]:
    """The changes that save to which controllers it is attached."""
    scope = of_namespace(namespace.nsid)
    changes: dict[tuple[str, str], Value] = {(scope, "controllers"): " ".join(map(str, sorted(cntlids)))}
    if namespace.pool_name is None:
        changes[scope, "disk"] = namespace.identity
    return changes
