"""What the actions of faults work on, as far as they may know it: below them, so that they know no ``Faults``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from nvmeemu.controller.controller import Controller
from nvmeemu.faults.kept import Kept
from nvmeemu.faults.layers import Layers
from nvmeemu.ports import Clock
from nvmeemu.spec import ControllerStatus

Undo = Callable[[], None]


class Target(Protocol):
    """One controller with faults; ``Faults`` is it."""

    controller: Controller
    clock: Clock
    random: random.Random
    """The chance that belongs to these faults: the same seed and the same commands, the same faults."""
    kept: Kept
    layers: Layers

    def begin(self, state: Lasting) -> None:
        """Begin a state of the device, unless it lasts already."""
        ...

    def end(self, state: Lasting) -> None:
        """End the state, if it lasts."""
        ...


class Lasting(Protocol):
    """A state of the device as a whole; ``states.State`` is one."""

    seconds: float | None
    """For how long, if it does not last until the fault is removed."""
    lasts: bool
    """Whether it does; otherwise it has happened when it has begun."""
    stops: bool
    """Whether all commands are gone when it begins."""
    holds: bool
    """No command is fetched and none completed as long as it lasts, or until a reset; then all goes on."""
    silent: bool
    """As long as it lasts, nothing of the host reaches the device, and nothing of the device the host."""

    def start(self, target: Target) -> Undo:
        """Begin; says how to end it."""
        ...

    def view(self, target: Target, status: ControllerStatus) -> None:
        """Change what the host sees in CSTS."""
        ...

    def configured(self, target: Target, enable: bool) -> None:
        """The host writes CC."""
        ...
