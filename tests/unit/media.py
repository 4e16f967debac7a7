"""Media for tests: ones that answer by timers, without threads, and layers that tell what passes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvmeemu.ports import Clock, Job, Timer
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import (
    Blocks,
    Budget,
    DeallocateBlocks,
    Filter,
    FlushMedia,
    Media,
    MediaError,
    Operation,
    ReadBlocks,
    Steps,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.steps import Done
from nvmeemu.testing import VirtualClock

MIB = 1 << 20
PLAIN = Format()


class TimedMedia(Media):
    """Blocks in memory, with their metadata, that are slow: each operation ends ``seconds`` after it has begun, by a
    timer. There are no threads, and no bound on how many are under way. ``fail`` says which fail, and how."""

    direct = None
    read_only = False
    volatile_cache = True
    identity = "timed"
    blocks = 4096

    def __init__(self, clock: Clock, seconds: float = 0.01, format: Format = PLAIN) -> None:
        super().__init__(format, Budget(64 * MIB))
        self.seconds = seconds
        self.began: list[Operation] = []
        self.pending = 0
        self.most_pending = 0
        self.fail: Callable[[Operation], MediaError | None] = lambda operation: None
        self._clock = clock
        self._data: dict[int, tuple[bytes, bytes]] = {}

    def start(self, operation: Operation, done: Done) -> Job:
        self.began.append(operation)
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)

        def answer() -> None:
            self.pending -= 1
            error = self.fail(operation)
            if error is None:
                done(self._run(operation), None)
            else:
                done(None, error)

        return _Sent(self._clock.call_later(self.seconds, answer))

    def _run(self, operation: Operation) -> Any:
        sizes = self.format.data_size, self.format.metadata_size
        match operation:
            case ReadBlocks(slba, blocks):
                zeros = tuple(map(bytes, sizes))
                found = [self._data.get(lba, zeros) for lba in range(slba, slba + blocks)]
                return Blocks(*(b"".join(parts) for parts in zip(*found, strict=True)))
            case WriteBlocks(slba, data, metadata):
                for index in range(len(data) // sizes[0]):
                    parts = (data, sizes[0]), (metadata, sizes[1])
                    block, tail = (bytes(part[index * size : (index + 1) * size]) for part, size in parts)
                    self._data[slba + index] = block, tail
            case ZeroBlocks(slba, blocks):
                self._forget(slba, blocks)
            case DeallocateBlocks(extents):
                for slba, blocks in extents:
                    self._forget(slba, blocks)
        return None

    def _forget(self, slba: int, blocks: int) -> None:
        for lba in range(slba, slba + blocks):
            self._data.pop(lba, None)


class AtOnce(TimedMedia):
    """Its operations have ended before ``start`` returns."""

    def start(self, operation: Operation, done: Done) -> Job:
        job = super().start(operation, done)
        assert isinstance(self._clock, VirtualClock)
        self._clock.advance(self.seconds)
        return job


class _Sent:
    """It is on its way to the server, which cannot be asked to forget it."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def cancel(self) -> bool:
        return False


class Telling(Filter):
    """Writes down what passes it, under its name, in a list that several of them share."""

    def __init__(self, inner: Media, name: str, told: list[tuple[str, Operation]]) -> None:
        super().__init__(inner)
        self._name = name
        self._told = told

    def steps(self, operation: Operation) -> Steps:
        self._told.append((self._name, operation))
        return (yield self.inner, operation)


class Inverted(Filter):
    """Below it each bit is the opposite."""

    def steps(self, operation: Operation) -> Steps:
        if isinstance(operation, WriteBlocks):
            data, metadata = (memoryview(_inverted(part)) for part in (operation.data, operation.metadata))
            operation = WriteBlocks(operation.slba, data, metadata, operation.is_durable)
        result = yield self.inner, operation
        return Blocks(*map(_inverted, result)) if isinstance(operation, ReadBlocks) else result


class Durable(Filter):
    """Makes a Write durable by a Flush behind it."""

    def steps(self, operation: Operation) -> Steps:
        if not isinstance(operation, WriteBlocks) or not operation.is_durable:
            return (yield self.inner, operation)
        yield self.inner, WriteBlocks(operation.slba, operation.data, operation.metadata)
        return (yield self.inner, FlushMedia())


def _inverted(content: bytes | bytearray | memoryview) -> bytes:
    return bytes(byte ^ 0xFF for byte in content)
