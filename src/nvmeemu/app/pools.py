"""The pool of a drive, and the namespaces that hosts have left in it."""

from __future__ import annotations

from contextlib import ExitStack

from nvmeemu.app.drive.description import Drive
from nvmeemu.backend import BackendError, is_memory, parse_size
from nvmeemu.ports import Changes, StateError
from nvmeemu.subsystem import management
from nvmeemu.subsystem.pool import MemoryPool, Pool
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.vfio import Loop


def open_pool(drive: Drive, loop: Loop, stack: ExitStack) -> Pool | None:
    """None: the drive has none. Raises Failure."""
    if drive.pool is None:
        return None
    if is_memory(drive.pool):
        return MemoryPool(parse_size(drive.pool.removeprefix("mem:")), loop)
    from nvmeemu.app.folder_pool import FolderPool  # start-up: many drives have none

    pool = FolderPool(drive.pool, drive.capacity or 0, loop)
    try:
        pool.claim()
    except BackendError as error:
        raise drive.source.failure(str(error), "pool", status=1) from None
    stack.callback(pool.close)
    return pool


def restore(drive: Drive, subsystem: Subsystem) -> Changes:
    """Add the namespaces that hosts have made. Returns what is to be saved then. Raises Failure."""
    try:
        return management.restore(subsystem)
    except (BackendError, OSError, StateError, ValueError) as error:
        text = str(error) if drive.pool is not None else f"--pool is missing: {error}"
        raise drive.source.failure(text, "pool", status=1) from None
