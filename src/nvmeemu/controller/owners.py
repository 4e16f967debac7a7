"""Who serves which queue: the one place where a queue goes from Python to the native engine, or back.

    made                      take_cq, take_sq             deleted
      |                             |                         |
      v                             v                         v
    Python -------------------> engine --- drop_cq (CQ), or stopped (SQ), and it is gone
      ^                             |
      |-------- stopped ------------|  after give_back, when nothing that the engine has fetched is under way
      '-------- drop ---------------'  a reset, or a fatal error: at once

A completion queue is the engine's from its beginning to its end, if there is an engine: it is the only one that writes
there. A submission queue may be anybody's.
"""

from __future__ import annotations

from nvmeemu.engine.port import CqHandle, Engine, SqHandle
from nvmeemu.engine.queues import EngineCq, EngineSq
from nvmeemu.queues import CompletionQueue, SubmissionQueue


class Owners:
    """Moves queues between Python and ``engine``, and knows which queues the engine means."""

    def __init__(self, engine: Engine | None) -> None:
        self.cqs: dict[CqHandle, CompletionQueue] = {}  # of the engine
        self.sqs: dict[SqHandle, SubmissionQueue] = {}
        self._engine = engine

    def take_cq(self, cq: CompletionQueue) -> None:
        """Let the engine serve the queue, if there is one. Raises MemoryError."""
        if self._engine is None:
            return
        handle = self._engine.add_cq(cq.qid, cq.iova, cq.entries, cq.vector, cq.ien)
        if cq.shadow is not None:
            handle.use_shadow(cq.shadow.shadow, cq.shadow.event)
        self.cqs[handle] = cq
        cq.server = EngineCq(handle)

    def take_sq(self, sq: SubmissionQueue) -> bool:
        """From Python to the engine, from its head on; what Python has begun ends there. False: it is the engine's
        already, or its completion queue is not. Raises MemoryError."""
        completions = sq.cq.server
        if self._engine is None or isinstance(sq.server, EngineSq) or not isinstance(completions, EngineCq):
            return False
        place = sq.qid, sq.iova, sq.entries
        handle = self._engine.add_sq(*place, completions.handle, sq.server.head, sq.server.tail)
        if sq.shadow is not None:
            handle.use_shadow(sq.shadow.shadow, sq.shadow.event)
        self.sqs[handle] = sq
        sq.server = EngineSq(handle)
        return True

    def give_back(self, sq: SubmissionQueue) -> None:
        """From the engine to Python, once what waits for a disk there is done: ``stopped``. Until then nothing is
        fetched."""
        if isinstance(sq.server, EngineSq):
            sq.server.stop()

    def stopped(self, handle: SqHandle, head: int, tail: int) -> SubmissionQueue:
        """The engine has let go of the queue."""
        sq = self.sqs.pop(handle)
        sq.serve_in_python(head, tail)
        return sq

    def drop_cq(self, cq: CompletionQueue) -> None:
        """The queue is deleted."""
        cq.server.forget()
        if isinstance(cq.server, EngineCq):
            handle = cq.server.handle
            head, tail = handle.head, handle.tail
            handle.remove()
            del self.cqs[handle]
            cq.serve_in_python(head, tail)

    def drop(self) -> None:
        """All queues are Python's again. The host may still ring; its values are checked against what was posted."""
        if self._engine is None:
            return
        places = self._engine.drop()
        for sq_handle, sq in self.sqs.items():
            sq.serve_in_python(*places[sq_handle])
        for cq_handle, cq in self.cqs.items():
            cq.serve_in_python(*places[cq_handle])
        self.sqs.clear()
        self.cqs.clear()
