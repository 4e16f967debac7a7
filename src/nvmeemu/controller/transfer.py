"""Where the data of a command lies in guest memory: the seam between commands and data pointers. Base 1.4, 4.3."""

from __future__ import annotations

from nvmeemu.controller import prp
from nvmeemu.ports import Host, HostMemoryError


class Transfer:
    """``runs`` are the places that the data pointer describes, (iova, bytes) in order. The pointer is walked once. So
    the host cannot change later where data goes, nor what a trace says of it."""

    __slots__ = ("_host", "_page_size", "_prp1", "_prp2", "length", "runs")

    def __init__(self, host: Host, prp1: int, prp2: int, page_size: int) -> None:
        self.length = 0
        self.runs: list[tuple[int, int]] = []
        self._host = host
        self._prp1 = prp1
        self._prp2 = prp2
        self._page_size = page_size

    def views(self, length: int, writable: bool) -> list[memoryview]:
        """Views of its ``length`` bytes, in order. They die with the memory map. Raises
        CommandFailed(INVALID_PRP_OFFSET), and HostMemoryError where memory is missing."""
        if length != self.length:
            self.runs = prp.runs(self._host, self._prp1, self._prp2, length, self._page_size)
            self.length = length
        if len(self.runs) == 1:
            iova, size = self.runs[0]
            try:
                return [self._host.view(iova, size)]
            except HostMemoryError:
                return self._host.views(iova, size, writable)
        found: list[memoryview] = []
        for iova, size in self.runs:
            found += self._host.views(iova, size, writable)
        return found

    @property
    def has_list(self) -> bool:
        """Whether the data pointer has a PRP list."""
        return self.length > 2 * self._page_size - (self._prp1 & self._page_size - 1)


def scatter(places: list[memoryview], data: bytes | bytearray | memoryview) -> None:
    """Copy ``data`` into ``places``, in order."""
    source = memoryview(data)
    start = 0
    for place in places:
        place[:] = source[start : start + len(place)]
        start += len(place)
