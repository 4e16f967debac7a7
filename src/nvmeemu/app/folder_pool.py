"""A pool that is a folder: a file for each namespace, ``UUID.raw``, and its companion ``UUID.raw.nvme`` beside it."""

from __future__ import annotations

import os
from contextlib import suppress

from nvmeemu.backend import BackendError, describe, open_backend
from nvmeemu.backend.claim import lock
from nvmeemu.backend.companion import Companion, beside
from nvmeemu.backend.raw import sync_folder
from nvmeemu.ports import Worker
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.formatter import complete
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pool import Pool

LOCK = "lock"


class FolderPool(Pool):
    """``claim`` it before anything else. What lies in the folder and has other names is none of its business."""

    def __init__(self, folder: str, capacity: int, worker: Worker) -> None:
        super().__init__(capacity, worker)
        self.folder = folder
        self._fd = -1

    def claim(self) -> None:
        """Make the folder, if its place is there, and let no other process use it until ``close``. Raises
        BackendError."""
        try:
            with suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            self._fd = os.open(self._path(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendError(f"pool {self.folder} cannot be used: {describe(error)}") from None
        try:
            lock(self._fd, self._path(LOCK), read_only=False)
        except BackendError:
            self.close()
            raise BackendError(f"pool {self.folder} is in use by another server: give each a pool of its own") from None

    def close(self) -> None:
        """Others may use the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def make(self, name: str, size: int, format: Format) -> PairedMedia:
        path = self._image(name)
        backend = open_backend(f"raw:{path}", size=size, create=True)
        try:
            return PairedMedia(backend, Companion.make(beside(path), format, size), self.worker)
        except BaseException:
            backend.close()
            raise

    def open(self, name: str) -> PairedMedia:
        path = self._image(name)
        backend = open_backend(f"raw:{path}")
        try:
            companion = Companion.open(beside(path))
            complete(backend, companion)
            return PairedMedia(backend, companion, self.worker)
        except FileNotFoundError:
            backend.close()
            raise BackendError(f"{beside(path)} is missing: put it back beside {path}") from None
        except BaseException:
            backend.close()
            raise

    def discard(self, name: str) -> None:
        path = self._image(name)
        for file in (path, beside(path), f"{beside(path)}.new"):
            with suppress(FileNotFoundError):
                os.unlink(file)
        sync_folder(path)

    def _image(self, name: str) -> str:
        return self._path(f"{name}.raw")

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)
