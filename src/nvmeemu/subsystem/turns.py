"""Changes that take a while, one after the other: each waits for what it asks for, and the next one for its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

Done = Callable[[Any, BaseException | None], None]
"""Called once, with a result or an error, on the controller's thread."""
Step = Callable[[Done], object]
"""Begins something, and lets it call when it has ended: perhaps at once."""
Steps = Generator[Step, Any, Any]
"""Each ``yield`` begins a step, and is its result, or raises its error. What is returned is the result of the whole."""


class Turns:
    """Changes of one thing. A change that has begun ends, whatever becomes of who has asked for it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Steps, Done]] = deque()
        self._is_busy = False

    @property
    def is_busy(self) -> bool:
        """Whether a change is under way, or waits."""
        return self._is_busy

    def begin(self, steps: Steps, done: Done) -> None:
        """Make this change when those before it have ended. ``done`` gets what the steps return, or their error."""
        self._waiting.append((steps, done))
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._waiting:
            steps, done = self._waiting.popleft()
            self._go_on(steps, done, None, None)

    def _go_on(self, steps: Steps, done: Done, result: Any, error: BaseException | None) -> None:
        try:
            step = steps.send(result) if error is None else steps.throw(error)
        except StopIteration as end:
            self._end(done, end.value, None)
        except Exception as failure:
            self._end(done, None, failure)
        else:
            step(lambda result, error: self._go_on(steps, done, result, error))

    def _end(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._next()
        done(result, error)
