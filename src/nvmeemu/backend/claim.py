"""Whose disk it is: what somebody else uses is not ours to write to, and what we write to is nobody else's.

Among servers a lock tells (F_OFD_SETLK): one writer, or any number of readers. For the rest of the host a writer claims
a block device (O_EXCL), as mount(8) and mkfs(8) do. A file and the loop devices that show it are one disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterable
from contextlib import suppress

from nvmeemu.backend import BackendError

ATTEMPTS, PAUSE = 10, 0.02  # seconds: a reader that only looks has the device for a moment


class Claim:
    """The right to use the disk ``path``, open as ``fd``, until ``close``. Raises BackendError if somebody has it."""

    def __init__(self, fd: int, path: str, read_only: bool) -> None:
        self._fds: list[int] = []
        try:
            lock(fd, path, read_only)
            below = store(path)
            if below != os.path.realpath(path):
                self._lock_file(below, path, read_only)
            for device in _devices(path, below):
                if read_only or device != path:  # which was opened exclusively
                    self._claim_device(device, path, read_only)
        except BaseException:
            self.close()
            raise

    def _lock_file(self, file: str, path: str, read_only: bool) -> None:
        with suppress(OSError):  # we may not: who may, sees the device in use
            self._fds.append(os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC))
            lock(self._fds[-1], path, read_only)

    def _claim_device(self, device: str, path: str, read_only: bool) -> None:
        for _ in range(ATTEMPTS):
            try:
                claimed = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return  # it is not for us, or was taken away just now
                if not read_only:
                    break
                time.sleep(PAUSE)
            else:
                if read_only:  # there may be other readers: each has only looked
                    os.close(claimed)
                else:
                    self._fds.append(claimed)
                return
        raise in_use(path, device)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def in_use(path: str, device: str) -> BackendError:
    """The text for a device that cannot be claimed."""
    return BackendError(f"disk {path} is in use, mounted perhaps ({device}): unmount it, or stop who uses it")


def lock(fd: int, path: str, read_only: bool) -> None:
    """Lock the whole file. Raises BackendError, and OSError if its file system has no locks."""
    if not locked(fd, read_only):
        advice = "stop its writer" if read_only else "stop it, or share the disk with --read-only or --overlay in both"
        raise BackendError(f"disk {path} is in use by another process: {advice}")


def locked(fd: int, is_shared: bool = False, length: int = 0) -> bool:
    """Lock the first ``length`` bytes of a file, or all of it. False if somebody else has it. Raises OSError if its
    file system has no locks."""
    flock = struct.pack("hhqqi4x", fcntl.F_RDLCK if is_shared else fcntl.F_WRLCK, os.SEEK_SET, 0, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def store(path: str) -> str:
    """Where a disk's blocks are: of a loop device, or a partition of one, its file. Raises OSError."""
    path = os.path.realpath(path)
    mode = os.stat(path)
    if stat.S_ISBLK(mode.st_mode):
        device = os.path.realpath(f"/sys/dev/block/{os.major(mode.st_rdev)}:{os.minor(mode.st_rdev)}")
        for whole in (device, os.path.dirname(device)):
            with suppress(OSError):
                return store(_backing(whole))
    return path


def _backing(device: str) -> str:
    with open(f"{device}/loop/backing_file", "rb") as file:
        return os.fsdecode(file.read().removesuffix(b"\n"))


def _devices(path: str, below: str) -> Iterable[str]:
    """The block devices that show the disk, each once: itself, and loop devices."""
    found = {}
    with suppress(FileNotFoundError, PermissionError), os.scandir("/sys/block") as entries:  # not in all containers
        for name in (entry.name for entry in entries if entry.name.startswith("loop") and _shows(entry.path, below)):
            with suppress(OSError):  # it has no name in here
                found[os.stat(f"/dev/{name}").st_rdev] = f"/dev/{name}"
    if stat.S_ISBLK(os.stat(path).st_mode):
        found[os.stat(path).st_rdev] = path
    return found.values()


def _shows(device: str, file: str) -> bool:
    try:
        return os.path.samefile(store(_backing(device)), file)
    except OSError:  # it shows nothing, or what we do not see from here
        return False
