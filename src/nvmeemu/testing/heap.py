"""The memory of a small host driver: addresses that it takes and gives back."""

from __future__ import annotations

from collections import deque

_REST = 1 << 20  # bytes


class Heap:
    """Guest memory from ``start`` upwards. Memory that comes back rests until there is 1 MiB of it; then it may be
    taken again. So a test finds a device that writes where it must not any more, because no new owner overwrites the
    trace of it."""

    def __init__(self, start: int) -> None:
        self._end = start  # nothing from here on has been given out
        self._taken: dict[int, int] = {}  # address -> size
        self._resting: deque[tuple[int, int]] = deque()  # start, end
        self._holes: list[tuple[int, int]] = []  # free again, in order, none next to another

    def take(self, size: int, align: int) -> int:
        """The address of ``size`` bytes, a multiple of ``align``."""
        size = max(size, 1)
        for index, (start, end) in enumerate(self._holes):
            place = _up(start, align)
            if place + size <= end:
                rest = ((start, place), (place + size, end))
                self._holes[index : index + 1] = [hole for hole in rest if hole[0] < hole[1]]
                break
        else:
            place = _up(self._end, align)
            self._end = place + size
        self._taken[place] = size
        return place

    def give_back(self, place: int) -> None:
        """Give memory back. Raises ValueError for memory that is not taken."""
        if place not in self._taken:
            raise ValueError(f"the memory at {place:#x} has not been allocated, or has been freed already")
        self._resting.append((place, place + self._taken.pop(place)))
        while sum(end - start for start, end in self._resting) > _REST:
            self._release(*self._resting.popleft())

    def _release(self, start: int, end: int) -> None:
        holes: list[tuple[int, int]] = []
        for hole in sorted((*self._holes, (start, end))):
            if holes and holes[-1][1] == hole[0]:
                hole = (holes.pop()[0], hole[1])
            holes.append(hole)
        self._holes = holes


def _up(address: int, align: int) -> int:
    return -(-address // align) * align
