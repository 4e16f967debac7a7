"""The queues of a trace: how many entries they have, what was posted and what was taken, as far as the trace tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvmeemu import regs
from nvmeemu.spec import ADMIN_COMMANDS, AdminQueueAttributes, CreateCq, CreateSq, DeleteQueue, DeleteSq
from nvmeemu.spec.words import command_of
from nvmeemu.trace.commands import is_reset, written_configuration
from nvmeemu.trace.records import ClientLeft, Completion, Doorbell, Fetch, Record, RegisterWrite, Reset


@dataclass(slots=True)
class QueueState:
    """Entries are taken up to ``head`` and filled up to ``tail``."""

    entries: int
    head: int = 0
    tail: int = 0

    @property
    def filled(self) -> int:
        """How many entries wait to be taken."""
        return (self.tail - self.head) % self.entries

    @property
    def is_full(self) -> bool:
        return self.filled == self.entries - 1


class Rings:
    """Give it all records in order. ``sqs`` and ``cqs`` are by queue identifier. ``refused`` is the last doorbell
    value that the device cannot have taken, in words, or empty."""

    def __init__(self) -> None:
        self.sqs: dict[int, QueueState] = {}
        self.cqs: dict[int, QueueState] = {}
        self.cq_of: dict[int, int] = {}  # CQID by SQID
        self.refused = ""
        self._aqa = AdminQueueAttributes()
        self._is_enabled = False
        self._asked: dict[int, bytes] = {}  # admin commands about queues under way, by CID
        self._take: dict[type, Callable[[Any], None]] = {  # there are millions of records
            Doorbell: self._ring,
            Fetch: self._fetch,
            Completion: self._complete,
            RegisterWrite: self._write,
            Reset: self._reset,
            ClientLeft: self._reset,
        }

    def feed(self, record: Record) -> None:
        """Take one record."""
        take = self._take.get(type(record))
        if take is not None:
            take(record)

    def _reset(self, record: Record) -> None:
        self.sqs.clear()
        self.cqs.clear()
        self.cq_of.clear()
        self._asked.clear()
        self._is_enabled, self.refused = False, ""

    def _write(self, record: RegisterWrite) -> None:
        if record.offset == regs.AQA.offset:
            self._aqa = AdminQueueAttributes.of(int.from_bytes(record.data[: regs.AQA.size], "little"))
        written = written_configuration(record)
        if written is not None and written.en and not self._is_enabled:
            self._is_enabled = True
            self.sqs = {0: QueueState(self._aqa.asqs)}
            self.cqs = {0: QueueState(self._aqa.acqs)}
            self.cq_of = {0: 0}
        elif is_reset(record):
            self._reset(record)

    def _fetch(self, record: Fetch) -> None:
        ring = self.sqs.get(record.sqid)
        if ring is not None:
            ring.head = (record.slot + 1) % ring.entries
        if not record.sqid and issubclass(ADMIN_COMMANDS.of(record.opcode), _OF_QUEUES):
            self._asked[record.cid] = record.sqe

    def _complete(self, record: Completion) -> None:
        ring = self.cqs.get(record.cqid)
        if ring is not None:
            ring.tail = (record.slot + 1) % ring.entries
        sqe = self._asked.pop(record.cid, None) if not record.sqid else None
        if sqe is None or record.status:
            return
        command = command_of(0, sqe)
        if isinstance(command, CreateCq):
            self.cqs[command.qid] = QueueState(command.qsize)
        elif isinstance(command, CreateSq):
            self.sqs[command.qid] = QueueState(command.qsize)
            self.cq_of[command.qid] = command.cqid
        elif isinstance(command, DeleteQueue):
            of = self.sqs if isinstance(command, DeleteSq) else self.cqs
            of.pop(command.qid, None)

    def _ring(self, record: Doorbell) -> None:
        ring = (self.cqs if record.is_cq else self.sqs).get(record.qid)
        why = _why_not(ring, record) if ring is not None else "there is no such queue"
        if ring is None or why:
            where = f"CQ {record.qid} head" if record.is_cq else f"SQ {record.qid} tail"
            self.refused = f"{where} {record.value}, {why}"
        elif record.is_cq:
            ring.head = record.value
        else:
            ring.tail = record.value

    def is_held_up(self) -> bool:
        """Whether commands wait because the completion queue that they would end in is full."""
        return any(
            ring.filled and (cq := self.cqs.get(self.cq_of.get(sqid, -1))) is not None and cq.is_full
            for sqid, ring in self.sqs.items()
        )

    def explain(self) -> str:
        """What the device has refused. It is told once."""
        said, self.refused = self.refused, ""
        return said


_OF_QUEUES = (CreateCq, CreateSq, DeleteQueue)


def _why_not(ring: QueueState, record: Doorbell) -> str:
    """Why the device cannot take this value; nothing if it can (Base 1.4, 3.1.19 and 3.1.20)."""
    if record.value >= ring.entries:
        return f"it has {ring.entries} entries"
    if record.is_cq:
        taken = (record.value - ring.head) % ring.entries
        if not ring.filled:
            return "nothing was posted"
        return f"{ring.filled} were posted" if taken > ring.filled else "it was there before" if not taken else ""
    added = (record.value - ring.tail) % ring.entries
    if not added:
        return "it was there before"
    free = ring.entries - 1 - ring.filled
    return f"it had room for {free}" if added > free else ""
