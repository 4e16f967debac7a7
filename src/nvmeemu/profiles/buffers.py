"""Memory for the commands of a profile's driver, and what the blocks that it wrote must read back as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

from nvmeemu import spec
from nvmeemu.profiles.steps import SubmitStep
from nvmeemu.spec import (
    Command,
    Compare,
    DatasetManagement,
    DataTransfer,
    DsmRange,
    Flush,
    GetLogPage,
    ReadWrite,
    Verify,
    Write,
)
from nvmeemu.testing.driver import Driver

_Block = tuple[int, int]  # NSID, LBA


class Buffers:
    """``block_sizes`` are in bytes, by NSID. A block that was never written is not compared."""

    def __init__(self, driver: Driver, block_sizes: Mapping[int, int]) -> None:
        self._driver = driver
        self._block_sizes = block_sizes
        self._blocks: dict[_Block, bytes] = {}
        self._writes = 0

    @contextmanager
    def of(self, step: SubmitStep) -> Iterator[list[int]]:
        """A buffer for each of its commands, until they are done; queues keep theirs, and so do parked commands."""
        if isinstance(step.command, spec.CreateCq | spec.CreateSq):
            entry = spec.CQE_SIZE if isinstance(step.command, spec.CreateCq) else spec.SQE_SIZE
            yield [self._driver.alloc(step.command.qsize * entry)]
            return
        with self._driver.scratch():
            size = self.size(step.command)
            yield [self._driver.alloc(step.at + size) + step.at for _ in range(step.times)]

    def size(self, command: Command) -> int:
        """Bytes of its data."""
        if isinstance(command, ReadWrite) and command.MOVES_BLOCKS:
            return command.nlb * self._block_size(command)
        if isinstance(command, DatasetManagement):
            return command.nr * DsmRange.SIZE
        if isinstance(command, GetLogPage):
            return min(command.numd * 4, 1 << 20)
        return spec.PAGE_MIN if DataTransfer.of(command.opcode) else 0

    def _block_size(self, command: Command) -> int:
        """Of its namespace; where there is none nothing moves."""
        return self._block_sizes.get(command.nsid, 512)

    def commands(self, step: SubmitStep, places: list[int]) -> Iterator[Command]:
        """The commands of a step, with their data in place."""
        for number, place in enumerate(places):
            command = deepcopy(step.command)
            if isinstance(command, spec.CreateCq | spec.CreateSq):
                command.prp1 = place
                yield command
                continue
            if isinstance(command, ReadWrite):
                command.slba += number * command.nlb
            size = self.size(command)
            if size:
                self._point(command, place, size, step.list_at)
            if size and DataTransfer.of(command.opcode) == DataTransfer.TO_CONTROLLER:
                self._driver.bus.write_memory(place, step.data or self._content(command, size))
            yield command

    def _point(self, command: Command, place: int, size: int, list_at: int) -> None:
        command.prp1, command.prp2 = self._driver.prps(place, size)
        page = self._driver.page
        pages = -(-(place % page + size) // page)
        if pages > 2 and list_at and list_at + 8 * (pages - 1) <= page:
            entries = self._driver.bus.read_memory(command.prp2, 8 * (pages - 1))
            command.prp2 = self._driver.alloc(page) + list_at
            self._driver.bus.write_memory(command.prp2, entries)

    def _content(self, command: Command, size: int) -> bytes:
        """Blocks that tell where they belong and which write they are of; for Compare, what must be there."""
        if not isinstance(command, ReadWrite):
            return bytes(size)
        block_size = self._block_size(command)
        if isinstance(command, Compare):
            return b"".join(self._blocks.get(block, bytes(block_size)) for block in _range(command))
        self._writes += 1
        return b"".join(
            (lba.to_bytes(8, "little") + self._writes.to_bytes(8, "little")) * (block_size // 16)
            for _, lba in _range(command)
        )

    def check(self, command: Command, qid: int, place: int) -> bool:
        """A command has succeeded: whether what was read is what was written."""
        if not qid or command.nsid not in self._block_sizes:
            return True
        if not isinstance(command, ReadWrite) or not command.MOVES_BLOCKS:
            if not isinstance(command, Flush | Verify):
                self._blocks.clear()  # Write Zeroes, Dataset Management: not known any more
            return True
        size = self._block_size(command)
        data = self._driver.bus.read_memory(place, command.nlb * size)
        blocks = {block: data[start * size : (start + 1) * size] for start, block in enumerate(_range(command))}
        if isinstance(command, Write):
            self._blocks |= blocks
        return all(self._blocks.get(block, content) == content for block, content in blocks.items())


def _range(command: ReadWrite) -> list[_Block]:
    return [(command.nsid, lba) for lba in range(command.slba, command.slba + command.nlb)]
