"""Where the blocks of namespaces lie that hosts make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from nvmeemu.backend import BackendError
from nvmeemu.backend.companion import Companion
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.ports import Worker
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.turns import Step

GRANULE = 4096  # bytes that a size is best a multiple of: pages of memory, blocks of file systems


class Pool(ABC):
    """Room for ``capacity`` bytes of data; metadata lie beside them. What may wait for a disk is called by ``work``, on
    a thread.

    A name stands for one namespace, and is never used for another one.
    """

    begins_anew = False
    """What was made before, by another process, is gone."""

    def __init__(self, capacity: int, worker: Worker) -> None:
        self.capacity = capacity
        self.worker = worker

    @abstractmethod
    def make(self, name: str, size: int, format: Format) -> PairedMedia:
        """A medium of ``size`` bytes of data, on which nothing was ever written. May block. Raises OSError,
        BackendError."""

    @abstractmethod
    def open(self, name: str) -> PairedMedia:
        """A medium that was made before, perhaps by another process. May block. Raises OSError, BackendError."""

    @abstractmethod
    def discard(self, name: str) -> None:
        """Let nothing remain of what was written to a medium, which is closed. There may be none of this name. May
        block. Raises OSError."""

    def work(self, function: Callable[..., Any], *arguments: Any) -> Step:
        """A step that calls a function on a thread."""
        return lambda done: self.worker.submit(partial(function, *arguments), done, self)


class MemoryPool(Pool):
    """Memory: what was written is gone when the process ends."""

    begins_anew = True

    def make(self, name: str, size: int, format: Format) -> PairedMedia:
        return PairedMedia(MemoryBackend(size), Companion.in_memory(format, size), self.worker)

    def open(self, name: str) -> PairedMedia:
        raise BackendError("the memory of another process is gone")

    def discard(self, name: str) -> None:
        pass
