"""The NVM subsystem: what its controllers share, and who of them hears of what changes. Base 1.4, 1.6.24."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from nvmeemu.ports import Changes, Clock, SavedState, Value
from nvmeemu.spec import WriteProtection
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import FORMATS, Format, OfferedFormat
from nvmeemu.subsystem.formatting import Formatting
from nvmeemu.subsystem.health import Health
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.media import Media
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.pairing import Pairing
from nvmeemu.subsystem.pool import Pool
from nvmeemu.subsystem.saved import MemoryState, write_protection
from nvmeemu.subsystem.saved_namespaces import deleted
from nvmeemu.subsystem.sole_use import SoleUse
from nvmeemu.subsystem.streams import Streams
from nvmeemu.subsystem.turns import Turns

log = logging.getLogger(__name__)

SAVE_EVERY = 60  # seconds; so much of the counters is lost at most when the process is killed


class Member(Protocol):
    """A controller, as its subsystem knows it."""

    @property
    def cntlid(self) -> int: ...

    def remembered(self) -> Changes:
        """What the saved state says of it, with all that its engine has counted."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether a command is being worked on."""
        ...

    def end_commands(self, nsid: int) -> None:
        """End the commands that wait for a namespace, as those to an inactive one end."""
        ...

    def forgotten(self, nsid: int) -> Changes:
        """The changes that leave nothing of what the host has saved for a namespace."""
        ...

    def namespace_changed(self, nsid: int, is_told: bool = True) -> None:
        """Identify says something new of this namespace, or it has come or gone. The host ``is_told`` of it."""
        ...

    def lba_status_changed(self) -> None:
        """There are more blocks of a namespace that cannot be read."""
        ...

    def uses(self, media: Media) -> bool:
        """Whether commands are still at a medium that is no namespace's any more."""
        ...


class Subsystem:
    """Namespaces come, go and change here, also while hosts use them. A controller joins ``controllers`` itself.

    ``state`` is what it remembers over a power cycle: in memory, for as long as the process lives, by default.
    ``pool``: hosts may make namespaces, in it. ``turns``: what hosts do to namespaces. ``freed``: bytes of disks that
    the user has given, and whose namespaces hosts have deleted.
    """

    def __init__(
        self,
        identity: Identity,
        namespaces: Inventory,
        clock: Clock,
        state: SavedState | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.identity = identity
        self.namespaces = namespaces
        self.clock = clock
        self.pool = pool
        self.turns = Turns()
        self.streams = Streams()
        self.lba_status_changes = 0  # since the power came
        self.sole_use = SoleUse(clock, self._is_used, self._configure_engines)
        self.freed = 0
        self.on_delete: Callable[[Namespace], None] = lambda namespace: None  # of the user's
        self.state: SavedState = MemoryState() if state is None else state
        self.health = Health(clock)
        self.formats: list[OfferedFormat] = []  # that namespaces can be given; none: each keeps the one that it has
        self._is_unsaved = False  # and the user knows
        if pool is not None:
            self.offer_formats()
        self.controllers: list[Member] = []

    def power_on(self) -> Changes:
        """Power comes, once, when all controllers are there. From now on the counters are saved each minute, if they
        have changed. Returns what is to be saved now. Raises StateError."""
        self.clock.call_later(SAVE_EVERY, self._save_counters)
        return self.health.power_on(self.state)

    def remembered(self, *, is_end: bool = False) -> Changes:
        """The counters and logs for the saved state; at an ``is_end`` exactly."""
        changes: dict[tuple[str, str], Value | None] = {}
        for controller in self.controllers:
            changes.update(controller.remembered())
        return {**changes, **self.health.remembered(is_end=is_end)}

    def _save_counters(self) -> None:
        self.clock.call_later(SAVE_EVERY, self._save_counters)
        self.state.save(self.remembered(), self._saved)

    def _saved(self, error: BaseException | None) -> None:
        if error is not None and not self._is_unsaved:
            log.error("the counters of the drive were not saved: %s (logged once)", error)
        self._is_unsaved = error is not None

    def add(self, namespace: Namespace) -> None:
        """Add a namespace. Raises ValueError if its NSID is taken, or invalid."""
        if self.formats and namespace.format.offered not in self.formats:
            self.formats.append(namespace.format.offered)
        self.namespaces.add(namespace)
        protection = write_protection(namespace.nsid).of(self.state)
        if protection in (WriteProtection.PROTECTED, WriteProtection.PERMANENT):  # the third one ends with the power
            namespace.write_protection = WriteProtection(protection)
        mark = deleted(namespace.identity)
        if (size := mark.of(self.state)) and namespace.pool_name is None:  # the user has brought it back
            self.freed -= size
            self.state.save({mark.key: None}, self._saved)
        self.changed(namespace.nsid)

    def remove(self, nsid: int) -> Namespace:
        """Remove a namespace. Commands that have begun end normally. Raises KeyError."""
        had_it = self.namespaces.attached_to(nsid)
        namespace = self.namespaces.remove(nsid)
        self.streams.forget(lambda other, host: other == nsid)
        self._tell(nsid, had_it)
        return namespace

    def delete(self, nsid: int, by: int) -> None:
        """Remove a namespace because the host of the controller ``by`` has deleted it. Raises KeyError."""
        had_it = self.namespaces.attached_to(nsid)
        namespace = self.namespaces.remove(nsid)
        self.streams.forget(lambda other, host: other == nsid)
        self._tell(nsid, had_it, by)
        self._end_commands(nsid, had_it)
        if namespace.pool_name is None:
            self.freed += namespace.capacity
            self.on_delete(namespace)

    @property
    def capacity(self) -> int:
        """Bytes that all namespaces have, or could have (TNVMCAP)."""
        return self.unallocated + sum(namespace.capacity for namespace in self.namespaces)

    @property
    def unallocated(self) -> int:
        """Bytes that hosts can make namespaces of (UNVMCAP)."""
        room = 0 if self.pool is None else self.pool.capacity + self.freed
        return room - sum(namespace.capacity for namespace in self.namespaces if namespace.pool_name is not None)

    def attach(self, nsid: int, cntlid: int) -> None:
        """A controller's host sees the namespace from now on. Raises KeyError."""
        self.namespaces.attach(nsid, cntlid)
        self._tell(nsid, [cntlid])

    def detach(self, nsid: int, cntlid: int) -> None:
        """A controller's host sees the namespace no more. Raises KeyError."""
        self.namespaces.detach(nsid, cntlid)
        self.streams.forget(lambda *place: place == (nsid, cntlid))
        self._tell(nsid, [cntlid])
        self._end_commands(nsid, [cntlid])

    def resize(self, nsid: int, blocks: int | None = None) -> None:
        """Change the size, by default to that of its disk, which is looked at again. Raises KeyError, ValueError if the
        disk is not that large, and OSError if it cannot tell its size."""
        namespace = self.namespaces.by_nsid[nsid]
        if namespace.is_being_formatted or namespace.is_being_paired:
            raise ValueError(f"namespace {nsid} is being formatted: try again")
        namespace.media.refresh()
        most = namespace.media.blocks
        blocks = most if blocks is None else blocks
        if not 1 <= blocks <= most:
            raise ValueError(f"namespace {nsid} can have 1 to {most} blocks, not {blocks}: its disk has no more")
        namespace.blocks = blocks
        self.changed(nsid)

    def offer_formats(self) -> None:
        """Tell of all formats that namespaces can be given. Call it before there are namespaces."""
        self.formats = list(FORMATS)

    def formats_of(self, namespace: Namespace) -> list[OfferedFormat]:
        """The formats that Identify tells of, for this namespace."""
        return self.formats or [namespace.format.offered]

    @property
    def can_format(self) -> bool:
        """Whether a host can give a namespace another format."""
        return self.pool is not None or any(namespace.formatter is not None for namespace in self.namespaces)

    def format(
        self, namespace: Namespace, format: Format, is_overwriting: bool, by: Callable[[], int | None]
    ) -> Formatting:
        """Begin to format a namespace that has a ``formatter``. ``by``: the controller whose host has asked for it and
        still waits, so that it need not be told."""
        formatting = Formatting(namespace, format, is_overwriting)
        namespace.media = formatting
        namespace.format_left = 100
        self.streams.release_all(namespace.nsid)
        self.changed(namespace.nsid, by())
        formatting.begin(self.clock, self._is_used, lambda: self.changed(namespace.nsid, by()))
        return formatting

    def pair(self, namespace: Namespace) -> None:
        """Begin to give the disk of a namespace that has a ``pairer`` a companion, unless that has begun. The commands
        of the namespace wait meanwhile."""
        if namespace.is_being_paired:
            return
        assert namespace.pairer is not None
        nsid = namespace.nsid

        def on_end(media: Media) -> None:
            namespace.move(media)
            namespace.is_being_paired = False
            if namespace.formatter is not None and isinstance(media, DiskMedia):
                namespace.formatter.media = media
            if media.block_map is None:
                self._reconfigure(nsid)
            else:
                self.changed(nsid)

        namespace.is_being_paired = True
        namespace.media = pairing = Pairing(namespace.pairer, on_end)
        self._reconfigure(nsid)
        pairing.begin(self.clock, self._is_used)

    def _reconfigure(self, nsid: int) -> None:
        """Tell the controllers, and no host, that a namespace has another medium."""
        for controller in self.controllers:
            controller.namespace_changed(nsid, False)

    def _is_used(self, media: Media) -> bool:
        return any(controller.uses(media) for controller in self.controllers)

    def _configure_engines(self, namespace: Namespace) -> None:
        for controller in self.controllers:
            controller.namespace_changed(namespace.nsid, False)

    def changed(self, nsid: int, by: int | None = None) -> None:
        """Tell the controllers that have it that Identify says something new of this namespace."""
        self._tell(nsid, self.namespaces.attached_to(nsid), by)

    def lba_status_changed(self, nsid: int) -> None:
        """Tell the controllers that have it that more blocks of this namespace cannot be read."""
        self.lba_status_changes += 1
        attached = self.namespaces.attached_to(nsid)
        for controller in self.controllers:
            if controller.cntlid in attached:
                controller.lba_status_changed()

    def _end_commands(self, nsid: int, cntlids: list[int]) -> None:
        for controller in self.controllers:
            if controller.cntlid in cntlids:
                controller.end_commands(nsid)

    def _tell(self, nsid: int, cntlids: list[int], by: int | None = None) -> None:
        """``by``: the controller whose host knows, because it has asked for it."""
        for controller in self.controllers:
            if controller.cntlid in cntlids:
                controller.namespace_changed(nsid, controller.cntlid != by)
