"""The ways of a controller's interrupts: to its host, or first past who observes the controller."""

from __future__ import annotations

from typing import Protocol

from nvmeemu.ports import Host


class InterruptTap(Protocol):
    """Stands in the way of interrupts, and sends them on by ``InterruptPort.send_now`` and ``drive_now``."""

    @property
    def wants_interrupts(self) -> bool:
        """Whether the native engine's interrupts, too, shall pass."""
        ...

    def interrupt(self, vector: int) -> None: ...
    def pin(self, asserted: bool) -> None: ...


class InterruptPort:
    """``tap`` None: nobody stands in the way."""

    def __init__(self, host: Host) -> None:
        self.tap: InterruptTap | None = None
        self._host = host

    def send(self, vector: int) -> None:
        """Send MSI-X message ``vector``."""
        if self.tap is None:
            self._host.interrupt(vector)
        else:
            self.tap.interrupt(vector)

    def drive(self, asserted: bool) -> None:
        """Give INTA# this level."""
        if self.tap is None:
            self._host.pin(asserted)
        else:
            self.tap.pin(asserted)

    def send_now(self, vector: int) -> None:
        """Past the tap."""
        self._host.interrupt(vector)

    def drive_now(self, asserted: bool) -> None:
        """Past the tap."""
        self._host.pin(asserted)

    def fd(self, vector: int) -> int:
        """For the native engine: ``Host.interrupt_fd``; -1 if its interrupts shall pass the tap."""
        is_wanted = self.tap is not None and self.tap.wants_interrupts
        return -1 if is_wanted else self._host.interrupt_fd(vector)
