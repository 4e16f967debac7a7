"""The disks of a drive: opened at the start, and with namespaces that come and go."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from nvmeemu.app import journals, pairs
from nvmeemu.app.drive.description import SHARE, Drive, block_format
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.backend import Backend, BackendError, BadRequest, is_memory, is_same, open_backend
from nvmeemu.ports import StateError
from nvmeemu.subsystem import management
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formatter import Formatter
from nvmeemu.subsystem.media import FlushMedia, Media, MediaError
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pairing import Pairer
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.vfio import Loop

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.1  # seconds, until a disk that was removed may be idle


class Disks:
    """The open disks of one drive, by what its user calls them. ``drives`` are those of all drives of the process."""

    def __init__(self, drive: Drive, loop: Loop, drives: Sequence[Disks] = ()) -> None:
        self.media: dict[str, DiskMedia] = {}
        self._drive = drive
        self._loop = loop
        self._is_ending = False
        self._drives = drives
        self._written: set[str] = set()  # those of ``media`` that are not only read
        self._leaving: list[Media] = []  # of namespaces that were removed
        self._given: dict[str, Ids] = {}  # by the disk's identity: it has them again when it comes back
        self._numbers = itertools.count(1)  # of those that are added
        self._subsystem: Subsystem | None = None
        self.tables: dict[str, NamespaceTable] = {}  # of ``media``

    def open_all(self) -> list[Namespace]:
        """The namespaces that are there from the beginning. Raises Failure."""
        return [self._open_first(index, *one) for index, one in enumerate(self._drive.numbered.items())]

    def begin(self, subsystem: Subsystem, namespaces: Sequence[Namespace]) -> None:
        """Let the subsystem have these, as hosts have left them. Raises Failure."""
        self._subsystem = subsystem
        subsystem.on_delete = lambda one: self.remove(one.media, lambda: _is_busy(subsystem))
        for index, namespace in enumerate(namespaces):
            if namespace.nsid in subsystem.namespaces.by_nsid:
                text = f"nsid: {namespace.nsid} is a namespace that a guest has made: give this one another"
                raise self._drive.source.failure(text, "namespace", index, status=1)
            try:
                is_there = management.as_it_was(subsystem, namespace)
            except StateError as error:
                raise self._drive.source.failure(str(error), "state", status=1) from None
            if is_there:
                subsystem.add(namespace)
            else:
                log.info("disk %s is no namespace: a guest has deleted it", namespace.media.identity)

    @property
    def in_use(self) -> dict[str, Media]:
        """All media that a host can have written to, by what the user calls them."""
        made = self._subsystem.namespaces if self._subsystem is not None else ()
        return {**self.media, **{one.media.identity: one.media for one in made if one.pool_name is not None}}

    def _open_first(self, index: int, nsid: int, table: NamespaceTable) -> Namespace:
        try:
            media = self._open(table)
        except BackendError as error:
            status = 2 if isinstance(error, BadRequest) else 1
            raise self._drive.source.failure(str(error), "namespace", index, "disk", status=status) from None
        ids = self._given[media.identity] = _ids(table)
        return self._namespace(nsid, media, self._identity(media, table), ids, table)

    def add(self, nsid: int, table: NamespaceTable) -> Namespace:
        """Another namespace. Raises BackendError."""
        for name, one in self.media.items():
            if one in self._leaving and is_same(table.disk, name):
                raise BackendError(f"disk {table.disk} was removed just now, and is not closed yet: try again")
        media = self._open(table)
        ids = _ids(table)
        if ids == Ids() and not _begins_anew(media, table):
            ids = self._given.get(media.identity, ids)
        return self._namespace(nsid, media, self._identity(media, table, next(self._numbers)), ids, table)

    def remove(self, media: Media, is_busy: Callable[[], bool]) -> None:
        """Flush and close the medium of a removed namespace as soon as the controller is not busy: until then a command
        may use it."""
        if media not in self._leaving:
            self._leaving.append(media)
        if self._is_ending:
            return
        if is_busy():
            self._loop.call_later(LOOK_AGAIN, lambda: self.remove(media, is_busy))
            return
        name = self._name_of(media)

        def done(_: object, error: BaseException | None) -> None:
            if error is not None:
                why = error.why if isinstance(error, MediaError) else error
                log.error("disk %s, which was removed, failed to flush: %s: written data may be lost", name, why)
            if self._is_ending:
                return
            media.close()
            self._leaving.remove(media)
            del self.media[name]
            self._written.discard(name)

        media.start(FlushMedia(), done)

    def keep_open(self) -> None:
        """From now on close no disk that was removed: the server ends, and syncs them all."""
        self._is_ending = True

    def end(self) -> None:
        """All is synced, and nothing uses the disks any more."""
        for media in self.media.values():
            media.end()

    def _open(self, table: NamespaceTable) -> DiskMedia:
        name = self._name(table.disk)
        self._check_others(table)
        backend = open_backend(
            table.disk,
            size=table.size,
            create=table.create,
            read_only=table.read_only,
            overlay=table.overlay,
            direct=table.direct,
            block_size=table.block_size,
        )
        try:
            media = self.media[name] = self._media(table, backend)
        except BaseException:
            backend.close()
            raise
        self.tables[name] = table
        if not table.is_shareable:
            self._written.add(name)
        return media

    def _media(self, table: NamespaceTable, backend: Backend) -> DiskMedia:
        companion = pairs.companion_of(table, backend)
        atomicity = journals.begin(table, backend, companion)
        if companion is None:
            return DiskMedia(backend, block_format(table), self._loop, atomicity)
        return PairedMedia(backend, companion, self._loop, atomicity)

    def _namespace(self, nsid: int, media: DiskMedia, identity: str, ids: Ids, table: NamespaceTable) -> Namespace:
        namespace = Namespace(nsid, media, identity, ids)
        namespace.is_deletable = table.delete == "allow"
        name = self._name_of(media)

        def put(changed: DiskMedia) -> None:
            self.media[name] = changed

        if media.block_map is None and pairs.can_be_made_later(table):
            namespace.pairer = Pairer(media, partial(pairs.make_later, table, media.backend), put)
        if table.may_be_formatted:
            make = partial(pairs.begin_formatting, table, media.backend)
            namespace.formatter = Formatter(media, make, put)
        return namespace

    def _name_of(self, media: Media) -> str:
        return next(name for name, one in self.media.items() if one is media)

    def _check_others(self, table: NamespaceTable) -> None:
        """The disk has one writer or many readers, in this process as among processes. Raises BackendError."""
        for other in (one for one in self._drives if one is not self):
            for name in other.media:
                if not (table.is_shareable and name not in other._written) and is_same(table.disk, name):
                    raise BackendError(f"disk {table.disk} is {name} of the drive {other._drive.name}: {SHARE}")

    def _name(self, disk: str) -> str:
        """What the disk is called beside the others. Raises BadRequest if it is one of them."""
        for other in self.media:
            if is_same(disk, other):
                raise BadRequest(f"disk {disk} is {other}, which is a namespace already: give each disk once")
        names = itertools.chain([disk], (f"{disk} ({number})" for number in itertools.count(2)))  # of memory
        return next(name for name in names if name not in self.media)

    def _identity(self, media: Media, table: NamespaceTable, number: int = 0) -> str:
        """What identifies a disk, so that a host does not take two disks for one.

        Where several servers can have one disk, the socket's path tells their namespaces apart. A disk that forgets
        what was written (``_begins_anew``) gets a number each time it is added.
        """
        begins_anew = _begins_anew(media, table)
        if not begins_anew and not media.read_only:
            return media.identity
        place = os.path.abspath(self._drive.controller.socket or "")
        return f"{media.identity}@{place}" + (f"#{number}" if begins_anew and number else "")


def _is_busy(subsystem: Subsystem) -> bool:
    return any(controller.is_busy for controller in subsystem.controllers)


def _begins_anew(media: Media, table: NamespaceTable) -> bool:
    """Whether nothing is left of what was written to it when it is opened again."""
    return is_memory(media.identity) or table.overlay


def _ids(table: NamespaceTable) -> Ids:
    return Ids(table.nguid, table.eui64, UUID(bytes=table.uuid) if table.uuid else None)
