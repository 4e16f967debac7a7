"""The plugins that this process has, and in files beside this one those of our own.

Our own are made of nothing but what users' plugins have (docs/extend.md). ``nvmeemu.plugin`` is what they are made of.
A process without plugins does not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # start-up: a drive without plugins and faults needs none of it
    from nvmeemu.controller.state import ControllerState
    from nvmeemu.faults.faults import Faults


class InstalledPlugin(Protocol):
    """A ``nvmeemu.plugin.Plugin``."""

    def begin(self, controller: ControllerState, faults: Faults) -> None:
        """A controller begins: give it what it has of its own."""
        ...


INSTALLED: list[InstalledPlugin] = []
"""In order. Whoever makes a controller has them begin with it."""
