"""I/O in flight: commands whose doorbell has been rung, and that are collected later."""

from __future__ import annotations

import random

from nvmeemu.spec import DOORBELLS, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE, Driver, VfioBus

BLOCK = 512
PER_PAGE = PAGE // BLOCK
DEPTH = 32
DISK_PAGES = 1024  # of the disk that are used


class Load:
    """Writes and reads of whole pages, two pages a command at an odd offset, so that a command needs two PRPs.

    What was written is remembered: every read that is collected is compared.
    """

    def __init__(self, bus: VfioBus, seed: int) -> None:
        self.bus = bus
        self.driver = Driver(bus)
        self.random = random.Random(seed)
        self.pages: dict[int, bytes] = {}
        self.pending: dict[int, tuple[int, int, bytes | None]] = {}  # CID -> page, buffer, data if written
        self._starts: dict[int, int] = {}
        self.completed = 0
        self.statuses: set[int] = set()

    def start(self, *, vector: int = 1) -> None:
        """Enable the controller and make a queue pair. The guest has forgotten what was in flight."""
        self.driver = Driver(self.bus)
        self.driver.enable()
        self.queue = self.driver.create_queues(1, 2 * DEPTH, vector=vector)
        self.buffers = [self.driver.alloc(2 * PAGE) for _ in range(DEPTH)]
        for page, _, data in self.pending.values():
            if data is not None:
                self.pages.pop(page, None)  # may have been written, or not
        self.pending, self._starts = {}, {}

    def submit(self, count: int = DEPTH) -> None:
        """Post commands and their doorbell, and wait for nothing."""
        busy = {page for page, _, _ in self.pending.values()}
        used = {place for _, place, _ in self.pending.values()}
        free = [place for place in self.buffers if place not in used]
        for place in free[:count]:
            page = self.random.choice([self.random.randrange(DISK_PAGES), *(self.pages or [0])])
            if page in busy:
                continue
            busy.add(page)
            is_write = page not in self.pages or self.random.random() < 0.3
            data = self.random.randbytes(16) * (PAGE // 16) if is_write else None
            start = place + self.random.choice((0, 512))
            self.bus.write_memory(start, data or bytes(PAGE))
            prp2 = place + PAGE if start != place else 0
            opcode = NvmOpcode.WRITE if is_write else NvmOpcode.READ
            command = ReadWrite(opcode=opcode, nsid=1, prp1=start, prp2=prp2, slba=page * PER_PAGE, nlb=PER_PAGE)
            cid = self.driver.submit(self.queue, command, ring=False)
            self.pending[cid] = (page, place, data)
            self._starts[cid] = start
        self.bus.write_bar(DOORBELLS + 8 * self.queue.qid, self.queue.sq_tail.to_bytes(4, "little"))

    def collect(self) -> None:
        """Wait for all of them and compare."""
        idle = 0
        while self.pending:
            if self.collect_what_is_there():
                idle = 0
                continue
            idle += 1
            assert idle < 2000, f"{len(self.pending)} commands do not complete"
            self.bus.settle()

    def collect_what_is_there(self) -> int:
        """Compare what has completed; how many have."""
        found = self.driver.drain(self.queue)
        for completion in found:
            page, _, data = self.pending.pop(completion.cid)
            start = self._starts.pop(completion.cid)
            self.completed += 1
            self.statuses.add(completion.status)
            if data is None:
                assert completion.status or self.bus.read_memory(start, PAGE) == self.pages[page], f"page {page}"
            elif completion.status:
                self.pages.pop(page, None)
            else:
                self.pages[page] = data
        return len(found)
