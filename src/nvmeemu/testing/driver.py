"""A small host driver. It needs only BAR0 accesses and guest memory, a ``Bus``, so it can judge any controller."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from nvmeemu.spec import (
    CQE_SIZE,
    DOORBELLS,
    SQE_SIZE,
    AdminOpcode,
    AdminQueueAttributes,
    Capabilities,
    Command,
    Completion,
    Configuration,
    ControllerStatus,
    CreateCq,
    CreateSq,
    DeleteQueue,
    FeatureId,
    GetFeatures,
    GetLogPage,
    Identify,
    NvmOpcode,
    ReadWrite,
    SetFeatures,
    Status,
)

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
PAGE = 4096


class Bus(Protocol):
    """What a driver reaches a controller by: BAR0, guest memory, and letting the device work."""

    def read_bar(self, offset: int, size: int) -> bytes: ...
    def write_bar(self, offset: int, data: bytes) -> None: ...
    def read_memory(self, iova: int, size: int) -> bytes: ...
    def write_memory(self, iova: int, data: bytes) -> None: ...
    def settle(self) -> None:
        """Let the device do all that it can do now."""
        ...


class CommandError(Exception):
    """A command completed with an error."""

    def __init__(self, completion: Completion) -> None:
        super().__init__(f"status {completion.status:#05x}{' DNR' if completion.dnr else ''}")
        self.completion = completion


@dataclass
class QueuePair:
    """The driver's side of a submission queue and of the completion queue that it reports to."""

    qid: int
    sq: int  # guest addresses
    cq: int
    sq_entries: int
    cq_entries: int
    sq_tail: int = 0
    cq_head: int = 0
    phase: int = 1
    sq_head: int = 0


class Driver:
    """A small host driver. Memory is taken from ``heap`` upwards and never given back."""

    def __init__(self, bus: Bus, heap: int = 0x100000) -> None:
        self.bus = bus
        self._heap = heap
        self._cids = itertools.count(1)
        self.admin: QueuePair
        self.queues: dict[int, QueuePair] = {}
        self.stride = 4
        self.page = PAGE  # bytes, by CC.MPS

    # registers
    def reg(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.bus.read_bar(offset, size), "little")

    def set_reg(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_bar(offset, value.to_bytes(size, "little"))
        self.bus.settle()

    @property
    def status(self) -> ControllerStatus:
        return ControllerStatus.of(self.reg(CSTS))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities.of(self.reg(CAP, 8))

    # memory
    def alloc(self, size: int, align: int | None = None) -> int:
        """Memory of zeros, aligned to a page or to ``align``; its address."""
        align = align or self.page
        start = -(-self._heap // align) * align
        self._heap = start + size
        self.bus.write_memory(start, bytes(size))
        return start

    # life
    def enable(self, *, asqs: int = 32, acqs: int = 32, mps: int = 0, iosqes: int = 6, iocqes: int = 4) -> None:
        """Reset, then enable with new admin queues. Raises TimeoutError if RDY does not follow."""
        self.disable()
        align = PAGE << mps
        self.admin = QueuePair(0, self.alloc(asqs * SQE_SIZE, align), self.alloc(acqs * CQE_SIZE, align), asqs, acqs)
        self.queues = {}
        self.set_reg(AQA, int(AdminQueueAttributes(asqs=asqs, acqs=acqs)))
        self.set_reg(ASQ, self.admin.sq, 8)
        self.set_reg(ACQ, self.admin.cq, 8)
        self.set_reg(CC, int(Configuration(en=True, mps=mps, iosqes=iosqes, iocqes=iocqes)))
        self._wait(lambda: self.status.rdy, "RDY=1")
        self.page = align

    def disable(self) -> None:
        self.set_reg(CC, self.reg(CC) & ~1)
        self._wait(lambda: not self.status.rdy, "RDY=0")

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            if is_so():
                return
            self.bus.settle()
        raise TimeoutError(f"no {what}: CSTS {self.status!r}")

    # queues
    def io_queues(self) -> int:
        """How many I/O queue pairs there may be."""
        answer = self.get_feature(FeatureId.NUMBER_OF_QUEUES)
        return min(answer & 0xFFFF, answer >> 16) + 1

    def submit(self, queue: QueuePair, command: Command, *, ring: bool = True) -> int:
        """Put a command into the queue; its CID."""
        if not command.cid:
            command.cid = next(self._cids) & 0xFFFF
        self.bus.write_memory(queue.sq + queue.sq_tail * SQE_SIZE, bytes(command))
        queue.sq_tail = (queue.sq_tail + 1) % queue.sq_entries
        if ring:
            self.ring_sq(queue)
        return command.cid

    def ring_sq(self, queue: QueuePair) -> None:
        self.set_reg(DOORBELLS + 2 * queue.qid * self.stride, queue.sq_tail)

    def ring_cq(self, queue: QueuePair) -> None:
        self.set_reg(DOORBELLS + (2 * queue.qid + 1) * self.stride, queue.cq_head)

    def poll(self, queue: QueuePair, *, ring: bool = True) -> Completion | None:
        """The next completion, if there is one."""
        completion = Completion(self.bus.read_memory(queue.cq + queue.cq_head * CQE_SIZE, CQE_SIZE))
        if completion.phase != bool(queue.phase):
            return None
        queue.cq_head = (queue.cq_head + 1) % queue.cq_entries
        if queue.cq_head == 0:
            queue.phase ^= 1
        queue.sq_head = completion.sqhd
        if ring:
            self.ring_cq(queue)
        return completion

    def drain(self, queue: QueuePair) -> list[Completion]:
        """All completions that are there, in order."""
        found = []
        while (completion := self.poll(queue)) is not None:
            found.append(completion)
        return found

    def execute(self, queue: QueuePair, command: Command) -> Completion:
        """Submit, wait, check CID. The completion, whatever its status. Raises TimeoutError."""
        cid = self.submit(queue, command)
        for _ in range(1000):
            if (completion := self.poll(queue)) is not None:
                if completion.cid != cid:
                    raise AssertionError(f"completion of {completion.cid}, expected {cid}")
                return completion
            self.bus.settle()
        raise TimeoutError(f"no completion of {command!r}")

    def succeed(self, queue: QueuePair, command: Command) -> Completion:
        """The same; raises CommandError unless it succeeded."""
        completion = self.execute(queue, command)
        if completion.status != Status.SUCCESS:
            raise CommandError(completion)
        return completion

    # commands
    def identify(self, cns: int, nsid: int = 0, csi: int = 0) -> bytes:
        page = self.alloc(PAGE)
        self.succeed(self.admin, Identify(opcode=AdminOpcode.IDENTIFY, nsid=nsid, prp1=page, cns=cns, csi=csi))
        return self.bus.read_memory(page, PAGE)

    def get_log(self, lid: int, size: int, *, nsid: int = 0xFFFFFFFF, lpo: int = 0, rae: bool = False) -> bytes:
        place = self.alloc(max(size, PAGE))
        prp1, prp2 = self.prps(place, size)
        opcode = AdminOpcode.GET_LOG_PAGE
        command = GetLogPage(opcode=opcode, nsid=nsid, prp1=prp1, prp2=prp2, lid=lid, numd=size // 4, lpo=lpo, rae=rae)
        self.succeed(self.admin, command)
        return self.bus.read_memory(place, size)

    def get_feature(self, fid: int, *, sel: int = 0, cdw11: int = 0, nsid: int = 0) -> int:
        command = GetFeatures(opcode=AdminOpcode.GET_FEATURES, nsid=nsid, fid=fid, sel=sel, cdw11=cdw11)
        return self.succeed(self.admin, command).dw0

    def set_feature(self, fid: int, cdw11: int, *, nsid: int = 0) -> int:
        command = SetFeatures(opcode=AdminOpcode.SET_FEATURES, nsid=nsid, fid=fid, cdw11=cdw11)
        return self.succeed(self.admin, command).dw0

    def create_cq(self, qid: int, entries: int = 64, *, vector: int = 0, ien: bool = True) -> int:
        """Create an I/O completion queue; its address."""
        place = self.alloc(entries * CQE_SIZE)
        opcode = AdminOpcode.CREATE_CQ
        command = CreateCq(opcode=opcode, prp1=place, qid=qid, qsize=entries, pc=True, ien=ien, iv=vector)
        self.succeed(self.admin, command)
        return place

    def create_sq(self, qid: int, entries: int = 64, *, cqid: int | None = None) -> int:
        """Create an I/O submission queue; its address."""
        place = self.alloc(entries * SQE_SIZE)
        opcode = AdminOpcode.CREATE_SQ
        command = CreateSq(
            opcode=opcode, prp1=place, qid=qid, qsize=entries, pc=True, cqid=qid if cqid is None else cqid
        )
        self.succeed(self.admin, command)
        return place

    def create_queues(self, qid: int = 1, entries: int = 64, *, vector: int = 0) -> QueuePair:
        cq = self.create_cq(qid, entries, vector=vector)
        self.queues[qid] = QueuePair(qid, self.create_sq(qid, entries), cq, entries, entries)
        return self.queues[qid]

    def delete_sq(self, qid: int) -> Completion:
        return self.execute(self.admin, DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=qid))

    def delete_cq(self, qid: int) -> Completion:
        return self.execute(self.admin, DeleteQueue(opcode=AdminOpcode.DELETE_CQ, qid=qid))

    # data
    def prps(self, start: int, size: int) -> tuple[int, int]:
        """PRP1 and PRP2 for a contiguous buffer; a list is made where one is needed."""
        pages = list(range(start - start % self.page + self.page, start + size, self.page))
        if len(pages) <= 1:
            return start, pages[0] if pages else 0
        return start, self.prp_list(pages)

    def prp_list(self, pages: Iterable[int]) -> int:
        """A PRP list of these entries, chained where it is longer than a page; its address."""
        rest = list(pages)
        room = self.page // 8
        first = place = self.alloc(self.page)
        while len(rest) > room:
            following = self.alloc(self.page)
            self.bus.write_memory(place, struct.pack(f"<{room}Q", *rest[: room - 1], following))
            rest, place = rest[room - 1 :], following
        self.bus.write_memory(place, struct.pack(f"<{len(rest)}Q", *rest))
        return first

    def read(self, slba: int, blocks: int, *, nsid: int = 1, block_size: int = 512, qid: int = 1) -> bytes:
        place = self.alloc(blocks * block_size)
        prp1, prp2 = self.prps(place, blocks * block_size)
        command = ReadWrite(opcode=NvmOpcode.READ, nsid=nsid, prp1=prp1, prp2=prp2, slba=slba, nlb=blocks)
        self.succeed(self.queues[qid], command)
        return self.bus.read_memory(place, blocks * block_size)

    def write(
        self, slba: int, data: bytes, *, nsid: int = 1, block_size: int = 512, qid: int = 1, fua: bool = False
    ) -> None:
        place = self.alloc(len(data))
        self.bus.write_memory(place, data)
        prp1, prp2 = self.prps(place, len(data))
        blocks = len(data) // block_size
        command = ReadWrite(opcode=NvmOpcode.WRITE, nsid=nsid, prp1=prp1, prp2=prp2, slba=slba, nlb=blocks, fua=fua)
        self.succeed(self.queues[qid], command)
