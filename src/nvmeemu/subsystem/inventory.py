"""All namespaces of a subsystem, and which of them are attached to which controller. Base 2.0, 3.2.1 and 8.11."""

from __future__ import annotations

from nvmeemu.controller.limits import Limits
from nvmeemu.subsystem.namespace import Namespace, Namespaces


class Inventory(Namespaces):
    """The *allocated* namespaces: those that there are. To a controller only those are *active* that are attached to
    it (``of``)."""

    def __init__(self, nn: int = Limits.namespaces) -> None:
        super().__init__(nn)
        self._of: dict[int, Namespaces] = {}  # by CNTLID

    def of(self, cntlid: int) -> Namespaces:
        """The namespaces that are attached to a controller, now and later: each time the same object. A controller that
        is asked for first joins, and gets those that are for all."""
        if cntlid not in self._of:
            self._of[cntlid] = Namespaces(self.nn)
            for namespace in self:
                namespace.is_shared |= namespace.controllers is None and len(self._of) > 1
                self._put(namespace)
        return self._of[cntlid]

    def add(self, namespace: Namespace) -> None:
        """Raises ValueError if its NSID is taken, or invalid."""
        if not self.is_valid(namespace.nsid) or namespace.nsid in self.by_nsid:
            raise ValueError(f"NSID {namespace.nsid} is taken or outside 1..{self.nn}")
        namespace.media.budget.most = self.most_held
        self.by_nsid[namespace.nsid] = namespace
        namespace.is_shared |= namespace.controllers is None and len(self._of) > 1
        self._put(namespace)

    def remove(self, nsid: int) -> Namespace:
        """It is detached from all controllers. Raises KeyError."""
        namespace = self.by_nsid.pop(nsid)
        for active in self._of.values():
            active.by_nsid.pop(nsid, None)
        return namespace

    def attached_to(self, nsid: int) -> list[int]:
        """The controllers, in ascending order, to which a namespace is attached."""
        return sorted(cntlid for cntlid, active in self._of.items() if nsid in active.by_nsid)

    def attach(self, nsid: int, cntlid: int) -> None:
        """Raises KeyError if there is no such namespace."""
        self._set(self.by_nsid[nsid], {*self.attached_to(nsid), cntlid})

    def detach(self, nsid: int, cntlid: int) -> None:
        """Raises KeyError if there is no such namespace."""
        self._set(self.by_nsid[nsid], {*self.attached_to(nsid)} - {cntlid})

    def _set(self, namespace: Namespace, controllers: set[int]) -> None:
        namespace.controllers = frozenset(controllers)
        self._put(namespace)

    def _put(self, namespace: Namespace) -> None:
        """Let each controller have it, or not, as the namespace says."""
        for cntlid, active in self._of.items():
            if namespace.controllers is None or cntlid in namespace.controllers:
                active.by_nsid[namespace.nsid] = namespace
            else:
                active.by_nsid.pop(namespace.nsid, None)
