"""The guest's memory of the fuzzer: areas that come, go and fall to pieces, and a mirror that tells who wrote."""

from __future__ import annotations

from collections.abc import Callable

from nvmeemu.testing import Ram

PAGE = 4096
SLOT = 2 * PAGE  # room for a queue at any page size in use
SLOTS = 40
MOST_DESCRIPTORS = 1 << 15


class Violation(AssertionError):
    """The controller did what no controller may do."""


class Area:
    """A stretch of guest memory. Its bytes stay when the VMM unmaps it; ``mirror`` is what they ought to be."""

    def __init__(self, ram: Ram, iova: int, size: int, writable: bool = True) -> None:
        self.iova = iova
        self.size = size
        self.is_rom = not writable
        self.is_mapped = False
        self.is_writable = False
        self.mirror = bytearray(size)
        self._ram = ram
        self._pieces: list[tuple[int, bytearray]] = [(iova, bytearray(size))]
        self.map()

    @property
    def data(self) -> bytearray:
        """All of its bytes; a copy while it is in pieces."""
        if len(self._pieces) == 1:
            return self._pieces[0][1]
        return bytearray().join(piece for _, piece in self._pieces)

    def unmap(self) -> None:
        """Raises BufferError if anybody still has a view of it."""
        if self.is_mapped:
            self.is_mapped = False
            for iova, _ in self._pieces:
                self._ram.unmap(iova)

    def map(self, *, writable: bool = True, piece: int = 0) -> None:
        """Map it again, whole or in pieces of ``piece`` bytes."""
        self.unmap()
        data, step = self.data, piece or self.size
        starts = range(0, self.size, step)
        self._pieces = [(self.iova + start, data[start : start + step]) for start in starts]
        self.is_mapped, self.is_writable = True, writable and not self.is_rom
        for iova, part in self._pieces:
            self._ram.map(iova, len(part), data=part, writable=self.is_writable)

    def read(self, start: int, size: int) -> bytes:
        if len(self._pieces) == 1:
            return bytes(self._pieces[0][1][start : start + size])
        width = len(self._pieces[0][1])
        first = start // width
        data = b"".join(piece for _, piece in self._pieces[first : (start + size - 1) // width + 1])
        return data[start - first * width :][:size]

    def write(self, start: int, data: bytes) -> None:
        """The host writes: into the bytes and into the mirror."""
        self.mirror[start : start + len(data)] = data
        for iova, part in self._pieces:
            first, last = max(start, iova - self.iova), min(start + len(data), iova - self.iova + len(part))
            if first < last:
                offset = iova - self.iova
                part[first - offset : last - offset] = data[first - start : last - start]

    def difference(self) -> int | None:
        """The first place where the bytes differ from the mirror."""
        data = self.data
        if data == self.mirror:
            return None
        return next(index for index in range(self.size) if data[index] != self.mirror[index])


class Guest:
    """All of the guest's memory, as its own processor sees it."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.queues = Area(ram, 0x100000, SLOT * SLOTS)
        self.lists = Area(ram, 0x200000, 16 * PAGE)
        self.shadows = Area(ram, 0x300000, 4 * 16 * PAGE)
        self.data = (Area(ram, 0x400000, 16 * PAGE), Area(ram, 0x420000, 16 * PAGE))
        self.rom = Area(ram, 0x500000, 2 * PAGE, writable=False)
        self.top = Area(ram, (1 << 64) - 2 * PAGE, 2 * PAGE)
        self.areas = (self.queues, self.lists, self.shadows, *self.data, self.rom, self.top)

    @property
    def is_whole(self) -> bool:
        return all(area.is_mapped and area.is_writable is not area.is_rom for area in self.areas)

    def _each(self, iova: int, size: int, do: Callable[[Area, int, int], None]) -> bool:
        """Call ``do(area, start, bytes)`` for what lies in areas; False if anything lies outside."""
        covered = 0
        for area in self.areas:
            first, last = max(iova, area.iova), min(iova + size, area.iova + area.size)
            if first < last:
                covered += last - first
                do(area, first - area.iova, last - first)
        return covered == size

    def read(self, iova: int, size: int) -> bytes | None:
        """None if there is no such memory."""
        found: list[bytes] = []
        is_whole = self._each(iova, size, lambda area, start, number: found.append(area.read(start, number)))
        return b"".join(found) if is_whole else None

    def write(self, iova: int, data: bytes) -> None:
        self._each(
            iova,
            len(data),
            lambda area, start, number: area.write(start, data[area.iova + start - iova :][:number]),
        )

    def accept(self, iova: int, size: int) -> None:
        """The controller may have written here."""

        def do(area: Area, start: int, number: int) -> None:
            area.mirror[start : start + number] = area.read(start, number)

        self._each(iova, size, do)

    def accept_all(self) -> None:
        for area in self.areas:
            area.mirror[:] = area.data

    def fit_for_queues(self, places: tuple[tuple[int, int], tuple[int, int]]) -> bool:
        """Whether two queues lie apart from each other, and where only queues lie, or nothing."""
        for iova, size in places:
            inside = [area for area in self.areas if iova < area.iova + area.size and area.iova < iova + size]
            if inside not in ([], [self.queues]) or iova + size > 1 << 64:
                return False
        (one, one_size), (other, other_size) = places
        return one + one_size <= other or other + other_size <= one

    def check(self) -> None:
        """Check that nobody wrote what was not accepted."""
        for area in self.areas:
            if (start := area.difference()) is not None:
                raise Violation(f"memory at {area.iova + start:#x} was written, and no command allows it")


def walk_sgl(guest: Guest, first: bytes, length: int, is_read: bool) -> list[tuple[int, int]] | None:
    """The same for an SGL, without its bit buckets; or None if it is bad. Written apart from the controller's."""
    places: list[tuple[int, int]] = []
    one, at, end, left = first, 0, 0, length
    for _ in range(MOST_DESCRIPTORS):
        address, size, kind = int.from_bytes(one[:8], "little"), int.from_bytes(one[8:12], "little"), one[15]
        if kind in (0x20, 0x30) and at == end and size and size % 16 == 0:
            at, end = address, address + size
        elif kind == 0x10:
            left -= min(size, left) if is_read else 0
        elif kind == 0x00:
            places += [(address, min(size, left))] if size else []
            left -= min(size, left)
        else:
            return None
        if not left:
            return places
        found = guest.read(at, 16) if at < end else None
        if found is None:
            return None
        one, at = found, at + 16
    return None


def walk(guest: Guest, prp1: int, prp2: int, length: int, page: int) -> list[tuple[int, int]] | None:
    """Where a command's data lies: (iova, bytes), or None if its PRPs are bad. Written apart from the controller's."""
    if prp1 % 4:
        return None
    places = [(prp1, min(length, page - prp1 % page))]
    left = length - places[0][1]
    number = -(-left // page)
    entries = [prp2] if number == 1 else []
    pointer = prp2
    if number > 1 and pointer % 8:
        return None
    while len(entries) < number:
        raw = guest.read(pointer, 8)
        if raw is None:
            return None
        value = int.from_bytes(raw, "little")
        if value % page:
            return None
        if pointer % page == page - 8 and number - len(entries) > 1:
            pointer = value
        else:
            entries.append(value)
            pointer += 8
    for entry in entries:
        if entry % page:
            return None
        places.append((entry, min(left, page)))
        left -= page
    return places
