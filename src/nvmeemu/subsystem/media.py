"""What the blocks of a namespace lie on: operations as data, and the media that carry them out.

    namespace.media ->  Filter  ->  Layer  ->  DiskMedia  ->  backend.Backend, which blocks, on threads
                                           or  a client that gets its answers from the event loop, and has no threads

A medium knows blocks and nothing of NVMe's commands. Media stack: a ``Layer`` is one that has another below it. The
order matters: what is above sees what the host asks for, what is below sees what the layers above have made of it.
All of this is called on the controller's thread. What a medium does elsewhere is its own business, and touches nothing
of the controller's.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from nvmeemu.backend import Direct
from nvmeemu.backend.atomicity import Atomicity
from nvmeemu.ports import Job
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.steps import Done, StepRun

VERIFIED_AT_ONCE = 1 << 20  # bytes that a Verify reads at once
MOST_HELD = 64 << 20  # bytes that the commands at one medium may hold
LOOK_AGAIN = 1e-3  # seconds, until commands that had begun at a medium may have ended
NOTHING = memoryview(b"")
_EXTENT_SIZE = 256  # bytes of memory that a pair of numbers takes, more or less


class Blocks(NamedTuple):
    """What was read: the data of the blocks, and their metadata, each side by side."""

    data: bytes | bytearray
    metadata: bytes | bytearray = b""


# --- operations


@dataclass(frozen=True, slots=True)
class Operation:
    """What a medium is asked to do. Ranges are inside the medium and not empty: the caller has checked them."""

    is_changing: ClassVar[bool] = True
    """What a host sees afterwards may be another, so it must have ended before the host goes on without it."""

    def held(self, format: Format) -> int:
        """Bytes of memory that the operation takes until it ends."""
        return 0


@dataclass(frozen=True, slots=True)
class ReadBlocks(Operation):
    """Its result is ``Blocks``. With ``is_from_media``, the blocks are made durable before they are read. With
    ``refuses_deallocated``, a block that is deallocated is an error."""

    slba: int
    blocks: int
    is_from_media: bool = False
    refuses_deallocated: bool = False
    is_changing = False

    def held(self, format: Format) -> int:
        return self.blocks * format.block_size


@dataclass(frozen=True, slots=True)
class VerifyBlocks(Operation):
    """Finds out whether blocks can be read. Nobody gets the data."""

    slba: int
    blocks: int
    is_from_media: bool = False
    refuses_deallocated: bool = False
    is_changing = False

    def held(self, format: Format) -> int:
        return min(self.blocks * format.block_size, VERIFIED_AT_ONCE)


class Sought(Enum):
    """Which blocks ``FindBlocks`` finds."""

    ALLOCATED = "allocated"  # those that are not deallocated
    UNCORRECTABLE = "uncorrectable"  # those that a host has made so
    UNREADABLE = "unreadable"  # those that cannot be read, now that it is tried


@dataclass(frozen=True, slots=True)
class FindBlocks(Operation):
    """Its result are the first ``most`` runs of such blocks, a list of (slba, blocks)."""

    slba: int
    blocks: int
    wanted: Sought
    most: int
    is_changing = False

    def held(self, format: Format) -> int:
        return VERIFIED_AT_ONCE if self.wanted is Sought.UNREADABLE else _EXTENT_SIZE * self.most


@dataclass(frozen=True, slots=True)
class WriteBlocks(Operation):
    """``data`` is a whole number of blocks, ``metadata`` as much as they have. With ``is_durable``, the write survives
    a power cut once it has ended."""

    slba: int
    data: memoryview
    metadata: memoryview = NOTHING
    is_durable: bool = False

    def held(self, format: Format) -> int:
        return len(self.data) + len(self.metadata)


@dataclass(frozen=True, slots=True)
class ZeroBlocks(Operation):
    """Have blocks read as zeros; with ``is_deallocating`` give their storage back if possible. ``metadata`` is that of
    the blocks; empty: zeros, too."""

    slba: int
    blocks: int
    is_deallocating: bool = False
    is_durable: bool = False
    metadata: memoryview = NOTHING

    def held(self, format: Format) -> int:
        return len(self.metadata)


@dataclass(frozen=True, slots=True)
class DeallocateBlocks(Operation):
    """Give the storage of ``extents``, (slba, blocks), back if possible: each then reads as zeros, or as before."""

    extents: Sequence[tuple[int, int]]
    is_durable: bool = False

    def held(self, format: Format) -> int:
        return _EXTENT_SIZE * len(self.extents)


@dataclass(frozen=True, slots=True)
class MakeUncorrectable(Operation):
    """Have blocks be unreadable until they are written (Write Uncorrectable)."""

    slba: int
    blocks: int


@dataclass(frozen=True, slots=True)
class FlushMedia(Operation):
    """Make all that has been written durable."""


# --- errors


class ErrorKind(Enum):
    """What is wrong with a medium, or with what it holds."""

    UNRECOVERED_READ = "unrecovered read"
    WRITE_FAULT = "write fault"
    NO_SPACE = "no space"
    READ_ONLY = "read only"
    GUARD_CHECK = "guard check"
    APPLICATION_TAG_CHECK = "application tag check"
    REFERENCE_TAG_CHECK = "reference tag check"
    STORAGE_TAG_CHECK = "storage tag check"
    DEALLOCATED = "deallocated block"
    UNCORRECTABLE = "uncorrectable block"
    FORMATTING = "being formatted"


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LASTING_NUMBERS = (*_NO_SPACE, errno.EROFS)
_LASTING = frozenset(ErrorKind) - {ErrorKind.UNRECOVERED_READ, ErrorKind.WRITE_FAULT, ErrorKind.FORMATTING}


class MediaError(Exception):
    """An operation has failed. ``disk`` is the identity of the medium that failed, ``lba`` the first block that met
    the error (None: it is not known), ``cause`` what the system says."""

    def __init__(self, kind: ErrorKind, disk: str, lba: int | None = None, cause: OSError | None = None) -> None:
        super().__init__(kind, disk, lba, cause)
        self.kind = kind
        self.disk = disk
        self.lba = lba
        self.cause = cause

    def __str__(self) -> str:
        where = "" if self.lba is None else f" at block {self.lba:#x}"
        return f"disk {self.disk}: {self.kind.value}: {self.why}{where}"

    @classmethod
    def of(cls, operation: Operation, disk: str, cause: OSError) -> MediaError:
        """The error that an OSError means for the operation that met it."""
        if not operation.is_changing:
            kind = ErrorKind.UNRECOVERED_READ
        elif cause.errno in _NO_SPACE:
            kind = ErrorKind.NO_SPACE
        elif cause.errno == errno.EROFS:
            kind = ErrorKind.READ_ONLY
        else:
            kind = ErrorKind.WRITE_FAULT
        return cls(kind, disk, cause=cause)

    @property
    def why(self) -> str:
        """The system's words for it, or ours."""
        return self.kind.value if self.cause is None else self.cause.strerror or str(self.cause)

    @property
    def is_lasting(self) -> bool:
        """Whether another attempt fails as well."""
        return self.kind in _LASTING or (self.cause is not None and self.cause.errno in _LASTING_NUMBERS)


# --- media


class Budget:
    """How many bytes the commands at one medium hold, of all controllers together. While that is less than ``most``,
    another command may begin. So ``most`` is exceeded by less than one transfer. While there is a ``sole_user``, no
    command of anybody else may begin or go on."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self.most = most
        self.held = 0
        self.sole_user: object | None = None

    @property
    def is_full(self) -> bool:
        return self.held >= self.most or self.sole_user is not None

    def take(self, size: int) -> None:
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size


class BlockState(IntEnum):
    """What a block is: never written or deallocated, written, or made uncorrectable by a host."""

    DEALLOCATED = 0
    WRITTEN = 1
    UNCORRECTABLE = 2


class BlockMap(Protocol):
    """Knows of each block of a medium what it is. Its methods may wait, and raise OSError."""

    @property
    def written(self) -> int:
        """How many blocks are not deallocated."""
        ...

    def states(self, slba: int, blocks: int) -> Iterator[tuple[BlockState, int, int]]:
        """The runs of blocks of the same state: (state, slba, blocks)."""
        ...


def merged(runs: Iterable[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """The first ``most`` runs of blocks (slba, blocks), where one that follows another at once belongs to it."""
    found: list[tuple[int, int]] = []
    for slba, blocks in runs:
        if found and sum(found[-1]) == slba:
            found[-1] = found[-1][0], found[-1][1] + blocks
        elif len(found) == most:
            break
        else:
            found.append((slba, blocks))
    return found


class Media(ABC):
    """Blocks. ``start`` takes all operations; ``read_now`` and ``write_now`` are the fast path for some of them."""

    def __init__(self, format: Format, budget: Budget) -> None:
        self.format = format
        self.budget = budget

    @property
    @abstractmethod
    def blocks(self) -> int:
        """How many there are."""

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.blocks * self.format.data_size

    @property
    @abstractmethod
    def identity(self) -> str:
        """A text that is the same at each start for the same disk, and differs between disks."""

    @property
    @abstractmethod
    def read_only(self) -> bool: ...

    @property
    @abstractmethod
    def volatile_cache(self) -> bool:
        """What has been written may still be lost by a power cut, unless it was durable or flushed."""

    @property
    def atomicity(self) -> Atomicity | None:
        """How long a write may be to be atomic, and what keeps it so. None: one block, by itself."""
        return None

    @property
    def block_map(self) -> BlockMap | None:
        """What is known of each block; None: nothing."""
        return None

    @property
    def direct(self) -> Direct | None:
        """For the native engine, which goes past ``start``; None: every operation has to come here."""
        return None

    @abstractmethod
    def start(self, operation: Operation, done: Done) -> Job:
        """Begin an operation, without waiting for anything. ``done(result, None)`` or ``done(None, error)`` is called
        once, on the controller's thread, perhaps before ``start`` returns. The error is a MediaError, or an exception
        that shows a mistake of ours. Operations may overtake each other."""

    def read_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        """Fill the views, in order, from this block on, if that needs no waiting. False: not all of it was done."""
        return False

    def write_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        """Write the views, in order, from this block on, if that needs no waiting. False: not all of it was done."""
        return False

    def refresh(self) -> None:  # noqa: B027  # most have the size that they had
        """Look at its size anew. Raises OSError."""

    def close(self) -> None:  # noqa: B027  # nothing to close is a fine default
        """Give back what it holds; it does not flush."""


class Layer(Media):
    """A medium above another one. It passes everything on. To see every operation, use a ``Gate`` or a ``Filter``."""

    def __init__(self, inner: Media) -> None:
        super().__init__(inner.format, inner.budget)
        self.inner = inner

    @property
    def blocks(self) -> int:
        return self.inner.blocks

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    @property
    def volatile_cache(self) -> bool:
        return self.inner.volatile_cache

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def atomicity(self) -> Atomicity | None:
        return self.inner.atomicity

    @property
    def block_map(self) -> BlockMap | None:
        return self.inner.block_map

    @property
    def direct(self) -> Direct | None:
        return self.inner.direct

    def start(self, operation: Operation, done: Done) -> Job:
        return self.inner.start(operation, done)

    def read_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        return self.inner.read_now(slba, data, metadata)

    def write_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        return self.inner.write_now(slba, data, metadata)

    def refresh(self) -> None:
        self.inner.refresh()

    def close(self) -> None:
        self.inner.close()


Steps = Generator[tuple[Media, Operation], Any, Any]
"""Operations one after the other. Each ``yield`` gives one to a medium, and is its result, or raises its error; what is
returned is the result of the whole."""


class Gate(Layer):
    """A layer that every operation goes through: there are no ways past ``start``."""

    @property
    def direct(self) -> Direct | None:
        return None

    def read_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        return False

    def write_now(self, slba: int, data: Sequence[memoryview], metadata: Sequence[memoryview] = ()) -> bool:
        return False


class Filter(Gate):
    """A layer that does something with operations, written as ``steps``. It sees each of them."""

    @abstractmethod
    def steps(self, operation: Operation) -> Steps:
        """The operations in place of ``operation``, mostly for ``self.inner``. May raise MediaError."""

    def start(self, operation: Operation, done: Done) -> Job:
        return run(self.steps(operation), done)


def run(steps: Steps, done: Done) -> Job:
    """Begin the first step; each of the others begins when the one before it has ended. ``done`` as for
    ``Media.start``."""
    job = _Run(steps, done)
    job.advance(None, None)
    return job


def flush_all(media: Sequence[Media]) -> Steps:
    """One after the other, up to the first that fails."""
    for one in media:
        yield one, FlushMedia()


class _Run(StepRun[tuple[Media, Operation]]):
    """Operations that are under way, as the Job of the whole."""

    _job: Job | None = None  # of the first one, as long as it may not have begun
    _number = 0

    def begin(self, step: tuple[Media, Operation]) -> None:
        media, operation = step
        self._number += 1
        job = media.start(operation, self.advance)
        if self._number == 1 and self._ended is None:
            self._job = job

    def _go_on(self, result: Any, error: BaseException | None) -> None:
        self._job = None
        super()._go_on(result, error)

    def cancel(self) -> bool:
        """Possible only before anything of it has begun."""
        if self._job is None or not self._job.cancel():
            return False
        self._steps.close()
        return True
