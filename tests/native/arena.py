"""Where the native engine is attacked in this process: guest memory that bites, and books of what must complete.

Memory that the VMM takes away is protected (the next touch by C ends the process) or, in turn, filled with a pattern
that must be there when it comes back (what the kernel does for us would only fail on protected memory). It may come
back at another place of ours, as with a real VMM.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from nvmeemu.backend import Direct
from nvmeemu.backend.raw import RawBackend
from nvmeemu.namespace import Namespace
from nvmeemu.spec import NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair, Ram

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 512
PER_PAGE = PAGE // BLOCK  # blocks
SLOTS, SLOT_PAGES = 24, 4  # places of data
QUEUES, DATA = 1 * MIB, 2 * MIB  # the regions of memory: what Driver allocates, and PRP lists; the places of the data
SIZES = {QUEUES: 256 * KIB, DATA: SLOTS * SLOT_PAGES * PAGE}
READ_ONLY = 1 * MIB  # bytes of the disk that are not written: each block's page says its number; behind it, a slot each
DISK = READ_ONLY + SLOTS * SLOT_PAGES * PAGE
_GONE = b"\xbd"
_PROT_NONE = 0  # <sys/mman.h>; Python does not name it
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(memory: mmap.mmap, protection: int) -> None:
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), protection) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


class BitingRam(Ram):
    """A Ram of mappings that nobody can touch unnoticed while they are unmapped."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(0)
        self._chance = chance
        self._gone: dict[int, tuple[mmap.mmap, bytes | None]] = {}
        self.fds: dict[int, int] = {}  # vector -> eventfd

    def add(self, iova: int, memory: mmap.mmap | None = None) -> None:
        memory = memory or mmap.mmap(-1, SIZES[iova])
        self.map(iova, len(memory), data=cast(bytearray, memory))

    def remove(self, iova: int) -> None:
        memory = cast(mmap.mmap, self._regions.pop(iova).data)
        self._starts.remove(iova)
        assert self.mirror is not None
        self.mirror.remove_region(iova)
        if self._chance.random() < 0.5:
            self._gone[iova] = memory, None
            _protect(memory, _PROT_NONE)
        else:
            self._gone[iova] = memory, memory[:]
            memory[:] = _GONE * len(memory)

    def bring_back(self, iova: int) -> None:
        memory = self._check(iova)
        if self._chance.random() < 0.5:
            other = mmap.mmap(-1, len(memory))
            other[:] = memory[:]
            memory.close()  # BufferError if anybody still holds a view
            memory = other
        self.add(iova, memory)

    def forget(self, iova: int) -> None:
        """The VMM that had it is gone for good."""
        self._check(iova).close()

    def _check(self, iova: int) -> mmap.mmap:
        memory, kept = self._gone.pop(iova)
        if kept is None:
            _protect(memory, mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            assert memory[:] == _GONE * len(memory), "memory was written while it was unmapped"
            memory[:] = kept
        return memory

    def interrupt_fd(self, vector: int) -> int:
        return self.fds.get(vector, -1)


@dataclass(frozen=True)
class Sent:
    """A command that has no completion yet. ``slot``: where its data is; None: it has none."""

    qid: int
    opcode: int
    slot: int | None = None
    slba: int = 0
    pages: int = 0


def _place(slot: int) -> int:
    """Where its data is."""
    return DATA + slot * SLOT_PAGES * PAGE


def _list(slot: int) -> int:
    """Where its PRP list is: behind what Driver takes."""
    return QUEUES + SIZES[QUEUES] - (SLOTS - slot) * PAGE


def content(slba: int) -> bytes:
    """The page that begins at this block of the disk, as it is from the beginning."""
    return slba.to_bytes(8, "little") * (PAGE // 8)


class QuickDisk(RawBackend):
    """A file in memory that syncs nothing: neither durability nor the machine's disk is what is tried here."""

    def through_io_uring(self) -> Self:
        """The same file, as one whose reads and writes may all have to wait."""
        other = copy.copy(self)
        other.direct = Direct(fd=self._fd)
        return other

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        super().write(offset, views)

    def flush(self) -> None:
        pass


class Arena:
    """A bench with the native engine on a file, its driver, and the books."""

    def __init__(self, seed: int, disk: Path, engine: str = "native") -> None:
        self.chance = random.Random(seed)
        disk.write_bytes(b"".join(content(slba) for slba in range(0, DISK // BLOCK, PER_PAGE)))
        self.ram = BitingRam(self.chance)
        self._disk = os.open(disk, os.O_RDWR)
        backend = QuickDisk(str(disk))
        self.bench = Bench(backend, ram=self.ram, engine=engine, lanes=2)
        self.bench.namespaces.add(Namespace(2, backend.through_io_uring(), BLOCK))
        self.controller = self.bench.controller
        self.completed = 0
        self._versions = 0
        self.add_memory()
        self.start()

    def close(self) -> None:
        self.bench.close()
        os.close(self._disk)

    def add_memory(self) -> None:
        self.controller.quiesce()
        self.ram.add(QUEUES)
        self.ram.add(DATA)
        self.controller.memory_changed()
        for slot in range(SLOTS):
            pages = range(_place(slot) + PAGE, _place(slot + 1), PAGE)
            self.ram.write(_list(slot), struct.pack(f"<{len(pages)}Q", *pages))

    def start(self) -> None:
        """Enable, with two pairs of queues, on a lane each; what was under way is forgotten."""
        self.sent: dict[int, Sent] = {}
        self._free = list(range(SLOTS))
        self.driver = Driver(self.bench, heap=QUEUES)
        self.driver.enable()
        self.create(1)
        self.create(2)

    def create(self, qid: int) -> QueuePair:
        return self.driver.create_queues(qid, self.chance.choice((24, 40, 64)), vector=qid)

    def restart_queue(self, qid: int) -> None:
        """It was deleted: make it again. Slots whose commands were not fetched are free."""
        self._free = [slot for slot in range(SLOTS) if slot not in {sent.slot for sent in self.sent.values()}]
        self.create(qid)

    # --- commands

    def submit(self, *qids: int) -> None:
        """Up to 20 commands, and the doorbells, without waiting for anything."""
        chosen = self.chance.choices(qids, k=self.chance.randrange(1, 20))
        for qid in chosen:
            self._submit(qid)
        for qid in sorted(set(chosen)):
            self.bench.write_bar(0x1000 + 8 * qid, self.driver.queues[qid].sq_tail.to_bytes(4, "little"))

    def _submit(self, qid: int) -> None:
        chance, queue = self.chance, self.driver.queues[qid]
        if chance.random() < 0.05:
            cid = self.driver.submit(queue, ReadWrite(opcode=NvmOpcode.FLUSH, nsid=1), ring=False)
            self.sent[cid] = Sent(qid, NvmOpcode.FLUSH)
            return
        slot, pages = self._free.pop(chance.randrange(len(self._free))), chance.randrange(1, SLOT_PAGES + 1)
        place = _place(slot)
        if chance.random() < 0.3:
            opcode, slba = NvmOpcode.WRITE, READ_ONLY // BLOCK + slot * SLOT_PAGES * PER_PAGE
            self._versions += 1
            self.ram.write(place, content(self._versions << 32) * pages)
        else:
            opcode, slba = NvmOpcode.READ, chance.randrange(READ_ONLY // PAGE - SLOT_PAGES) * PER_PAGE
        command = ReadWrite(
            opcode=opcode,
            nsid=chance.choice((1, 2)),
            prp1=place,
            prp2=(0, place + PAGE, _list(slot))[min(pages, 3) - 1],
            slba=slba,
            nlb=pages * PER_PAGE,
            fua=chance.random() < 0.15,  # Python's
        )
        self.sent[self.driver.submit(queue, command, ring=False)] = Sent(qid, opcode, slot, slba, pages)

    def collect(self, qid: int, *, deleted: bool = False) -> None:
        """Take the completions that are there. Each is of a command that was sent, and has done its work, unless its
        queue was ``deleted``."""
        completions = self.driver.drain(self.driver.queues[qid])
        for completion in completions:
            sent = self.sent.pop(completion.cid)  # KeyError: nobody has sent it, or it is the second one
            assert sent.qid == completion.sqid == qid
            is_aborted = deleted and completion.status == Status.ABORTED_SQ_DELETION
            assert is_aborted or completion.status == Status.SUCCESS, completion
            if sent.slot is not None:
                self._free.append(sent.slot)
                if not is_aborted:
                    self._check_data(sent, sent.slot)
        self.completed += len(completions)

    def _check_data(self, sent: Sent, slot: int) -> None:
        data = self.ram.read(_place(slot), sent.pages * PAGE)
        if sent.opcode == NvmOpcode.WRITE:
            assert os.pread(self._disk, len(data), sent.slba * BLOCK) == data
        else:
            assert data == b"".join(content(sent.slba + page * PER_PAGE) for page in range(sent.pages))

    def finish(self, *qids: int) -> None:
        """Let everything be done that can be done: nothing of these queues is missing, and nothing more comes."""
        self.bench.settle()
        for qid in qids or self.driver.queues:
            self.collect(qid)
            missing = [sent for sent in self.sent.values() if sent.qid == qid]
            assert not missing, f"lost: {missing}"

    # --- time

    def spin(self) -> None:
        """Let some time pass: none, a moment for the lanes, or a batch of Python's."""
        for _ in range(self.chance.randrange(3)):
            if self.chance.random() < 0.5:
                self.controller.run()
            else:
                sum(range(self.chance.randrange(3000)))

    def stays_untouched(self) -> None:
        """Whatever is still under way: it does not reach the guest any more."""
        before = [self.ram.read(*region) for region in SIZES.items()]
        self.spin()
        self.bench.settle()
        assert [self.ram.read(*region) for region in SIZES.items()] == before, "something was completed late"
