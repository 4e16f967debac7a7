"""``faults``: the same words for a controller in this process and for one behind a control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nvmeemu.faults import Fault


class Armed(Protocol):
    """A fault that has been added."""

    @property
    def seen(self) -> int:
        """How often something matched."""
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
