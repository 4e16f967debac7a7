"""One time limit for a whole run, shared by everything that waits in it."""

from __future__ import annotations

import time

from nvmeemu.guest.errors import GuestTimeout


class Deadline:
    """A point in time; `within` makes a nearer one that never outlasts it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def within(self, seconds: float | None) -> Deadline:
        """The nearer of this deadline and one in `seconds`."""
        if seconds is None or seconds > self.left():
            return self
        return Deadline(seconds)

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    def check(self, awaited: str) -> float:
        """Seconds left; raises when there are none."""
        left = self.left()
        if left <= 0:
            raise self.passed(awaited)
        return left

    def passed(self, awaited: str) -> GuestTimeout:
        """The GuestTimeout to raise when no time is left."""
        return GuestTimeout(f"timeout: {awaited} did not come in {self.seconds:g} s")
