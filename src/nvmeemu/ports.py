"""The ports through which the controller sees the world: the host's memory, its interrupts, time, workers.

The controller core is sans-IO: it knows no socket, file, thread or wall clock. Whoever runs it provides these
ports: ``vfio`` for a real guest, ``testing`` for a test. Every call, in both directions, is made on one thread,
the *controller's thread*; only the callable given to ``Worker.submit`` runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol


class HostMemoryError(Exception):
    """No writable (or, for reading, readable) memory stands behind a guest address at this moment. It may be missing
    for good (a hostile PRP) or for a moment: VMMs unmap guest RAM and map it again in other pieces while the
    controller is enabled."""

    def __init__(self, iova: int, size: int) -> None:
        super().__init__(f"no guest memory at {iova:#x}, {size} bytes")
        self.iova = iova
        self.size = size


class PciState(NamedTuple):
    """What the host has set in the configuration space, as far as it acts or is looked for when nothing works (PCI
    Local Bus 3.0, 6.2.2 Device Control, 6.8.2 MSI-X; PCI Power Management 1.2, 3.2.4). As after power-on: nothing."""

    bus_master: bool = False
    memory_space: bool = False
    interrupt_disable: bool = False
    function_mask: bool = False
    power_state: int = 0  # 0: D0, 3: D3hot
    function_level_reset: bool = False  # the host has just initiated one: the rest is what it leaves

    @property
    def reaches_memory(self) -> bool:
        """Whether the function reaches guest memory. Otherwise it reads no queue, moves no data, and sends no MSI-X
        message, because a message is a write to memory, too."""
        return self.bus_master and self.power_state == 0


class Host(Protocol):
    """What a PCIe function reaches over the bus: guest memory and interrupts."""

    def view(self, iova: int, size: int) -> memoryview:
        """A writable view (format ``B``) of ``size`` bytes of guest memory at ``iova``.

        It dies at the next change of the memory map: drop it before returning to the event loop, or in ``quiesce``.
        Raises HostMemoryError if the range is not wholly inside one mapped, writable region.
        """
        ...

    def views(self, iova: int, size: int, writable: bool = True) -> list[memoryview]:
        """The same for a range that may span several regions: the pieces in order. With ``writable=False`` it also
        serves read-only regions (ROMs), and the views are for reading."""
        ...

    def barrier(self) -> None:
        """A full memory barrier: what was written to guest memory before is seen before what is read from it after."""
        ...

    @property
    def obstacle(self) -> str:
        """Why no memory can be reached at this moment, for the log. Empty if it can."""
        ...

    @property
    def msix_enabled(self) -> bool:
        """MSI-X Enable in the function's MSI-X capability (PCI Express Base, 7.7.2.2 Message Control)."""
        ...

    @property
    def pin_enabled(self) -> bool:
        """INTA# may be driven: MSI-X is not enabled, nor Interrupt Disable set (PCI Local Bus 3.0, 6.2.2)."""
        ...

    def interrupt(self, vector: int) -> None:
        """Send MSI-X message ``vector`` (edge). No effect if the VMM has no route for it at this moment."""
        ...

    def interrupt_fd(self, vector: int) -> int:
        """An eventfd that sends MSI-X message ``vector`` when it is written, for the native engine to copy; -1 if
        there is none at this moment. ``Controller.interrupts_changed`` tells when it changes."""
        ...

    def pin(self, asserted: bool) -> None:
        """Drive INTA# to this level. Called when the level changes, and again after ``Controller.pin_unmasked``."""
        ...


class MemoryMirror(Protocol):
    """Wants to know where guest memory lies. It is called between ``Controller.quiesce`` and ``memory_changed``."""

    def add_region(self, iova: int, memory: memoryview) -> None:
        """The region is mapped from now on, and stays there until ``remove_region``."""
        ...

    def remove_region(self, iova: int) -> None: ...


class Mirrors:
    """Several mirrors as one. None stands for nobody."""

    def __init__(self, *mirrors: MemoryMirror | None) -> None:
        self._mirrors = [mirror for mirror in mirrors if mirror is not None]

    def add_region(self, iova: int, memory: memoryview) -> None:
        for mirror in self._mirrors:
            mirror.add_region(iova, memory)

    def remove_region(self, iova: int) -> None:
        for mirror in self._mirrors:
            mirror.remove_region(iova)


class Clock(Protocol):
    """Time, virtual in tests."""

    def now(self) -> float:
        """Seconds, monotonic."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` on the controller's thread after ``delay`` seconds, once, unless cancelled."""
        ...


class Timer(Protocol):
    """A pending ``Clock.call_later``."""

    def cancel(self) -> None:
        """Never call back; harmless after the call."""
        ...


Value = int | str | bytes
"""What a drive can remember: an integer of 64 bits with a sign, text, or bytes."""


class StateError(Exception):
    """The saved state was not changed, or says what cannot be. The text says why, and what to do about it."""


class SavedState(Protocol):
    """What a drive remembers when its power is off: values by scope and name, both of them plain words.

    ``subsystem.saved`` has the scopes and typed names that there are. The values here are those that are durable.
    """

    def get(self, scope: str, name: str) -> Value | None:
        """The value; None if there is none."""
        ...

    def scope(self, scope: str) -> Mapping[str, Value]:
        """All values of a scope by their names, as they are now."""
        ...

    def save(self, changes: Changes, done: Callable[[BaseException | None], None]) -> None:
        """Change these values, all or none of them. Then call ``done(None)``, when they are durable, or
        ``done(error)``, a StateError: nothing has changed. It is called once, on the controller's thread, perhaps
        before ``save`` has returned. Changes are made in the order of their calls."""
        ...


Changes = Mapping[tuple[str, str], Value | None]
"""New values by scope and name. None removes a value."""


class Worker(Protocol):
    """Runs what may block (a disk) away from the controller's thread."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], at: object) -> Job:
        """Run ``work()`` on some thread; then call ``done(value, None)`` or ``done(None, exception)`` once, on the
        controller's thread, never before ``submit`` has returned.

        ``at`` is what ``work`` may have to wait for, a disk: however much waits there, what is at another begins. All
        controllers of a process may share a worker, so nobody else's work is there.
        ``work`` must not touch guest memory or the controller.
        """
        ...


class Job(Protocol):
    """Work given to a ``Worker``."""

    def cancel(self) -> bool:
        """True: it has not begun, will never run, and ``done`` will never be called. False: it runs or has run."""
        ...
