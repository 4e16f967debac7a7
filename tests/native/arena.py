"""An arena: a controller that tests attack, and the record of which commands must still complete.

``bench_arena`` has the controller in this process, ``server_arena`` in a server's.
"""

from __future__ import annotations

import os
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from native.shadow import ShadowBus
from nvmeemu.spec import BROADCAST, DOORBELLS, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bus, Driver
from nvmeemu.testing.sgl import data_block, point, segment

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 512
PER_PAGE = PAGE // BLOCK  # blocks
QUEUE_SLOTS, SLOT_PAGES = 20, 4  # places of data of each queue: no page is two lanes', which TSan would take for a race
SLOTS = 2 * QUEUE_SLOTS
QUEUES, DATA = 1 * MIB, 2 * MIB  # the regions of memory: what Driver allocates, and PRP lists; the places of the data
SIZES = {QUEUES: 256 * KIB, DATA: SLOTS * SLOT_PAGES * PAGE}
REGIONS = tuple(SIZES)
READ_ONLY = 1 * MIB  # bytes of a disk that are not written: each block's page says its number; behind it, a slot each
DISK = READ_ONLY + SLOTS * SLOT_PAGES * PAGE
_CHANGES = (*[NvmOpcode.WRITE] * 3, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT)
_GONE = b"\xbd"
_PRACT, _CHECKS = 8, 7  # in PRINFO


@dataclass(frozen=True)
class Sent:
    """A command that has no completion yet. ``slot``: where its data is; None: it has none."""

    qid: int
    opcode: int
    nsid: int = 1
    slot: int | None = None
    slba: int = 0
    pages: int = 0


def _place(slot: int) -> int:
    """Where its data is."""
    return DATA + slot * SLOT_PAGES * PAGE


def _list(slot: int) -> int:
    """Where its PRP list is: behind what Driver takes."""
    return QUEUES + SIZES[QUEUES] - (SLOTS - slot) * PAGE


def _segment(slot: int) -> int:
    """Where the segment of its SGL is: behind that list."""
    return _list(slot) + PAGE // 2


def content(slba: int) -> bytes:
    """The page that begins at this block of a disk, as it is from the beginning."""
    return slba.to_bytes(8, "little") * (PAGE // 8)


def create_disk(path: Path) -> int:
    """A disk with this content, open for those who check it."""
    path.write_bytes(b"".join(content(slba) for slba in range(0, DISK // BLOCK, PER_PAGE)))
    return os.open(path, os.O_RDWR)


class Arena(ABC):
    """A host with two pairs of queues on a lane each, namespaces 1 and 2, and the books. Close it when done."""

    rounds: int  # of an attack in everyday's tests
    patience: int  # times that ``settle`` is called for what has to complete
    protected: frozenset[int] = frozenset()  # namespaces with protection information of type 1, and no other metadata

    def __init__(self, seed: int, disks: dict[int, int], *, has_shadows: bool) -> None:
        self.chance = random.Random(seed)
        self.completed = 0
        self.was_slow = False  # memory was away for longer than commands wait for it
        self._disks = disks  # nsid -> a file
        self._has_shadows = has_shadows
        self._versions = 0
        self._free: dict[int, list[int]] = {}  # qid -> slots

    def close(self) -> None:
        for fd in set(self._disks.values()):
            os.close(fd)

    # --- the host

    @property
    @abstractmethod
    def host(self) -> Bus: ...

    @abstractmethod
    def settle(self) -> None:
        """Let the device do what it can do now."""

    @abstractmethod
    def pass_a_moment(self) -> None:
        """For the controller's thread."""

    @abstractmethod
    def take_memory(self, regions: Iterable[int]) -> None:
        """Unmap them; nobody may touch them until they are back. None: the map is only about to change."""

    @abstractmethod
    def bring_memory(self, regions: Iterable[int]) -> None:
        """Map them again, maybe elsewhere."""

    @abstractmethod
    def replace_host(self) -> None:
        """The VMM is gone, without a word, and another one is there, with memory of its own."""

    @abstractmethod
    def reset_function(self) -> None: ...

    @abstractmethod
    def reroute(self) -> None:
        """Interrupts go another way from now on. What comes on the old one is lost."""

    @abstractmethod
    def interrupts(self) -> Iterable[int]:
        """The vectors that have had interrupts since the last call."""

    @abstractmethod
    def wait_for_interrupts(self) -> None:
        """Nothing is said to the device meanwhile."""

    # --- its driver

    def start(self) -> None:
        """Enable, with two pairs of queues; what was under way is forgotten."""
        self.sent: dict[int, Sent] = {}
        for slot in range(SLOTS):
            pages = range(_place(slot) + PAGE, _place(slot + 1), PAGE)
            self.host.write_memory(_list(slot), struct.pack(f"<{len(pages)}Q", *pages))
        self.bus = ShadowBus(self.host)
        self.driver = Driver(self.bus, heap=QUEUES)
        self.driver.patience = max(self.driver.patience, self.patience)
        self.driver.enable()
        if self._has_shadows:
            self.bus.configure(self.driver)
        self.create(1)
        self.create(2)

    def create(self, qid: int) -> None:
        """A pair of queues that is new, or was deleted."""
        self._free[qid] = list(range((qid - 1) * QUEUE_SLOTS, qid * QUEUE_SLOTS))
        self.bus.clear(qid)
        self.driver.create_queues(qid, self.chance.choice((24, 40, 64)), vector=qid)

    def is_ready(self) -> bool:
        return self.driver.status.rdy

    # --- commands

    def submit(self, *qids: int) -> None:
        """Up to 20 commands, and the doorbells, without waiting for anything."""
        self.was_slow = False
        chosen = self.chance.choices(qids, k=self.chance.randrange(1, 20))
        for qid in chosen:
            self._submit(qid)
        for qid in sorted(set(chosen)):
            self._ring(2 * qid, self.driver.queues[qid].sq_tail)

    def _ring(self, doorbell: int, value: int) -> None:
        self.bus.write_bar(DOORBELLS + 4 * doorbell, value.to_bytes(4, "little"))

    def _submit(self, qid: int) -> None:
        chance, queue = self.chance, self.driver.queues[qid]
        if chance.random() < 0.05:
            flush = ReadWrite(opcode=NvmOpcode.FLUSH, nsid=chance.choice((1, 2, BROADCAST)))
            self.sent[self.driver.submit(queue, flush, ring=False)] = Sent(qid, NvmOpcode.FLUSH)
            return
        free = self._free[qid]
        slot, pages = free.pop(chance.randrange(len(free))), chance.randrange(1, SLOT_PAGES + 1)
        place, nsid = _place(slot), chance.choice((1, 2))
        if chance.random() < 0.3:
            opcode, slba = chance.choice(_CHANGES), READ_ONLY // BLOCK + slot * SLOT_PAGES * PER_PAGE
            self._versions += 1
            self.bus.write_memory(place, content(self._versions << 32) * pages)
        else:
            opcode, slba = NvmOpcode.READ, chance.randrange(READ_ONLY // PAGE - SLOT_PAGES) * PER_PAGE
        if opcode == NvmOpcode.DATASET_MANAGEMENT:
            self.bus.write_memory(place, bytes(DsmRange(slba=slba, length=pages * PER_PAGE)))
            dataset = DatasetManagement(opcode=opcode, nsid=nsid, prp1=place, nr=1, ad=True)
            self.sent[self.driver.submit(queue, dataset, ring=False)] = Sent(qid, opcode, nsid, slot, slba, pages)
            return
        command = ReadWrite(
            opcode=opcode,
            nsid=nsid,
            slba=slba,
            nlb=pages * PER_PAGE,
            fua=chance.random() < (0.15 if nsid == 1 or opcode == NvmOpcode.READ else 0.05),  # 2 may be a real disk
            deac=opcode == NvmOpcode.WRITE_ZEROES and chance.random() < 0.5,
            prinfo=self._prinfo(nsid, opcode),
            cdw14=slba,
        )
        self._point(command, slot, pages)
        self.sent[self.driver.submit(queue, command, ring=False)] = Sent(qid, opcode, nsid, slot, slba, pages)

    def _point(self, command: ReadWrite, slot: int, pages: int) -> None:
        """To its data: mostly by PRPs, else by an SGL, of one data block or of one for each page."""
        place, kind = _place(slot), self.chance.randrange(4)
        if kind == 0:
            point(command, data_block(place, pages * PAGE))
        elif kind == 1:
            blocks = [data_block(place + at * PAGE, PAGE) for at in range(pages)]
            self.bus.write_memory(_segment(slot), b"".join(map(bytes, blocks)))
            point(command, segment(_segment(slot), pages))
        else:
            command.prp1, command.prp2 = place, (0, place + PAGE, _list(slot))[min(pages, 3) - 1]

    def _prinfo(self, nsid: int, opcode: int) -> int:
        """Of a disk with protection information: it is made, and checked. Otherwise: some commands are Python's."""
        if nsid not in self.protected:
            return int(self.chance.random() < 0.1)
        return _PRACT if opcode == NvmOpcode.WRITE_ZEROES else _PRACT | self.chance.choice((0, _CHECKS))

    def collect(self, qid: int, *, deleted: bool = False) -> None:
        """Take the completions that are there. Each is of a command that was sent, and has done its work, unless its
        queue was ``deleted``."""
        queue = self.driver.queues[qid]
        head = queue.cq_head
        while (completion := self.driver.poll(queue, ring=False)) is not None:
            sent = self.sent.pop(completion.cid)  # KeyError: nobody has sent it, or it is the second one
            assert sent.qid == completion.sqid == qid
            is_spared = (deleted and completion.status == Status.ABORTED_SQ_DELETION) or (
                self.was_slow and completion.status == Status.DATA_TRANSFER_ERROR
            )
            assert is_spared or completion.status == Status.SUCCESS, completion
            self.completed += 1
            if sent.slot is not None:
                self._free[qid].append(sent.slot)
                if not is_spared:
                    self._check_data(sent, sent.slot)
        if queue.cq_head != head:
            self._ring(2 * qid + 1, queue.cq_head)

    def _check_data(self, sent: Sent, slot: int) -> None:
        data = self.bus.read_memory(_place(slot), sent.pages * PAGE)
        if sent.opcode in (NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT):
            assert os.pread(self._disks[sent.nsid], sent.pages * PAGE, sent.slba * BLOCK) == bytes(sent.pages * PAGE)
        elif sent.opcode == NvmOpcode.WRITE:
            assert os.pread(self._disks[sent.nsid], len(data), sent.slba * BLOCK) == data
        else:
            assert data == b"".join(content(sent.slba + page * PER_PAGE) for page in range(sent.pages))

    def take_interrupts(self) -> None:
        for qid in {1, 2}.intersection(self.interrupts()):
            self.collect(qid)

    def finish(self, *qids: int) -> None:
        """Let everything be done that can be done: nothing of these queues is missing."""
        for _ in range(self.patience):
            self.settle()
            for qid in qids or self.driver.queues:
                self.collect(qid)
            missing = [sent for sent in self.sent.values() if not qids or sent.qid in qids]
            if not missing:
                return
        raise AssertionError(f"lost: {missing}")

    # --- time

    def spin(self) -> None:
        """Let some time pass: none, a moment for the lanes, or for the controller's thread."""
        for _ in range(self.chance.randrange(3)):
            if self.chance.random() < 0.5:
                self.pass_a_moment()
            else:
                sum(range(self.chance.randrange(3000)))

    def stays_untouched(self, *living: int, disks: bool = True) -> None:
        """Whatever is still under way: it does not reach the guest's memory, nor the disks, any more. Of the queues
        that are ``living`` the EventIdx may change: the device asks for doorbells when it has nothing more to do."""
        before = self._everything(living)
        self.spin()
        self.settle()
        changed = [name for name, data in self._everything(living).items() if data != before[name]]
        assert not [name for name in changed if disks or name.startswith("memory")], f"written late: {changed}"

    def _everything(self, living: Iterable[int]) -> dict[str, bytes | bytearray]:
        queues = bytearray(self.host.read_memory(QUEUES, SIZES[QUEUES]))
        for place in filter(None, map(self.bus.events, living)):
            queues[place - QUEUES : place - QUEUES + 8] = bytes(8)
        disks = {f"namespace {nsid}": os.pread(fd, DISK, READ_ONLY) for nsid, fd in self._disks.items()}
        return {"memory of the queues": queues, "memory of data": self.host.read_memory(DATA, SIZES[DATA]), **disks}


def spoil(size: int) -> bytes:
    """What memory that is away is full of."""
    return _GONE * size


def check_spoilt(data: bytes) -> None:
    """Nobody has written into it."""
    assert data == spoil(len(data)), "memory was written while it was unmapped"
