"""A controller in this process, its driver and its faults."""

from __future__ import annotations

from typing import Any

from nvmeemu.backend import Backend
from nvmeemu.faults import Fault, Faults
from nvmeemu.spec import Abort, AdminOpcode, Command, Completion, FeatureId, NvmOpcode, ReadWrite
from nvmeemu.testing import Bench, QueuePair

OLD, NEW, GUARD = b"o", b"n", b"g"
BLOCK = 512


class Rig:
    """Block 0 and 1 hold OLD, and a buffer of two blocks for commands is at ``place``; I/O queues 1 and 2."""

    def __init__(
        self, engine: str = "python", seed: int = 1, backend: Backend | None = None, block_size: int = BLOCK
    ) -> None:
        self.bench = Bench(backend, engine=engine, block_size=block_size)
        self.driver = self.bench.driver
        self.driver.enable()
        self.queue = self.driver.create_queues(1, vector=1)
        self.other = self.driver.create_queues(2, vector=2)
        self.driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x107)
        self.driver.write(0, OLD * 2 * BLOCK)
        self.place = self.driver.alloc(4096)
        self.faults = Faults(self.bench.controller, seed)
        self.bench.ram.interrupts.clear()

    def add(self, do: Any, at: str | None = None, match: Any = None, **when: Any) -> Fault:
        return self.faults.add(Fault(match, at, do, when))

    # --- commands

    def write(self, data: bytes = NEW * BLOCK, slba: int = 0) -> ReadWrite:
        """A write of blocks, from ``place``."""
        self.driver.bus.write_memory(self.place, data)
        blocks = len(data) // BLOCK
        return ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=self.place, slba=slba, nlb=blocks)

    def read(self, blocks: int = 1) -> ReadWrite:
        """A read to ``place``, which holds GUARD before."""
        self.driver.bus.write_memory(self.place, GUARD * blocks * BLOCK)
        return ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=self.place, slba=0, nlb=blocks)

    def got(self, blocks: int = 1) -> bytes:
        """What is at ``place``."""
        return self.driver.bus.read_memory(self.place, blocks * BLOCK)

    def submit(self, command: Command, queue: QueuePair | None = None) -> int:
        cid = self.driver.submit(queue or self.queue, command)
        self.bench.settle()
        return cid

    def run(self, command: Command, queue: QueuePair | None = None) -> Completion:
        """The only completion that comes."""
        self.submit(command, queue)
        (completion,) = self.completions(queue)
        return completion

    def completions(self, queue: QueuePair | None = None) -> list[Completion]:
        """All that are there now."""
        return self.driver.drain(queue or self.queue)

    def later(self, seconds: float = 1.0) -> list[Completion]:
        """What has come after that time."""
        self.bench.clock.advance(seconds)
        self.bench.settle()
        return self.completions()

    def abort(self, cid: int) -> bool:
        """Whether the device says that it has aborted it."""
        command = Abort(opcode=AdminOpcode.ABORT, sqid=1, target_cid=cid)
        return not self.driver.succeed(self.driver.admin, command).dw0 & 1

    # --- events

    def await_events(self, number: int = 1) -> None:
        """Give so many Asynchronous Event Requests."""
        for _ in range(number):
            self.driver.submit(self.driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
        self.bench.settle()

    def heat(self) -> None:
        """Something to be told by an event."""
        self.bench.controller.set_health(temperature=400)
        self.bench.settle()

    def events(self) -> list[int]:
        """The events told, as DW0."""
        return [completion.dw0 for completion in self.completions(self.driver.admin)]

    # --- the disk

    def disk(self, blocks: int = 1) -> bytes:
        """What is really there."""
        buffer = bytearray(blocks * BLOCK)
        self.bench.backend.read(0, [memoryview(buffer)])
        return bytes(buffer)
