"""The queues of a profile's driver: what was submitted, what is answered."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvmeemu import spec
from nvmeemu.spec import AdminOpcode, Command, Completion, CreateCq, CreateSq, GetLogPage, Status
from nvmeemu.testing.driver import QueuePair
from nvmeemu.trace import words

if TYPE_CHECKING:
    from nvmeemu.profiles.host import DriverHost

_TURN = 100e-6  # seconds that a command takes the driver
_LOG = 512  # bytes of the log that an event names
_MOST_IN_DRAIN = 4096


@dataclass
class Waiting:
    """A command that was given, and what came of it."""

    command: Command
    completion: Completion | None = None


class Queues:
    """``commands``: how many were given in all."""

    def __init__(self, host: DriverHost) -> None:
        self._host = host
        self._driver = host.bench.driver
        self._pairs: dict[int, QueuePair] = {}
        self._cqs: dict[int, CreateCq] = {}
        self._waiting: dict[tuple[int, int], Waiting] = {}  # (SQID, CID)
        self._recent: deque[float] = deque()  # when admin commands were given
        self._cid = 0
        self.commands = 0

    # --- which there are

    def begin(self, asq: int, acq: int, asqs: int, acqs: int) -> None:
        """The controller is enabled with these admin queues, of so many entries."""
        self._pairs = {0: QueuePair(0, asq, acq, asqs, acqs)}
        for place, size in ((asq, asqs * spec.SQE_SIZE), (acq, acqs * spec.CQE_SIZE)):
            self._host.bench.write_memory(place, bytes(size))

    def forget(self) -> None:
        """A reset: no queues, and nothing will be answered."""
        self._pairs.clear()
        self._cqs.clear()
        self._waiting.clear()

    def has(self, qid: int) -> bool:
        return qid in self._pairs

    def room(self, qid: int) -> int:
        """How many commands it holds."""
        return self._pairs[qid].sq_entries - 1

    def took_effect(self, command: Command) -> None:
        """A command has succeeded: perhaps there is a queue more, or less."""
        if isinstance(command, CreateCq):
            self._cqs[command.qid] = command
        elif isinstance(command, CreateSq) and command.cqid in self._cqs:
            cq = self._cqs[command.cqid]
            self._pairs[command.qid] = QueuePair(command.qid, command.prp1, cq.prp1, command.qsize, cq.qsize)
        elif isinstance(command, spec.DeleteQueue) and command.opcode == AdminOpcode.DELETE_SQ:
            self._pairs.pop(command.qid, None)

    def of_vector(self, vector: int | None) -> list[int]:
        """Those whose completions this vector announces; None: all."""
        return [qid for qid in self._pairs if vector is None or self._vector(qid) == vector]

    def without_interrupts(self) -> list[int]:
        """Those that no interrupt announces (IEN=0): the driver looks at them itself."""
        return [qid for qid in self._pairs if qid in self._cqs and not self._cqs[qid].ien]

    def _vector(self, qid: int) -> int:
        return self._cqs[qid].iv if qid in self._cqs else 0

    # --- what is submitted

    def submit(self, qid: int, command: Command) -> Waiting:
        """Put it into its queue, without ringing; Stopped if the driver sends more than it can mean."""
        if not qid:
            self._count()
        self._cid = self._cid % 0xFFFE + 1
        command.cid = self._cid
        waiting = self._waiting[qid, command.cid] = Waiting(command)
        self._driver.submit(self._pairs[qid], command, ring=False)
        self.commands += 1
        self._host.bench.clock.advance(_TURN)
        return waiting

    def ring(self, qid: int) -> None:
        self._driver.ring_sq(self._pairs[qid])

    def _count(self) -> None:
        now = self._host.bench.clock.now()
        self._recent.append(now)
        while self._recent[0] < now - 1:
            self._recent.popleft()
        most = self._host.profile.most_admin
        if len(self._recent) > most:
            raise self._host.fail("admin_storm", f"more than {most} admin commands in a second")

    # --- what is answered

    def is_answer_there(self, qid: int) -> bool:
        """Whether a completion lies in the queue that nobody has looked for."""
        pair = self._pairs[qid]
        entry = self._host.bench.read_memory(pair.cq + pair.cq_head * spec.CQE_SIZE, spec.CQE_SIZE)
        return Completion(entry).phase == bool(pair.phase)

    def drain(self, qid: int) -> int:
        """Take all completions; how many there were."""
        pair = self._pairs[qid]
        back = []
        number = 0
        while number < _MOST_IN_DRAIN and (completion := self._driver.poll(pair, ring=False)) is not None:
            number += 1
            found = self._waiting.pop((completion.sqid, completion.cid), None)
            if found is None:
                raise self._host.fail("unknown_completion", f"CID {completion.cid:#x} of queue {completion.sqid}")
            found.completion = completion
            if not qid and found.command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
                back.append(completion)
        if number:
            self._driver.ring_cq(pair)
        for completion in back:
            self._answer_event(completion)
        return number

    def _answer_event(self, completion: Completion) -> None:
        """As drivers do: read the log page that it names, and give another request at once."""
        if completion.status != Status.SUCCESS:
            self._host.note("rejected_aer", words.completion(completion))
        elif lid := completion.dw0 >> 16 & 0xFF:
            log = GetLogPage(opcode=AdminOpcode.GET_LOG_PAGE, nsid=spec.BROADCAST, lid=lid, numd=_LOG // 4)
            log.prp1 = self._driver.alloc(_LOG)
            self.submit(0, log)
        self.submit(0, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
        self.ring(0)
