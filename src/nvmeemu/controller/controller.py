"""The NVM Express controller: registers and doorbells on one side, a machine of few states on the other.

    disabled --EN=1--> ready --SHN--> shutting down --> shut down
       ^---------------EN=0 (Controller Reset)--------------'      and fatal (CSTS.CFS) from anywhere, until a reset

Base 1.4, 3.1 (registers), 7.3 (resets), 7.6 (initialization and shutdown).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from nvmeemu import admin, io, regs
from nvmeemu.commands.features import forgotten, report_warnings, restore
from nvmeemu.controller import changes
from nvmeemu.controller.events import Event
from nvmeemu.controller.executor import Executor
from nvmeemu.controller.limits import Limits
from nvmeemu.controller.state import ControllerState, EntrySizes
from nvmeemu.controller.taps import Interceptor, Observer, Taps
from nvmeemu.engine.port import Engine
from nvmeemu.ports import Changes, Clock, Host, PciState
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import (
    CSS_NVM,
    DOORBELLS,
    PAGE_MIN,
    SHN_ABRUPT,
    SHN_NORMAL,
    SHST_COMPLETE,
    SHST_NORMAL,
    SHST_OCCURRING,
    AdminQueueAttributes,
    Capabilities,
    CommandSets,
    Configuration,
    ControllerStatus,
    ErrorEvent,
    EventType,
    LogId,
    ReadyModes,
    ReadyTimeouts,
    words,
)
from nvmeemu.subsystem.media import Media, MediaError, flush_all, run
from nvmeemu.subsystem.saved import in_use
from nvmeemu.subsystem.subsystem import Subsystem

log = logging.getLogger(__name__)

_SHN = int(Configuration(shn=3))
_ENTRY_SIZES = int(Configuration(iosqes=15, iocqes=15))
_OF_ADMIN_QUEUES = (regs.AQA, regs.ASQ, regs.ACQ)


class Controller:
    """One NVMe function. Call it on one thread. Call ``run`` after each call that can have given it work."""

    def __init__(
        self,
        host: Host,
        clock: Clock,
        subsystem: Subsystem,
        limits: Limits | None = None,
        engine: Engine | None = None,
        cntlid: int = 1,
    ) -> None:
        limits = limits or Limits()
        self.state = ControllerState(host, clock, subsystem, limits, admin.COMMANDS, io.COMMANDS, engine, cntlid=cntlid)
        subsystem.controllers.append(self)
        self.vectors = limits.vectors
        self._stride = limits.stride
        if limits.dstrd and self.bar0_shared is not None:
            raise ValueError(f"mapped doorbells lie side by side: dstrd is 0, not {limits.dstrd}")
        self.taps = Taps(self.state)
        self._executor = Executor(
            self.state, admin.COMMANDS, io.COMMANDS, self.fail, self._settle, self._mapped_doorbell
        )
        self._registers = regs.RegisterFile()
        self._flushing: object | None = None
        self._is_ready = False  # CSTS.RDY, for the doorbells
        self._is_in_use = False  # it was enabled, and has not been shut down since
        self._is_queue_move_told = False
        self._reset_registers()
        self._tap()

    # --- the bus ---------------------------------------------------------------------------------------------------

    @property
    def bar0_size(self) -> int:
        """Bytes of BAR0; a power of two."""
        return self.state.limits.bar0_size

    @property
    def bar0_shared(self) -> tuple[int, int, int] | None:
        """The part of BAR0 that a client may map, the doorbells: a file like BAR0, offset, size in bytes."""
        engine = self.state.engine
        return None if engine is None or engine.doorbells_fd < 0 else (engine.doorbells_fd, DOORBELLS, DOORBELLS)

    @property
    def direct_doorbells(self) -> tuple[int, int] | None:
        """Who takes doorbells before ``write`` does: see ``Engine.direct_doorbells``."""
        engine = self.state.engine
        return None if engine is None or self.state.limits.dstrd else engine.direct_doorbells  # for CAP.DSTRD = 0

    def read(self, offset: int, size: int) -> bytes:
        """A read of BAR0. Doorbells and everything reserved read as zero."""
        data = self._registers.read(offset, size)
        return self.taps.register_read(offset, data) if self._is_tapped else data

    def write(self, offset: int, data: bytes) -> None:
        """A write to BAR0, of 4 or 8 bytes. A write of another size changes the bytes that it covers."""
        if offset >= DOORBELLS:
            for start in range(0, len(data), 4):
                place = offset + start - DOORBELLS
                if place & self._stride - 1:
                    self._on_write(offset + start, data[start : start + 4])
                else:
                    self._on_doorbell(place // self._stride, int.from_bytes(data[start : start + 4], "little"))
            return
        self._on_write(offset, data)

    def run(self) -> bool:
        """Do a bounded batch of work and raise its interrupts. True if more is waiting."""
        return self._executor.run()

    def quiesce(self) -> None:
        """The memory map is about to change: let go of guest memory, until ``memory_changed``."""
        if self.state.engine is not None:
            self.state.engine.pause()
        for sq in self.state.sqs.values():
            sq.server.forget()
        for cq in self.state.cqs.values():
            cq.server.forget()

    def memory_changed(self) -> None:
        """The memory map has changed."""
        self.quiesce()
        if self.state.engine is not None:
            self.state.engine.resume()
        self._executor.memory_changed()

    @property
    def cntlid(self) -> int:
        """Its number in its subsystem."""
        return self.state.cntlid

    def remembered(self) -> Changes:
        """What the saved state says of it, with all that its engine has counted."""
        self.state.collect_counts()
        return self.state.remembered()

    def end_commands(self, nsid: int) -> None:
        """End the commands that wait for a namespace, as those to an inactive one end."""
        changes.end_commands(self.state, nsid)

    def forgotten(self, nsid: int) -> Changes:
        """The changes of the saved state that leave nothing of what the host has saved for a namespace."""
        return forgotten(self.state, nsid)

    def namespace_changed(self, nsid: int, is_told: bool = True) -> None:
        """A namespace has come, gone or changed. The host ``is_told`` of it, if it wants to be."""
        changes.namespace_changed(self.state, nsid, is_told)

    def lba_status_changed(self) -> None:
        """There are more blocks that cannot be read. The host is told, if it wants to be."""
        changes.lba_status_changed(self.state)

    def uses(self, media: Media) -> bool:
        """Whether commands are still at a medium that is no namespace's any more."""
        return self._executor.uses(media)

    def interrupts_changed(self) -> None:
        """MSI-X was enabled or disabled, or the VMM takes its messages at another place."""
        engine = self.state.engine
        if engine is not None:
            self._route_interrupts(engine)
            engine.signal_all()  # one may have gone to the old place
            engine.take_doorbells(not self._is_tapped and self.state.host.msix_enabled)
        self.taps.interrupts_changed()

    def pci_changed(self, state: PciState) -> None:
        """The host has changed what the function may do. The ports act on it; the taps are told."""
        self.taps.pci_changed(state)

    def _route_interrupts(self, engine: Engine) -> None:
        for vector in range(self.vectors):
            engine.set_vector(vector, self.state.interrupts.fd(vector))

    def pin_unmasked(self) -> None:
        """The VMM has unmasked the interrupt pin."""
        self._executor.pin.unmasked()

    def reset(self) -> None:
        """A reset of the PCI function: everything, AQA, ASQ and ACQ too (Base 1.4, 7.3.2)."""
        if self._cc.en and self.status.shst != SHST_COMPLETE:
            self.state.subsystem.health.unsafe_shutdowns += 1  # the host has gone, or pulled the plug, without a word
            self._use(False)
        self._registers[regs.CC] = 0
        self._stop()
        self._reset_registers()
        self.taps.reset()

    @property
    def is_busy(self) -> bool:
        """Whether a command is being worked on."""
        return self._executor.is_busy or self._executor.is_changing_media

    def observe(self, observer: Observer) -> None:
        """Tell this observer what passes, from now on."""
        self.taps.add(observer)
        self._tap()

    def unobserve(self, observer: Observer) -> None:
        self.taps.observers = tuple(other for other in self.taps.observers if other is not observer)
        self._tap()

    def intercept(self, interceptor: Interceptor | None) -> None:
        """Let this interceptor decide what becomes of all that passes, from now on."""
        self.taps.interceptor = interceptor
        self._tap()
        if self.state.engine is not None:
            self._route_interrupts(self.state.engine)

    def _tap(self) -> None:
        self.taps.install()
        self._is_tapped = self.taps.is_used
        self._on_doorbell: Callable[[int, int], None]
        self._on_write: Callable[[int, bytes], None]
        self._on_doorbell = partial(self.taps.doorbell, self._ring) if self._is_tapped else self._ring
        self._on_write = partial(self.taps.register_write, self._write) if self._is_tapped else self._write
        self._executor.taps = self.taps if self._is_tapped else None
        if self.state.engine is not None:  # the pin follows the heads, which Python has to see for that
            self.state.engine.take_doorbells(not self._is_tapped and self.state.host.msix_enabled)

    def serve_in_python(self, which: Callable[[int], bool]) -> None:
        """Say which I/O submission queues Python serves, by their identifiers, also those to come. That holds until
        the next call. Queues move while their commands are in flight, and each command still ends once."""
        self.state.is_pythons = which
        self._executor.assign_queues()

    def hang(self, is_hung: bool) -> None:
        """Fetch no commands, except those that the native engine has fetched already; or go on."""
        self._executor.hang(is_hung)

    def set_health(
        self, *, temperature: int | None = None, spare: int | None = None, is_degraded: bool | None = None
    ) -> None:
        """Change what the SMART log says: the composite temperature in kelvin, the available spare in percent, and
        whether the media can no longer be relied upon. The host is told of new critical warnings that it asked for."""
        health = self.state.subsystem.health
        health.temperature = health.temperature if temperature is None else temperature
        health.spare = health.spare if spare is None else spare
        health.is_degraded = health.is_degraded if is_degraded is None else is_degraded
        report_warnings(self.state)

    # --- registers -------------------------------------------------------------------------------------------------

    def _reset_registers(self) -> None:
        limits = self.state.limits
        self._registers = regs.RegisterFile()
        self._is_ready = False
        self._registers[regs.CAP] = int(
            Capabilities(
                mqes=limits.entries,
                cqr=True,
                to=limits.timeout,
                dstrd=limits.dstrd,
                css=CommandSets.NVM,
                mpsmin=limits.min_page_shift,
                mpsmax=limits.max_page_shift,
                crms=ReadyModes.WITH_MEDIA if limits.is_of_base_2 else 0,
            )
        )
        self._registers[regs.VS] = limits.vs
        if limits.is_of_base_2:  # CAP.TO is the smaller one of CRWMT and FFh
            self._registers[regs.CRTO] = int(ReadyTimeouts(crwmt=limits.timeout))

    @property
    def _cc(self) -> Configuration:
        return Configuration.of(self._registers[regs.CC])

    @property
    def status(self) -> ControllerStatus:
        """CSTS."""
        return ControllerStatus.of(self._registers[regs.CSTS])

    def _set_status(self, *, rdy: bool | None = None, cfs: bool | None = None, shst: int | None = None) -> None:
        old = self.status
        new = ControllerStatus(
            rdy=old.rdy if rdy is None else rdy,
            cfs=old.cfs if cfs is None else cfs,
            shst=old.shst if shst is None else shst,
        )
        self._registers[regs.CSTS] = int(new)
        self._is_ready = new.rdy

    def _write(self, offset: int, data: bytes) -> None:
        if offset >= DOORBELLS:  # between two
            self._doorbell_error(ErrorEvent.INVALID_DOORBELL_REGISTER, offset, int.from_bytes(data, "little"))
        for register, value in self._registers.written(offset, data):
            self._write_register(register, value)

    def _write_register(self, register: regs.Register, value: int) -> None:
        if register is regs.CC:
            self._write_cc(value)
        elif register in (regs.INTMS, regs.INTMC):
            self._mask_interrupts(register, value)
        else:
            self._registers[register] = value
            if register in _OF_ADMIN_QUEUES and self._cc.en and not self._is_queue_move_told:
                self._is_queue_move_told = True
                log.info("the guest wrote %s while enabled: it takes effect at the next enable", register.name)

    def _mask_interrupts(self, register: regs.Register, value: int) -> None:
        mask = self.state.interrupt_mask
        mask = mask | value if register is regs.INTMS else mask & ~value
        self.state.interrupt_mask = mask
        self._registers[regs.INTMS] = self._registers[regs.INTMC] = mask
        self._executor.pin.update()

    def _write_cc(self, value: int) -> None:
        old, new = self._cc, Configuration.of(value)
        if old.en and new.en:
            taken = _SHN | (0 if self.state.has_io_queues else _ENTRY_SIZES)
            new = Configuration.of(int(old) & ~taken | value & taken)
            if int(new) != value:
                log.warning("the guest wrote CC %#x while enabled with %#x: only SHN takes effect", value, int(old))
        self._registers[regs.CC] = int(new)
        self.state.entry_sizes = EntrySizes.of(new)
        if new.en and not old.en:
            self._enable()
        elif old.en and not new.en:
            log.info("controller reset")
            self._stop()
        if new.shn in (SHN_NORMAL, SHN_ABRUPT) and new.shn != old.shn:
            self._shut_down()

    # --- the states ------------------------------------------------------------------------------------------------

    def _enable(self) -> None:
        cc, limits = self._cc, self.state.limits
        aqa = AdminQueueAttributes.of(self._registers[regs.AQA])
        page_size = PAGE_MIN << cc.mps
        bases = (self._registers[regs.ASQ], self._registers[regs.ACQ])
        problems = (
            (cc.css != CSS_NVM, f"CC.CSS {cc.css} is not offered"),
            (cc.ams != 0, f"CC.AMS {cc.ams} is not offered"),
            (cc.mps > limits.max_page_shift, f"CC.MPS {cc.mps} is above CAP.MPSMAX"),
            (cc.mps < limits.min_page_shift, f"CC.MPS {cc.mps} is below CAP.MPSMIN"),
            (aqa.asqs < 2 or aqa.acqs < 2, "AQA gives a queue of one entry"),
            (any(base & page_size - 1 for base in bases), "ASQ or ACQ is not aligned to the page size"),
        )
        for is_so, problem in problems:
            if is_so:
                self.fail(f"the guest enabled the controller badly: {problem}")
                return
        self._executor.resume()
        self._is_queue_move_told = False
        self._flushing = None  # of a shutdown while disabled
        self._set_status(rdy=False, shst=SHST_NORMAL)  # a driver that did not wait for RDY=0 waits for RDY=1
        self.state.page_size = page_size
        self.state.configure_engine(write_cache=True)
        cq = CompletionQueue(self.state.host, 0, bases[1], aqa.acqs, vector=0, ien=True)
        self.state.add_admin_queues(SubmissionQueue(self.state.host, 0, bases[0], aqa.asqs, cq))
        if self.state.engine is not None:
            self.state.engine.watch(True)
        self._use(True)
        self._settle()

    def _use(self, is_in_use: bool) -> None:
        """The host begins to use the controller, or ends it: RDY waits until the drive remembers that."""
        if self._is_in_use is not is_in_use:
            self._is_in_use = is_in_use
            changes = in_use(self.state.cntlid, is_in_use)
            counters = {} if is_in_use else self.state.subsystem.remembered()
            self._executor.saves.save({**counters, **changes}, lambda error: None)

    def _stop(self) -> None:
        """Do what every reset does. RDY falls at once unless a medium may still change."""
        self._executor.stop()
        if self.state.engine is not None:
            self.state.engine.watch(False)
        self._flushing = None
        self.state.reset()
        self._registers[regs.INTMS] = self._registers[regs.INTMC] = 0
        self._set_status(cfs=False, shst=SHST_NORMAL)
        self._settle()

    def _settle(self) -> None:
        """Let CSTS follow CC once nothing of the past is under way. RDY follows EN when no command of the time before
        a reset writes any more. A shutdown completes when nothing runs and the disks are flushed."""
        status, is_enabled = self.status, self._cc.en
        if not status.cfs and status.rdy != is_enabled and not self._executor.is_changing_media:
            if is_enabled:
                restore(self.state)
                log.info("controller enabled, %d KiB pages", self.state.page_size // 1024)
            self._set_status(rdy=is_enabled)
        if self.status.shst == SHST_OCCURRING and not self._executor.is_busy:
            self._flush_and_finish()

    def _shut_down(self) -> None:
        """CC.SHN: finish what has begun, make everything durable, then serve nothing until a reset."""
        if self.status.shst != SHST_NORMAL:
            return
        log.info("shutdown (%s)", "normal" if self._cc.shn == SHN_NORMAL else "abrupt")
        self._set_status(shst=SHST_OCCURRING)
        self._executor.pause()
        self._settle()

    def _flush_and_finish(self) -> None:
        if self._flushing is not None:
            return
        token = self._flushing = object()

        def is_current() -> bool:
            return self._flushing is token  # no reset since

        def done(_: object, error: BaseException | None) -> None:
            if error is not None:
                disk, why = (error.disk, error.why) if isinstance(error, MediaError) else ("", error)
                log.error("disk %s failed to flush at shutdown: %s: written data may be lost", disk, why)
            if not is_current():
                return
            self._is_in_use = False
            changes = {**self.state.subsystem.remembered(), **in_use(self.state.cntlid, False)}
            self._executor.saves.save(changes, end)

        def end(_: BaseException | None) -> None:
            if is_current():
                self._executor.signal()
                self._executor.drop_all()  # nothing may complete from here on
                self._set_status(shst=SHST_COMPLETE)
                log.info("shutdown complete")

        run(flush_all(self.state.namespaces.media), done)

    def fail(self, reason: str) -> None:
        """Controller Fatal Status: nothing is served until a reset (Base 1.4, 9.5)."""
        log.error("controller fatal status: %s", reason)
        self._executor.stop()
        self._executor.pause()
        self._set_status(cfs=True)

    # --- doorbells ---------------------------------------------------------------------------------------------------

    def _ring(self, number: int, value: int) -> None:
        """The doorbell of this number, from 0 on. Base 1.4, 3.1.24 and 3.1.25."""
        state = self.state
        if not self._is_ready:
            log.warning("the guest rang %s before the controller was ready", words.doorbell(number))
            return
        qid, is_cq = number >> 1, number & 1
        queue: CompletionQueue | SubmissionQueue | None = (state.cqs if is_cq else state.sqs).get(qid)
        if queue is None:
            self._doorbell_error(ErrorEvent.INVALID_DOORBELL_REGISTER, self._place(number), value)
            return
        if not queue.server.ring(value):
            self._doorbell_error(ErrorEvent.INVALID_DOORBELL_VALUE, self._place(number), value)
        elif isinstance(queue, CompletionQueue):
            self._executor.head_moved(queue)
        else:
            self._executor.wake(queue)
        if qid == 0 and state.shadow is not None:
            state.echo_admin_doorbells()

    def _mapped_doorbell(self, number: int, value: int, is_good: bool) -> None:
        """A doorbell that came without a message."""
        if is_good:
            self._on_doorbell(number, value)
        else:
            self._doorbell_error(ErrorEvent.INVALID_DOORBELL_VALUE, self._place(number), value)

    def _place(self, number: int) -> int:
        """The offset of a doorbell in BAR0."""
        return DOORBELLS + number * self._stride

    def _doorbell_error(self, what: ErrorEvent, offset: int, value: int) -> None:
        number, rest = divmod(offset - DOORBELLS, self._stride)
        wrong = "no doorbell is there" if rest else self._what_is_wrong(number, value)
        log.warning("the guest rang %s (at %#x) with %d: %s", words.doorbell(number), offset, value, wrong)
        self.state.events.report(Event(EventType.ERROR, what, LogId.ERROR_INFORMATION), keep=False)

    def _what_is_wrong(self, number: int, value: int) -> str:
        """What is wrong with the value of a doorbell, for the log."""
        qid, is_cq = number >> 1, number & 1
        queue: CompletionQueue | SubmissionQueue | None = (self.state.cqs if is_cq else self.state.sqs).get(qid)
        if queue is None:
            return "there is no such queue"
        if value >= queue.entries:
            return f"the queue has {queue.entries} entries"
        return "nothing was posted there" if is_cq else "the queue would be more than full"
