"""A namespace that is being formatted, from the moment on at which a host has asked for it. Base 1.4, 5.23.

its commands fail -> those that had begun have ended -> its disk is formatted -> the new medium
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeemu.ports import Clock, Job
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import LOOK_AGAIN, Budget, ErrorKind, Gate, Media, MediaError, Operation
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.steps import Done


@dataclass(frozen=True, slots=True)
class AwaitFormatting(Operation):
    """For a ``Formatting``: it has ended when the namespace has its new format, or when that has failed. The formatting
    goes on whatever becomes of who waits for it."""

    is_changing = False


class Formatting(Gate):
    """Stands in for the medium of a namespace while it is formatted: nothing can be read or written."""

    def __init__(self, namespace: Namespace, format: Format, is_overwriting: bool) -> None:
        super().__init__(namespace.media)
        self.budget = Budget()
        self._namespace = namespace
        self._wanted = format
        self._is_overwriting = is_overwriting
        self._waiting: list[Done] = []
        self._ended: BaseException | bool = False

    def begin(self, clock: Clock, is_used: Callable[[Media], bool], on_end: Callable[[], None]) -> None:
        """Format the namespace, when nobody uses its old medium any more. ``on_end`` is called at the end, before those
        that wait for it are told."""
        if is_used(self.inner):
            clock.call_later(LOOK_AGAIN, lambda: self.begin(clock, is_used, on_end))
            return
        formatter = self._namespace.formatter
        assert formatter is not None

        def done(media: Media | None, error: BaseException | None) -> None:
            self._end(media, error, on_end)

        formatter.start(self._wanted, self._is_overwriting, self._tell, done)

    def _tell(self, left: int) -> None:
        self._namespace.format_left = left

    def _end(self, media: Media | None, error: BaseException | None, on_end: Callable[[], None]) -> None:
        self._namespace.move(self.inner if media is None else media)
        self._namespace.format_left = 0
        on_end()
        self._ended = error or True
        for done in self._waiting:
            done(None, error)

    # --- as a medium

    def start(self, operation: Operation, done: Done) -> Job:
        if not isinstance(operation, AwaitFormatting):
            done(None, MediaError(ErrorKind.FORMATTING, self.identity))
        elif self._ended:
            done(None, None if self._ended is True else self._ended)
        else:
            self._waiting.append(done)
        return _UNSTOPPABLE


class _Unstoppable:
    def cancel(self) -> bool:
        return False


_UNSTOPPABLE = _Unstoppable()
