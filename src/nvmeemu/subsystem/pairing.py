"""A plain disk gets a companion while it is in use: a host wants blocks to be uncorrectable, which needs one.

its commands wait -> those that had begun have ended -> the companion is made -> the new medium gets what has waited
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from nvmeemu.backend import BackendError
from nvmeemu.backend.companion import Companion
from nvmeemu.ports import Clock, Job
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.media import LOOK_AGAIN, Budget, Gate, MakeUncorrectable, Media, MediaError, Operation
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.steps import Done


class Pairer:
    """Gives a disk a companion, in which all that it holds is as it was. ``make`` makes that, on a thread.
    ``on_change`` is told of the disk's new medium, on the controller's thread."""

    def __init__(
        self,
        media: DiskMedia,
        make: Callable[[], Companion],
        on_change: Callable[[DiskMedia], None] = lambda media: None,
    ) -> None:
        self.media = media
        self._make = make
        self._on_change = on_change

    def start(self, done: Done) -> None:
        """Begin. ``done`` gets the new medium, or a BackendError or OSError: then all is as before. Nobody may use the
        old medium meanwhile."""
        media = self.media

        def made(companion: Companion, error: BaseException | None) -> None:
            if error is not None:
                done(None, error)
                return
            new = PairedMedia(media.backend, companion, media.worker, media.atomicity)
            new.budget = media.budget
            self._on_change(new)
            done(new, None)

        media.worker.submit(self._make, made, media)


class Pairing(Gate):
    """Stands in for the medium of a namespace while the companion is made: operations wait. ``on_end`` gets the medium
    that the namespace has then, before the operations that have waited begin."""

    def __init__(self, pairer: Pairer, on_end: Callable[[Media], None]) -> None:
        super().__init__(pairer.media)
        self.budget = Budget(pairer.media.budget.most)
        self._pairer = pairer
        self._on_end = on_end
        self._waiting: list[_Waiting] = []
        self._ended: Media | None = None

    def begin(self, clock: Clock, is_used: Callable[[Media], bool]) -> None:
        """Pair the disk, when nobody uses its old medium any more."""
        if is_used(self.inner):
            clock.call_later(LOOK_AGAIN, lambda: self.begin(clock, is_used))
        else:
            self._pairer.start(self._end)

    def _end(self, media: Media | None, error: BaseException | None) -> None:
        self._ended = media or self.inner
        self._on_end(self._ended)
        for waiting in self._waiting:
            waiting.go_on(self._ended, error)
        self._waiting.clear()

    # --- as a medium

    def start(self, operation: Operation, done: Done) -> Job:
        if self._ended is not None:
            return self._ended.start(operation, done)
        waiting = _Waiting(operation, done)
        self._waiting.append(waiting)
        return waiting


class _Waiting:
    """An operation that waits for its medium, and its Job also when it has begun there."""

    def __init__(self, operation: Operation, done: Done) -> None:
        self._operation = operation
        self._done = done
        self._job: Job | None = None
        self._is_cancelled = False

    def go_on(self, media: Media, error: BaseException | None) -> None:
        """The medium is there. With an ``error`` it is the old one, which has no states of blocks."""
        if self._is_cancelled:
            return
        if error is not None and isinstance(self._operation, MakeUncorrectable):
            self._done(None, _media_error(self._operation, media, error))
        else:
            self._job = media.start(self._operation, self._done)

    def cancel(self) -> bool:
        if self._job is not None:
            return self._job.cancel()
        self._is_cancelled = True
        return True


def _media_error(operation: Operation, media: Media, error: BaseException) -> BaseException:
    if isinstance(error, BackendError):
        error = OSError(errno.EIO, str(error))
    return MediaError.of(operation, media.identity, error) if isinstance(error, OSError) else error
