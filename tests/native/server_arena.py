"""The arena as a VMM has it: a server's process at the other end of a socket."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from native.arena import DATA, READ_ONLY, REGIONS, SIZES, Arena, check_spoilt, create_disk, spoil
from nvmeemu.testing import PAGE, Refused, VfioBus
from nvmeemu.testing.client import MSIX
from transport.served import ServedDisk

RAM = DATA + SIZES[DATA]
ELSEWHERE = 1 << 30  # where nobody expects memory
PATIENCE = 120_000  # milliseconds; who has to wait so long has lost something
HELD_TIME, FATAL_TIME = 0.1, 1.0  # seconds that commands, and queues, wait for memory


class Vmm(VfioBus):
    """With a vector for each pair of queues, and nothing but ``REGIONS`` mapped."""

    def __init__(self, path: str) -> None:
        super().__init__(path, ram=RAM, vectors=3)
        self.client.unmap_all()
        for region in REGIONS:
            self.map(region)

    def map(self, region: int) -> None:
        self.client.map(region, SIZES[region], self.memory.fd, offset=region)

    def replace_eventfds(self) -> list[int]:
        """To be closed once nobody else has the old ones."""
        old = self.eventfds
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in old]
        for fd in old:
            self._interrupts.unregister(fd)
        for fd in self.eventfds:
            self._interrupts.register(fd)
        return old


class ServerArena(Arena):
    """Namespace 1 is a file in memory, namespace 2 one on a disk, whose data is not always in the page cache."""

    rounds = 34  # with each kind of doorbells: they take longer, and so does the start
    patience = PATIENCE // 10  # what VfioBus.settle waits for

    def __init__(self, seed: int, folders: tuple[Path, Path], doorbells: str) -> None:
        paths = [str(folder / "disk") for folder in folders]
        disks = {nsid: create_disk(Path(path)) for nsid, path in enumerate(paths, 1)}
        super().__init__(seed, disks, has_shadows=doorbells == "shadow")
        ways = ("--doorbells", "mapped" if doorbells == "mapped" else "trapped")
        options = ("--disk", paths[1], "--engine", "native", *ways, "--io-threads", "2", "--log-level", "warning")
        self._served = ServedDisk(str(folders[0] / "s"), paths[0], *options)
        self._pool = ThreadPoolExecutor(1)
        self._kept: dict[int, bytes] = {}  # what is in memory that is away
        self._taken = 0.0  # when
        try:
            self._vmm = self._attach()
            self.start()
        except BaseException:
            self._served.stop()
            raise

    def close(self) -> None:
        self._vmm.close()
        self._pool.shutdown()
        log = self._served.log
        assert self._served.stop() == 0, log
        assert "Traceback" not in log, log
        super().close()

    def _attach(self) -> Vmm:
        """As soon as the drive is not another's any more."""
        while True:
            try:
                return Vmm(self._served.path)
            except Refused as refused:
                if refused.errno != errno.EBUSY:
                    raise
                time.sleep(0.001)

    @property
    def host(self) -> Vmm:
        return self._vmm

    def submit(self, *qids: int) -> None:
        if self.chance.random() < 0.5:
            os.posix_fadvise(self._disks[2], 0, READ_ONLY, os.POSIX_FADV_DONTNEED)
        super().submit(*qids)

    def settle(self) -> None:
        self._vmm.settle()

    def pass_a_moment(self) -> None:
        self._vmm.client.device_info()

    # --- memory

    def take_memory(self, regions: Iterable[int]) -> None:
        self._taken = time.monotonic()
        client, memory = self._vmm.client, self._vmm.memory
        for region in regions:
            client.unmap(region, SIZES[region])
            span = slice(region, region + SIZES[region])
            self._kept[region] = memory.data[span]
            memory.data[span] = spoil(SIZES[region])
        if not self._kept:
            client.map(ELSEWHERE, PAGE, memory.fd)

    def bring_memory(self, regions: Iterable[int]) -> None:
        client, memory = self._vmm.client, self._vmm.memory
        if not self._kept:
            client.unmap(ELSEWHERE, PAGE)
        for region in regions:
            span = slice(region, region + SIZES[region])
            check_spoilt(memory.data[span])
            memory.data[span] = self._kept.pop(region)
            self._vmm.map(region)
        self.was_slow = time.monotonic() - self._taken > HELD_TIME / 2
        if time.monotonic() - self._taken > FATAL_TIME / 2:  # what a machine
            self.start()

    def replace_host(self) -> None:
        """Maybe by one that tries all the time."""
        old = self._vmm
        waiting = self._pool.submit(self._attach) if self.chance.random() < 0.5 else None
        if waiting:
            self.finish()
            self.submit(1, 2)
            self.spin()
        old.client.close()
        self._vmm = waiting.result() if waiting else self._attach()
        before = old.memory.data[:]
        self.spin()
        self.settle()
        assert old.memory.data[:] == before, "a VMM's memory was written after it had gone"
        old.close()

    def reset_function(self) -> None:
        if self.chance.random() < 0.5:
            self._vmm.reset()
        else:
            self._vmm.function_level_reset()
        self._vmm.connect_interrupts()

    # --- interrupts

    def reroute(self) -> None:
        """To other eventfds, with a moment without any or not."""
        client = self._vmm.client
        if self.chance.random() < 0.3:
            client.disable_interrupts(MSIX)
            self.spin()
        old = self._vmm.replace_eventfds()
        client.set_interrupts(MSIX, 0, self._vmm.eventfds)
        for fd in old:
            os.close(fd)

    def interrupts(self) -> Iterable[int]:
        return self._vmm.wait_for_interrupt(0)

    def wait_for_interrupts(self) -> None:
        while self.sent and (vectors := self._vmm.wait_for_interrupt(PATIENCE)):
            for qid in {1, 2}.intersection(vectors):
                self.collect(qid)
