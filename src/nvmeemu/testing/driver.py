"""A small host driver. It needs only BAR0 accesses and guest memory, a ``Bus``, so it can judge any controller."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NoReturn, Protocol

from nvmeemu.spec import (
    CQE_SIZE,
    DOORBELLS,
    SQE_SIZE,
    AdminQueueAttributes,
    Capabilities,
    Cns,
    Command,
    Completion,
    Configuration,
    ControllerStatus,
    CreateCq,
    CreateSq,
    DeleteCq,
    DeleteSq,
    FeatureId,
    Flush,
    GetFeatures,
    GetLogPage,
    Identify,
    IdentifyNamespace,
    Read,
    SetFeatures,
    Status,
    Write,
    commands_of,
)
from nvmeemu.testing.heap import Heap

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
PAGE = 4096
USUAL_ENTRIES = 64  # of an I/O queue


class Bus(Protocol):
    """How a driver reaches a controller: BAR0, guest memory, and letting the device work."""

    def read_bar(self, offset: int, size: int) -> bytes: ...
    def write_bar(self, offset: int, data: bytes) -> None: ...
    def read_memory(self, iova: int, size: int) -> bytes: ...
    def write_memory(self, iova: int, data: bytes) -> None: ...
    def settle(self) -> None:
        """Let the device do all that it can do now."""
        ...


class CommandError(Exception):
    """A command completed with an error: ``command``, its ``completion``, and the ``status`` of that."""

    def __init__(self, queue: QueuePair, command: Command, completion: Completion) -> None:
        self.command = command
        self.completion = completion
        self.status = completion.status
        name = _name_in(Status, self.status, "status unknown to us")
        number = f"SCT {self.status >> 8:X}h, SC {self.status & 0xFF:02X}h"
        super().__init__(f"{_name(queue, command)}: {name} ({number}){', DNR' if completion.dnr else ''}")


def _name_in(names: type[IntEnum], value: int, otherwise: str) -> str:
    return names(value).name if value in set(names) else otherwise


def _name(queue: QueuePair, command: Command) -> str:
    known = commands_of(queue.qid).names.get(command.opcode)
    opcode = f"opcode {command.opcode:02X}h" if known is None else known.name
    return f"{opcode} (queue {queue.qid}, CID {command.cid})"


@dataclass
class QueuePair:
    """The driver's side of a submission queue and its completion queue."""

    qid: int
    sq: int  # guest addresses
    cq: int
    sq_entries: int
    cq_entries: int
    sq_tail: int = 0
    cq_head: int = 0
    phase: int = 1
    outstanding: set[int] = field(default_factory=set)  # CIDs
    early: list[Completion] = field(default_factory=list)  # came while another command was waited for


class _Queues(dict[int, QueuePair]):
    def __missing__(self, qid: int) -> NoReturn:
        raise LookupError(f"there is no I/O queue {qid}: make it with create_queues({qid})")


class Driver:
    """A small host driver; it uses the guest memory from ``heap`` upwards.

    ``read``, ``write``, ``identify``, ... take the memory that they need and give it back. What ``alloc`` has given
    stays until ``free``, or until the end of a ``scratch`` block around it:

        with driver.scratch():
            command = Read(nsid=1, prp1=driver.alloc(4096), slba=0, nlb=8)
            completion = driver.execute(driver.queues[1], command)

    Queues keep theirs until they are deleted, or the controller has been reset.

    ``patience`` is how many times ``bus.settle`` is called for what has to come, before a TimeoutError. With a
    ``VfioBus`` it takes up to 10 ms each time.
    """

    patience = 1000

    def __init__(self, bus: Bus, heap: int = 0x100000) -> None:
        self.bus = bus
        self._heap = Heap(heap)
        self._scopes: list[set[int]] = []  # what is to be freed, for each scratch block
        self._queue_memory: dict[tuple[str, int], int] = {}  # ("sq" or "cq", qid) -> address
        self._block_sizes: dict[int, int] = {}  # nsid -> bytes
        self._cids = itertools.count(1)
        self._admin: QueuePair | None = None
        self.queues: dict[int, QueuePair] = _Queues()
        self.stride = 4
        self._entries = USUAL_ENTRIES
        self.page = PAGE  # bytes, by CC.MPS

    def __repr__(self) -> str:
        return f"<Driver: I/O queues {', '.join(map(str, self.queues)) or 'none'}>"

    @property
    def admin(self) -> QueuePair:
        """The admin queues. Raises RuntimeError before ``enable``."""
        if self._admin is None:
            raise RuntimeError("there are no admin queues: call enable() first")
        return self._admin

    @admin.setter
    def admin(self, pair: QueuePair) -> None:
        self._admin = pair

    # registers
    def reg(self, offset: int, size: int = 4) -> int:
        """The value of a register of ``size`` bytes: ``reg(CSTS)``, ``reg(CAP, 8)``."""
        return int.from_bytes(self.bus.read_bar(offset, size), "little")

    def set_reg(self, offset: int, value: int, size: int = 4) -> None:
        """Write a register, and let the device do what follows from it."""
        self.bus.write_bar(offset, value.to_bytes(size, "little"))
        self.bus.settle()

    @property
    def status(self) -> ControllerStatus:
        """CSTS, read now: ``status.rdy``, ``status.cfs``, ``status.shst``."""
        return ControllerStatus.of(self.reg(CSTS))

    @property
    def capabilities(self) -> Capabilities:
        """CAP, read now."""
        return Capabilities.of(self.reg(CAP, 8))

    # memory
    def alloc(self, size: int, align: int | None = None) -> int:
        """Take memory of zeros, aligned to a page or to ``align``; returns its address."""
        place = self._take(size, align)
        if self._scopes:
            self._scopes[-1].add(place)
        return place

    def _take(self, size: int, align: int | None = None) -> int:
        place = self._heap.take(size, align or self.page)
        self.bus.write_memory(place, bytes(size))
        return place

    def free(self, place: int) -> None:
        """Give back what ``alloc`` has given. Raises ValueError for anything else."""
        self._heap.give_back(place)
        for scope in self._scopes:
            scope.discard(place)

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Free at the end of this block what was allocated in it. After an exception that is no CommandError the
        memory stays, because the device may still have a command that uses it."""
        scope: set[int] = set()
        self._scopes.append(scope)
        is_over = False
        try:
            yield
            is_over = True
        except CommandError:
            is_over = True
            raise
        finally:
            self._scopes.pop()
            for place in sorted(scope) if is_over else ():
                self.free(place)

    # life
    def enable(
        self, *, asqs: int = 32, acqs: int = 32, mps: int | None = None, iosqes: int = 6, iocqes: int = 4
    ) -> None:
        """Reset, then enable with new admin queues; without ``mps``, with the smallest pages. Raises TimeoutError if
        RDY does not follow.
        """
        self.disable()
        offered = self.capabilities
        self.stride = 4 << offered.dstrd
        self._entries = min(USUAL_ENTRIES, offered.mqes)
        mps = offered.mpsmin if mps is None else mps
        for place in self._queue_memory.values():
            self._heap.give_back(place)
        align = PAGE << mps
        sq, cq = self._take(asqs * SQE_SIZE, align), self._take(acqs * CQE_SIZE, align)
        self._queue_memory = {("sq", 0): sq, ("cq", 0): cq}
        self._block_sizes = {}
        self.queues = _Queues()
        self.admin = QueuePair(0, sq, cq, asqs, acqs)
        self.set_reg(AQA, int(AdminQueueAttributes(asqs=asqs, acqs=acqs)))
        self.set_reg(ASQ, self.admin.sq, 8)
        self.set_reg(ACQ, self.admin.cq, 8)
        self.set_reg(CC, int(Configuration(en=True, mps=mps, iosqes=iosqes, iocqes=iocqes)))
        self._wait(lambda: self.status.rdy, "RDY=1")
        self.page = align

    def disable(self) -> None:
        """CC.EN = 0: a Controller Reset. Raises TimeoutError if RDY does not follow."""
        self.set_reg(CC, self.reg(CC) & ~1)
        self._wait(lambda: not self.status.rdy, "RDY=0")

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        for _ in range(self.patience):
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
        """Put a command into the queue; returns its CID."""
        if not command.cid:
            command.cid = next(self._cids) & 0xFFFF
        queue.outstanding.add(command.cid)
        self.bus.write_memory(queue.sq + queue.sq_tail * SQE_SIZE, bytes(command))
        queue.sq_tail = (queue.sq_tail + 1) % queue.sq_entries
        if ring:
            self.ring_sq(queue)
        return command.cid

    def ring_sq(self, queue: QueuePair) -> None:
        """Write the tail doorbell: where the next command will go."""
        self.set_reg(DOORBELLS + 2 * queue.qid * self.stride, queue.sq_tail)

    def ring_cq(self, queue: QueuePair) -> None:
        """Write the head doorbell: which completion is looked at next."""
        self.set_reg(DOORBELLS + (2 * queue.qid + 1) * self.stride, queue.cq_head)

    def poll(self, queue: QueuePair, *, ring: bool = True) -> Completion | None:
        """The next completion, if there is one."""
        if queue.early:
            return queue.early.pop(0)
        return self._poll(queue, ring)

    def _poll(self, queue: QueuePair, ring: bool = True) -> Completion | None:
        completion = Completion(self.bus.read_memory(queue.cq + queue.cq_head * CQE_SIZE, CQE_SIZE))
        if completion.phase != bool(queue.phase):
            return None
        queue.cq_head = (queue.cq_head + 1) % queue.cq_entries
        if queue.cq_head == 0:
            queue.phase ^= 1
        queue.outstanding.discard(completion.cid)
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
        """Submit a command and wait; returns the completion, whatever its status. Completions of other commands stay
        for ``poll``. Raises TimeoutError, and AssertionError for the completion of a command that nobody has
        submitted."""
        cid = self.submit(queue, command)
        others = queue.outstanding - {cid}
        for _ in range(self.patience):
            while (completion := self._poll(queue)) is not None:
                if completion.cid == cid:
                    return completion
                if completion.cid not in others:
                    raise AssertionError(f"unexpected completion of CID {completion.cid} in queue {queue.qid}")
                others.remove(completion.cid)
                queue.early.append(completion)
            self.bus.settle()
        raise TimeoutError(f"no completion of {_name(queue, command)}: {self.status!r}")

    def succeed(self, queue: QueuePair, command: Command) -> Completion:
        """Like ``execute``, but raises CommandError unless it succeeded."""
        completion = self.execute(queue, command)
        if completion.status != Status.SUCCESS:
            raise CommandError(queue, command, completion)
        return completion

    # commands
    def identify(self, cns: int, nsid: int = 0, csi: int = 0) -> bytes:
        """The page of this CNS, of the controller or a namespace."""
        command = Identify(nsid=nsid, cns=cns, csi=csi)
        return self._receive(self.admin, command, PAGE)

    def get_log(self, lid: int, size: int, *, nsid: int = 0xFFFFFFFF, lpo: int = 0, rae: bool = False) -> bytes:
        """``size`` bytes, a multiple of 4, of a log page from ``lpo`` on."""
        command = GetLogPage(nsid=nsid, lid=lid, numd=size // 4, lpo=lpo, rae=rae)
        return self._receive(self.admin, command, size)

    def get_feature(self, fid: int, *, sel: int = 0, cdw11: int = 0, nsid: int = 0) -> int:
        """DW0 of the completion: the current value of the feature, or with ``sel`` the default, the saved value, or
        its capabilities."""
        command = GetFeatures(nsid=nsid, fid=fid, sel=sel, cdw11=cdw11)
        return self.succeed(self.admin, command).dw0

    def set_feature(self, fid: int, cdw11: int, *, nsid: int = 0) -> int:
        """DW0 of its completion."""
        command = SetFeatures(nsid=nsid, fid=fid, cdw11=cdw11)
        return self.succeed(self.admin, command).dw0

    def create_cq(self, qid: int, entries: int | None = None, *, vector: int = 0, ien: bool = True) -> int:
        """Create an I/O completion queue, of 64 entries if the controller allows; returns its address."""
        entries = entries or self._entries
        command = CreateCq(qid=qid, qsize=entries, pc=True, ien=ien, iv=vector)
        return self._create("cq", qid, command, entries * CQE_SIZE)

    def create_sq(self, qid: int, entries: int | None = None, *, cqid: int | None = None) -> int:
        """Create an I/O submission queue, of 64 entries if the controller allows; returns its address."""
        entries = entries or self._entries
        cqid = qid if cqid is None else cqid
        command = CreateSq(qid=qid, qsize=entries, pc=True, cqid=cqid)
        return self._create("sq", qid, command, entries * SQE_SIZE)

    def _create(self, kind: str, qid: int, command: Command, size: int) -> int:
        place = command.prp1 = self._take(size)
        try:
            self.succeed(self.admin, command)
        except CommandError:
            self._heap.give_back(place)
            raise
        self._queue_memory[kind, qid] = place
        return place

    def create_queues(self, qid: int = 1, entries: int | None = None, *, vector: int = 0) -> QueuePair:
        """Create an I/O queue pair, ``queues[qid]``, of 64 entries if the controller allows."""
        entries = entries or self._entries
        cq = self.create_cq(qid, entries, vector=vector)
        self.queues[qid] = QueuePair(qid, self.create_sq(qid, entries), cq, entries, entries)
        return self.queues[qid]

    def delete_sq(self, qid: int) -> Completion:
        """Delete an I/O submission queue; returns the completion, whatever its status."""
        return self._delete("sq", qid, DeleteSq(qid=qid))

    def delete_cq(self, qid: int) -> Completion:
        """Delete an I/O completion queue; returns the completion, whatever its status."""
        return self._delete("cq", qid, DeleteCq(qid=qid))

    def _delete(self, kind: str, qid: int, command: Command) -> Completion:
        completion = self.execute(self.admin, command)
        if completion.status == Status.SUCCESS and (kind, qid) in self._queue_memory:
            self._heap.give_back(self._queue_memory.pop((kind, qid)))
        return completion

    # data
    def prps(self, start: int, size: int) -> tuple[int, int]:
        """PRP1 and PRP2 for a contiguous buffer, with a list if one is needed."""
        pages = list(range(start - start % self.page + self.page, start + size, self.page))
        if len(pages) <= 1:
            return start, pages[0] if pages else 0
        return start, self.prp_list(pages)

    def prp_list(self, pages: Iterable[int]) -> int:
        """Make a PRP list of these entries, chained if it is longer than a page; returns its address."""
        rest = list(pages)
        room = self.page // 8
        first = place = self.alloc(self.page)
        while len(rest) > room:
            following = self.alloc(self.page)
            self.bus.write_memory(place, struct.pack(f"<{room}Q", *rest[: room - 1], following))
            rest, place = rest[room - 1 :], following
        self.bus.write_memory(place, struct.pack(f"<{len(rest)}Q", *rest))
        return first

    def block_size(self, nsid: int = 1) -> int:
        """Bytes in a block of the namespace, as Identify says; 512 if it says nothing."""
        if nsid not in self._block_sizes:
            try:
                page = IdentifyNamespace(self.identify(Cns.NAMESPACE, nsid))
            except CommandError:
                return 512
            self._block_sizes[nsid] = 1 << (page.lbaf[page.flbas & 0xF].lbads or 9)
        return self._block_sizes[nsid]

    def read(self, slba: int, blocks: int, *, nsid: int = 1, block_size: int | None = None, qid: int = 1) -> bytes:
        """Read so many blocks from ``slba`` on. Without ``block_size``, the driver asks the namespace for it."""
        queue, size = self.queues[qid], blocks * (block_size or self.block_size(nsid))
        return self._receive(queue, Read(nsid=nsid, slba=slba, nlb=blocks), size)

    def write(
        self, slba: int, data: bytes, *, nsid: int = 1, block_size: int | None = None, qid: int = 1, fua: bool = False
    ) -> None:
        """Write ``data`` from ``slba`` on. Raises ValueError unless it is whole blocks. Without ``block_size``, the
        driver asks the namespace for it."""
        queue, block_size = self.queues[qid], block_size or self.block_size(nsid)
        blocks, rest = divmod(len(data), block_size)
        if rest or not blocks:
            raise ValueError(f"{len(data)} bytes are not one or more whole blocks of {block_size} bytes")
        command = Write(nsid=nsid, slba=slba, nlb=blocks, fua=fua)
        with self.scratch():
            self.bus.write_memory(self._point(command, len(data)), data)
            self.succeed(queue, command)

    def flush(self, nsid: int = 1, *, qid: int = 1) -> None:
        """What was written is durable when this returns."""
        self.succeed(self.queues[qid], Flush(nsid=nsid))

    def _receive(self, queue: QueuePair, command: Command, size: int) -> bytes:
        with self.scratch():
            place = self._point(command, size)
            self.succeed(queue, command)
            return self.bus.read_memory(place, size)

    def _point(self, command: Command, size: int) -> int:
        """Give the command a buffer; returns its address."""
        place = self.alloc(size)
        command.prp1, command.prp2 = self.prps(place, size)
        return place
