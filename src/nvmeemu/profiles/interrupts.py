"""How a profile's driver learns of completions: it polls, or has an interrupt handler that masks or does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from nvmeemu import regs
from nvmeemu.controller.taps import Observer
from nvmeemu.ports import PciState
from nvmeemu.profiles.findings import Findings
from nvmeemu.profiles.queues import Queues
from nvmeemu.profiles.steps import ModeStep
from nvmeemu.queues import CompletionQueue
from nvmeemu.testing.bench import Bench

_MOST_ROUNDS = 10_000  # of the handler, for interrupts that follow each other


class Interrupts(Observer):
    """Watches the device's interrupts, and is the driver's interrupt handler."""

    def __init__(
        self, bench: Bench, queues: Queues, findings: Findings, write: Callable[[int, int, int], None]
    ) -> None:
        """``write`` writes a register: its offset, its size in bytes, the value."""
        self._bench = bench
        self._queues = queues
        self._findings = findings
        self._write = write
        self._mode = "polling"
        self._masking = 0
        self._mask = 0  # INTMS, as the driver has it
        self._fresh: Counter[int] = Counter()  # completions by vector that the driver has not seen

    # --- what the device does

    def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        if cq.ien:
            self._fresh[cq.vector] += 1

    def interrupt(self, vector: int) -> None:
        if not self._fresh[vector]:
            self._findings.note("spurious_interrupt", f"vector {vector}, and no completion")

    def pin(self, asserted: bool) -> None:
        if self._bench.ram.pin_disabled:
            return
        if asserted and self._mask & 1:
            self._findings.note("masked_interrupt")
        elif asserted and not self._fresh.total():
            self._findings.note("spurious_interrupt", "the pin, and no completion")

    # --- what the driver does

    def learn_by(self, step: ModeStep) -> None:
        """Learn of completions in this way from here on. Only "msix" and "pin" change what the device does."""
        self._queues.catch_up()
        self._mode, self._masking, self._queues.is_late = step.mode, step.masking, step.is_late
        if step.mode != "polling":
            self._bench.ram.msix_enabled = step.mode == "msix"
            self._bench.controller.interrupts_changed()

    def mask(self, register: int, value: int) -> None:
        """Write INTMS or INTMC; the pin follows at once."""
        self._mask = self._mask | value if register == regs.INTMS.offset else self._mask & ~value
        self._write(register, 4, value)
        self._look_at_pin()

    def set_disable(self, is_disabled: bool) -> None:
        """Set or clear Interrupt Disable in the Command register; the pin follows at once."""
        self._bench.ram.pin_disabled = is_disabled
        state = PciState(bus_master=True, memory_space=True, interrupt_disable=is_disabled)
        self._bench.controller.pci_changed(state)
        self._bench.controller.interrupts_changed()
        self._look_at_pin()

    def _look_at_pin(self) -> None:
        if self._mask & 1 and self._is_pin_up:
            self._findings.note("masked_interrupt")

    @property
    def _is_pin_up(self) -> bool:
        return self._bench.ram.pin_level and not self._bench.ram.pin_disabled

    def forget(self) -> None:
        """A reset: nothing is masked, and no completion waits to be announced."""
        self._mask = 0
        self._fresh.clear()
        self._bench.ram.interrupts.clear()

    def serve(self) -> None:
        """Let the device work, and take what it has announced, until there is nothing more."""
        self._bench.settle()
        for _ in range(_MOST_ROUNDS):
            if not self._round():
                return
            self._bench.settle()

    def _round(self) -> bool:
        ram = self._bench.ram
        if self._mode == "polling":
            ram.interrupts.clear()
            return self._drain(None) > 0
        has_polled = sum(self._queues.drain(cqid) for cqid in self._queues.without_interrupts()) > 0
        if self._mode == "pin":
            if not self._is_pin_up or self._mask & 1:
                return has_polled
            self._handle(None)
            return True
        vectors = sorted(set(ram.interrupts))
        ram.interrupts.clear()
        for vector in vectors:
            self._handle(vector)
        return has_polled or bool(vectors)

    def _handle(self, vector: int | None) -> None:
        bits = self._masking << (vector or 0) & 0xFFFFFFFF
        if self._masking:
            self.mask(regs.INTMS.offset, bits)
        self._drain(vector)
        if self._masking:
            self.mask(regs.INTMC.offset, bits)

    def _drain(self, vector: int | None) -> int:
        self._bench.settle()
        taken = 0
        for cqid in self._queues.of_vector(vector):
            number = self._queues.drain(cqid)
            of = self._queues.vector(cqid)
            self._fresh[of] = max(0, self._fresh[of] - number)
            taken += number
        return taken
