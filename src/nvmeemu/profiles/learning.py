"""How the host of a trace learned of completions, for each of its commands. A profile's driver does the same.

A trace does not show whether a host waits for an interrupt or polls. But what it does with INTMS and INTMC, and
whether there were messages, says enough. The order of an interrupt and of the doorbell that answers it does not,
because they cross.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nvmeemu import regs
from nvmeemu.trace.commands import is_reset
from nvmeemu.trace.records import (
    Completion,
    Doorbell,
    Fetch,
    Interrupt,
    InterruptMode,
    PciChange,
    Record,
    RegisterWrite,
    Signal,
)

MASKS = (regs.INTMS.offset, regs.INTMC.offset)


@dataclass
class _Masked:
    """From a write to INTMS to the write to INTMC that ends it, or to a reset."""

    writes: list[int]  # numbers of their records
    bits: int
    is_announced: bool  # there was something for an interrupt handler to do
    is_over: bool = False
    is_matched: bool = False  # what was masked, and no more, was unmasked
    has_whole: bool = False  # a command was fetched and its completion taken meanwhile

    @property
    def is_handler(self) -> bool:
        """Whether an interrupt handler did it. Otherwise the driver wanted no interrupts for a time."""
        return self.is_matched and (self.is_announced or not self.has_whole)


@dataclass
class _Command:
    number: int  # of its Fetch
    msix: bool
    has_pin: bool
    masked: list[_Masked]  # when it was fetched
    is_unmasked: bool  # whether the driver had allowed interrupts before
    taken: list[_Masked] | None = None  # when its completion was taken; None: it never was


@dataclass
class _Life:
    """What happened between two resets."""

    commands: list[_Command] = field(default_factory=list)
    masked: list[_Masked] = field(default_factory=list)

    def modes(self, before: str) -> Iterable[tuple[int, str]]:
        """For each command, how its host learned of its end; ``before``: as far as is known before the first."""
        has_handler = any(one.is_handler for one in self.masked)
        for command in self.commands:
            mode = self._mode(command, has_handler)
            before = mode or before or "polling"
            yield command.number, before

    @staticmethod
    def _mode(command: _Command, has_handler: bool) -> str:
        """Empty if nothing tells."""
        if any(not one.is_handler and one.is_over for one in command.masked):
            return "polling"
        if command.msix:
            return "msix masking" if has_handler else "msix"
        if not command.has_pin:
            return "polling"
        if has_handler:
            if command.taken is None:
                return ""
            bits = next((one.bits for one in command.taken if one.is_handler), 0)
            return "polling" if not bits else "pin masking" if bits == 1 else f"pin masking={bits:#x}"
        return "pin" if command.is_unmasked else "polling"


class Learning:
    """``modes`` has, by the number of a Fetch, the step that says how its host learns. ``handlers`` are the numbers of
    the writes to INTMS and INTMC that an interrupt handler made."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.modes: dict[int, str] = {}
        self.handlers: set[int] = set()
        self._msix = self._function_mask = self._interrupt_disable = self._pin_up = False
        self._begin()
        take: dict[type, Callable[..., None]] = {
            Fetch: self._fetch,
            Completion: self._complete,
            Doorbell: self._ring,
            RegisterWrite: self._write,
            Interrupt: self._interrupt,
            InterruptMode: self._set_mode,
            PciChange: self._set_pci,
        }
        for number, record in enumerate(records):
            if (act := take.get(type(record))) is not None:
                act(number, record)
            if is_reset(record):
                self._end()
        self._end()

    def _begin(self) -> None:
        self._life = _Life()
        self._open: dict[int, _Masked] = {}  # by its bits
        self._is_unmasked = False
        self._under_way: defaultdict[tuple[int, int], deque[_Command]] = defaultdict(deque)  # by (SQID, CID)
        self._waiting: defaultdict[int, deque[tuple[int, _Command]]] = defaultdict(deque)  # by CQID: slot, command

    def _end(self) -> None:
        for one in self._open.values():
            one.is_over = True
        self.modes |= self._life.modes("")
        self.handlers |= {number for one in self._life.masked if one.is_handler for number in one.writes}
        self._begin()

    def _fetch(self, number: int, record: Fetch) -> None:
        command = _Command(
            number,
            self._msix and not self._function_mask,
            not self._interrupt_disable,
            list(self._open.values()),
            self._is_unmasked,
        )
        self._life.commands.append(command)
        self._under_way[record.sqid, record.cid].append(command)

    def _complete(self, number: int, record: Completion) -> None:
        under_way = self._under_way[record.sqid, record.cid]
        if under_way:
            self._waiting[record.cqid].append((record.slot, under_way.popleft()))

    def _ring(self, number: int, record: Doorbell) -> None:
        """The head moves: the completions before it have been taken."""
        waiting = self._waiting[record.qid] if record.is_cq else None
        while waiting and waiting[0][0] != record.value:
            _, command = waiting.popleft()
            command.taken = list(self._open.values())
            for one in command.taken:
                one.has_whole |= command.number > one.writes[0]

    def _write(self, number: int, record: RegisterWrite) -> None:
        if record.offset not in MASKS:
            return
        bits = int.from_bytes(record.data, "little")
        if record.offset == regs.INTMS.offset:
            if bits and bits not in self._open:
                is_announced = self._pin_up or any(self._waiting.values())
                self._open[bits] = _Masked([number], bits, is_announced)
                self._life.masked.append(self._open[bits])
            return
        for one in [one for one in self._open.values() if one.bits & bits]:
            del self._open[one.bits]
            one.is_over, one.is_matched = True, one.bits == bits
            one.writes.append(number)
            self._is_unmasked |= not one.is_handler

    def _interrupt(self, number: int, record: Interrupt) -> None:
        if record.signal != Signal.MSIX:
            self._pin_up = record.signal == Signal.PIN_UP

    def _set_mode(self, number: int, record: InterruptMode) -> None:
        self._msix = record.msix

    def _set_pci(self, number: int, record: PciChange) -> None:
        self._function_mask = record.function_mask
        self._interrupt_disable = record.interrupt_disable
