"""What a host may expect of any controller: watches memory, interrupts and fetched commands, and judges each step.

It keeps its own books - queue heads and tails from the doorbells, completions from guest memory, PRPs by a walk of
its own - and looks into the controller only for which queues exist, whether they have shadow doorbells, and what has
been fetched.
"""

from __future__ import annotations

from collections.abc import Callable

from books import Cq, Fetched, Sq
from disk import Disk
from memory import Guest, Violation, walk, walk_sgl
from nvmeemu.controller.controller import Controller
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import (
    CQE_SIZE,
    DOORBELLS,
    SHST_COMPLETE,
    SQE_SIZE,
    AdminOpcode,
    Command,
    Completion,
    CreateCq,
    CreateSq,
    DeleteQueue,
    DirectiveReceive,
    Fuse,
    GetFeatures,
    GetLbaStatus,
    GetLogPage,
    NvmOpcode,
    Psdt,
    ReadWrite,
    SglDescriptor,
    Status,
)
from nvmeemu.testing import ACQ, AQA, ASQ

STATUSES = frozenset(Status) - {Status.INTERNAL_ERROR}  # that one hides an exception
Tell = Callable[[str], None] | None
TIMESTAMP, HOST_BEHAVIOR = 0x0E, 0x16


class Judge:
    """Call ``doorbell`` before a write to one, ``reset`` before a reset, and ``check`` after each step."""

    def __init__(self, controller: Controller, guest: Guest, disk: Disk, is_wild: bool, tell: Tell) -> None:
        self.controller = controller
        self.is_wild = is_wild
        self._tell = tell
        self.device = controller.state
        self.guest = guest
        self.disk = disk
        self.sqs: dict[SubmissionQueue, Sq] = {}
        self.cqs: dict[CompletionQueue, Cq] = {}
        self.shadow_pages: set[int] = set()
        self.ambiguous: list[Fetched] = []
        self.fetches: list[Fetched] = []  # of this step
        self.step = 0
        self.progress = 0  # counts commands fetched and completed
        self.worked = False  # a worker has finished something in this step
        self._done: list[tuple[Fetched, Completion]] = []

    # --- what the host does

    def doorbell(self, offset: int, data: bytes) -> None:
        """Follow a write to the doorbells. Only values that a queue can have count."""
        if not self.controller.status.rdy:
            return
        for start in range(0, len(data), 4):
            place, value = offset + start - DOORBELLS, int.from_bytes(data[start : start + 4], "little")
            if place % 4:
                continue
            if place & 4:
                device_cq = self.device.cqs.get(place >> 3)
                cq = self.cqs.get(device_cq) if device_cq else None
                if device_cq is None or cq is None or device_cq.shadow is not None:
                    continue
                if value < cq.entries and 1 <= (value - cq.head) % cq.entries <= (cq.tail - cq.head) % cq.entries:
                    cq.head = value
            else:
                device_sq = self.device.sqs.get(place >> 3)
                sq = self.sqs.get(device_sq) if device_sq else None
                if device_sq is None or sq is None or device_sq.shadow is not None:
                    continue
                added = (value - sq.tail) % sq.entries
                if value < sq.entries and added and added + (sq.tail - sq.head) % sq.entries < sq.entries:
                    sq.tail = value

    def reset(self) -> None:
        """A controller reset begins: nothing may be completed or written from here on."""
        self.sqs.clear()
        self.cqs.clear()
        self.shadow_pages.clear()
        self.ambiguous.clear()

    # --- what the controller does

    def fetched(self, device_sq: SubmissionQueue, entry: bytes) -> None:
        """The controller has taken an entry from a submission queue."""
        self._sync()
        sq = self.sqs.get(device_sq)
        if sq is None:
            raise Violation(f"queue {device_sq.qid} was fetched from and does not exist")
        if not self.is_wild:
            if device_sq.shadow is None and sq.is_trusted and sq.head == sq.tail:
                raise Violation(f"queue {sq.qid} was empty and fetched from")
            if self.guest.read(sq.iova + sq.head * SQE_SIZE, SQE_SIZE) != entry:
                raise Violation(f"queue {sq.qid}: what was fetched is not the entry at {sq.head}")
        self.progress += 1
        if self._tell is not None:
            self._tell(f"    queue {sq.qid}: {Command(entry)!r}")
        sq.head = (sq.head + 1) % sq.entries
        sq.fetched += 1
        command = Fetched(sq, entry, sq.fetched, self.step, self.disk.version, *self.moved(entry))
        sq.outstanding.append(command)
        self.fetches.append(command)
        if sq.qid == 0 and command.opcode == AdminOpcode.DOORBELL_BUFFER_CONFIG:
            self.shadow_pages |= {command.io.prp1, command.io.prp2}
            for device_sq, sq in self.sqs.items():  # shadow doorbells that it has not seen yet are overwritten
                if sq.qid and (device_sq.server.tail, device_sq.cq.server.head) != (sq.tail, sq.cq.head):
                    sq.is_trusted = sq.cq.is_trusted = False

    def moved(self, entry: bytes) -> tuple[int, int]:
        """Bytes that the host moves for each block of the namespace that an entry names, as that is formatted now: in
        the buffer of the data, and in that of the metadata."""
        command = ReadWrite(entry)
        namespace = self.controller.state.subsystem.namespaces.by_nsid.get(command.nsid)
        if namespace is None:
            return self.disk.block, 0
        format = namespace.format
        if command.pract and format.protection is not None and format.protection.size == format.metadata_size:
            return format.data_size, 0
        return (format.block_size, 0) if format.is_extended else (format.data_size, format.metadata_size)

    def _sync(self) -> None:
        """Take in new queues. They must be as their Create commands said, or as AQA, ASQ and ACQ do."""
        for device_cq in self.device.cqs.values():
            if device_cq not in self.cqs:
                vector, ien = device_cq.vector, device_cq.ien
                cq = Cq(device_cq.qid, device_cq.iova, device_cq.entries, vector, ien)
                if not self.is_wild and (cq.iova, cq.entries, vector, ien) not in self._asked_cqs(cq.qid):
                    raise Violation(f"completion queue {cq.qid} is not what was asked for")
                # A host clears a queue before it creates it; a Create command that it left in the admin queue and
                # rang again by mistake finds the entries of the last time, which would look like completions.
                stale = CQE_SIZE * (cq.entries - device_cq.server.tail)
                self.guest.write(cq.iova + CQE_SIZE * device_cq.server.tail, bytes(stale))
                self.cqs[device_cq] = cq
        for device_sq in self.device.sqs.values():
            if device_sq not in self.sqs:
                sq = Sq(device_sq.qid, device_sq.iova, device_sq.entries, self.cqs[device_sq.cq])
                if not self.is_wild and (sq.iova, sq.entries, sq.cq.qid) not in self._asked_sqs(sq.qid):
                    raise Violation(f"submission queue {sq.qid} is not what was asked for")
                self.sqs[device_sq] = sq

    def _asked_cqs(self, qid: int) -> list[tuple[int, int, int, bool]]:
        """Address, entries, vector and IEN that a completion queue may have: from ACQ and AQA, or Create commands."""
        if qid == 0:
            return [(self._register(ACQ, 8), self._register(AQA + 2, 2) + 1, 0, True)]
        asked = [CreateCq(entry) for entry in self._admin_entries(AdminOpcode.CREATE_CQ)]
        return [(one.prp1, one.qsize, one.iv, one.ien) for one in asked if one.qid == qid]

    def _asked_sqs(self, qid: int) -> list[tuple[int, int, int]]:
        """Address, entries and completion queue that a submission queue may have."""
        if qid == 0:
            return [(self._register(ASQ, 8), self._register(AQA, 2) + 1, 0)]
        asked = [CreateSq(entry) for entry in self._admin_entries(AdminOpcode.CREATE_SQ)]
        return [(one.prp1, one.qsize, one.cqid) for one in asked if one.qid == qid]

    def _register(self, offset: int, size: int) -> int:
        return int.from_bytes(self.controller.read(offset, size), "little")

    def _waiting(self, *qids: int) -> list[Fetched]:
        """Commands that have not been completed: all, or those of these queues."""
        return [command for sq in self.sqs.values() if not qids or sq.qid in qids for command in sq.outstanding]

    def _admin_entries(self, opcode: int) -> list[bytes]:
        """Those commands of an opcode that may be what has just been executed."""
        found = (*self.fetches, *self._waiting(0), *self.ambiguous)
        return [one.entry for one in found if one.sq.qid == 0 and one.opcode == opcode]

    def follow(self) -> None:
        """For a wild host, in place of ``check``: follow only what the host needs to go on."""
        self._sync()
        self._forget()
        for device_cq, cq in self.cqs.items():
            cq.tail = device_cq.server.tail
        for sq in self.sqs.values():
            del sq.outstanding[:-16]
        self.fetches.clear()

    # --- the judgement

    def check(self, interrupts: list[int]) -> None:
        """After each step, when the controller has nothing more to do."""
        self._sync()
        self._done.clear()
        # The admin queue last: what a Delete waits for comes before the Delete's own completion.
        for cq in sorted(self.cqs.values(), key=lambda cq: cq.qid == 0):
            cq.news = 0
            self._scan(cq)
        self._check_data()
        self._accept()
        self.guest.check()
        self._check_interrupts(interrupts)
        self._check_pin()
        self._forget()
        self.step += 1
        self.fetches.clear()
        self.worked = False

    def _scan(self, cq: Cq) -> None:
        while (raw := self.guest.read(cq.iova + cq.tail * CQE_SIZE, CQE_SIZE)) is not None:
            completion = Completion(raw)
            if completion.phase != bool(cq.phase):
                return
            if cq.is_trusted and (cq.tail + 1) % cq.entries == cq.head:
                raise Violation(f"completion queue {cq.qid} was full and got another entry")
            self.guest.accept(cq.iova + cq.tail * CQE_SIZE, CQE_SIZE)
            cq.tail = (cq.tail + 1) % cq.entries
            cq.phase ^= cq.tail == 0
            cq.news += 1
            self._completed(cq, completion)

    def _completed(self, cq: Cq, completion: Completion) -> None:
        if self._tell is not None:
            self._tell(f"    queue {cq.qid}: {completion!r}")
        found = [
            command
            for command in self._waiting(completion.sqid)
            if command.sq.cq is cq
            and command.cid == completion.cid
            and completion.sqhd < command.sq.entries
            # SQHD is the head after this command was fetched, and maybe later ones
            and (completion.sqhd - command.number) % command.sq.entries <= command.sq.fetched - command.number
        ]
        if not found:
            raise Violation(f"completion of nothing on queue {cq.qid}: {completion!r}")
        if len(found) > 1:
            self.ambiguous += found  # the host has used a CID twice: which one is done is not to be known
        self._completed_command(found[0], completion)

    def _completed_command(self, command: Fetched, completion: Completion) -> None:
        command.sq.outstanding.remove(command)
        self.progress += 1
        self._done.append((command, completion))
        if completion.status not in STATUSES or completion.dw1:
            raise Violation(f"a completion that cannot be: {completion!r} of {command.io!r}")
        if completion.status == Status.SUCCESS and (completion.more or completion.dnr):
            raise Violation(f"a success with a flag of failure: {completion!r}")
        if command.sq.qid == 0 and completion.status == Status.SUCCESS and command.opcode == AdminOpcode.DELETE_SQ:
            qid = DeleteQueue(command.entry).qid
            for device_sq, sq in self.sqs.items():
                if sq.qid == qid and self.device.sqs.get(qid) is not device_sq:
                    sq.outstanding.clear()

    def _incoming(self, command: Fetched) -> int:
        """Bytes that the command brings into guest memory if it succeeds."""
        if command.entry[1] & (0xC3 if command.sq.qid == 0 else 0x03):
            return 0
        if command.sq.qid:
            return command.io.nlb * command.block if command.opcode == NvmOpcode.READ else 0
        if command.opcode == AdminOpcode.IDENTIFY:
            return 4096
        if command.opcode == AdminOpcode.GET_LOG_PAGE:
            return GetLogPage(command.entry).numd * 4
        if command.opcode == AdminOpcode.GET_LBA_STATUS:
            return min(GetLbaStatus(command.entry).mndw * 4, self.device.limits.transfer)
        if command.opcode == AdminOpcode.DIRECTIVE_RECEIVE:
            return DirectiveReceive(command.entry).numd * 4
        if command.opcode == AdminOpcode.GET_FEATURES:
            return {TIMESTAMP: 8, HOST_BEHAVIOR: 512}.get(GetFeatures(command.entry).fid, 0)
        return 0

    def _places(self, command: Fetched, length: int) -> list[tuple[int, int]] | None:
        """Where the command's data lies: (iova, bytes), or None if its pointer is bad. The host may write a list anew
        before the data come, and that counts no more then."""
        if command.places is None:
            command.places = self._walk(command, length)
        return command.places

    def _walk(self, command: Fetched, length: int) -> list[tuple[int, int]] | None:
        if length > self.device.limits.transfer:
            return None
        if command.entry[1] & 0xC0:
            is_read = command.opcode == NvmOpcode.READ
            return walk_sgl(self.guest, command.entry[24:40], length, is_read)
        prp1, page = command.io.prp1, self.device.page_size
        found = walk(self.guest, prp1, command.io.prp2, length, page)
        if found is None and command.sq.qid == 0 and command.opcode == AdminOpcode.GET_LBA_STATUS:
            return [(prp1, page - prp1 % page)]  # it has less to tell than there is room for: nobody looks at the rest
        return found

    def _metadata_places(self, command: Fetched) -> list[tuple[int, int]]:
        """Where a Read puts the metadata that are not in the same buffer."""
        length = command.io.nlb * command.beside if command.sq.qid else 0
        if not length:
            return []
        if command.io.psdt != Psdt.SGL_BOTH:
            return [(command.io.mptr, length)]
        if command.metadata_places is None:
            first = self.guest.read(command.io.mptr, SglDescriptor.SIZE)
            command.metadata_places = (walk_sgl(self.guest, first, length, True) if first else None) or []
        return command.metadata_places

    def _accept(self) -> None:
        """What commands that wait, or that have succeeded now, may have written."""
        succeeded = [command for command, completion in self._done if completion.status == Status.SUCCESS]
        for command in succeeded + self._waiting() + self.ambiguous:
            if length := self._incoming(command):
                for iova, number in [*(self._places(command, length) or ()), *self._metadata_places(command)]:
                    self.guest.accept(iova, number)
        self.accept_shadows()

    def accept_shadows(self) -> None:
        for page in self.shadow_pages:
            self.guest.accept(page, 8 * (self.device.limits.io_queues + 1))

    def _check_data(self) -> None:
        """A Read that succeeded brought what the disk holds, and a Write wrote what memory held, except where
        something else could have been at the same places."""
        waiting = [command for command in self._waiting() if command.sq.qid]
        for command in waiting:
            if command.step == self.step and command.opcode == NvmOpcode.WRITE and self.guest.is_whole:
                command.data = self._memory_of(command)
        if len(self._done) != 1 or any(command.opcode == NvmOpcode.READ for command in waiting):
            return
        command, completion = self._done[0]
        is_now = command.step == self.step
        is_transfer = command.sq.qid and command.opcode in (NvmOpcode.READ, NvmOpcode.WRITE)
        if completion.status != Status.SUCCESS or not is_transfer or command.io.nsid != 1 or command in self.ambiguous:
            return
        start = command.io.slba * self.disk.block
        disk = self.disk.data[start : start + command.io.nlb * self.disk.block]
        if command.opcode == NvmOpcode.READ:
            brought = self._memory_of(command)
            if self.disk.version == command.version and (is_now or self.worked) and brought not in (None, disk):
                raise Violation(f"{command.io!r} did not bring what the disk holds")
        elif self.disk.version == command.version + 1:
            held = self._memory_of(command) if is_now else command.data
            if held is not None and held != disk:
                raise Violation(f"{command.io!r} did not write what memory held")

    def _memory_of(self, command: Fetched) -> bytes | None:
        length = command.io.nlb * command.block
        places = self._places(command, length)
        ends = [iova + size for iova, size in sorted(places or ())]
        if any(iova < end for (iova, _), end in zip(sorted(places or ())[1:], ends, strict=False)):
            return None  # a place that is meant twice
        if sum(size for _, size in places or ()) < length:
            return None  # bit buckets take the rest
        pieces = [self.guest.read(*place) for place in places or ()]
        return None if None in pieces or not pieces else b"".join(piece for piece in pieces if piece is not None)

    def _check_interrupts(self, interrupts: list[int]) -> None:
        expected = {cq.vector for cq in self.cqs.values() if cq.ien and cq.news}
        if not self.device.host.msix_enabled:
            expected = set()
        if self.controller.status.cfs and set(interrupts) <= expected:
            return
        if set(interrupts) != expected:
            raise Violation(f"interrupts {interrupts}, expected {sorted(expected)}")

    def _check_pin(self) -> None:
        ram = self.guest.ram
        status = self.controller.status
        if status.cfs or not all(cq.is_trusted for cq in self.cqs.values()):
            return
        if self.device.shadow is not None and not (self.guest.shadows.is_mapped and self.guest.shadows.is_writable):
            return  # it cannot see how far the host is
        mask = self.device.interrupt_mask
        live = [self.cqs[device_cq] for device_cq in self.device.cqs.values()]
        expected = any(cq.ien and cq.head != cq.tail and not mask >> cq.vector & 1 for cq in live)
        if ram.pin_level != (expected and not ram.msix_enabled):
            raise Violation(f"the pin is {ram.pin_level}")

    def _forget(self) -> None:
        """Forget queues that are gone, and all queues when the controller has stopped for good."""
        status = self.controller.status
        if status.cfs or status.shst == SHST_COMPLETE:
            for sq in self.sqs.values():
                sq.outstanding.clear()
        self.sqs = {
            device_sq: sq
            for device_sq, sq in self.sqs.items()
            if sq.outstanding or self.device.sqs.get(device_sq.qid) is device_sq
        }
        if any(command.opcode == AdminOpcode.DOORBELL_BUFFER_CONFIG for command in self._waiting(0)):
            for sq in self.sqs.values():  # it will overwrite the doorbells that the host writes meanwhile
                sq.is_trusted = sq.cq.is_trusted = sq.qid == 0
        live = set(self.device.cqs.values())
        self.cqs = {device_cq: cq for device_cq, cq in self.cqs.items() if device_cq in live}

    def unfinished(self) -> list[str]:
        """When the host has given the controller everything it needs: commands that it has not fetched or completed."""
        found = []
        for device_sq, sq in self.sqs.items():
            if not (sq.is_trusted and sq.cq.is_trusted):
                continue
            if device_sq.qid in self.device.sqs and sq.head != sq.tail:
                found.append(f"queue {sq.qid} has commands that were not fetched")
            for command in sq.outstanding:
                is_event = sq.qid == 0 and command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST
                is_half = command.number == sq.fetched and command.entry[1] & 3 == Fuse.FIRST and sq.qid > 0
                if not is_event and not is_half and command not in self.ambiguous:
                    found.append(f"queue {sq.qid}: not completed: {command.io!r}")
        return found
