"""The NVM subsystem: what its controllers share, and who of them hears of what changes. Base 1.4, 1.6.24."""

from __future__ import annotations

from typing import Protocol

from nvmeemu.ports import Clock
from nvmeemu.subsystem.health import Health
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.namespace import Namespace, Namespaces


class Member(Protocol):
    """A controller, as its subsystem knows it."""

    def namespace_changed(self, nsid: int) -> None:
        """Identify says something new of this namespace, or it has come or gone."""
        ...


class Subsystem:
    """Namespaces come, go and change here, also while hosts use them. A controller joins ``controllers`` itself."""

    def __init__(self, identity: Identity, namespaces: Namespaces, clock: Clock) -> None:
        self.identity = identity
        self.namespaces = namespaces
        self.health = Health(clock)
        self.controllers: list[Member] = []

    def add(self, namespace: Namespace) -> None:
        """Add a namespace. Raises ValueError if its NSID is taken, or invalid."""
        self.namespaces.add(namespace)
        self.changed(namespace.nsid)

    def remove(self, nsid: int) -> Namespace:
        """Remove a namespace. Commands that have begun end normally. Raises KeyError."""
        namespace = self.namespaces.active.pop(nsid)
        self.changed(nsid)
        return namespace

    def resize(self, nsid: int, blocks: int | None = None) -> None:
        """Change the size, by default to that of its disk, which is looked at again. Raises KeyError, ValueError if the
        disk is not that large, and OSError if it cannot tell its size."""
        namespace = self.namespaces.active[nsid]
        namespace.media.refresh()
        most = namespace.media.blocks
        blocks = most if blocks is None else blocks
        if not 1 <= blocks <= most:
            raise ValueError(f"namespace {nsid} can have 1 to {most} blocks, not {blocks}: its disk has no more")
        namespace.blocks = blocks
        self.changed(nsid)

    def changed(self, nsid: int) -> None:
        """Tell every controller that Identify says something new of this namespace."""
        for controller in self.controllers:
            controller.namespace_changed(nsid)
