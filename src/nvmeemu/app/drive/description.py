"""``Drive``: all that a user has said of a drive, checked as far as that can be done before anything is opened."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nvmeemu.app.drive.keys import ControllerTable, IdentityTable, NamespaceTable
from nvmeemu.app.drive.source import Failure, Source
from nvmeemu.backend import BadRequest, check_request, is_memory, is_same, parse_size, path_of
from nvmeemu.controller.limits import Limits
from nvmeemu.subsystem.formats import Format, Guard, Protection

if TYPE_CHECKING:
    from nvmeemu.toml import Place

_POOL_UNIT = 4096  # bytes
_COMPANION = "companion"
_POOL_FILE = re.compile(r"[0-9a-f-]{36}\.raw(\.nvme(\.new)?)?|lock")
SHARE = "share it with --read-only or --overlay in both"
Table = Mapping[str, Any]
"""Checked values by the names of their keys."""


@dataclass(eq=False, repr=False)
class Tables:
    """A drive as it was written down."""

    identity: Table = field(default_factory=dict)
    limits: Table = field(default_factory=dict)
    namespaces: Sequence[Table] = ()
    controllers: Sequence[Table] = ({},)
    top: Table = field(default_factory=dict)
    added: Table = field(default_factory=dict)
    """What holds for namespaces that are added later."""

    @property
    def places(self) -> frozenset[Place]:
        """Of all values but those of namespaces."""
        found: set[Place] = {("controller", index, key) for index, one in enumerate(self.controllers) for key in one}
        found |= {("identity", key) for key in self.identity}
        found |= {(key,) for key in self.top}
        return frozenset(found | {("limits", key) for key in self.limits})

    def replaced(self, other: Tables) -> Tables:
        """Where ``other`` says something, that is meant: of the drive, and of its first controller."""
        first, *rest = self.controllers
        return replace(
            self,
            top={**self.top, **other.top},
            identity={**self.identity, **other.identity},
            limits={**self.limits, **other.limits},
            controllers=[{**first, **other.controllers[0]}, *rest],
        )


NO_TABLES = Tables()


@dataclass(eq=False, repr=False)
class Drive:
    """A subsystem, its namespaces and its controllers. ``name`` tells it from others in the same process."""

    name: str
    source: Source
    identity: IdentityTable
    limits: Table
    namespaces: tuple[NamespaceTable, ...]
    controllers: tuple[ControllerTable, ...]
    added: Table
    state: str | None = None
    """The path of its saved state."""
    pool: str | None = None
    """The folder, or memory, in which hosts can make namespaces."""
    capacity: int | None = None
    """Bytes of a pool that is a folder."""

    @classmethod
    def of(cls, tables: Tables, source: Source, name: str = "drive") -> Drive:
        """Raises Failure for what no drive can be."""
        drive = cls(
            name,
            source,
            IdentityTable(**tables.identity),
            tables.limits,
            tuple(NamespaceTable(**one) for one in tables.namespaces),
            tuple(ControllerTable(**one) for one in tables.controllers),
            tables.added,
            tables.top.get("state"),
            tables.top.get("pool"),
            tables.top.get("capacity"),
        )
        drive._check_pool()
        drive._check_controllers()
        drive._check_namespaces()
        return drive

    @property
    def controller(self) -> ControllerTable:
        """The drive's controller. Today a drive has exactly one."""
        return self.controllers[0]

    def limits_of(self, controller: ControllerTable) -> Limits:
        """The limits of this controller. Raises ValueError for a controller that cannot exist."""
        own = {} if controller.queues is None else {"queues": controller.queues}
        return Limits.of({**self.limits, **own}, has_msix=controller.msix)

    @property
    def numbered(self) -> dict[int, NamespaceTable]:
        """The namespaces by NSID, in their order: the given ones, and for the others the first free ones."""
        given = {one.nsid for one in self.namespaces}
        free = (number for number in range(1, len(self.namespaces) + len(given) + 1) if number not in given)
        return {one.nsid or next(free): one for one in self.namespaces}

    @property
    def made(self) -> Iterator[tuple[Place, str]]:
        """The files that serving the drive makes or overwrites."""
        if self.state is not None:
            yield ("state",), self.state
        if self.pool is not None and not is_memory(self.pool):
            yield ("pool",), self.pool
        for index, controller in enumerate(self.controllers):
            for key in ("socket", "control", "trace"):
                if (path := getattr(controller, key)) is not None:
                    yield ("controller", index, key), path
        for index, namespace in enumerate(self.namespaces):
            if (path := _companion(namespace)) is not None:
                yield ("namespace", index, _COMPANION), path

    @property
    def disks(self) -> Iterator[tuple[Place, str]]:
        """The disks that are files."""
        for index, namespace in enumerate(self.namespaces):
            if not is_memory(namespace.disk):
                yield ("namespace", index, "disk"), namespace.disk

    # --- what cannot be

    def _check_controllers(self) -> None:
        if len(self.controllers) != 1:
            text = f"{len(self.controllers)} controllers: a drive has one"
            raise self.source.failure(text, "controller", min(1, len(self.controllers)))
        for index, controller in enumerate(self.controllers):
            place = ("controller", index)
            if controller.socket is None:
                raise self.source.failure("socket: is missing: where to listen", *place)
            self._check_engine(controller, *place)
            if controller.trace_payload and controller.trace is None:
                raise self.source.failure("--trace-payload is for a trace: give --trace FILE", *place, "trace_payload")
            try:
                limits = self.limits_of(controller)
            except ValueError as error:
                raise self.source.failure(f"there is no such controller: {error}", "limits") from None
            if limits.dstrd and controller.doorbells == "mapped":
                text = "--doorbells mapped: they lie side by side: leave out --dstrd"
                raise self.source.failure(text, *place, "doorbells")

    def _check_engine(self, controller: ControllerTable, *place: str | int) -> None:
        if controller.engine != "python":
            return
        given = {
            "io_threads": ("--io-threads", controller.io_threads),
            "doorbells": ("--doorbells mapped", controller.doorbells == "mapped"),
        }
        for key, (option, is_given) in given.items():
            if is_given:
                text = f"{option} is for the native engine, not for --engine python"
                raise self.source.failure(text, *place, key)

    def _check_pool(self) -> None:
        """A pool that is a folder keeps the drive's state beside its namespaces, if the user names no other place."""
        pool, capacity = self.pool, self.capacity
        if pool is None:
            if capacity is not None:
                raise self.source.failure("--capacity is for a pool: give --pool PATH", "capacity")
            for index, one in enumerate(self.namespaces):
                if one.delete == "allow":
                    text = "--delete allow is for a drive with a pool: give --pool PATH"
                    raise self.source.failure(text, "namespace", index, "delete")
            return
        if is_memory(pool):
            try:
                size = parse_size(pool.removeprefix("mem:"))
            except BadRequest as error:
                raise self.source.failure(f"--pool {pool}: {error}", "pool") from None
            if capacity is not None:
                text = f"--pool {pool} has its size in its name: leave out --capacity"
                raise self.source.failure(text, "capacity")
        elif capacity is None:
            text = f"--pool {pool}: how much may guests create there? Give --capacity SIZE"
            raise self.source.failure(text, "pool")
        else:
            size = capacity
            self.state = self.state or os.path.join(pool, "drive.state")
        if size % _POOL_UNIT:
            key = "pool" if capacity is None else "capacity"
            raise self.source.failure(f"--{key}: {size} bytes are no multiple of {_POOL_UNIT}", key)

    def _check_namespaces(self) -> None:
        nn = self.limits_of(self.controller).namespaces
        if not self.namespaces and self.pool is None:
            raise self.source.failure("there is no namespace: give --disk SPEC")
        if len(self.namespaces) > nn:
            disks = "1 disk" if nn == 1 else f"{nn} disks"
            raise self.source.failure(f"at most {disks}, as --max-namespaces says", "namespace", nn)
        for key in ("nsid", "nguid", "uuid", "eui64"):
            values = [getattr(one, key) for one in self.namespaces]
            twice = [value for value, times in Counter(values).items() if value is not None and times > 1]
            if twice:
                index = len(values) - 1 - values[::-1].index(twice[0])
                text = f"--{key}: give each namespace one of its own"
                raise self.source.failure(text, "namespace", index, key)
        for index, one in enumerate(self.namespaces):
            if (one.nsid or 0) > nn:
                text = f"--nsid: {one.nsid} is more than --max-namespaces, {nn}"
                raise self.source.failure(text, "namespace", index, "nsid")
            try:
                check_request(one.disk, one.size, one.create, one.read_only, one.overlay, one.direct, one.block_size)
            except BadRequest as error:
                raise self.source.failure(str(error), "namespace", index, "disk") from None
            try:
                block_format(one)
            except ValueError as error:
                key = "protection" if one.protection else "extended"
                raise self.source.failure(f"--{key}: {error}", "namespace", index, key) from None


def block_format(table: NamespaceTable) -> Format:
    """The format that a namespace begins with. Raises ValueError if there is no such one."""
    protection = None
    if table.protection:
        guard = {16: Guard.CRC16, 32: Guard.CRC32, 64: Guard.CRC64}[table.guard]
        protection = Protection(table.protection, guard, table.storage_tag, table.protection_first)
    elif table.protection_first or table.guard != 16 or table.storage_tag:
        raise ValueError("a guard, a storage tag and a place are of protection information: give its type, 1, 2 or 3")
    return Format(table.block_size, table.metadata, table.extended, protection)


def check_together(drives: Sequence[Drive], pid_file: str | None) -> None:
    """Each drive has a name of its own, and what is made or written is nothing else that we use. Raises Failure."""
    for name, times in Counter(drive.name for drive in drives).items():
        if times > 1:
            drive = [one for one in drives if one.name == name][-1]
            raise drive.source.failure(f"name: {times} drives are called {name}: give each a name of its own", "name")
    made = [_Used(path, place, drive) for drive in drives for place, path in drive.made]
    if pid_file is not None:
        made.append(_Used(pid_file, ("pid_file",), None))
    disks = [_Used(path, place, drive) for drive in drives for place, path in drive.disks]
    for index, one in enumerate(made):
        for other in [*made[index + 1 :], *disks]:
            if is_same(one.path, other.path) and not one.may_be_shared(other):
                raise _both(one, other)
    for pool in (one for one in made if one.place == ("pool",)):
        for other in [*made, *disks]:
            if _is_of_pool(other.path, pool.path):
                raise _in_pool(other, pool)
    for first, second in itertools.combinations(drives, 2):
        _check_disks(first, second)


def _is_of_pool(path: str, folder: str) -> bool:
    """Whether it is a file that the pool has, or will have: of a namespace, or the lock."""
    parent, name = os.path.split(os.path.realpath(path_of(path)))
    return _POOL_FILE.fullmatch(name) is not None and is_same(parent, folder)


def _in_pool(one: _Used, pool: _Used) -> Failure:
    drive = one.drive
    text = f"{one.called(drive)} {one.path} is a file of the pool {pool.path}: give another path"
    return Failure(text, 2) if drive is None else drive.source.failure(text, *one.place)


def _check_disks(first: Drive, second: Drive) -> None:
    """Raise Failure if one of the two writes to a disk that both have."""
    for index, one in enumerate(second.namespaces):
        for other in first.namespaces:
            if not (one.is_shareable and other.is_shareable) and is_same(one.disk, other.disk):
                text = f"disk {one.disk} is {other.disk} of the drive {first.name}: {SHARE}"
                raise second.source.failure(text, "namespace", index, "disk")


class _Used:
    """A path that is used for something, the place in the description that says so, and the drive."""

    def __init__(self, path: str, place: Place, drive: Drive | None) -> None:
        self.path, self.place, self.drive = path, place, drive

    def may_be_shared(self, other: _Used) -> bool:
        """Whether both may use the path: a control socket of several drives, or what is beside a disk that both only
        read."""
        if self.drive is None or other.drive is None or self.place[-1] != other.place[-1]:
            return False
        if self.place[-1] != _COMPANION:
            return self.place[-1] == "control"
        namespaces = [one.drive.namespaces[int(one.place[1])] for one in (self, other) if one.drive]
        return self.drive is not other.drive and all(one.is_shareable for one in namespaces)

    def called(self, by: Drive | None) -> str:
        """How a message about this drive calls it."""
        key = str(self.place[-1])
        if key == _COMPANION and self.drive is not None:
            return f"the companion of disk {self.drive.namespaces[int(self.place[1])].disk}"
        is_far = self.drive is not None and self.drive is not by
        return f"{key} of {self.drive.source.file}" if is_far and self.drive else f"--{key.replace('_', '-')}"


def _companion(table: NamespaceTable) -> str | None:
    """The file that the namespace needs beside its disk."""
    if table.companion is not None or not (table.metadata or table.block_map) or is_memory(table.disk):
        return table.companion
    from nvmeemu.backend.companion import beside  # start-up: most disks have none

    return beside(path_of(table.disk))


def _both(one: _Used, other: _Used) -> Failure:
    blamed = other if other.drive is not None else one
    drive = blamed.drive
    text = f"{one.called(drive)} and {other.called(drive)} are both {one.path}: give each a path of its own"
    return Failure(text, 2) if drive is None else drive.source.failure(text, *blamed.place)
