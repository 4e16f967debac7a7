"""The driver of a profile: plays its steps on a controller in this process, on a virtual clock, and watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nvmeemu import regs, spec
from nvmeemu.backend import Backend, BackendError
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.limits import Limits
from nvmeemu.faults import Faults
from nvmeemu.faults.fault import Fault
from nvmeemu.ports import HostMemoryError
from nvmeemu.profiles.buffers import Buffers
from nvmeemu.profiles.findings import DriverStopped, Findings
from nvmeemu.profiles.interrupts import Interrupts
from nvmeemu.profiles.items import STEP, Break, Outcome
from nvmeemu.profiles.profile import Profile, ProfileError, ProfileNamespace
from nvmeemu.profiles.queues import Queues, Waiting
from nvmeemu.profiles.steps import (
    FunctionResetStep,
    ModeStep,
    PauseStep,
    PciStep,
    ReadStep,
    Step,
    SubmitStep,
    WaitStep,
    WriteStep,
)
from nvmeemu.spec import Configuration, ControllerStatus
from nvmeemu.testing.bench import Bench
from nvmeemu.trace import words
from nvmeemu.trace.recorder import Recorder, describe
from nvmeemu.trace.sink import Memory

_RAM = 256 << 20  # bytes, taken as they are used
_MEMORY = spec.SQE_SIZE * 4096  # bytes: the largest admin queue
_ALIGNED = 1 << 16  # bytes: whatever CC.MPS will be
_LINGER = 1.0  # seconds after the last step, in which nothing may happen any more
_LOOKS = 50  # at what is waited for
_GONE = 0xFFFFFFFF


def _groups(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Each step with those that are joined to it."""
    group: list[Step] = []
    for step in steps:
        if group and not (isinstance(step, SubmitStep) and step.is_joined):
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def run(profile: Profile, broken: Break | None = None) -> Outcome:
    """Play it, to a device that is perhaps broken on purpose. Raises ProfileError if there can be no such device."""
    device: dict[str, Any] = {**profile.device, **(broken.device or {} if broken else {})}
    try:
        with Bench(limits=Limits(**device), ram=_RAM) as bench:
            bench.namespaces.remove(1)
            for disk in profile.namespaces:
                bench.namespaces.add(bench.namespace(disk.nsid, _backend(disk), disk.block_size))
            return DriverHost(profile, bench, broken.fault if broken else None).play()
    except (BackendError, ValueError) as error:
        raise ProfileError(f"{profile.name}: there is no such device: {error}") from None
    except HostMemoryError:
        raise ProfileError(f"{profile.name}: its buffers do not fit into {_RAM >> 20} MiB") from None


def _backend(disk: ProfileNamespace) -> Backend:
    backend = MemoryBackend(disk.blocks * disk.block_size)
    backend.volatile_cache = disk.write_cache
    return backend


class DriverHost:
    """``registers``: what the driver wrote last, by the offset of the whole register."""

    def __init__(self, profile: Profile, bench: Bench, fault: Mapping[str, Any] | None) -> None:
        self.profile = profile
        self.bench = bench
        self.findings = Findings(profile, self.now)
        controller = bench.controller
        bench.ram.msix_enabled = False
        bench.driver.stride = 4 << bench.driver.capabilities.dstrd  # not a read of the driver's
        self._sink = Memory(describe(controller, comment=f"profile {profile.name}"), self.now)
        controller.observe(Recorder(self._sink, controller.state))
        self.queues = Queues(bench, profile, self.findings)
        self.interrupts = Interrupts(bench, self.queues, self.findings, self.write)
        controller.observe(self.interrupts)
        self.buffers = Buffers(bench.driver, {disk.nsid: disk.block_size for disk in profile.namespaces})
        self.registers: dict[int, int] = {}
        self._read_before: dict[tuple[int, int], int] = {}  # by offset and size
        self._halves: dict[int, tuple[int, int]] = {}  # of ASQ and ACQ: which half was written last, of what address
        if fault is not None:
            Faults(controller, seed=1).add(Fault.of(fault))

    def now(self) -> int:
        """Nanoseconds."""
        return int(self.bench.clock.now() * 1_000_000_000)

    def play(self) -> Outcome:
        """Take all steps, or those up to where the driver gives up."""
        try:
            self._probe()
            for group in _groups(self.profile.steps):
                self.findings.step = group[0]
                self._take(group)
                self.interrupts.serve()
            self.linger(_LINGER)
        except DriverStopped:
            pass
        return Outcome(self.findings.found, self.queues.commands, self._sink.reader())

    def _probe(self) -> None:
        """What the driver finds before it looks at a register."""
        device, driver = self.bench.controller, self.profile
        if device.vectors > driver.most_vectors:
            raise self.findings.fail("too_many_vectors", f"{device.vectors} MSI-X vectors")
        if device.bar0_size < driver.least_bar0:
            raise self.findings.fail("small_bar0", f"{device.bar0_size} bytes, not {driver.least_bar0}")

    def _take(self, group: Sequence[Step]) -> None:
        step = group[0]
        if isinstance(step, ReadStep):
            self._read(step)
        elif isinstance(step, WriteStep):
            self._write(step)
        elif isinstance(step, WaitStep):
            self._wait(step)
        elif isinstance(step, ModeStep):
            self.interrupts.learn_by(step)
        elif isinstance(step, PciStep):
            self.interrupts.set_disable(step.interrupt_disable)
        elif isinstance(step, PauseStep):
            self.linger(step.seconds)
        elif isinstance(step, FunctionResetStep):
            self._forget()
            self.registers.clear()
            self.bench.ram.pin_disabled = False
            self.bench.controller.reset()
        else:
            self._submit([step for step in group if isinstance(step, SubmitStep)])

    def linger(self, seconds: float) -> None:
        """Let time pass, and take what comes."""
        for _ in range(_LOOKS):
            self.bench.clock.advance(seconds / _LOOKS)
            self.interrupts.serve()

    # --- registers

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bench.read_bar(offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register as the driver does. The caller keeps the driver's own state."""
        self.bench.write_bar(offset, value.to_bytes(size, "little"))
        self.bench.settle()

    def _read(self, step: ReadStep) -> None:
        place = step.offset, step.size
        value, before = self.read(*place), self._read_before.get(place)
        self._read_before[place] = value
        if step.expected is None:
            return
        known = {"written": self._written(*place), "before": before}
        wanted = step.expected if isinstance(step.expected, int) else known[step.expected]
        if value != wanted:
            item = "unreadable_register" if step.expected == "written" else STEP
            raise self.findings.fail(item, f"reads as {value:#x}, not {wanted:#x}")

    def _written(self, offset: int, size: int) -> int:
        start = offset - offset % 8 if offset >= regs.ASQ.offset else offset
        return self.registers.get(start, 0) >> 8 * (offset - start) & (1 << 8 * size) - 1

    def _write(self, step: WriteStep) -> None:
        value = self._address(step) if isinstance(step.value, str) else step.value
        start = step.offset - step.offset % 8 if step.offset >= regs.ASQ.offset else step.offset
        shift, mask = 8 * (step.offset - start), (1 << 8 * step.size) - 1
        old = self.registers.get(start, 0)
        was_enabled = Configuration.of(self.registers.get(regs.CC.offset, 0)).en
        self.registers[start] = old & ~(mask << shift) | value << shift
        is_enabled = Configuration.of(self.registers.get(regs.CC.offset, 0)).en
        if step.offset in (regs.INTMS.offset, regs.INTMC.offset):
            self.interrupts.mask(step.offset, value)
            return
        if was_enabled and not is_enabled:
            self._forget()
        elif is_enabled and not was_enabled:
            self._enable()
        self.write(step.offset, step.size, value)

    def _address(self, step: WriteStep) -> int:
        """The address of new memory, or of the memory whose other half was written last."""
        start = step.offset - step.offset % 8
        half, address = self._halves.pop(start, (step.offset, 0))
        if step.size == 8 or half == step.offset:
            address = self.bench.driver.alloc(_MEMORY, _ALIGNED)
            self._halves[start] = step.offset, address
        return address >> 8 * (step.offset - start) & (1 << 8 * step.size) - 1

    def _enable(self) -> None:
        self.bench.driver.page = spec.PAGE_MIN << Configuration.of(self.registers[regs.CC.offset]).mps
        aqa = spec.AdminQueueAttributes.of(self.registers.get(regs.AQA.offset, 0))
        asq, acq = (self.registers.get(one.offset, 0) for one in (regs.ASQ, regs.ACQ))
        self.queues.begin(asq, acq, aqa.asqs, aqa.acqs)

    def _forget(self) -> None:
        self.queues.forget()
        self.interrupts.forget()

    def _wait(self, step: WaitStep) -> None:
        for _ in range(_LOOKS + 1):
            self.check_alive()
            if getattr(ControllerStatus.of(self.read(regs.CSTS.offset, 4)), step.field) == step.value:
                return
            self.linger(self.profile.ready / _LOOKS)
        raise self.findings.fail(STEP, f"not within {self.profile.ready:g} s")

    def check_alive(self) -> None:
        """Raises DriverStopped if the device is gone, or has failed."""
        value = self.read(regs.CSTS.offset, 4)
        if value == _GONE:
            raise self.findings.fail("fatal_status", "the device is gone: CSTS reads as all ones")
        if ControllerStatus.of(value).cfs:
            raise self.findings.fail("fatal_status", "CSTS.CFS is set")

    # --- commands

    def _submit(self, steps: Sequence[SubmitStep]) -> None:
        """Give all these commands, and wait for all."""
        for sqid in {step.qid for step in steps}:
            if not self.queues.has(sqid):
                raise self.findings.fail(STEP, f"there is no queue {sqid} here")
            if sum(step.times for step in steps if step.qid == sqid) > self.queues.room(sqid):
                raise self.findings.fail(STEP, f"queue {sqid} has room for {self.queues.room(sqid)} commands")
        with ExitStack() as stack:
            given = []
            for step in steps:
                places = stack.enter_context(self.buffers.of(step))
                waiting = [self.queues.submit(step.qid, command) for command in self.buffers.commands(step, places)]
                given.append((step, waiting, places))
            for sqid in dict.fromkeys(step.qid for step in steps):
                self.queues.ring(sqid)
            self.interrupts.serve()
            for self.findings.step, waiting, places in given:
                self._end(self.findings.step, waiting, places)

    def _end(self, step: SubmitStep, waiting: Sequence[Waiting], places: Sequence[int]) -> None:
        if step.expect.parked:
            if not step.is_aer and any(one.completion is not None for one in waiting):
                raise self.findings.fail(STEP, "is answered")
            return
        self._await(step, waiting)
        for one, place in zip(waiting, places, strict=True):
            self._judge(step, one, place)

    def _await(self, step: SubmitStep, waiting: Sequence[Waiting]) -> None:
        for _ in range(_LOOKS):
            if all(one.completion is not None for one in waiting):
                return
            self.check_alive()
            self.bench.clock.advance(self.profile.deadline / _LOOKS)
            self.interrupts.serve()
        if all(one.completion is not None for one in waiting):
            return
        within = f"within {self.profile.deadline:g} s"
        if self.queues.is_answer_there(step.qid):
            raise self.findings.fail("lost_interrupt", f"a completion, but no interrupt {within}")
        raise self.findings.fail("late_answer", f"no answer {within}")

    def _judge(self, step: SubmitStep, waiting: Waiting, place: int) -> None:
        completion, expect = waiting.completion, step.expect
        assert completion is not None  # _await
        if expect.statuses is not None and completion.status not in expect.statuses:
            raise self.findings.fail(STEP, words.completion(completion))
        if completion.status:
            return
        if expect.dw0 is not None and completion.dw0 != expect.dw0:
            raise self.findings.fail(STEP, f"DW0 is {completion.dw0:#x}")
        for name, relation, wanted in expect.conditions if step.structure is not None else ():
            assert step.structure is not None
            value = getattr(step.structure(self.bench.read_memory(place, spec.PAGE_MIN)), name)
            if not {">=": value >= wanted, "<=": value <= wanted, "=": value == wanted}[relation]:
                raise self.findings.fail(STEP, f"{name} is {value:#x}")
        self.queues.took_effect(waiting.command)
        if not self.buffers.check(waiting.command, step.qid, place):
            raise self.findings.fail("wrong_data")
