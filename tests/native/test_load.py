"""What the engine gives to a disk that does not answer: a bounded amount, and nothing after a reset.

The disk is a socket: reads of it wait in io_uring, and each takes one datagram. While they wait nothing may settle.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from nvmeemu.backend import Direct
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import NvmOpcode, ReadWrite
from nvmeemu.subsystem.media import MOST_HELD
from nvmeemu.testing import Bench, QueuePair

MIB = 1 << 20
SMALL, LARGE = 512, 2 * MIB
MOST_COMMANDS = 256  # MAX_OPS of bounds.h
ENTRIES = 512


class StalledDisk(MemoryBackend):
    """Nobody gets an answer before it is sent to ``theirs``."""

    def __init__(self) -> None:
        super().__init__(16 * MIB)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.direct = Direct(fd=self.ours.fileno(), begins_now=True)
        self.theirs.setblocking(False)

    def answers(self, bench: Bench) -> int:
        """Answer until nobody waits; how many there were."""
        number = 0
        while bench.controller.is_busy:
            try:
                self.theirs.send(b"x")
            except BlockingIOError:
                time.sleep(0.001)
                bench.controller.run()
            else:
                number += 1
        self.ours.setblocking(False)
        with suppress(BlockingIOError):
            while self.ours.recv(1):
                number -= 1
        return number


@dataclass
class Rig:
    bench: Bench
    disk: StalledDisk
    queues: list[QueuePair]

    def read(self, queue: QueuePair, number: int, length: int, nsid: int = 1) -> None:
        driver = self.bench.driver
        prp1, prp2 = driver.prps(driver.alloc(length), length)
        for _ in range(number):
            command = ReadWrite(opcode=NvmOpcode.READ, nsid=nsid, prp1=prp1, prp2=prp2, nlb=length // SMALL)
            driver.submit(queue, command, ring=False)
        self.bench.write_bar(0x1000 + 8 * queue.qid, queue.sq_tail.to_bytes(4, "little"))

    def wait_until_fetched(self) -> None:
        sqs = self.bench.controller.state.sqs
        deadline = time.monotonic() + 60
        for queue in self.queues:
            server = sqs[queue.qid].server
            assert server.is_engine
            while server.head != queue.sq_tail:
                assert time.monotonic() < deadline, f"queue {queue.qid} is at {server.head} of {queue.sq_tail}"
                time.sleep(0.001)

    def completed(self, queue: QueuePair, number: int) -> None:
        deadline = time.monotonic() + 60
        while number:
            assert time.monotonic() < deadline, f"{number} have not come"
            number -= self.bench.driver.poll(queue, ring=False) is not None


@pytest.fixture
def rig() -> Iterator[Rig]:
    disk = StalledDisk()
    with (
        closing(disk.ours),
        closing(disk.theirs),
        closing(Bench(disk, ram=32 * MIB, engine="native", lanes=2)) as bench,
    ):
        assert bench.engine is not None
        assert bench.engine.can_wait, "no io_uring: built without liburing, or the kernel refuses it"
        bench.namespaces.add(bench.namespace(2, MemoryBackend(MIB), identity="memory"))
        bench.driver.enable()
        yield Rig(bench, disk, [bench.driver.create_queues(qid, ENTRIES) for qid in (1, 2)])


@pytest.mark.parametrize(("length", "number", "most"), [(SMALL, 300, MOST_COMMANDS), (LARGE, 60, MOST_HELD // LARGE)])
def test_lanes_together_give_a_disk_so_much_and_a_reset_forgets_the_rest(
    rig: Rig, length: int, number: int, most: int
) -> None:
    for queue in rig.queues:
        rig.read(queue, number, length)
    rig.wait_until_fetched()
    rig.bench.controller.reset()
    assert rig.disk.answers(rig.bench) == most


def test_what_is_for_another_disk_goes_on_behind_it_in_the_same_queue(rig: Rig) -> None:
    for queue in rig.queues:
        rig.read(queue, 300, SMALL)
        rig.read(queue, 50, SMALL, nsid=2)
    for queue in rig.queues:
        rig.completed(queue, 50)
    rig.bench.controller.reset()
    rig.disk.answers(rig.bench)


def test_a_disk_that_comes_in_its_place_has_all_its_room(rig: Rig) -> None:
    """What waited for the old one is for the new one; and the old one's answers are nobody's."""
    rig.read(rig.queues[0], 400, SMALL)
    rig.wait_until_fetched()
    device = rig.bench.controller.state
    rig.bench.namespaces.remove(1)
    rig.bench.namespaces.add(rig.bench.namespace(1, MemoryBackend(MIB), identity="new"))
    device.configure_engine(write_cache=True)
    rig.completed(rig.queues[0], 400 - MOST_COMMANDS)
    rig.read(rig.queues[1], 300, SMALL)
    rig.completed(rig.queues[1], 300)
    rig.bench.controller.reset()
    assert rig.disk.answers(rig.bench) == MOST_COMMANDS
