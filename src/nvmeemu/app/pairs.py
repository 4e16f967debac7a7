"""A disk and its companion: which disks have one, and what the two must have in common."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence

from nvmeemu.app.drive.description import block_format
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.backend import BACKENDS, Backend, describe, in_words, is_memory, path_of
from nvmeemu.backend.companion import Companion, CompanionError, beside
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.formatter import complete
from nvmeemu.subsystem.paired_media import deallocated_metadata

log = logging.getLogger(__name__)

_AT_ONCE = 4096  # blocks


def companion_of(table: NamespaceTable, backend: Backend) -> Companion | None:
    """The companion of a disk. One that is there counts, whatever the table says of the format: a host may have changed
    it. Otherwise there is one only if the table wants what needs it. Raises BackendError."""
    path = companion_path(table)
    if path is not None:
        try:
            found = Companion.open(path, read_only=table.read_only or table.overlay)
        except FileNotFoundError:
            pass
        else:
            return _fit(table, backend, found)
    format = block_format(table)
    if not format.metadata_size and not table.block_map:
        return None
    if table.read_only:
        text = f"disk {table.disk} is only read, and has no companion {path}: leave out --read-only, or the metadata"
        raise CompanionError(text)
    try:
        written = [] if is_memory(table.disk) else list(_written(backend, format.data_size))
        made = _made(table, backend, format, written)
        _fill(made, written)
    except OSError as error:
        raise CompanionError(f"disk {table.disk}: its companion cannot be made: {describe(error)}") from None
    return made


def _made(table: NamespaceTable, backend: Backend, format: Format, written: Sequence[tuple[int, int]]) -> Companion:
    path = companion_path(table)
    if path is None or table.overlay:
        return Companion.in_memory(format, backend.size, written)
    return Companion.make(path, format, backend.size, written)


def can_be_made_later(table: NamespaceTable) -> bool:
    """Whether there is a place for a companion of this disk. Beside a block device, in /dev, there is none."""
    if table.read_only:
        return False
    is_elsewhere = table.overlay or table.companion is not None or companion_path(table) is None
    return is_elsewhere or not stat.S_ISBLK(os.stat(path_of(table.disk)).st_mode)


def make_later(table: NamespaceTable, backend: Backend) -> Companion:
    """The companion of a disk that is in use, and has none. What it holds stays. Raises BackendError, OSError."""
    format = block_format(table)
    made = _made(table, backend, format, list(_written(backend, format.data_size)))
    log.info("disk %s has a companion now: a guest has made blocks uncorrectable", table.disk)
    return made


def begin_formatting(table: NamespaceTable, backend: Backend, now: Format, wanted: Format) -> Companion:
    """The companion of a disk that has none and is being given a format. Raises BackendError."""
    path = companion_path(table)
    if path is None or table.overlay:
        return Companion.in_memory(now, backend.size, intention=wanted)
    return Companion.make(path, now, backend.size, intention=wanted)


def companion_path(table: NamespaceTable) -> str | None:
    """Where the companion is; None: in memory."""
    if table.companion is not None:
        return table.companion
    if is_memory(table.disk) or BACKENDS.of(table.disk) is not None:
        return None
    return beside(path_of(table.disk))


def _fit(table: NamespaceTable, backend: Backend, found: Companion) -> Companion:
    """Make the two fit, if the image has grown. Raises CompanionError if it has become smaller."""
    size = found.contents.size
    if backend.size < size:
        found.close()
        advice = "give it its size again, or nvmeemu image repair"
        raise CompanionError(
            f"disk {table.disk} has {in_words(backend.size)}, and {found.path} is for {in_words(size)}: {advice}"
        )
    try:
        if table.overlay:
            readable, found = found, found.copy()
            readable.close()
        if not found.read_only:
            found.resize(backend.size)
        _complete(table, backend, found)
    except OSError as error:
        found.close()
        raise CompanionError(f"{found.path}, the companion of a disk: {describe(error)}") from None
    return found


def _complete(table: NamespaceTable, backend: Backend, found: Companion) -> None:
    """Complete a Format during which the server ended. Raises OSError, and CompanionError if the disk is only read."""
    if found.contents.intention is None:
        return
    if found.read_only:
        found.close()
        raise CompanionError(f"disk {table.disk} was being formatted: serve it without --read-only once")
    log.info("disk %s was being formatted when the server ended: that is completed now", table.disk)
    complete(backend, found)


def _written(backend: Backend, data_size: int) -> Iterator[tuple[int, int]]:
    """The blocks of an image that may hold something."""
    end = 0
    for offset, length in backend.extents():
        first = max(end, offset // data_size)
        end = min(-(-(offset + length) // data_size), backend.size // data_size)
        if first < end:
            yield first, end - first


def _fill(companion: Companion, written: list[tuple[int, int]]) -> None:
    """What was there before has no metadata: the checks are off for these blocks."""
    format = companion.format
    if not format.metadata_size or not any(deallocated_metadata(format)):
        return
    one = deallocated_metadata(format)
    for slba, blocks in written:
        for at in range(slba, slba + blocks, _AT_ONCE):
            companion.write_metadata(at, memoryview(one * min(_AT_ONCE, slba + blocks - at)))
    companion.flush()
