"""Work in steps: a generator yields what it waits for, one after the other, and goes on when that has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

Done = Callable[[Any, BaseException | None], None]
"""Called once, with a result or an error, on the controller's thread."""
S = TypeVar("S")


class StepRun(ABC, Generic[S]):
    """Steps that are under way. ``done`` gets what they return, or their error.

    A step may end before ``begin`` has returned. So this is a loop and no recursion, or a long way would overflow the
    stack.
    """

    def __init__(self, steps: Generator[S, Any, Any], done: Done) -> None:
        self._steps = steps
        self._done = done
        self._ended: tuple[Any, BaseException | None] | None = None  # how the last step has
        self._is_advancing = False

    @abstractmethod
    def begin(self, step: S) -> None:
        """Begin what was yielded, and have ``advance`` called when it has ended."""

    def advance(self, result: Any, error: BaseException | None) -> None:
        """A step has ended: begin the next one."""
        self._ended = (result, error)
        if self._is_advancing:
            return
        self._is_advancing = True
        while self._ended is not None:
            (result, error), self._ended = self._ended, None
            self._go_on(result, error)
        self._is_advancing = False

    def _go_on(self, result: Any, error: BaseException | None) -> None:
        try:
            step = self._steps.send(result) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self._done(end.value, None)
        except Exception as failure:
            self._done(None, failure)
        else:
            self.begin(step)
