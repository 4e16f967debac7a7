"""Writes to a drive, reads back and compares, until it is told to end. Runs in the guest, and on the host to check.

Alone in its file, with few imports: the guest has little of Python. What a worker does in each round follows from its
seed, so whoever knows which rounds have been acknowledged knows what the drive must hold, even if the guest was killed.

    verify_io.py run DEVICE SEED BLOCKS FOLDER ROUND...     until FOLDER/stop exists; a ROUND for each worker: the last
                                                            one done before (0: none)
    verify_io.py check DEVICE SEED BLOCKS exact|later ROUND...
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # the guest has no typing module
if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 4096
SIZES = (1, 1, 2, 7, 16, 33, 64, 128, 256, 512)  # blocks; the larger ones need PRP lists, the largest is 2 MiB
FLUSH_EVERY = 16  # rounds
COMES_BACK_SECONDS = 120.0
CHECKED_AT_ONCE = 256  # blocks
AHEAD = 100000  # no worker does so many rounds without being asked how far it is


class Mismatch(Exception):
    """The drive holds something else than was written."""


class Worker:
    """One worker's share of the drive: `blocks` blocks, and what each holds after so many rounds."""

    def __init__(self, seed: int, number: int, blocks: int) -> None:
        self.number = number
        self.blocks = blocks
        self.first = number * blocks
        self.seed = (seed * 1000003 + number) & 0xFFFFFFFF
        self.held = [0] * blocks  # the round that wrote each block; 0: never written
        self.round = 0

    def place(self, number: int) -> tuple[int, int]:
        """Where this round writes: the first block (in the share) and how many."""
        value = (self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ value >> 30) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
        count = min(SIZES[value % len(SIZES)], self.blocks)
        return (value >> 16) % (self.blocks - count + 1), count

    def advance(self, number: int) -> None:
        """The drive has acknowledged all rounds up to this one."""
        while self.round < number:
            self.round += 1
            start, count = self.place(self.round)
            self.held[start : start + count] = [self.round] * count

    def content(self, block: int, number: int) -> bytes:
        """What this round writes to the block."""
        return struct.pack("<IIQ", self.seed, number, self.first + block) * (BLOCK // 16) if number else bytes(BLOCK)

    def compare(self, start: int, data: bytes, *, exact: bool = True) -> None:
        """Raise Mismatch if the blocks from `start` on are not what they must be.

        Not exact: a block may also have been written by a later round that was never acknowledged.
        """
        for index in range(len(data) // BLOCK):
            block, found = start + index, data[index * BLOCK : (index + 1) * BLOCK]
            held = self.held[block]
            if found != self.content(block, held) and (exact or not self._is_later(block, held, found)):
                raise Mismatch(
                    f"worker {self.number}: block {self.first + block} holds {_describe(found)}, "
                    f"and not round {held} of seed {self.seed:#x}, block {self.first + block}"
                )

    def catch_up(self, share: bytes) -> None:
        """After a crash: take the rounds for done that must be, because one after them has begun."""
        numbers = [struct.unpack_from("<IIQ", share, block * BLOCK)[1] for block in range(self.blocks)]
        begun = [number for block, number in enumerate(numbers) if self._has_begun(block, number, share)]
        self.advance(max(begun, default=0) - 1)

    def _has_begun(self, block: int, number: int, share: bytes) -> bool:
        return number > self.round and self._is_later(block, self.round, share[block * BLOCK : (block + 1) * BLOCK])

    def _is_later(self, block: int, held: int, found: bytes) -> bool:
        number = struct.unpack_from("<IIQ", found)[1]
        if not held < number <= self.round + AHEAD or found != self.content(block, number):
            return False
        start, count = self.place(number)
        return start <= block < start + count


def _describe(found: bytes) -> str:
    if not any(found):
        return "zeroes"
    seed, number, block = struct.unpack_from("<IIQ", found)
    torn = "" if found == found[:16] * (BLOCK // 16) else " in its first 16 bytes, then something else"
    return f"round {number} of seed {seed:#x}, block {block}{torn}"


class Device:
    """A block device, opened anew when it was away; past the page cache."""

    def __init__(self, path: str, *, direct: bool = True) -> None:
        self.path = path
        self.errors = 0
        self._flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
        self._buffer = mmap.mmap(-1, max(*SIZES, CHECKED_AT_ONCE) * BLOCK)  # aligned, as direct I/O wants it
        self._fd = -1

    def write(self, block: int, data: bytes) -> None:
        """Write, and return when the drive has acknowledged it."""
        self._buffer[: len(data)] = data
        with memoryview(self._buffer)[: len(data)] as view:
            self._insist(lambda fd: os.pwrite(fd, view, block * BLOCK), len(data))

    def read(self, block: int, size: int) -> bytes:
        """Read `size` bytes."""
        with memoryview(self._buffer)[:size] as view:
            self._insist(lambda fd: os.preadv(fd, [view], block * BLOCK), size)
        return self._buffer[:size]

    def flush(self) -> None:
        """Flush: make everything durable that was acknowledged."""

        def sync(fd: int) -> int:
            os.fdatasync(fd)
            return 0

        self._insist(sync, 0)

    def _insist(self, operation: Callable[[int], int], size: int) -> None:
        give_up = 0.0
        while True:
            try:
                if self._fd < 0:
                    self._fd = os.open(self.path, self._flags)
                done = operation(self._fd)
                if done != size:
                    raise OSError(f"{done} bytes of {size}")
                return
            except OSError:
                self.errors += 1
                give_up = give_up or time.monotonic() + COMES_BACK_SECONDS
                if time.monotonic() > give_up:
                    raise
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            time.sleep(0.05)


def work(device: Device, worker: Worker, folder: str) -> None:
    """Rounds until FOLDER/stop exists, each reported in FOLDER/NUMBER once the drive has acknowledged it."""
    stop, report = f"{folder}/stop", f"{folder}/{worker.number}"
    while not os.path.exists(stop):
        number = worker.round + 1
        start, count = worker.place(number)
        device.write(worker.first + start, b"".join(worker.content(start + index, number) for index in range(count)))
        worker.advance(number)
        if number % FLUSH_EVERY == 0:
            device.flush()
        _report(report, f"{number} {device.errors}\n")
        start, count = worker.place(number + 0x10000000)  # another place: mostly one written long ago
        worker.compare(start, device.read(worker.first + start, count * BLOCK))
    device.flush()
    check(device, worker, exact=True)
    _report(report, f"{worker.round} {device.errors} done\n")


def _report(path: str, text: str) -> None:
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, text.encode())
    os.close(fd)
    os.rename(path + ".new", path)


def check(device: Device, worker: Worker, *, exact: bool) -> None:
    """Read the worker's whole share and compare. Not exact: after a crash; the worker then knows what had been done."""
    share = b"".join(
        device.read(worker.first + start, min(CHECKED_AT_ONCE, worker.blocks - start) * BLOCK)
        for start in range(0, worker.blocks, CHECKED_AT_ONCE)
    )
    if not exact:
        worker.catch_up(share)
    worker.compare(0, share, exact=exact)


def workers(seed: int, blocks: int, rounds: list[int]) -> list[Worker]:
    """Make workers that have each done so many rounds already."""
    made = [Worker(seed, number, blocks) for number in range(len(rounds))]
    for worker, done in zip(made, rounds, strict=True):
        worker.advance(done)
    return made


def _run(path: str, team: list[Worker], folder: str) -> int:
    children = []
    for worker in team:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.sched_setaffinity(0, {worker.number % (os.cpu_count() or 1)})  # so each CPU's queue is used
                work(Device(path), worker, folder)
                status = 0
            except (Mismatch, OSError) as error:
                _report(f"{folder}/{worker.number}.failed", f"{type(error).__name__}: {error}\n")
            os._exit(status)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main(arguments: list[str]) -> int:
    verb, path, seed, blocks, how, *rounds = arguments
    if not stat.S_ISBLK(os.stat(path).st_mode):
        print(f"{path} is no block device")
        return 1
    team = workers(int(seed), int(blocks), [int(number) for number in rounds])
    if verb == "run":
        return _run(path, team, how)
    try:
        for worker in team:
            check(Device(path), worker, exact=how == "exact")
        print("rounds", *(worker.round for worker in team))
    except Mismatch as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
