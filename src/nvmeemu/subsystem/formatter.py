"""A disk gets another format: its old data is erased, and it has a companion that says the new format.

    intention in the companion -> erase -> the format in the companion -> another medium

What has begun is completed at the next start, if the process ends meanwhile. Before that, all is as it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress

from nvmeemu.backend import Backend, BackendError
from nvmeemu.backend.companion import Companion
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import ErrorKind, MediaError
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.steps import Done

_PIECES = 100
_SMALLEST_PIECE = 1 << 20  # bytes

MakeCompanion = Callable[[Format, Format], Companion]
"""Makes the companion of a disk that has none: the format that it has, and the one that it is being given."""


def _never(now: Format, wanted: Format) -> Companion:
    raise AssertionError("the disk has a companion")


class Formatter:
    """Formats the disk of a namespace. ``make``: see ``MakeCompanion``. ``on_change`` is told of the disk's new medium,
    on the controller's thread."""

    def __init__(
        self,
        media: DiskMedia,
        make: MakeCompanion = _never,
        on_change: Callable[[DiskMedia], None] = lambda media: None,
    ) -> None:
        self.media = media
        self._make = make
        self._on_change = on_change

    def takes(self, format: Format) -> bool:
        """Whether the disk can have this format."""
        backend = self.media.backend
        return format.data_size % backend.alignment == 0 and format.data_size <= backend.size

    def start(self, format: Format, is_overwriting: bool, tell: Callable[[int], None], done: Done) -> None:
        """Begin. ``is_overwriting``: what cannot be deallocated is overwritten. ``tell`` hears how many percent are
        left, and ``done`` gets the new medium, or a MediaError: then the format is as before, and the data may be gone.
        Nobody may use the old medium meanwhile."""
        media = self.media
        pieces = self._pieces(format, is_overwriting)

        def go_on(left: int | None, error: BaseException | None) -> None:
            if error is not None:
                done(None, _media_error(media, error))
            elif left is None:
                self._on_change(self.media)
                done(self.media, None)
            else:
                tell(left)
                media.worker.submit(lambda: next(pieces, None), go_on, media)

        go_on(100, None)

    def _pieces(self, format: Format, is_overwriting: bool) -> Iterator[int]:
        """The work, on threads of the worker's, one piece after the other: percent that are left."""
        media = self.media
        if isinstance(media, PairedMedia):
            companion, is_new = media.companion, False
            companion.intend(format)
        else:
            companion, is_new = self._make(media.format, format), True
        try:
            yield from erase(media.backend, is_overwriting)
            companion.finish()
        except BaseException:
            with suppress(OSError):
                if is_new:
                    companion.remove()
                else:
                    companion.intend(None)
            raise
        self.media = PairedMedia(media.backend, companion, media.worker, media.atomicity)
        self.media.budget = media.budget


def erase(backend: Backend, is_overwriting: bool) -> Iterator[int]:
    """Give the storage of a disk back, or overwrite it where that is not possible, piece by piece; it is durable in
    the end. Yields how many percent are left, never 0. Raises OSError."""
    piece = max(_SMALLEST_PIECE, -(-backend.size // _PIECES // _SMALLEST_PIECE) * _SMALLEST_PIECE)
    for offset in range(0, backend.size, piece):
        size = min(piece, backend.size - offset)
        if is_overwriting:
            backend.zero(offset, size, True)
        else:
            backend.deallocate(offset, size)
        yield max(1, 100 * (backend.size - offset - size) // backend.size)
    backend.flush()


def complete(backend: Backend, companion: Companion) -> None:
    """Complete what the end of a process has interrupted, if there is such a thing. Raises OSError."""
    if companion.contents.intention is not None:
        for _ in erase(backend, is_overwriting=True):
            pass
        companion.finish()


def _media_error(media: DiskMedia, error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return MediaError(ErrorKind.WRITE_FAULT, media.identity, cause=error)
    if isinstance(error, BackendError):
        return MediaError(ErrorKind.WRITE_FAULT, media.identity, cause=OSError(errno.EIO, str(error)))
    return error
