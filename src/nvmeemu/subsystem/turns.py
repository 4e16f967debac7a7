"""Changes that take a while, and are made in steps. The next change begins when the one before it has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from nvmeemu.subsystem.steps import Done, StepRun

Step = Callable[[Done], object]
"""Begins something, and lets it call when it has ended: perhaps at once."""
Steps = Generator[Step, Any, Any]
"""Each ``yield`` begins a step, and is its result, or raises its error. What is returned is the result of the whole."""


class _TurnRun(StepRun[Step]):
    def begin(self, step: Step) -> None:
        step(self.advance)


class Turns:
    """Changes of one thing. A change that has begun ends, whatever becomes of who has asked for it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Steps, Done]] = deque()
        self._is_under_way = False
        self._is_looping = False

    @property
    def is_busy(self) -> bool:
        """Whether a change is under way, or waits."""
        return self._is_under_way or bool(self._waiting)

    def begin(self, steps: Steps, done: Done) -> None:
        """Make this change when those before it have ended. ``done`` gets what the steps return, or their error."""
        self._waiting.append((steps, done))
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next change, if none is under way. One that ends at once is followed in a loop: a host can let a
        thousand of them wait."""
        if self._is_looping:
            return
        self._is_looping = True
        while self._waiting and not self._is_under_way:
            steps, done = self._waiting.popleft()
            self._is_under_way = True
            _TurnRun(steps, partial(self._end, done)).advance(None, None)
        self._is_looping = False

    def _end(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._is_under_way = False
        done(result, error)
        self._go_on()
