"""Where the blocks live: the Backend port, and ``open_backend`` from the text a user writes (``--disk``)."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from nvmeemu.tables import Extensible

__all__ = ["Backend", "BackendError", "open_backend"]

SECTOR = 512
_LONGEST_DOUBT = 60  # seconds; a disk gives up a request after 30
_MEMORY, _RAW = "mem:", "raw:"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class BackendError(Exception):
    """The disk cannot be used as asked; the text is one line for the user and says what to do."""


class BadRequest(BackendError):
    """The request makes no sense, whatever disks there are. It is bad use, and no failure of the system."""


class FailedSync:
    """Whether a sync of a disk has failed, for Python and the engine together. The kernel tells of it once and drops
    what it could not write; the next sync "succeeds".

    ``word`` has two numbers. The first is 0, the errno, or its negative until somebody was told of what the engine has
    met. The second is how many durable writes of the engine are in doubt.
    """

    def __init__(self) -> None:
        self.word = array("i", [0, 0])
        self._doubts = 0
        self._lock = threading.Lock()

    def note(self, error: OSError) -> None:
        self.word[0] = self.word[0] or error.errno or errno.EIO

    def check(self) -> None:
        """Raises OSError from the first failure on."""
        if self.word[0]:
            number = self.word[0] = abs(self.word[0])
            raise OSError(number, os.strerror(number))

    @contextmanager
    def doubt(self) -> Iterator[None]:
        """A durable write has failed, and it is not known yet whether a sync has. Until then no sync counts."""
        with self._lock:
            self._doubts += 1
        try:
            yield
        finally:
            with self._lock:
                self._doubts -= 1

    def settle(self) -> None:
        """After a sync that succeeded: wait until nothing is in doubt. Raises OSError if that takes too long."""
        deadline = time.monotonic() + _LONGEST_DOUBT
        while self._doubts or self.word[1]:
            if time.monotonic() > deadline:
                raise OSError(errno.EIO, "whether a durable write was lost does not come out")
            time.sleep(0.001)

    def sync(self, fd: int) -> None:
        """Make all that was written to a file durable. Raises OSError, and from then on each time: after a failed sync
        the kernel has dropped dirty pages of earlier writes perhaps, and the next one would "succeed"."""
        self.check()
        try:
            os.fdatasync(fd)
        except OSError as error:
            self.note(error)
            raise
        self.settle()
        self.check()  # one that has failed meanwhile may have taken this one's failure

    def tell(self) -> None:
        """Raises OSError if nobody was told yet."""
        if self.word[0] < 0:
            self.check()


class MapInMemory(Protocol):
    """States of blocks that the native engine changes, too (``shared_map.SharedMap``)."""

    @property
    def address(self) -> int:
        """Of its ``struct block_map``, as long as the object lives."""
        ...


@dataclass(frozen=True)
class DirectCompanion:
    """How the native engine reaches a disk's companion: its file, where the first chunk begins in it, and what there is
    in memory of its map; and what it has to know of the format. ``metadata_size``: bytes of a block. ``is_protected``:
    by protection information of type 1 with a guard of 16 bits."""

    map: MapInMemory
    fd: int
    begin: int
    never_waits: bool
    can_read_now: bool
    metadata_size: int
    is_extended: bool
    is_protected: bool
    is_first: bool


@dataclass(frozen=True)
class Direct:
    """How the native engine reaches a disk itself: its memory, or its file with plain reads and writes at offsets."""

    memory: memoryview | None = None
    fd: int = -1
    never_waits: bool = False  # a file that lies in memory
    can_read_now: bool = False  # RWF_NOWAIT works for reads, and finds data in the page cache
    begins_now: bool = False  # io_uring can begin reads and writes without a thread that may block
    failed_sync: FailedSync = field(default_factory=FailedSync)
    companion: DirectCompanion | None = None


class Backend(ABC):
    """A disk: bytes at offsets, all ranges inside ``size`` and multiples of the namespace's block size.

    The plain operations may block and raise OSError; the controller runs them on a worker thread, with private
    memory. The ``_now`` ones are the fast path on the controller's thread, straight into guest memory: they never
    block, never raise, and answer False if they could not do *all* of it (then the plain one is called).
    Several operations may run at once.
    """

    size: int
    """Bytes."""
    alignment = 1
    """What offsets and lengths have to be multiples of, and so the namespace's block size, in bytes."""
    read_only = False
    volatile_cache = True
    """Whether a completed write may still be lost by a power cut until ``flush``."""
    direct: Direct | None = None
    """For the native engine; None: every command is Python's."""
    identity: str
    """A text that is the same at each start for the same disk and differs between disks: serials come from it."""

    @abstractmethod
    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views``, in order, from ``offset`` on."""

    @abstractmethod
    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        """Write ``views``, in order, from ``offset`` on; with ``fua`` durable when it returns."""

    @abstractmethod
    def flush(self) -> None:
        """Make all completed writes durable."""

    @abstractmethod
    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        """Make the range read as zeros; with ``deallocate`` give its storage back if possible."""

    @abstractmethod
    def deallocate(self, offset: int, length: int) -> None:
        """Give the storage of the range back if possible; it then reads as zeros, otherwise as before."""

    def extents(self) -> Iterator[tuple[int, int]]:
        """The parts that may hold something, (offset, length) in order; the rest reads as zeros. Raises OSError."""
        yield 0, self.size

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        return False

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        return False

    def refresh(self) -> None:  # noqa: B027  # most have the size that they had
        """Look at its size anew: a file or device may have been made larger, or smaller. Raises OSError."""

    def close(self) -> None:  # noqa: B027  # nothing to close is a fine default
        """Give back what the disk holds; it does not flush."""


@dataclass(frozen=True)
class BackendKind:
    """A kind of disk that a plugin adds: ``PREFIX:TEXT`` is what ``open`` makes of the text."""

    prefix: str
    open: Callable[[str], Backend]


class BackendKinds(Extensible[BackendKind]):
    """The kinds that plugins have added."""

    def __init__(self) -> None:
        self._kinds: dict[str, BackendKind] = {}

    def add(self, row: BackendKind) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", row.prefix):
            raise ValueError(f"disk {row.prefix!r}: a prefix is small letters, digits and -")
        if f"{row.prefix}:" in (_MEMORY, _RAW) or row.prefix in self._kinds:
            raise ValueError(f"disk {row.prefix}:... : there is one already")
        self._kinds[row.prefix] = row

    def remove(self, row: BackendKind) -> None:
        del self._kinds[row.prefix]

    def of(self, spec: str) -> BackendKind | None:
        """The kind of disk that this is; None: one of ours."""
        prefix, colon, _ = spec.partition(":")
        return self._kinds.get(prefix) if colon else None


BACKENDS = BackendKinds()


def parse_size(text: str) -> int:
    """``10G``, ``512M``, ``4096``: bytes, in powers of two. Raises BadRequest."""
    match = re.fullmatch(r"(\d{1,19})(?:\.(\d{1,19}))?\s*([KMGTP]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = rest = 0
    if match:
        decimals = match[2] or ""
        size, rest = divmod(int(match[1] + decimals) * _UNITS[match[3].upper()], 10 ** len(decimals))
    if rest or not 1 <= size < 1 << 63:
        raise BadRequest(f"bad size {text!r}: give bytes or a number with K, M, G or T, for example 10G")
    return size


def in_words(size: int) -> str:
    """Bytes in the largest unit that fits, four digits of it: ``10 GiB``, ``465.8 GiB``."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def is_memory(spec: str) -> bool:
    """Whether this disk is memory. Another memory disk of the same name is another disk."""
    return spec.startswith(_MEMORY)


def is_same(spec: str, other: str) -> bool:
    """Whether two specs name one disk."""
    if BACKENDS.of(spec) is not None or BACKENDS.of(other) is not None:
        return spec == other
    if is_memory(spec) or is_memory(other):
        return False
    from nvmeemu.backend.claim import store  # it builds on this module

    path, other_path = spec.removeprefix(_RAW), other.removeprefix(_RAW)
    try:
        return os.path.samefile(store(path), store(other_path))
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other_path)  # one that is yet to be made


def path_of(spec: str) -> str:
    """The path of a disk that is a file or a block device."""
    return spec.removeprefix(_RAW)


def placed(spec: str, folder: str) -> str:
    """The spec of a disk as it is meant in this folder: with its path, if it has one."""
    kind, path = (_RAW, spec.removeprefix(_RAW)) if spec.startswith(_RAW) else ("", spec)
    is_path = path and not is_memory(spec) and not _URL.match(spec) and BACKENDS.of(spec) is None
    return spec if not is_path else kind + os.path.join(folder, path)


def open_backend(
    spec: str,
    *,
    size: int | None = None,
    create: bool = False,
    read_only: bool = False,
    overlay: bool = False,
    direct: bool = False,
    block_size: int = SECTOR,
) -> Backend:
    """Open the disk that ``spec`` names: a raw file or block device (``raw:PATH`` or just ``PATH``), or ``mem:SIZE``.

    ``create`` makes a sparse file of ``size`` bytes where none is. ``overlay`` opens it read-only and keeps what is
    written in an unnamed temporary file. ``direct`` leaves out the page cache. Raises BackendError.
    """
    check_request(spec, size, create, read_only, overlay, direct, block_size)
    if (kind := BACKENDS.of(spec)) is not None:
        backend = _open_by_plugin(kind, spec, read_only)
    elif is_memory(spec):
        backend = _open_memory(spec)
    else:
        if size is not None:
            _create_image(spec, size)
        backend = _open_file(spec, read_only, overlay, direct)
    try:
        _check_blocks(spec, backend, block_size)
    except BackendError:
        backend.close()
        raise
    return backend


def check_request(
    spec: str, size: int | None, create: bool, read_only: bool, overlay: bool, direct: bool, block_size: int
) -> None:
    """What can be known without a look at the disk. Raises BadRequest."""
    if BACKENDS.of(spec) is not None:
        is_other = create or size is not None or overlay or direct
        advice = "leave out --create, --size, --overlay and --direct"
        _refuse((is_other, f"{spec} is opened by a plugin, which alone says what it is: {advice}"))
        return
    if is_memory(spec):
        _refuse(
            (create or size is not None, f"{spec} has its size in its name (mem:1G): leave out --create and --size"),
            (read_only or overlay, f"{spec} begins empty and is gone at exit: leave out --read-only and --overlay"),
            (direct, f"{spec} is no file: leave out --direct"),
        )
        parse_size(spec.removeprefix(_MEMORY))
        return
    disks = "a raw file, a block device, or memory, for example mem:1G"
    _refuse(
        (not spec.removeprefix(_RAW), f"a disk without a name: give {disks}"),
        (_URL.match(spec) is not None, f"disk {spec} is a URL: give {disks}"),
        (create and (read_only or overlay), "--create makes a disk to write to: leave out --read-only and --overlay"),
        (direct and overlay, "--overlay keeps what is written in a file in the page cache: leave out --direct"),
        (create != (size is not None), "--create and --size go together: --create --size 10G"),
        (bool((size or 0) % block_size), f"a disk of {size} bytes has no whole number of blocks of {block_size} bytes"),
    )


def _refuse(*requests: tuple[bool, str]) -> None:
    """Raise BadRequest for the first bad request."""
    for is_bad, why in requests:
        if is_bad:
            raise BadRequest(why)


def _open_by_plugin(kind: BackendKind, spec: str, read_only: bool) -> Backend:
    """Whatever its code raises is said to the user."""
    try:
        backend = kind.open(spec.partition(":")[2])
    except BackendError:
        raise
    except OSError as error:
        raise BackendError(f"disk {spec}: {describe(error)}") from error
    except Exception as error:
        raise BackendError(f"disk {spec}: its plugin failed: {type(error).__name__}: {error}") from error
    backend.read_only = backend.read_only or read_only
    if not hasattr(backend, "identity"):
        backend.identity = spec
    return backend


# These import late, because what they import builds on this module.


def _open_memory(spec: str) -> Backend:
    from nvmeemu.backend.memory import MemoryBackend

    return MemoryBackend(parse_size(spec.removeprefix(_MEMORY)))


def _create_image(spec: str, size: int) -> None:
    from nvmeemu.backend import raw

    raw.create_image(spec.removeprefix(_RAW), size)


def _open_file(spec: str, read_only: bool, overlay: bool, direct: bool) -> Backend:
    from nvmeemu.backend.overlay import OverlayBackend
    from nvmeemu.backend.raw import RawBackend
    from nvmeemu.backend.uncached import UncachedBackend

    path = spec.removeprefix(_RAW)
    kind = UncachedBackend if direct else RawBackend
    backend = kind(path, read_only=read_only or overlay, any_content=path != spec)
    return OverlayBackend(backend) if overlay else backend


def _check_blocks(spec: str, backend: Backend, block_size: int) -> None:
    """Raise BackendError unless the disk is made of whole blocks that it can transfer."""
    if backend.size == 0 or backend.size % block_size:
        what = "is empty" if backend.size == 0 else f"has {backend.size} bytes, not a multiple of {block_size}"
        advice = "resize it with truncate -s, or serve one with --create --size 10G"
        raise BackendError(f"disk {spec} {what}: {'give another size' if is_memory(spec) else advice}")
    if block_size % backend.alignment:
        advice = "give --block-size 4096" if 4096 % backend.alignment == 0 else "leave out --direct"
        raise BackendError(f"disk {spec} has blocks of {backend.alignment} bytes for --direct: {advice}")


def describe(error: OSError) -> str:
    """The system's words for an error, without the path and number that Python adds."""
    if error.errno == errno.ENOENT and isinstance(error.filename, str):
        folder = os.path.dirname(error.filename) or "."
        if not os.path.isdir(folder):
            return f"there is no folder {folder}"
    return os.strerror(error.errno) if error.errno else str(error)
