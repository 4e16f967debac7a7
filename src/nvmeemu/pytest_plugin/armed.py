"""``faults``: one interface for a controller in this process and for one behind a control socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from nvmeemu.app.control import Control, ControlError, Unreachable
from nvmeemu.faults import Fault, FaultError


class Armed(Protocol):
    """A fault that has been added. Once it is removed, its numbers do not change any more."""

    @property
    def seen(self) -> int:
        """How often it matched."""
        ...

    @property
    def hits(self) -> int:
        """How often it fired."""
        ...


class NvmeFaults(Protocol):
    """The faults of a drive; docs/faults.md describes them. ``list(faults)`` has those that are there, in the order in
    which they were added. The option's faults come first."""

    def __iter__(self) -> Iterator[Armed]: ...

    def add(self, fault: Fault | Mapping[str, Any], /) -> Armed:
        """Add a fault; it works from now on. Raises FaultError."""
        ...

    def remove(self, fault: Any, /) -> None:
        """Remove a fault that ``add`` has returned, and end what it has done to the drive."""
        ...

    def clear(self) -> None:
        """Remove all faults, and end what they have done to the drive."""
        ...


class ServedFaults:
    """The faults of a server, through its control socket."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._added: list[_ServedFault] = []

    def __iter__(self) -> Iterator[Armed]:
        return iter(tuple(self._added))

    def add(self, fault: Fault | Mapping[str, Any], /) -> Armed:
        made = fault if isinstance(fault, Fault) else Fault.of(fault)  # refused here, if it is wrong
        try:
            number = self._control.call("fault.add", **made.as_table())["id"]
        except ControlError as error:
            raise FaultError(str(error)) from None
        self._added.append(_ServedFault(self._control, number, made))
        return self._added[-1]

    def remove(self, fault: _ServedFault, /) -> None:
        """Raises KeyError for a fault that is not there."""
        if fault not in self._added:
            raise KeyError(fault)
        fault.keep()
        self._added.remove(fault)
        self._control.call("fault.remove", id=fault.number)

    def clear(self) -> None:
        for fault in self._added:
            fault.keep()
        self._added.clear()
        self._control.call("fault.remove")


class _ServedFault:
    def __init__(self, control: Control, number: int, fault: Fault) -> None:
        self.number = number
        self._fault = fault
        self._control = control
        self._last: dict[str, int] | None = None  # when it was removed

    def keep(self) -> None:
        """It is about to be removed."""
        with suppress(LookupError):
            self._last = self._now()

    def _now(self) -> dict[str, int]:
        if self._last is not None:
            return self._last
        for fault in self._control.call("fault.list"):
            if fault["id"] == self.number:
                return dict(fault)
        raise LookupError(f"fault {self.number} was removed through the control socket")

    @property
    def seen(self) -> int:
        return self._now()["seen"]

    @property
    def hits(self) -> int:
        return self._now()["hits"]

    def __repr__(self) -> str:
        try:
            counts = f"seen {self.seen}, hits {self.hits}"
        except (LookupError, ControlError, Unreachable) as error:
            counts = str(error.args[0])
        return f"<{self._fault}: {counts}>"
