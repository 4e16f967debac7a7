"""A raw image file or a block device: offset in the file = offset on the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from nvmeemu.backend import Backend, BackendError, Direct, FailedSync, describe
from nvmeemu.backend.claim import Claim, in_use

_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_FOREIGN_FORMATS = (  # offset, what is there, name
    *((0, b"QFI\xfb", "qcow2"), (0, b"KDMV", "vmdk"), (0, b"COWD", "vmdk"), (0, b"# Disk DescriptorFile", "vmdk")),
    *((0, b"conectix", "vhd"), (0, b"vhdxfile", "vhdx"), (0, b"QED\0", "qed"), (64, b"\x7f\x10\xda\xbe", "vdi")),
    *((0, b"WithoutFreeSpace", "parallels"), (0, b"WithouFreSpacExt", "parallels")),
)
_COMPRESSED = (  # what it begins with, name, what unpacks it
    *((b"\x1f\x8b\x08", "gzip", "gunzip"), (b"\xfd7zXZ\0", "xz", "unxz"), (b"\x28\xb5\x2f\xfd", "zstd", "unzstd")),
    *((b"BZh", "bzip2", "bunzip2"), (b"\x04\x22\x4d\x18", "lz4", "unlz4"), (b"7z\xbc\xaf\x27\x1c", "7z", "7z x")),
    (b"PK\x03\x04", "zip", "unzip"),
)
_BEGINNING = 68  # bytes: all of them lie there
_IOV_MAX = 1024
_ZEROS = memoryview(bytes(1 << 20))


def create_image(path: str, size: int) -> None:
    """Make a sparse file of ``size`` bytes. A file that is there already stays as it is if it has that size."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        if os.path.isfile(path) and (found := os.stat(path).st_size) != size:
            raise BackendError(f"disk {path} exists and has {found} bytes, not {size}: leave out --create") from None
        return
    except OSError as error:
        raise BackendError(f"cannot create disk {path}: {describe(error)}") from None
    try:
        os.ftruncate(fd, size)
        sync_folder(path)  # no Flush of the guest's reaches its name
    except OSError as error:
        os.unlink(path)
        raise BackendError(f"cannot make disk {path} of {size} bytes: {describe(error)}") from None
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Make the name of a file durable. Raises OSError."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class RawBackend(Backend):
    """A regular file or block device, through the page cache (``uncached`` has the one without).

    It has one writer, or any number of readers (``claim``).
    """

    open_flags = 0

    def __init__(self, path: str, *, read_only: bool = False, any_content: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.volatile_cache = not read_only
        self.identity = f"file:{os.path.realpath(path)}"
        self._failed_sync = FailedSync()
        self._fd = _open(path, read_only, self.open_flags)
        try:
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            beginning = self._beginning(_BEGINNING)
            if not any_content:
                _refuse_foreign(path, beginning)
            self._claim = Claim(self._fd, path, read_only)
            self._reads_now, self._now_flags = self._probe()
        except OSError as error:
            os.close(self._fd)
            raise BackendError(f"cannot read disk {path}: {describe(error)}") from None
        except BackendError:
            os.close(self._fd)
            raise
        self._writes_now = self._reads_now and not read_only
        self.direct = Direct(
            fd=self._fd,
            never_waits=self._reads_now and not self._now_flags,
            can_read_now=self._reads_now,
            begins_now=self._reads_now,
            failed_sync=self._failed_sync,
        )

    def _beginning(self, size: int) -> bytes:
        """The first bytes, fewer of a smaller file."""
        return os.pread(self._fd, size, 0)

    def _probe(self) -> tuple[bool, int]:
        """Whether cached data can be had without blocking, and the flags for it."""
        return probe(self._fd)

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        if not self._reads_now:
            return False
        try:
            return os.preadv(self._fd, views, offset, self._now_flags) == sum(map(len, views))
        except OSError:  # not in the cache, too many pieces, or a bad disk: ``read`` finds out
            return False

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        if not self._writes_now:
            return False
        try:
            return os.pwritev(self._fd, views, offset, self._now_flags) == sum(map(len, views))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # ext4 has no buffered writes that do not wait
                self._writes_now = False
            return False

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        while views:
            done = os.preadv(self._fd, views[:_IOV_MAX], offset)
            if done == 0:
                raise OSError(errno.EIO, f"{self.path} has become shorter")
            offset += done
            views = _rest(views, done)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        if not fua:
            self._write(offset, views, 0)
            return
        self._failed_sync.tell()
        known = None
        while known != self._failed_sync.word[0]:  # a sync that fails meanwhile may be this data's: once more
            known = self._failed_sync.word[0]
            try:
                self._write(offset, views, os.RWF_DSYNC)
            except OSError as error:
                with self._failed_sync.doubt():
                    self._find_out(offset, views, error)
                raise
            self._failed_sync.settle()

    def _find_out(self, offset: int, views: Sequence[memoryview], error: OSError) -> None:
        """A durable write has failed. Try it without the sync. If that fails alike, the write itself cannot be done,
        which says nothing of other writes. Otherwise the sync has failed."""
        try:
            self._write(offset, views, 0)
        except OSError as another:
            if another.errno == error.errno:
                return
        self._failed_sync.note(error)

    def _write(self, offset: int, views: Sequence[memoryview], flags: int) -> None:
        while views:
            done = os.pwritev(self._fd, views[:_IOV_MAX], offset, flags)
            offset += done
            views = _rest(views, done)

    def flush(self) -> None:
        if not self.read_only:
            self._failed_sync.sync(self._fd)

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        if deallocate and self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length):
            return
        if self._fallocate(_FALLOC_ZERO_RANGE | _FALLOC_KEEP_SIZE, offset, length):
            return
        end = offset + length
        while offset < end:
            piece = _ZEROS[: end - offset]
            self.write(offset, [piece])
            offset += len(piece)

    def deallocate(self, offset: int, length: int) -> None:
        self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """False: this file system or device cannot do it. The standard library has no fallocate with a mode."""
        if libc.fallocate(self._fd, mode, offset, length) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # EINVAL: ranges not of a device's granularity
            return False
        raise OSError(number, os.strerror(number))

    def extents(self) -> Iterator[tuple[int, int]]:
        for start, end in data_of(self._fd, 0, self.size):
            yield start, end - start

    def refresh(self) -> None:
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Give a file another size. Raises OSError."""
        os.ftruncate(self._fd, size)
        self.size = size

    def close(self) -> None:
        self._claim.close()
        os.close(self._fd)


libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def data_of(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range of a file that are no holes."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        if start >= end:
            return
        hole = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(hole, end)
        start = hole


def _rest(views: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """What remains of ``views`` after their first ``done`` bytes."""
    for index, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[index + 1 :]]
        done -= len(view)
    return []


def probe(fd: int) -> tuple[bool, int]:
    """Whether what is in the page cache can be had without waiting, and the flags for it."""
    if _is_memory_file_system(fd):
        return True, 0
    return (True, os.RWF_NOWAIT) if takes_nowait(fd, bytearray(1)) else (False, 0)


def takes_nowait(fd: int, buffer: bytearray | memoryview) -> bool:
    """Whether reads of this file can be asked not to wait."""
    try:
        os.preadv(fd, [buffer], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _open(path: str, read_only: bool, flags: int) -> int:
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a block device"
            raise BackendError(f"disk {path} is {kind}: give a raw image file or a block device")
        if stat.S_ISBLK(mode) and not read_only:  # this very descriptor: without the claim it could not discard
            flags |= os.O_EXCL
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | flags)
    except FileNotFoundError:
        advice = "make it with truncate -s 10G, or serve it with --create --size 10G"
        raise BackendError(f"disk {path} does not exist: {advice}") from None
    except PermissionError:
        advice = "check its permissions" if read_only else "check its permissions, or use --read-only or --overlay"
        raise BackendError(f"disk {path} cannot be opened: permission denied: {advice}") from None
    except OSError as error:
        if flags & os.O_DIRECT and error.errno == errno.EINVAL:
            advice = "its file system has no O_DIRECT: leave out --direct"
            raise BackendError(f"disk {path} cannot be opened with --direct: {advice}") from None
        if error.errno == errno.EBUSY:
            raise in_use(path, os.path.realpath(path)) from None
        raise BackendError(f"disk {path} cannot be opened: {describe(error)}") from None


def _refuse_foreign(path: str, start: bytes) -> None:
    """A qcow2 file served as raw would be destroyed by the first write."""
    for offset, magic, name in _FOREIGN_FORMATS:
        if start.startswith(magic, offset):
            advice = f"convert it with: qemu-img convert -O raw {path} disk.raw (or force it with raw:{path})"
            raise BackendError(f"disk {path} is a {name} image, not raw: {advice}")
    for magic, name, program in _COMPRESSED:
        if start.startswith(magic):
            advice = f"unpack it with {program} (or force it with raw:{path})"
            raise BackendError(f"disk {path} is compressed with {name}: {advice}")


def _is_memory_file_system(fd: int) -> bool:
    """tmpfs has no RWF_NOWAIT, and needs none: it never waits for a device."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        return False
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    with open("/proc/self/mountinfo") as mounts:
        kinds = (line.split(" - ")[1].split()[0] for line in mounts if line.split()[2] == device)
        return next(kinds, "") in ("tmpfs", "ramfs")
