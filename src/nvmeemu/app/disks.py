"""The disks of a drive: opened at the start, and with namespaces that come and go."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from uuid import UUID

from nvmeemu.app.drive.description import Drive
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.backend import Backend, BackendError, BadRequest, is_memory, is_same, open_backend
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.vfio import Loop

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.1  # seconds, until a disk that was removed may be idle


class Disks:
    """The open disks of one drive, by what its user calls them. ``others`` are those of the drives beside it."""

    def __init__(self, drive: Drive, others: Sequence[Disks] = ()) -> None:
        self.backends: dict[str, Backend] = {}
        self._drive = drive
        self._others = others
        self._written: set[str] = set()  # those of ``backends`` that are not only read
        self._leaving: list[Backend] = []  # of namespaces that were removed
        self._given: dict[str, Ids] = {}  # by the disk's identity: it has them again when it comes back
        self._numbers = itertools.count(1)  # of those that are added

    def open_all(self) -> list[Namespace]:
        """The namespaces that are there from the beginning. Raises Failure."""
        return [self._open_first(index, *one) for index, one in enumerate(self._drive.numbered.items())]

    def _open_first(self, index: int, nsid: int, table: NamespaceTable) -> Namespace:
        try:
            backend = self._open(table)
        except BackendError as error:
            status = 2 if isinstance(error, BadRequest) else 1
            raise self._drive.source.failure(str(error), "namespace", index, "disk", status=status) from None
        ids = self._given[backend.identity] = _ids(table)
        return Namespace(nsid, backend, table.block_size, self._identity(backend, table), ids)

    def add(self, nsid: int, table: NamespaceTable) -> Namespace:
        """Another namespace. Raises BackendError."""
        for name, backend in self.backends.items():
            if backend in self._leaving and is_same(table.disk, name):
                raise BackendError(f"disk {table.disk} was removed just now, and is not closed yet: try again")
        backend = self._open(table)
        ids = _ids(table)
        if ids == Ids() and not _begins_anew(backend, table):
            ids = self._given.get(backend.identity, ids)
        return Namespace(nsid, backend, table.block_size, self._identity(backend, table, next(self._numbers)), ids)

    def remove(self, backend: Backend, is_busy: Callable[[], bool], loop: Loop) -> None:
        """Flush and close it as soon as nothing is under way any more, perhaps with this one."""
        if backend not in self._leaving:
            self._leaving.append(backend)
        if is_busy():
            loop.call_later(LOOK_AGAIN, lambda: self.remove(backend, is_busy, loop))
            return
        name = next(disk for disk, one in self.backends.items() if one is backend)

        def done(_: object, error: BaseException | None) -> None:
            if error is not None:
                log.error("disk %s, which was removed, failed to flush: %s: written data may be lost", name, error)
            backend.close()
            self._leaving.remove(backend)
            del self.backends[name]
            self._written.discard(name)

        loop.submit(backend.flush, done, backend)

    def _open(self, table: NamespaceTable) -> Backend:
        name = self._name(table.disk)
        is_written = not (table.read_only or table.overlay)
        self._check_others(table.disk, is_written)
        backend = self.backends[name] = open_backend(
            table.disk,
            size=table.size,
            create=table.create,
            read_only=table.read_only,
            overlay=table.overlay,
            direct=table.direct,
            block_size=table.block_size,
        )
        if is_written:
            self._written.add(name)
        return backend

    def _check_others(self, disk: str, is_written: bool) -> None:
        """The disk has one writer or many readers, in this process as among processes. Raises BackendError."""
        for other in self._others:
            for name in other.backends:
                if is_same(disk, name) and (is_written or name in other._written):
                    raise BackendError(
                        f"disk {disk} is {name} of the drive {other._drive.name}:"
                        " share it with --read-only or --overlay in both"
                    )

    def _name(self, disk: str) -> str:
        """What the disk is called beside the others. Raises BadRequest if it is one of them."""
        for other in self.backends:
            if is_same(disk, other):
                raise BadRequest(f"disk {disk} is {other}, which is a namespace already: give each disk once")
        names = itertools.chain([disk], (f"{disk} ({number})" for number in itertools.count(2)))  # of memory
        return next(name for name in names if name not in self.backends)

    def _identity(self, backend: Backend, table: NamespaceTable, number: int = 0) -> str:
        """What identifies a disk. One that several servers can have at once is told apart by where it is served, and
        one that begins anew each time it is added, by which time it is: a host must not take two for one."""
        begins_anew = _begins_anew(backend, table)
        if not begins_anew and not backend.read_only:
            return backend.identity
        place = os.path.abspath(self._drive.controller.socket or "")
        return f"{backend.identity}@{place}" + (f"#{number}" if begins_anew and number else "")


def _begins_anew(backend: Backend, table: NamespaceTable) -> bool:
    """Whether nothing is left of what was written to it when it is opened again."""
    return is_memory(backend.identity) or table.overlay


def _ids(table: NamespaceTable) -> Ids:
    return Ids(table.nguid, table.eui64, UUID(bytes=table.uuid) if table.uuid else None)
