"""What must not be, as the driver of a profile finds it while it plays."""

from __future__ import annotations

from collections.abc import Callable

from nvmeemu.profiles.items import STEP, Finding, Item
from nvmeemu.profiles.profile import NEVER, Profile
from nvmeemu.profiles.steps import Step

_MOST = 20


class DriverStopped(Exception):
    """The driver gives up."""


class Findings:
    """``found``: what there is until now. ``step``: the current one of the profile. ``now`` tells nanoseconds."""

    def __init__(self, profile: Profile, now: Callable[[], int]) -> None:
        self.found: list[Finding] = []
        self.step: Step = profile.steps[0] if profile.steps else Step(0, "")
        self._now = now

    def note(self, name: str, what: str = "") -> None:
        """Note something that must not be. The driver goes on."""
        item = Item(STEP, self.step.line) if name == STEP else Item(name)
        if all(one.item != item for one in self.found) and len(self.found) < _MOST:
            self.found.append(Finding(item, self.step, what or NEVER[name], self._now()))

    def fail(self, name: str, what: str = "") -> DriverStopped:
        """Note something that must not be. The driver gives up: raise what this returns."""
        self.note(name, what)
        return DriverStopped()
