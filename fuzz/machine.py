"""Runs a program of bytes against the controller, as a host that is mostly right and sometimes hostile.

A program is a header of 8 bytes and instructions of 8 bytes: an operation and seven operands. Every string of bytes
is a program, and a changed byte changes one instruction, so hypothesis, Atheris and files of a corpus share the form.
``model.Judge`` watches; ``run_program`` raises what is wrong.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import commands
from books import Cq, Sq, watch_fetches
from disk import Disk
from memory import PAGE, SLOT, Area, Guest, Violation
from model import Judge
from nvmeemu.backend.companion import Companion
from nvmeemu.controller import executor
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.limits import Limits
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import (
    CQE_SIZE,
    DOORBELLS,
    SHST_COMPLETE,
    SHST_OCCURRING,
    SQE_SIZE,
    AdminQueueAttributes,
    Configuration,
)
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import SMALLEST, Format, Guard, Protection
from nvmeemu.subsystem.formatter import Formatter
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pool import MemoryPool
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.testing import ACQ, AQA, ASQ, CC, ManualWorker, Ram, VirtualClock
from operations import ENTRIES, OPERATIONS, Operation

WIDTH = 8
MOST_INSTRUCTIONS = 400
QUEUES = 4
MOST_RUNS = 300  # calls of run() in one step: all queues full several times over
ADMIN_SIZES = ((32, 32), (2, 2), (64, 3), (5, 64))
FORMATS = (
    None,  # as namespace 1
    Format(512, 8, protection=Protection(1)),
    Format(4096, 16, True, Protection(2, Guard.CRC32, 16)),
    Format(512, 64, True),
    Format(4096, 64, protection=Protection(3, is_first=True)),
    Format(512, 8, True, Protection(1)),
)
"""Of namespace 3 at first."""
log = logging.getLogger("nvmeemu")


class Trap(logging.Handler):
    """Remembers what the controller hides from its host: exceptions that it caught and logged."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            self.caught.append(f"{text}: {record.exc_info[1]!r}")


class Machine:
    """A controller, its host and its judge. With ``is_wild``, PRPs may point at the queues, and nobody judges the
    memory."""

    def __init__(self, header: bytes, tell: Callable[[str], None] | None = None) -> None:
        flags, more = header[0], header[1]
        self.is_wild = self._is_always_wild = flags >> 4 & 7 == 7
        self.ram = Ram(0)
        self.guest = Guest(self.ram)
        self.clock = VirtualClock()
        self.worker = ManualWorker()
        block = 4096 if flags & 8 else 512
        self.disk = Disk(
            1 << 18, block, has_now=not flags & 1, volatile_cache=bool(flags & 2), read_only=more >> 4 & 7 == 7
        )
        self.limits = Limits(io_queues=QUEUES, vectors=0 if flags & 0x80 else 4, entries=ENTRIES, mdts=5)
        self.ram.msix_enabled = bool(flags & 4) and self.limits.vectors > 0
        self.page_shift = (0, 0, 1, 4)[more & 3]
        self.sizes = ADMIN_SIZES[more >> 2 & 3]
        namespaces = Inventory()
        self._companions: list[Companion] = []
        namespaces.add(Namespace(1, DiskMedia(self.disk, Format(block), self.worker)))
        namespaces.add(self._formattable(FORMATS[header[4] % len(FORMATS)] or Format(block)))
        pool = MemoryPool(1 << 20, self.worker)
        subsystem = Subsystem(Identity(serial="FUZZ0001"), namespaces, self.clock, pool=pool)
        self.controller = Controller(self.ram, self.clock, subsystem, self.limits)
        self.tell = tell
        self.judge = Judge(self.controller, self.guest, self.disk, self.is_wild, tell)
        self.builder = commands.Builder(self.guest, self.judge, self.limits, self.is_wild)
        self.trap = Trap()
        self._interrupts = 0
        self._first = header[2]
        few = self.limits.aerl + 2  # all but two may be AERs
        self.outstanding = few if header[3] & 0x40 else executor.MOST_OUTSTANDING
        self.is_verbose = bool(header[3] & 0x80)  # every message of the log is formatted, too

    def _formattable(self, format: Format) -> Namespace:
        """Namespace 3, which hosts may format, and delete."""
        disk = Disk(1 << 16, SMALLEST, has_now=True, volatile_cache=False, read_only=False)

        def companion(format: Format, wanted: Format | None = None) -> Companion:
            self._companions.append(Companion.in_memory(format, disk.size, intention=wanted))
            return self._companions[-1]

        media: DiskMedia
        if format.metadata_size:
            media = PairedMedia(disk, companion(format), self.worker)
        else:
            media = DiskMedia(disk, format, self.worker)
        namespace = Namespace(3, media)
        namespace.is_deletable = True
        namespace.formatter = Formatter(media, companion)
        return namespace

    def close(self) -> None:
        for companion in self._companions:
            companion.close()

    def begin(self) -> None:
        """How far the host is at first."""
        self.start(self._first % 4, shadow=bool(self._first & 0x80))

    def run(self, program: bytes) -> None:
        """All of a program, and the end."""
        self.begin()
        for start in range(0, len(program) - WIDTH + 1, WIDTH):
            self.execute(program[start : start + WIDTH])
        self.finish()

    # --- steps

    def execute(self, instruction: bytes) -> None:
        """Execute an instruction, let the controller do all that follows, and judge."""
        self.do(OPERATIONS[instruction[0] % len(OPERATIONS)], instruction[1:])

    def do(self, operation: Operation, args: bytes) -> None:
        if self.tell is not None:
            self.tell(f"{operation.__name__} {args.hex(' ')}")
        operation(self, args)
        self.settle()
        if self.tell is not None:
            self.tell(f"    {self.controller.status!r}, {len(self.worker.tasks)} tasks at the worker")

    def settle(self) -> None:
        runs = 0
        while self.controller.run():
            runs += 1
            if runs > MOST_RUNS:
                if self.controller.state.shadow is None and not self.is_wild:
                    raise Violation("the controller never comes to rest")
                break  # the host may keep the controller busy: data that it reads rings its shadow doorbells
        if self.trap.caught:
            raise Violation(self.trap.caught[0])
        for sq in self.controller.state.sqs.values():
            if len(sq.outstanding) > self.outstanding:
                raise Violation(f"queue {sq.qid} has {len(sq.outstanding)} commands under way")
        interrupts = self.ram.interrupts[self._interrupts :]
        self._interrupts = len(self.ram.interrupts)
        if self.is_wild:
            self.judge.follow()
        else:
            self.judge.check(interrupts)

    def write(self, offset: int, data: bytes) -> None:
        """A write to BAR0, which the judge follows."""
        if offset >= DOORBELLS:
            self.judge.doorbell(offset, data)
        elif offset <= CC < offset + len(data):
            was_enabled, is_enabled = self.controller.read(CC, 1)[0] & 1, data[CC - offset] & 1
            if was_enabled and not is_enabled:
                self.controller.write(offset, data[: CC - offset])  # what comes first still sees the queues
                self.judge.accept_shadows()
                self.judge.reset()
            elif is_enabled and not was_enabled:
                self._before_enable()
        self.controller.write(offset, data)

    def _before_enable(self) -> None:
        """The host clears its admin completion queue. If it has put the admin queues where nobody can keep books of
        them, it is wild until the next time."""
        read = self.controller.read
        attributes = AdminQueueAttributes.of(int.from_bytes(read(AQA, 4), "little"))
        sq, cq = (int.from_bytes(read(base, 8), "little") for base in (ASQ, ACQ))
        places = ((sq, attributes.asqs * SQE_SIZE), (cq, attributes.acqs * CQE_SIZE))
        is_tame = self.guest.fit_for_queues(places) and not self._is_always_wild
        if is_tame and self.judge.is_wild:
            self.guest.accept_all()
        self.is_wild = self.judge.is_wild = self.builder.is_wild = not is_tame
        if is_tame:
            self.guest.write(cq, bytes(attributes.acqs * CQE_SIZE))

    def set_reg(self, offset: int, value: int, size: int = 4) -> None:
        self.write(offset, value.to_bytes(size, "little"))

    @property
    def sqs(self) -> list[tuple[SubmissionQueue, Sq]]:
        """The queues that exist, as the host knows them."""
        live = self.controller.state.sqs
        return sorted(
            ((device_sq, self.judge.sqs[device_sq]) for device_sq in live.values() if device_sq in self.judge.sqs),
            key=lambda pair: pair[0].qid,
        )

    @property
    def cqs(self) -> list[tuple[CompletionQueue, Cq]]:
        live = self.controller.state.cqs
        return sorted(
            ((device_cq, self.judge.cqs[device_cq]) for device_cq in live.values() if device_cq in self.judge.cqs),
            key=lambda pair: pair[0].qid,
        )

    # --- the host's good side

    def start(self, level: int, *, shadow: bool = False) -> None:
        """What a driver does: 0 nothing, 1 enable, 2 and 3 one or two queue pairs (3: on one completion queue)."""
        if not level:
            return
        self.set_reg(CC, 0)
        self.worker.finish_all()
        self.settle()
        sq, cq = self.builder.slots(2)
        self.guest.write(cq, bytes(SLOT))
        self.set_reg(AQA, self.sizes[0] - 1 | self.sizes[1] - 1 << 16)
        self.set_reg(ASQ, sq, 8)
        self.set_reg(ACQ, cq, 8)
        self.set_reg(CC, int(Configuration(en=True, mps=self.page_shift, iosqes=6, iocqes=4)))
        self.settle()
        made = [self.builder.create_cq(1, 0), *(self.builder.create_sq(qid, 1, 0) for qid in range(1, level))]
        for entry in made[: 0 if level == 1 else None]:
            self._administer(entry)
        if shadow:
            self._administer(self.builder.doorbell_buffers())

    def _administer(self, entry: bytes) -> None:
        for device_sq, sq in self.sqs[:1]:
            self.ring_tail(device_sq, sq, self.place(sq, entry))
            self.settle()
            self.consume(*self.cqs[0], ENTRIES)
            self.settle()

    def place(self, sq: Sq, entry: bytes) -> int:
        """An entry at the tail; the tail that a doorbell should tell then."""
        tail = self.builder.tails.get(sq, sq.tail)
        self.guest.write(sq.iova + tail * SQE_SIZE, entry)
        self.builder.tails[sq] = (tail + 1) % sq.entries
        return self.builder.tails[sq]

    def ring_tail(self, device_sq: SubmissionQueue, sq: Sq, value: int, *, keep_quiet: bool = False) -> None:
        """The tail's doorbell: the shadow one if there is one, and the real one where EventIdx asks for it."""
        place = DOORBELLS + 8 * sq.qid
        if device_sq.shadow is None:
            self.set_reg(place, value)
        elif value < sq.entries:
            old, sq.tail = sq.tail, value
            if self.ring_shadow(2 * sq.qid, value, old):
                if keep_quiet:
                    sq.is_trusted = False
                else:
                    self.set_reg(place, value)
        else:
            sq.is_trusted = False
            self.ring_shadow(2 * sq.qid, value, value)

    def _ring_head(self, device_cq: CompletionQueue, cq: Cq, value: int) -> None:
        place = DOORBELLS + 8 * cq.qid + 4
        if device_cq.shadow is None:
            self.set_reg(place, value)
        else:
            old, cq.head = cq.head, value
            if self.ring_shadow(2 * cq.qid + 1, value, old):
                self.set_reg(place, value)

    def ring_shadow(self, index: int, value: int, old: int) -> bool:
        """Write a shadow doorbell; whether the real one must be rung."""
        buffers = self.controller.state.shadow
        assert buffers is not None
        shadow, event = buffers._shadow, buffers._event
        self.guest.write(shadow + 4 * index, value.to_bytes(4, "little"))
        wanted = int.from_bytes(self.guest.read(event + 4 * index, 4) or b"", "little")
        return (value - wanted - 1) % 65536 < (value - old) % 65536

    def consume(self, device_cq: CompletionQueue, cq: Cq, most: int) -> None:
        number = min(most, (cq.tail - cq.head) % cq.entries)
        is_there = self.controller.state.cqs.get(cq.qid) is device_cq  # not deleted by what went before
        if number and is_there:
            self._ring_head(device_cq, cq, (cq.head + number) % cq.entries)

    def remap(self, area: Area, kind: int, at_once: bool) -> None:
        self.controller.quiesce()
        if kind == 0:
            area.unmap()
        elif kind in (1, 2, 3):
            area.unmap()
            if not at_once:
                self.controller.memory_changed()
                self.controller.run()
                self.controller.quiesce()
            area.map(piece=PAGE if kind == 2 else 0)
        elif kind == 4:
            area.map(writable=False)
        self.controller.memory_changed()

    # --- the end

    def finish(self) -> None:
        """Give the controller all that it can wait for. Then everything must complete, and nothing may be held."""
        self.disk.failures.clear()
        for area in self.guest.areas:
            self.remap(area, 1, True)
        self.settle()
        for _ in range(200):
            if not self._go_on():
                break
        else:
            if not self.is_wild and self.controller.state.shadow is None:
                raise Violation("the controller does not come to an end")
        self._check_end()
        self.judge.reset()
        self.controller.reset()
        self.settle()
        self.controller.quiesce()
        for area in self.guest.areas:
            area.unmap()

    def _go_on(self) -> bool:
        """The disk works, time passes, completions are consumed; False if nothing comes of it any more."""
        before = self.judge.progress, len(self.worker.tasks)
        self.judge.worked = True
        self.worker.finish_all()
        self.settle()
        self.clock.advance(1.5)  # beyond all patience: a queue outside the memory is CSTS.CFS after a second
        self.settle()
        for device_cq, cq in self.cqs if self.controller.status.rdy else ():
            self.consume(device_cq, cq, ENTRIES * 4)
            self.settle()
        return before != (self.judge.progress, 0)

    def _check_end(self) -> None:
        status, is_enabled = self.controller.status, self.controller.read(CC, 1)[0] & 1
        if self.is_wild:
            pass
        elif not status.cfs and status.rdy != bool(is_enabled):
            raise Violation(f"EN is {is_enabled}, and {status!r}")
        elif status.shst == SHST_OCCURRING:
            raise Violation("a shutdown never ends")
        elif is_enabled and not status.cfs and status.shst != SHST_COMPLETE and (lost := self.judge.unfinished()):
            raise Violation("; ".join(lost))
        inside = self.controller._executor
        if (
            inside._media.is_busy
            or inside._gaps._held
            or any(one.media.budget.held for one in self.controller.state.namespaces)
        ):
            raise Violation("the executor keeps what has ended")


@contextmanager
def watched(machine: Machine) -> Iterator[None]:
    """The judge sees what the controller fetches, and the controller's log goes to the trap and nowhere else."""
    old = log.level, log.propagate
    log.setLevel(logging.DEBUG if machine.is_verbose else logging.ERROR)
    log.propagate = False
    log.addHandler(machine.trap)
    most, executor.MOST_OUTSTANDING = executor.MOST_OUTSTANDING, machine.outstanding
    try:
        with watch_fetches(machine.judge.fetched):
            yield
    finally:
        machine.close()
        executor.MOST_OUTSTANDING = most
        log.removeHandler(machine.trap)
        log.setLevel(old[0])
        log.propagate = old[1]


def run_program(program: bytes, tell: Callable[[str], None] | None = None) -> None:
    """Run a program; raises Violation, or whatever else the controller lets out. ``tell`` hears of each step."""
    machine = Machine(program[:WIDTH].ljust(WIDTH, b"\0"), tell)
    with watched(machine):
        machine.run(program[WIDTH : WIDTH * (MOST_INSTRUCTIONS + 1)])


def outcome_of(program: bytes) -> str:
    """What is wrong after a program, numbers left out so that the same fault reads the same; empty if nothing is."""
    try:
        run_program(program)
    except Exception as error:
        return re.sub(r"[0-9]+", "#", f"{type(error).__name__}: {error}".partition("(")[0])
    return ""
