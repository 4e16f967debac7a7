"""The queues of a profile's driver: what it has submitted, and what was answered."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from nvmeemu import spec
from nvmeemu.profiles.findings import Findings
from nvmeemu.profiles.profile import Profile
from nvmeemu.spec import AsyncEventRequest, Command, Completion, CreateCq, CreateSq, GetLogPage, Status
from nvmeemu.testing.bench import Bench
from nvmeemu.testing.driver import QueuePair
from nvmeemu.trace import words

_TURN = 100e-6  # seconds that a command takes the driver
_LOG = 512  # bytes of the log that an event names
_MOST_IN_DRAIN = 4096


@dataclass
class Waiting:
    """A command that was given, and what became of it."""

    command: Command
    completion: Completion | None = None


class Queues:
    """``commands``: how many were given in all."""

    def __init__(self, bench: Bench, profile: Profile, findings: Findings) -> None:
        self._bench = bench
        self._driver = bench.driver
        self._most_admin = profile.most_admin
        self._findings = findings
        self._sqs: dict[int, QueuePair] = {}  # of each only the submission queue, or the completion queue, is used:
        self._cqs: dict[int, QueuePair] = {}  # several of the former may report to one of the latter
        self._made: dict[int, CreateCq] = {}  # by CQID
        self._cq_of: dict[int, int] = {}  # CQID by SQID
        self._waiting: defaultdict[tuple[int, int], deque[Waiting]] = defaultdict(deque)  # by (SQID, CID)
        self._behind: set[int] = set()  # CQIDs whose head the device has not been told
        self.is_late = False  # whether the driver tells it when it has given its next command
        self._recent: deque[float] = deque()  # when admin commands were given
        self._cid = 0
        self.commands = 0

    # --- which there are

    def begin(self, asq: int, acq: int, asqs: int, acqs: int) -> None:
        """The controller is enabled with these admin queues, of so many entries."""
        self._sqs = {0: QueuePair(0, asq, acq, asqs, acqs)}
        self._cqs = {0: QueuePair(0, asq, acq, asqs, acqs)}
        self._cq_of = {0: 0}
        for place, size in ((asq, asqs * spec.SQE_SIZE), (acq, acqs * spec.CQE_SIZE)):
            self._bench.write_memory(place, bytes(size))

    def forget(self) -> None:
        """A reset: there are no queues, and no command will be answered."""
        for one in (self._sqs, self._cqs, self._made, self._cq_of, self._waiting, self._behind):
            one.clear()

    def has(self, sqid: int) -> bool:
        return sqid in self._sqs

    def room(self, sqid: int) -> int:
        """How many commands it holds."""
        return self._sqs[sqid].sq_entries - 1

    def took_effect(self, command: Command) -> None:
        """A command has succeeded. Perhaps it has made or deleted a queue."""
        if isinstance(command, CreateCq):
            self._made[command.qid] = command
            self._cqs[command.qid] = QueuePair(command.qid, 0, command.prp1, 0, command.qsize)
        elif isinstance(command, CreateSq):
            self._sqs[command.qid] = QueuePair(command.qid, command.prp1, 0, command.qsize, 0)
            self._cq_of[command.qid] = command.cqid
        elif isinstance(command, spec.DeleteSq):
            self._sqs.pop(command.qid, None)
        elif isinstance(command, spec.DeleteCq):
            self._cqs.pop(command.qid, None)
            self._made.pop(command.qid, None)
            self._behind.discard(command.qid)

    def of_vector(self, vector: int | None) -> list[int]:
        """The completion queues that this vector announces; None: of all vectors."""
        return [cqid for cqid in self._cqs if vector is None or self.vector(cqid) == vector]

    def without_interrupts(self) -> list[int]:
        """The queues that no interrupt announces (IEN=0). The driver polls them."""
        return [cqid for cqid in self._cqs if cqid in self._made and not self._made[cqid].ien]

    def vector(self, cqid: int) -> int:
        """That of its interrupts."""
        return self._made[cqid].iv if cqid in self._made else 0

    # --- what is submitted

    def submit(self, sqid: int, command: Command) -> Waiting:
        """Put it into its queue, without ringing, with a CID of ours if it has none.

        Raises DriverStopped if the driver sends more than it can mean."""
        if not sqid:
            self._count()
        if not command.cid:
            self._cid = command.cid = self._cid % 0xFFFE + 1
        waiting = Waiting(command)
        self._waiting[sqid, command.cid].append(waiting)
        self._driver.submit(self._sqs[sqid], command, ring=False)
        self.commands += 1
        self._bench.clock.advance(_TURN)
        return waiting

    def ring(self, sqid: int) -> None:
        self._driver.ring_sq(self._sqs[sqid])
        self.catch_up()

    def catch_up(self) -> None:
        """Tell the device the heads that it does not know yet."""
        for cqid in sorted(self._behind):
            self._driver.ring_cq(self._cqs[cqid])
        self._behind.clear()

    def _count(self) -> None:
        now = self._bench.clock.now()
        self._recent.append(now)
        while self._recent[0] < now - 1:
            self._recent.popleft()
        most = self._most_admin
        if len(self._recent) > most:
            raise self._findings.fail("admin_storm", f"more than {most} admin commands in a second")

    # --- what is answered

    def is_answer_there(self, sqid: int) -> bool:
        """Whether a completion lies in its completion queue that nobody has looked for."""
        pair = self._cqs[self._cq_of[sqid]]
        entry = self._bench.read_memory(pair.cq + pair.cq_head * spec.CQE_SIZE, spec.CQE_SIZE)
        return Completion(entry).phase == bool(pair.phase)

    def drain(self, cqid: int) -> int:
        """Take all completions; returns how many there were."""
        pair = self._cqs[cqid]
        back = []
        number = 0
        while number < _MOST_IN_DRAIN and (completion := self._driver.poll(pair, ring=False)) is not None:
            number += 1
            waiting = self._waiting[completion.sqid, completion.cid]
            if not waiting:
                raise self._findings.fail("unknown_completion", f"CID {completion.cid:#x} of queue {completion.sqid}")
            found = waiting.popleft()
            found.completion = completion
            if isinstance(found.command, AsyncEventRequest):
                back.append(completion)
        if number and self.is_late:
            self._behind.add(cqid)
        elif number:
            self._driver.ring_cq(pair)
        for completion in back:
            self._answer_event(completion)
        return number

    def _answer_event(self, completion: Completion) -> None:
        """Do as drivers do: read the log page that the event names, and give another request at once."""
        if completion.status != Status.SUCCESS:
            self._findings.note("rejected_aer", words.completion(completion))
        elif lid := completion.dw0 >> 16 & 0xFF:
            log = GetLogPage(nsid=spec.BROADCAST, lid=lid, numd=_LOG // 4)
            log.prp1 = self._driver.alloc(_LOG)
            self.submit(0, log)
        self.submit(0, AsyncEventRequest())
        self.ring(0)
