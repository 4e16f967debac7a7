"""Commands for the comparison of the two data paths: valid ones, at the edges of what is valid, and valid ones with one
field spoiled. Garbage alone would be refused by the first check."""

from __future__ import annotations

import copy
import random
import struct
from dataclasses import dataclass, field
from typing import Any

from nvmeemu.spec import BROADCAST, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, SglDescriptor
from nvmeemu.testing.sgl import bit_bucket, data_block, point, segment

KIB, MIB = 1 << 10, 1 << 20
PLACES = {  # guest memory: address -> bytes; MORE_DATA is behind DATA for the guest, in the middle
    # of a page, and elsewhere for us
    (QUEUES := 1 * MIB): 256 * KIB,
    (COMPLETIONS := 2 * MIB): 64 * KIB,
    (LISTS := 3 * MIB): 512 * KIB,
    (DATA := 4 * MIB): 254 * KIB,
    (MORE_DATA := 4 * MIB + 254 * KIB): 258 * KIB,
    (ROM := 6 * MIB): 64 * KIB,
    (TOP := (1 << 64) - 64 * KIB): 64 * KIB,
}
HOLE = 8 * MIB
MOST = 2 * MIB  # bytes in a transfer
DISK = 2 * MIB + 256 * KIB
FILE, MEMORY, READ_ONLY = 1, 2, 3  # NSIDs
BLOCKS = {FILE: 512, MEMORY: 4096, READ_ONLY: 512}  # bytes
STRIPES = 8  # parts of the disk and of the data's memory, for commands that must not meet
_WEIGHTS = {
    NvmOpcode.READ: 40,
    NvmOpcode.WRITE: 36,
    NvmOpcode.COMPARE: 6,
    NvmOpcode.FLUSH: 4,
    NvmOpcode.VERIFY: 4,
    NvmOpcode.WRITE_ZEROES: 9,
    NvmOpcode.DATASET_MANAGEMENT: 9,
}
_OF_ENGINE = (
    *(NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.FLUSH),
    *(NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT),
)


@dataclass
class Case:
    """A command, and what the host writes to its memory before."""

    command: Any  # ReadWrite or DatasetManagement
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    spoiled: str = ""
    is_rare: bool = False  # an SGL of a kind that the engine leaves to Python

    @property
    def is_ordinary(self) -> bool:
        """It is the engine's."""
        command = self.command
        if self.spoiled or self.is_rare:
            return False
        if isinstance(command, ReadWrite) and command.nsid == FILE:
            if command.opcode == NvmOpcode.READ and command.fua:  # which has a cache
                return False
            if command.opcode == NvmOpcode.WRITE_ZEROES and not command.deac:  # and perhaps no ranges of zeros
                return False
        return command.opcode in _OF_ENGINE

    def __str__(self) -> str:
        return f"{self.command!r}{f', spoiled: {self.spoiled}' if self.spoiled else ''}"


class Generator:
    """Makes cases for a page size. ``stripe``: a number, to make commands that may run in any order; None: anything."""

    def __init__(self, chance: random.Random, page: int) -> None:
        self._chance = chance
        self._page = page
        self._list = 0
        self._stripe: int | None = None
        self._last_read = Case(ReadWrite())

    def case(self, stripe: int | None = None) -> Case:
        chance = self._chance
        self._stripe = stripe
        opcode = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        case = self._dataset() if opcode is NvmOpcode.DATASET_MANAGEMENT else self._transfer(opcode)
        if chance.random() < 0.5:
            self._spoil(case)
        return case

    # --- valid commands

    def _transfer(self, opcode: int) -> Case:
        chance = self._chance
        if opcode == NvmOpcode.COMPARE and self._stripe is None and chance.random() < 0.5:
            equal = Case(copy.deepcopy(self._last_read.command))
            equal.command.opcode = opcode
            return equal
        nsid = self._nsid()
        block = BLOCKS[nsid]
        blocks = self._blocks(block)
        case = Case(ReadWrite(opcode=opcode, nsid=nsid, nlb=blocks, slba=self._slba(block, blocks)))
        case.command.fua = chance.random() < 0.2
        if opcode == NvmOpcode.WRITE_ZEROES:
            case.command.deac = chance.random() < 0.5
        if opcode == NvmOpcode.FLUSH and chance.random() < 0.3:
            case.command.nsid = BROADCAST
        if opcode not in (NvmOpcode.FLUSH, NvmOpcode.VERIFY, NvmOpcode.WRITE_ZEROES):
            self._point(case, blocks * block)
        if opcode == NvmOpcode.READ:
            self._last_read = case
        return case

    def _dataset(self) -> Case:
        chance = self._chance
        number = chance.choice((1, 2, 3, 256))
        command = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nr=number, ad=chance.random() < 0.8)
        command.nsid = self._nsid()
        block = BLOCKS[command.nsid]
        few = 9 if block == 512 else 2  # all of them less than what takes the engine too long, 2 MiB
        most = MOST // 16 // block if self._stripe is None and chance.random() < 0.3 else few
        lengths = [chance.randrange(most if index < 8 else few) for index in range(number)]
        ranges = b"".join(bytes(DsmRange(length=length, slba=self._slba(block, length))) for length in lengths)
        case = Case(command)
        command.prp1 = self._pages()
        case.writes.append((command.prp1, ranges))
        if chance.random() < 0.3:
            point(command, data_block(command.prp1, len(ranges) + chance.choice((0, 16))))
        return case

    def _nsid(self) -> int:
        return self._chance.choice((FILE, FILE, FILE, MEMORY, MEMORY, READ_ONLY))

    def _blocks(self, block: int) -> int:
        """Mostly so many that their bytes are at an edge of one, two, three pages."""
        chance = self._chance
        if self._stripe is None and chance.random() < 0.02:
            return chance.choice((MOST // block, MOST // block - 1, MOST // block // 2 + 1))
        pages = chance.choices((1, 2, 3, 4, 9), (30, 30, 25, 10, 5 if self._stripe is None else 0))[0]
        edge = pages * self._page // block + chance.choice((-1, 0, 0, 1))
        return max(1, edge if chance.random() < 0.8 else chance.randrange(1, edge + 2))

    def _slba(self, block: int, blocks: int) -> int:
        """In the stripe, or anywhere, the disk's last block too."""
        size = DISK // block
        if self._stripe is not None:
            return self._stripe * (size // STRIPES) + self._chance.randrange(max(1, size // STRIPES - blocks))
        return self._chance.choice((0, size - blocks, self._chance.randrange(size - blocks + 1)))

    def _pages(self) -> int:
        """The address of a page for data, one behind which are others."""
        page, chance = self._page, self._chance
        if self._stripe is not None:
            room = 512 * KIB // STRIPES
            return DATA + self._stripe * room + chance.randrange(room // page) * page
        if chance.random() < 0.05:
            return TOP + chance.randrange(64 * KIB // page) * page
        if chance.random() < 0.1:
            return DATA + 256 * KIB - page  # where the other region begins
        return DATA + chance.randrange(512 * KIB // page) * page

    def _offset(self) -> int:
        chance, page = self._chance, self._page
        edges = (0, 0, 0, 512, 2048, page - 512, page - 4, 4)
        return chance.choice(edges) if chance.random() < 0.9 else chance.randrange(0, page, 4)

    def _point(self, case: Case, length: int) -> None:
        """Its data by PRPs, or by an SGL."""
        if self._chance.random() < 0.65:
            case.command.prp1, case.command.prp2 = self._prps(case, length)
            return
        start = self._pages() + self._chance.randrange(self._page)
        if self._chance.random() < 0.3 and self._is_memory(start) and self._is_memory(start + length - 1):
            point(case.command, data_block(start, length + self._chance.choice((0, 0, 1, 4096))))
        else:
            point(case.command, self._sgl(case, length))

    def _sgl(self, case: Case, length: int) -> SglDescriptor:
        """A last segment of data blocks; sometimes what is rarer."""
        chance, page = self._chance, self._page
        case.is_rare = chance.random() < 0.2
        blocks, left = [], length
        is_small = length <= 8 * page
        while left > 0:
            offset = chance.choice((0, 512, page - 4, chance.randrange(page))) if is_small else 0
            size = min(left, chance.choice((page, page - offset, 512, 3)) if is_small else page, page - offset)
            if case.is_rare and chance.random() < 0.2:
                blocks.append(bit_bucket(size))
                left -= size if case.command.opcode == NvmOpcode.READ else 0
                continue
            blocks.append(data_block(self._pages() + offset, size))
            left -= size
            if chance.random() < 0.1:
                blocks.append(data_block(chance.choice((0, HOLE)), 0))
        if chance.random() < 0.2:
            blocks[-1].length += chance.choice((1, 512, 1 << 20))
        return self._segments(case, blocks)

    def _segments(self, case: Case, blocks: list[SglDescriptor]) -> SglDescriptor:
        """One last segment, or a chain of two."""
        self._list = (self._list + 1) % (512 * KIB // self._page)
        place = min(LISTS + self._list * self._page, LISTS + 512 * KIB - 16 * (len(blocks) + 1))
        middle = self._chance.randrange(1, len(blocks)) if case.is_rare and len(blocks) > 1 else 0
        first = segment(place, len(blocks))
        if middle:
            following = segment(place + 16 * (middle + 1), len(blocks) - middle)
            first, blocks = segment(place, middle + 1, is_last=False), [*blocks[:middle], following, *blocks[middle:]]
        case.writes.append((place, b"".join(map(bytes, blocks))))
        return first

    def _prps(self, case: Case, length: int) -> tuple[int, int]:
        chance, page = self._chance, self._page
        offset = self._offset()
        number = -(-max(length - (page - offset), 0) // page)
        first = self._pages()
        if chance.random() < 0.5:
            pages = [first + page * (index + 1) for index in range(number)]
        else:
            pages = [self._pages() for _ in range(number)]
        pages = [iova if self._is_memory(iova) else self._pages() for iova in pages]
        if number < 2:
            return first + offset, pages[0] if pages else chance.choice((0, HOLE, 1))
        return first + offset, self._write_list(case, pages)

    def _is_memory(self, iova: int) -> bool:
        if self._stripe is not None:
            room = 512 * KIB // STRIPES
            return DATA + self._stripe * room <= iova < DATA + (self._stripe + 1) * room
        return DATA <= iova < DATA + 512 * KIB or TOP <= iova < 1 << 64

    def _write_list(self, case: Case, pages: list[int]) -> int:
        """A PRP list that begins at a slot of its own, chained as often as it must be."""
        slots = self._page // 8
        start = pointer = self._list_place(slots)
        while pages:
            room = slots - pointer % self._page // 8
            if len(pages) > room:
                following = self._list_place(slots)
                entries, pages = [*pages[: room - 1], following], pages[room - 1 :]
            else:
                entries, pages, following = pages, [], 0
            case.writes.append((pointer, struct.pack(f"<{len(entries)}Q", *entries)))
            pointer = following
        return start

    def _list_place(self, slots: int) -> int:
        self._list = (self._list + 1) % (512 * KIB // self._page)
        chance = self._chance
        slot = chance.choice((0, 0, 1, slots - 1, slots - 2, slots - 3, chance.randrange(slots)))
        return LISTS + self._list * self._page + 8 * slot

    # --- one field spoiled

    def _spoil(self, case: Case) -> None:
        chance = self._chance
        names = _ANYWHERE if self._stripe is None else _IN_ORDER
        name = chance.choice(names)
        case.spoiled = name
        getattr(self, f"_spoil_{name}")(case.command, case)

    def _spoil_opcode(self, command: Any, case: Case) -> None:
        command.opcode = self._chance.randrange(256)

    def _spoil_flags(self, command: Any, case: Case) -> None:
        """Not PSDT 01b and 10b: PRPs that are taken for an SGL describe memory that another command of the round has,
        too, and which of the two is first is not said. Nor FUSE 01b, which makes a command wait for the next one."""
        command.flags = self._chance.choice((0x03, 0x02, 0xC0, 0x04, 0x3C))

    def _spoil_nsid(self, command: Any, case: Case) -> None:
        command.nsid = self._chance.choice((0, 4, 16, 17, 64, 65, 0x101, 0xFFFFFFFE, 0xFFFFFFFF))

    def _spoil_slba(self, command: Any, case: Case) -> None:
        end = DISK // BLOCKS.get(command.nsid, 512)
        blocks = command.nlb if isinstance(command, ReadWrite) else 1
        values = (end - blocks + 1, end - 1, end, 1 << 32, 1 << 52, 1 << 55, 1 << 63, -1, -blocks)
        command.data[40:48] = (self._chance.choice(values) % (1 << 64)).to_bytes(8, "little")

    def _spoil_nlb(self, command: Any, case: Case) -> None:
        nlb = self._chance.choice((0xFFFF, MOST // 512, MOST // 512 - 1, DISK // 512, 0x8000, 0))
        command.data[48:50] = nlb.to_bytes(2, "little")

    def _spoil_control(self, command: Any, case: Case) -> None:
        """The other half of CDW12: FUA, LR, PRINFO, what is reserved."""
        command.data[50:52] = (1 << self._chance.randrange(16)).to_bytes(2, "little")

    def _spoil_unused(self, command: Any, case: Case) -> None:
        """What nobody reads, or only as a hint: CDW2, CDW3, the metadata pointer, CDW13 to 15."""
        place = self._chance.choice((8, 12, 16, 20, 52, 56, 60))
        command.data[place : place + 4] = self._chance.randbytes(4)

    def _strange(self, old: int) -> int:
        steps = (1, 2, 3, 4, 8, 16, 512, 2048, -4, -8, self._page // 2)
        if self._chance.random() < 0.5:
            return (old + self._chance.choice(steps)) % (1 << 64)
        return self._chance.choice((0, HOLE, ROM, ROM + 60 * KIB, ROM + 64 * KIB, TOP, (1 << 64) - 4, MORE_DATA - 4))

    def _spoil_prp1(self, command: Any, case: Case) -> None:
        command.prp1 = self._strange(command.prp1)

    def _spoil_prp2(self, command: Any, case: Case) -> None:
        command.prp2 = self._strange(command.prp2)

    def _spoil_entry(self, command: Any, case: Case) -> None:
        """Of a PRP list, a pointer to the next one too; or a range of Dataset Management."""
        if not case.writes:
            self._spoil_prp2(command, case)
            return
        index = self._chance.randrange(len(case.writes))
        place, text = case.writes[index]
        start = self._chance.choice((0, len(text) - 8, self._chance.randrange(0, len(text), 8)))
        entry = self._strange(int.from_bytes(text[start : start + 8], "little"))
        case.writes[index] = place, text[:start] + entry.to_bytes(8, "little") + text[start + 8 :]


_IN_ORDER = ("flags", "nsid", "control", "unused")
_ANYWHERE = (*_IN_ORDER, "opcode", "slba", "slba", "nlb", "prp1", "prp2", "entry", "entry")
