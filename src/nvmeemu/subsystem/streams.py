"""Streams: which hosts use them for which namespaces, what each has for its own, and which are open. Base 1.4, 9.3.

A stream is open from the first write with its identifier on. Each host has its own identifiers, for each namespace. A
host that asks for streams of its own (``allocate``) gets them out of what all share; when there are too many, the
oldest of those that share with it is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MOST = 16  # streams that the subsystem has

Place = tuple[int, int]  # NSID, and the host: the CNTLID of its controller, because each is a host of its own


@dataclass
class _Use:
    """What a host has of a namespace. ``own``: streams that nobody else can open. ``opened``: identifiers, each with
    the time of the write that has opened it."""

    own: int = 0
    opened: dict[int, int] = field(default_factory=dict)


class Streams:
    """The streams of a subsystem. All is forgotten when the power goes."""

    def __init__(self) -> None:
        self._used: dict[Place, _Use] = {}
        self._time = 0  # counts streams that were opened

    def enable(self, place: Place) -> None:
        """The host uses streams for the namespace from now on."""
        self._used.setdefault(place, _Use())

    def is_enabled(self, place: Place) -> bool:
        return place in self._used

    def forget(self, is_meant: Callable[[int, int], bool]) -> None:
        """The hosts use no streams any more where ``is_meant`` (NSID, host): none is open, or anybody's own."""
        for place in [place for place in self._used if is_meant(*place)]:
            del self._used[place]

    def release_all(self, nsid: int, host: int | None = None) -> None:
        """No stream of a namespace is open any more, and none is a host's own. None: of all hosts."""
        for place in self._used:
            if place[0] == nsid and host in (None, place[1]):
                self._used[place] = _Use()

    def release(self, place: Place, identifier: int) -> None:
        """The stream is closed, if it was open."""
        self._used[place].opened.pop(identifier, None)

    def allocate(self, place: Place, wanted: int) -> int:
        """Give a host streams of its own, fewer if there are not so many. Those that are open are closed where they
        are too many now. Returns how many it has got; 0: it has none."""
        use = self._used[place]
        use.own = min(wanted, self.available)
        if use.own:
            use.opened.clear()  # they were among those that all share
        self._close_oldest(self._sharing, self.available)
        return use.own

    def write(self, place: Place, identifier: int) -> None:
        """A write has named the stream, which is open from now on."""
        use = self._used.get(place)
        if use is None or identifier in use.opened:
            return
        sharing, most = ([use], use.own) if use.own else (self._sharing, self.available)
        if most:
            self._close_oldest(sharing, most - 1)
            self._time += 1
            use.opened[identifier] = self._time

    @staticmethod
    def _close_oldest(uses: list[_Use], most: int) -> None:
        found = sorted((time, identifier, use) for use in uses for identifier, time in use.opened.items())
        for _, identifier, use in found[: max(0, len(found) - most)]:
            del use.opened[identifier]

    @property
    def _sharing(self) -> list[_Use]:
        return [use for use in self._used.values() if not use.own]

    # --- what hosts are told

    @property
    def available(self) -> int:
        """Streams that are nobody's own (NSSA)."""
        return MOST - sum(use.own for use in self._used.values())

    @property
    def shared(self) -> int:
        """How many of them are open (NSSO)."""
        return sum(len(use.opened) for use in self._sharing)

    def own(self, place: Place) -> int:
        """Streams of the host's own for the namespace (NSA)."""
        return self._used[place].own

    def opened(self, place: Place) -> list[int]:
        """The identifiers of those that the host has opened for the namespace, in ascending order."""
        return sorted(self._used[place].opened)
