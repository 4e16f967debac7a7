"""The phases of a boot, as a trace shows them: by resets, by who enables the controller, and by the first I/O."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from nvmeemu import regs
from nvmeemu.trace.commands import written_configuration
from nvmeemu.trace.records import (
    ClientAttached,
    ClientLeft,
    Completion,
    Fetch,
    InterruptMode,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
)


class Name(StrEnum):
    """FIRMWARE lasts from a reset of the function to the first I/O command. LOADER lasts from there to the last
    command of the firmware's driver. KERNEL begins when the controller is enabled with admin queues of another size,
    so not by a driver that only resets it, or when MSI-X is enabled, which firmware does not need. SHUTDOWN lasts from
    a shutdown notification to the reset."""

    FIRMWARE = "firmware"
    LOADER = "loader"
    KERNEL = "kernel"
    SHUTDOWN = "shutdown"


class Phase(NamedTuple):
    """From ``start`` to ``end``, in nanoseconds."""

    name: Name
    start: int
    end: int


class Phases:
    """The phases of a trace. Give it all records in order, then call ``end``. ``current`` is the phase now."""

    def __init__(self) -> None:
        self.found: list[Phase] = []
        self.current: Name | None = None  # None: no client, or nothing yet
        self._start = 0
        self._aqa = 0
        self._begin(None, 0)

    def _begin(self, name: Name | None, time: int) -> None:
        """The current phase ends and another begins. ``time`` may lie back, but not before the current one."""
        time = max(time, self._start)
        if self.current is not None and time > self._start:
            last = self.found[-1] if self.found else None
            if last is not None and last.name == self.current and last.end == self._start:
                self.found[-1] = last._replace(end=time)
            else:
                self.found.append(Phase(self.current, self._start, time))
        self.current, self._start = name, time
        if name in (None, Name.FIRMWARE):
            self._is_enabled = False
            self._sizes: int | None = None  # AQA when the controller was enabled first
            self._quiet: int | None = None  # when the last command of the firmware ended, or else its last access

    def feed(self, record: Record) -> None:
        """Take one record."""
        time = record.time
        if isinstance(record, (Reset, ClientAttached, ClientLeft)):
            self._restart(record)
            return
        if self.current is None and not self.found:  # the trace began later
            self._begin(Name.FIRMWARE, time)
        if isinstance(record, RegisterWrite):
            if record.offset == regs.AQA.offset:
                self._aqa = int.from_bytes(record.data, "little")
            self._configure(record)
        elif isinstance(record, InterruptMode) and record.msix and self._is_before_kernel:
            self._begin(Name.KERNEL, time if self._quiet is None else self._quiet)
        elif isinstance(record, Fetch) and record.sqid and self.current == Name.FIRMWARE:
            self._begin(Name.LOADER, time)
        is_access = isinstance(record, (RegisterRead, RegisterWrite))
        if isinstance(record, (Fetch, Completion)) or (is_access and self._quiet is None):
            self._quiet = time

    def _restart(self, record: Reset | ClientAttached | ClientLeft) -> None:
        if isinstance(record, ClientLeft):
            if self.current == Name.FIRMWARE and self._quiet is None:
                self.current = None  # the reset that came before the client left did not begin a boot
            self._begin(None, record.time)
        elif isinstance(record, ClientAttached) or self.current is not None or not self.found:
            self._begin(Name.FIRMWARE, record.time)

    @property
    def _is_before_kernel(self) -> bool:
        return self.current in (Name.FIRMWARE, Name.LOADER)

    def _configure(self, record: RegisterWrite) -> None:
        written = written_configuration(record)
        if written is None:
            return
        if written.en and not self._is_enabled:
            if self._sizes is None:
                self._sizes = self._aqa
            elif self._sizes != self._aqa and self.current != Name.KERNEL:
                self._begin(Name.KERNEL, record.time if self._quiet is None else self._quiet)
        if written.shn:
            self._begin(Name.SHUTDOWN, record.time)
        self._is_enabled = bool(written.en)

    def end(self, time: int) -> list[Phase]:
        """End the trace at that time; returns its phases, in order. Between them may be times without a client."""
        self._begin(None, time)
        return self.found


def phases(records: Iterable[Record]) -> list[Phase]:
    """The phases of a trace."""
    found, last = Phases(), 0
    for record in records:
        found.feed(record)
        last = record.time
    return found.end(last)
