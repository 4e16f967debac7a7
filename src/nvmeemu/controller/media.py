"""How much the commands at each disk hold, and what waits until a disk has room.

Bounds are a disk's own: one that stalls keeps what it has been given, and nothing that is for another one waits for it.
A command that waits here was fetched and holds nothing but its entry, so that those behind it in its queue go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from nvmeemu.controller.request import Request


class DiskFull(Exception):
    """The disk has enough to do: the stage that raises it is to be run again when there is room."""

    def __init__(self, disk: object) -> None:
        super().__init__(disk)
        self.disk = disk


class Media:
    """Of all disks. A disk is any object; ``most`` bytes may be held at each of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: defaultdict[object, int] = defaultdict(int)  # bytes; no entry: none
        self._waiting: dict[object, dict[Request[Any], None]] = {}

    @property
    def is_waited_for(self) -> bool:
        """A command waits for room."""
        return bool(self._waiting)

    @property
    def is_used(self) -> bool:
        """A command holds something, or waits."""
        return bool(self._held or self._waiting)

    def enter(self, disk: object) -> None:
        """A command is about to use it. Raises DiskFull."""
        if self._held and self._is_full(disk):
            raise DiskFull(disk)

    def take(self, disk: object, size: int) -> None:
        """A command holds so many bytes, until it gives them back."""
        if size:
            self._held[disk] += size

    def give_back(self, disk: object, size: int) -> None:
        if size:
            self._held[disk] -= size
            if not self._held[disk]:
                del self._held[disk]

    def wait(self, request: Request[Any], disk: object) -> None:
        """Keep a command whose stage has raised DiskFull, as long as it lives."""
        request.hold()
        self._waiting.setdefault(disk, {})[request] = None
        request.deadline = None  # it does not wait for guest memory meanwhile
        request.on_end = lambda: self._forget(request, disk)

    def has_ready(self, disks: Collection[object]) -> bool:
        """``ready`` has something to give."""
        return any(self._is_ready(disk, disks) for disk in self._waiting)

    def ready(self, disks: Collection[object]) -> Iterator[Request[Any]]:
        """What need not wait any more, in order: its disk has room, or is none of ``disks``, which are those that there
        are. Whoever takes one runs it before it takes the next."""
        for disk in tuple(self._waiting):
            while disk in self._waiting and self._is_ready(disk, disks):
                request = next(iter(self._waiting[disk]))
                request.on_end = None
                self._forget(request, disk)
                yield request

    def drop(self) -> None:
        """Nothing waits any more, and what waited is never completed."""
        for waiting in tuple(self._waiting.values()):
            for request in tuple(waiting):
                request.drop()

    def _is_full(self, disk: object) -> bool:
        return self._held.get(disk, 0) >= self._most

    def _is_ready(self, disk: object, disks: Collection[object]) -> bool:
        return not self._is_full(disk) or disk not in disks

    def _forget(self, request: Request[Any], disk: object) -> None:
        waiting = self._waiting[disk]
        del waiting[request]
        if not waiting:
            del self._waiting[disk]
