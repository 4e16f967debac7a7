"""The disk of the fuzzer. It remembers, fails when it is told to, and checks how it is used."""

from __future__ import annotations

from collections.abc import Sequence

from memory import Violation
from nvmeemu.backend import Backend

_PATTERN = b"".join((index * 2654435761 & 0xFFFFFFFF).to_bytes(4, "little") for index in range(1 << 16))


class Disk(Backend):
    """``failures``: the errno that an operation fails with. ``has_now``: whether it serves the fast path."""

    identity = "fuzz"

    def __init__(self, size: int, block: int, *, has_now: bool, volatile_cache: bool, read_only: bool) -> None:
        self.size = size
        self.block = block
        self.has_now = has_now
        self.volatile_cache = volatile_cache
        self.read_only = read_only
        self.data = bytearray(_PATTERN[:size])
        self.failures: dict[str, int] = {}
        self.version = 0  # counts what changes the data

    def _begin(self, operation: str, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size or offset % self.block or length % self.block or length <= 0:
            raise Violation(f"{operation} of {length} bytes at {offset} of a disk of {self.size}")
        if operation != "read":
            self.version += 1
            if self.read_only:
                raise Violation(f"{operation} on a read-only disk")
        if operation in self.failures:
            raise OSError(self.failures[operation], "the fuzzer's doing")

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._begin("read", offset, sum(map(len, views)))
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self._begin("write", offset, sum(map(len, views)))
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        if "flush" in self.failures:
            raise OSError(self.failures["flush"], "the fuzzer's doing")

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._begin("zero", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def deallocate(self, offset: int, length: int) -> None:
        self._begin("deallocate", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        if not self.has_now or "read" in self.failures:
            return False
        self.read(offset, views)
        return True

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        if not self.has_now or "write" in self.failures:
            return False
        self.write(offset, views)
        return True
