"""Runs commands: fetches them in batches, runs their stages, posts completions, raises interrupts.

This is the only place where an exception becomes a status. A command may meet a slow disk, guest memory that is gone
for a moment, or a full completion queue. It ends in exactly one completion in any case, or in none after a reset.
"""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from nvmeemu.controller.fused import Fusing
from nvmeemu.controller.gaps import Gaps
from nvmeemu.controller.media import MediaAccess
from nvmeemu.controller.pin import Pin
from nvmeemu.controller.request import Changing, CommandEntry, NoRoom, Pending, Reply, Request, Result, Saving
from nvmeemu.controller.saving import Saves
from nvmeemu.controller.state import ControllerState
from nvmeemu.controller.taps import Taps
from nvmeemu.engine.port import CqHandle, SqHandle
from nvmeemu.ports import HostMemoryError
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import DRIVER_ERRORS, MORE, Command, Fuse, Psdt, Status, words
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.media import Media

log = logging.getLogger(__name__)

BURST = 32  # commands that one queue may run before the next has its turn
MOST_OUTSTANDING = 1024  # commands of one queue that have begun: a host may take no notice of its queues' depth
BATCH_BYTES = 8 << 20  # moved before the bus has its turn again: a few milliseconds
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # another attempt fails as well
Commands = Mapping[int, CommandEntry[Any]]
BLANK = (
    "an admin command is 64 zero bytes: what the guest writes is perhaps not seen here. Its VMM must share its memory "
    "with this process: for QEMU, give each memory backend share=on"
)
_NO_LBA = 0
_NO_LOCATION = 0xFFFF


class Executor:
    """Fetches and executes commands on the controller's thread. It calls ``on_fatal`` when it cannot go on,
    ``on_progress`` when a medium has finished with a command, and ``on_doorbell`` for mapped doorbells that only the
    engine has seen (number, value, whether the queue can have it)."""

    def __init__(
        self,
        controller: ControllerState,
        admin_commands: Commands,
        io_commands: Commands,
        on_fatal: Callable[[str], None],
        on_progress: Callable[[], None],
        on_doorbell: Callable[[int, int, bool], None],
    ) -> None:
        self.is_paused = False
        self._is_hung = False  # no commands are fetched
        self._controller = controller
        self._admin_commands = admin_commands
        self._io_commands = io_commands
        self._engine = controller.engine
        self._owners = controller.owners
        self._on_progress = on_progress
        self._on_doorbell = on_doorbell
        self._ready: dict[SubmissionQueue, None] = {}
        self._posted: defaultdict[CompletionQueue, int] = defaultdict(int)  # and how many completions
        self._due: set[CompletionQueue] = set()  # whose interrupt the engine wants raised
        self._media = MediaAccess(controller, self._go_on, on_progress)
        self.saves = Saves(controller.subsystem.state, self._go_on, on_progress)
        self._on_fatal = on_fatal
        self._fusing = Fusing(controller, self._go_on)
        self._kept: set[SubmissionQueue] = set()  # that the engine gets when their fused operations are whole
        self._gaps = Gaps(controller.clock, lambda: controller.host, self._late, self._lost, on_progress)
        self.pin = Pin(controller)
        self._had_msix = False
        self.taps: Taps | None = None  # every entry and every completion passes them first
        self._left = 0  # bytes that may be moved until the bus has its turn

    # --- what the controller asks for --------------------------------------------------------------------------

    def wake(self, sq: SubmissionQueue) -> None:
        """Serve this queue in the next batch."""
        if sq.server.wants_turn:
            self._ready[sq] = None

    def pause(self) -> None:
        """Fetch no more commands."""
        self.is_paused = True
        if self._engine is not None:
            self._engine.hold(True)

    def resume(self) -> None:
        self.is_paused = False
        if self._engine is not None:
            self._engine.hold(False)

    def hang(self, is_hung: bool) -> None:
        """Fetch no more commands of the queues that Python serves, not even in the middle of a queue's turn; or go on.
        Unlike a pause, this outlasts a reset."""
        self._is_hung = is_hung
        if not is_hung:
            self._wake_all()

    def assign_queues(self) -> None:
        """Move every I/O submission queue to where ``ControllerState.is_pythons`` wants it."""
        for sq in self._controller.sqs.values():
            if sq.qid and self._controller.is_pythons(sq.qid):
                self._owners.give_back(sq)
            elif sq.qid:
                self._take(sq)

    def _take(self, sq: SubmissionQueue) -> None:
        """Move a queue from Python to the engine. If the engine is still giving it back, the engine keeps it."""
        if self._fusing.is_open(sq):  # what comes next has to be seen here
            self._kept.add(sq)
            return
        if self._owners.take_sq(sq):
            self._ready.pop(sq, None)
            if len(sq.outstanding) >= MOST_OUTSTANDING:
                sq.server.hold(True)

    def head_moved(self, cq: CompletionQueue) -> None:
        """The host has made room in a completion queue."""
        if number := cq.server.post_waiting():
            self._posted[cq] += number
        for sqid in cq.sqs:
            if sqid in self._controller.sqs:
                self.wake(self._controller.sqs[sqid])

    def run(self) -> bool:
        """Do a batch. True if more is waiting that can be done now."""
        if self._engine is not None and self._engine.has_news:
            self._engine.deliver(self)
            if self.is_paused:
                self._on_progress()
        if self._controller.subsystem.sole_use.is_waited_for:
            self._controller.subsystem.sole_use.look()
        self._left = BATCH_BYTES
        if self._media.is_waited_for:
            self._resume_waiting()
        if not self.is_paused:
            self._serve_ready()
        if self._kept:
            self._take_kept()
        self.signal()
        if self._media.is_waited_for and self._media.has_ready:
            return True
        return bool(self._ready) and not self.is_paused

    def _take_kept(self) -> None:
        kept, self._kept = self._kept, set()
        for sq in kept:
            if self._controller.sqs.get(sq.qid) is sq and not self._controller.is_pythons(sq.qid):
                self._take(sq)

    def _resume_waiting(self) -> None:
        """Begin commands whose disks have room now, until enough has been moved."""
        for request in self._media.ready():
            self._proceed(request)
            if self._left <= 0:
                return

    def _serve_ready(self) -> None:
        """Give each queue its turn, the admin queue first, until enough has been moved. Then the bus has its turn, and
        the next batch continues where this one has stopped."""
        for sq in sorted(self._ready, key=_is_io):
            if sq not in self._ready:
                continue  # dropped by what went before
            del self._ready[sq]
            if self._serve(sq):
                self._ready[sq] = None  # behind all others
            if self._left <= 0:
                return

    @property
    def is_busy(self) -> bool:
        """Whether a command is worked on, by a medium or the engine, or waits for room or memory."""
        engine = self._engine
        if engine is not None and (engine.has_news or engine.is_busy):
            return True
        return self._media.is_busy or self._gaps.holds_commands or self.saves.is_busy

    @property
    def is_changing_media(self) -> bool:
        """Whether a medium or the saved state may still change, also by a command that nobody waits for any more."""
        if self._engine is not None and self._engine.is_changing_media:
            return True
        return self._media.is_changing or self.saves.is_busy

    def uses(self, media: Media) -> bool:
        """Whether commands are at a medium that is no namespace's any more, and that the engine was told of."""
        return self._media.uses(media.budget) or (self._engine is not None and self._engine.is_letting_go)

    def stop(self) -> None:
        """Drop every command without a completion, and lower the pin."""
        self.drop_all()
        self.is_paused = False
        self.pin.drop()

    def drop_all(self) -> None:
        """Drop every command without a completion. An operation that a medium has begun ends, and its result is
        dropped."""
        if self.taps is not None:
            self.taps.dropped()
        for sq in {*self._controller.sqs.values(), *(request.sq for request in self._media.requests)}:
            for request in tuple(sq.outstanding):
                request.drop()
        self._media.drop()
        self._fusing.drop()
        self._owners.drop()
        for cq in self._controller.cqs.values():
            cq.server.drop_waiting()
        self._ready.clear()
        self._kept.clear()
        self._posted.clear()
        self._due.clear()
        self._gaps.forget()

    def memory_changed(self) -> None:
        """Guest memory was mapped or unmapped: continue with what waits for it."""
        for request in self._gaps.take():
            self._proceed(request)
        for cq in self._controller.cqs.values():
            if number := cq.server.post_waiting():
                self._posted[cq] += number
        self._wake_all()
        self._on_progress()

    def signal(self) -> None:
        """Raise the interrupts for what was posted: one for each vector, or the level of the pin."""
        host = self._controller.host
        if host.msix_enabled:
            is_due = self._controller.coalescing.is_due
            vectors = {cq.vector for cq, number in self._posted.items() if cq.ien and is_due(cq, number)}
            for vector in vectors | {cq.vector for cq in self._due}:
                self._controller.interrupts.send(vector)
            if self.pin.is_asserted:
                self.pin.update()
        elif self._posted or self._due or self.pin.is_asserted or self._had_msix:
            self.pin.update()
        self._had_msix = host.msix_enabled
        self._posted.clear()
        self._due.clear()

    # --- the life of a command ---------------------------------------------------------------------------------

    def _serve(self, sq: SubmissionQueue) -> bool:
        """Run up to BURST commands of a queue, or fewer once enough has been moved. False if the queue is empty or
        cannot go on."""
        for _ in range(BURST):
            if self._is_hung or len(sq.outstanding) >= MOST_OUTSTANDING:
                return False
            if not sq.cq.server.find_room():
                return False
            try:
                entry = sq.server.fetch()
            except HostMemoryError:
                self._gaps.miss(sq)
                return False
            if entry is None:
                return False
            self._fetched(sq, entry, True)
            if self._left <= 0:
                break
        return True

    def _fetched(self, sq: SubmissionQueue, entry: bytes, is_next: bool) -> None:
        """Make a request of an entry, and begin it. ``is_next``: it follows the last one of its queue that was here."""
        request = self._request(sq, entry)
        if sq.qid and (entry[1] & _FUSE or (is_next and self._fusing.is_open(sq))):
            self._fusing.fetched(request, is_next)
        if self.taps is None:
            self._proceed(request)
        else:
            self.taps.fetch(self._begin_entry, request)

    def _request(self, sq: SubmissionQueue, entry: bytes) -> Request[Any]:
        found = (self._io_commands if sq.qid else self._admin_commands).get(entry[0], UNKNOWN)
        request = Request(self._controller, sq, entry, found.kind(entry), self._ended)
        request.stage = request.run = (
            found.run if not entry[1] & _FUSE_AND_PSDT or self._takes(sq, found.kind(entry)) else _refuse
        )
        return request

    def _takes(self, sq: SubmissionQueue, command: Command) -> bool:
        """Whether it may have its FUSE and PSDT. Only I/O commands are fused, and over PCIe have SGLs (Base 1.4, Figure
        104)."""
        if command.fuse and (not sq.qid or command.fuse == Fuse.RESERVED):
            return False
        has_sgls = sq.qid > 0 and self._controller.limits.has_sgls
        return command.psdt == Psdt.PRP or (has_sgls and command.psdt != Psdt.RESERVED)

    def _begin_entry(self, request: Request[Any], entry: bytes) -> None:
        """Begin the entry that the taps have passed on. It may be changed, and may come more than once."""
        if entry is request.entry and not request.has_begun:
            self._begin(request)
            return
        another = self._request(request.sq, entry)
        self._fusing.stands_in(request, another)
        self._begin(another)

    def _begin(self, request: Request[Any]) -> None:
        request.has_begun = True
        if self.taps is not None:
            self.taps.execute(request, self._go_on)
        self._proceed(request)

    def _proceed(self, request: Request[Any]) -> None:
        """Run the stage of a command. It ends, or waits for memory, for room or for its medium."""
        dw0 = field = 0
        try:
            result = request.stage(request) if request.tap is None else request.tap.run(request)
        except CommandFailed as failure:
            dw0, field = request.dw0_if_failed, self._failed(request, failure)
        except HostMemoryError as gap:
            self._gaps.hold(request, gap)
            return
        except NoRoom as full:
            self._media.wait(request, full)
            return
        except Exception:
            log.exception("internal error in %r of queue %d", request.command, request.sq.qid)
            field = self._failed(request, CommandFailed(Status.INTERNAL_ERROR))
        else:
            self._left -= request.moved
            if isinstance(result, int):
                dw0 = result
            elif isinstance(result, Pending):
                request.hold()
                self._media.begin(request, result)
                return
            elif isinstance(result, Saving):
                request.hold()
                self.saves.begin(request, result)
                return
            elif isinstance(result, Changing):
                request.hold()
                self.saves.change(request, result)
                return
            else:
                request.hold()
                request.is_abortable = result.is_abortable
                result.take(request)
                return
        if request.is_held:
            request.complete(dw0, field)
        else:
            request.live = False
            self._answer(request, dw0, field)

    def _go_on(self, request: Request[Any]) -> None:
        """Run the stage of a command, unless it has ended meanwhile."""
        if request.live:
            self._proceed(request)

    def _answer(self, request: Request[Any], dw0: int, field: int) -> None:
        """Complete a command that did not wait."""
        if self.taps is None:
            sq = request.sq
            self._post(sq, sq.server.head, request.cid, dw0, field)
        else:
            self.taps.complete(self._post_reply, Reply(request, request.cid, dw0, field))

    def _ended(self, request: Request[Any], dw0: int, field: int) -> None:
        """Complete a command that has waited."""
        self._answer(request, dw0, field)
        if len(request.sq.outstanding) == MOST_OUTSTANDING - 1:
            request.sq.server.hold(False)
            self.wake(request.sq)

    def _post_reply(self, reply: Reply) -> None:
        """Post the reply that the taps have passed on."""
        sq = reply.request.sq
        sqhd = sq.server.head if reply.sqhd is None else reply.sqhd
        self._post(sq, sqhd, reply.cid, reply.dw0, reply.field, wrong_phase=reply.has_wrong_phase)

    def _post(
        self, sq: SubmissionQueue, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool = False
    ) -> None:
        completions = sq.cq.server
        if completions.post(sq.qid, sqhd, cid, dw0, field, wrong_phase=wrong_phase):
            self._posted[sq.cq] += 1
        elif not completions.find_memory():
            self._gaps.miss(sq.cq)

    def _failed(self, request: Request[Any], failure: CommandFailed) -> int:
        """Log the error for the host; returns its Status Field."""
        command, sqid = request.command, request.sq.qid
        byte, bit = failure.location or (0xFF, 0xFF)
        field = failure.field | MORE
        self._controller.errors.record(
            sqid=sqid,
            cid=command.cid,
            field=field,
            nsid=command.nsid,
            location=_NO_LOCATION if failure.location is None else byte | bit << 8,
            lba=_NO_LBA if failure.lba is None else failure.lba,
            info=failure.info,
        )
        if not sqid and not any(request.entry):
            log.warning(BLANK)
        level = logging.WARNING if failure.status in DRIVER_ERRORS else logging.DEBUG
        if log.isEnabledFor(level):
            where = words.field(command, failure.location) if failure.location else ""
            text = words.entry(sqid, request.entry)
            why = ": ".join(filter(None, (where, failure.why)))
            log.log(level, f"{words.status(failure.status)}: SQ %d %s%s", sqid, text, f": {why}" if why else "")
        return field

    def _late(self, request: Request[Any], gap: str) -> None:
        """A command has waited for guest memory for too long."""
        failure = CommandFailed(Status.DATA_TRANSFER_ERROR, why=gap)
        request.complete(0, self._failed(request, failure))

    def _lost(self) -> None:
        """A queue has waited for its memory for too long. The controller cannot go on without it."""
        obstacle = self._controller.host.obstacle
        self._on_fatal("the memory of a queue is gone" + (f": the guest {obstacle}" if obstacle else ""))

    def _wake_all(self) -> None:
        for sq in self._controller.sqs.values():
            self.wake(sq)

    # --- the engine's Listener -------------------------------------------------------------------------------------

    def punted(self, sq: SqHandle, entry: bytes, is_behind_first: bool) -> None:
        queue = self._owners.sqs[sq]
        self._fetched(queue, entry, is_behind_first)
        if len(queue.outstanding) == MOST_OUTSTANDING:
            queue.server.hold(True)

    def posted(self, cq: CqHandle) -> None:
        self._due.add(self._owners.cqs[cq])

    def missed_sq(self, sq: SqHandle) -> None:
        self._gaps.miss(self._owners.sqs[sq])

    def missed_cq(self, cq: CqHandle) -> None:
        self._gaps.miss(self._owners.cqs[cq])

    def consumed(self, cq: CqHandle) -> None:
        self.head_moved(self._owners.cqs[cq])

    def rung(self, doorbell: int, value: int) -> None:
        self._on_doorbell(doorbell, value, True)

    def misrung(self, doorbell: int, value: int) -> None:
        self._on_doorbell(doorbell, value, False)

    def stopped(self, sq: SqHandle, head: int, tail: int) -> None:
        queue = self._owners.stopped(sq, head, tail)
        if queue.is_closing:
            queue.check_idle()
        elif self._controller.is_pythons(queue.qid):
            self.wake(queue)
        else:  # wanted back meanwhile
            self._take(queue)

    def lost_completion(self, cq: CqHandle) -> None:
        self._on_fatal(f"no memory for a completion of queue {self._owners.cqs[cq].qid}")

    def became_idle(self) -> None:
        self._on_progress()


def _is_io(sq: SubmissionQueue) -> bool:
    return sq.qid != 0


def _unknown(request: Request[Command]) -> Result:
    raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))


def _refuse(request: Request[Any]) -> Result:
    """Its FUSE or PSDT cannot be: see ``Executor._takes``."""
    raise CommandFailed(Status.INVALID_FIELD, location=(1, 0))


UNKNOWN = CommandEntry(Command, _unknown)
_FUSE = Command(fuse=0b11).flags
_FUSE_AND_PSDT = Command(fuse=0b11, psdt=0b11).flags
