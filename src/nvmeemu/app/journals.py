"""The journal beside a disk: where it is, and what becomes of one that a killed server has left."""

from __future__ import annotations

import logging
import os

from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.app.pairs import companion_path
from nvmeemu.backend import BACKENDS, Backend, BackendError, describe, parse_size
from nvmeemu.backend.atomicity import Atomicity, is_available
from nvmeemu.backend.companion import Companion
from nvmeemu.subsystem.media import BlockState

log = logging.getLogger(__name__)

SUFFIX = "-journal"


def begin(table: NamespaceTable, backend: Backend, companion: Companion | None) -> Atomicity:
    """Complete the writes that a kill has interrupted, before anybody uses the disk, and say how its writes are atomic
    from now on. Raises BackendError."""
    path = None if (beside := companion_path(table)) is None else beside + SUFFIX
    if path is not None and os.path.exists(path):
        if table.read_only:
            raise BackendError(f"disk {table.disk} has a journal of a server that was killed: serve it to write once")
        number = redo(path, backend, companion)
        log.info("disk %s: %d writes were under way when its server was killed: they are completed", table.disk, number)
        if not table.overlay:
            os.unlink(path)
    return Atomicity() if table.atomic is None else _of_unit(table, None if table.is_shareable else path)


def _of_unit(table: NamespaceTable, path: str | None) -> Atomicity:
    from nvmeemu.backend.journal import Journal  # start-up: most disks have none

    if BACKENDS.of(table.disk) is not None:
        raise BackendError(f"disk {table.disk} is of a plugin, which alone says what is atomic: leave out --atomic")
    if not is_available():
        raise BackendError("this nvmeemu was built without a C compiler, and nothing is atomic: leave out --atomic")
    unit = parse_size(str(table.atomic))
    return Atomicity(unit, None if path is None else Journal(path, unit))


def redo(path: str, backend: Backend, companion: Companion | None) -> int:
    """Do again, and make durable, what a journal has; the number of writes. One of another boot of the host is not
    believed. Raises BackendError."""
    from nvmeemu.backend.journal import left

    found = left(path)
    if found.is_stale:
        log.warning("%s is of before the host was started anew: writes of that moment may be torn", path)
        return 0
    try:
        for write in found.writes:
            if write.offset + len(write.data) > backend.size:
                continue  # the image has become smaller
            backend.write(write.offset, [memoryview(write.data)])
            if companion is not None:
                size = companion.format.data_size
                companion.write_metadata(write.offset // size, memoryview(write.metadata))
                companion.mark(write.offset // size, len(write.data) // size, BlockState.WRITTEN)
        backend.flush()
        if companion is not None:
            companion.flush()
    except OSError as error:
        raise BackendError(f"{path}: what it has cannot be written: {describe(error)}") from None
    return len(found.writes)
