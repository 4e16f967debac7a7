"""``faults``: the same words for a controller in this process and for one behind a control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nvmeemu.control import Control, ControlError
from nvmeemu.faults import Fault, FaultError


class Armed(Protocol):
    """A fault that has been added."""

    @property
    def seen(self) -> int:
        """How often it matched."""
        ...

    @property
    def hits(self) -> int:
        """How often it fired."""
        ...


class NvmeFaults(Protocol):
    """The faults of a drive; docs/faults.md says what there is."""

    def add(self, fault: Fault | Mapping[str, Any], /) -> Armed:
        """Add a fault; it works from now on. Raises FaultError."""
        ...

    def clear(self) -> None:
        """Remove all faults, and end what they have done to the drive."""
        ...


class ServedFaults:
    """Those of a server, through its control socket."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def add(self, fault: Fault | Mapping[str, Any], /) -> Armed:
        made = fault if isinstance(fault, Fault) else Fault.of(fault)  # refused here, if it is wrong
        try:
            return _ServedFault(self._control, self._control.call("fault.add", **made.as_table())["id"])
        except ControlError as error:
            raise FaultError(str(error)) from None

    def clear(self) -> None:
        self._control.call("fault.remove")


class _ServedFault:
    def __init__(self, control: Control, number: int) -> None:
        self._control = control
        self._number = number

    def _now(self) -> dict[str, int]:
        for fault in self._control.call("fault.list"):
            if fault["id"] == self._number:
                return dict(fault)
        raise LookupError(f"fault {self._number} was removed")

    @property
    def seen(self) -> int:
        return self._now()["seen"]

    @property
    def hits(self) -> int:
        return self._now()["hits"]
