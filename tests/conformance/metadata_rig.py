"""Namespaces with metadata and protection information, and a driver that reads and writes them by their formats."""

from __future__ import annotations

import random
from dataclasses import dataclass

from conformance.tools import NewBench, guarded, is_untouched, know_extended_formats
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import Completion, NvmOpcode, ReadWrite, Status
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.protection import Tags
from nvmeemu.testing import Bench, Driver, QueuePair

FORMATS = {
    "512+8": Format(512, 8),
    "512+64 extended": Format(512, 64, True),
    "4096+8 type 1": Format(4096, 8, protection=Protection(1)),
    "512+8 type 2 extended": Format(512, 8, True, Protection(2)),
    "512+16 type 1": Format(512, 16, protection=Protection(1)),
    "4096+64 type 3 first": Format(4096, 64, protection=Protection(3, is_first=True)),
    "4096+16 type 1 64 bits": Format(4096, 16, protection=Protection(1, Guard.CRC64)),
    "4096+16 type 2 32 bits": Format(4096, 16, True, Protection(2, Guard.CRC32, 16)),
    "4096+64 type 1 64 bits": Format(4096, 64, True, Protection(1, Guard.CRC64)),
}
PROTECTED = [name for name, one in FORMATS.items() if one.protection is not None]
BIT = {"guard": 1 << 28, "application": 1 << 27, "reference": 1 << 26, "pract": 1 << 29}
NO_TAGS = Tags()


@dataclass
class Rig:
    """A namespace of a format, and its driver. What it reads and writes is by the format, as a host's driver has it."""

    driver: Driver
    queue: QueuePair
    bench: Bench

    @property
    def format(self) -> Format:
        return self.bench.controller.state.namespaces[1].format

    def command(self, opcode: int, slba: int, blocks: int, bits: int = 0, tags: Tags = NO_TAGS) -> ReadWrite:
        command = ReadWrite(opcode=opcode, nsid=1, slba=slba, nlb=blocks)
        command.cdw12 |= bits
        if self.format.protection is not None:
            value = tags.reference | tags.storage << self.format.protection.reference_bits
            command.cdw14, command.cdw3, command.cdw2 = (value >> shift & 0xFFFFFFFF for shift in (0, 32, 64))
        command.cdw15 = tags.application | tags.application_mask << 16
        return command

    def sizes(self, blocks: int, bits: int) -> tuple[int, int]:
        """Bytes in the buffer of the data and in that of the metadata."""
        of, format = self.format.protection, self.format
        if of is not None and bits & BIT["pract"] and format.metadata_size == of.size:
            return blocks * format.data_size, 0
        if format.is_extended:
            return blocks * format.block_size, 0
        return blocks * format.data_size, blocks * format.metadata_size

    def put(self, slba: int, data: bytes, metadata: bytes, bits: int = 0, tags: Tags = NO_TAGS) -> Completion:
        """Write, with the metadata where the format has them."""
        return self.give(NvmOpcode.WRITE, slba, data, metadata, bits, tags)

    def give(
        self, opcode: int, slba: int, data: bytes, metadata: bytes, bits: int = 0, tags: Tags = NO_TAGS
    ) -> Completion:
        blocks = len(data) // self.format.data_size
        size, apart = self.sizes(blocks, bits)
        if size > len(data):
            data = bytes(protection.interleave(self.format, data, metadata))
        command = self.command(opcode, slba, blocks, bits, tags)
        place = self.driver.alloc(size)
        self.driver.bus.write_memory(place, data)
        command.prp1, command.prp2 = self.driver.prps(place, size)
        if apart:
            command.mptr = self.driver.alloc(apart)
            self.driver.bus.write_memory(command.mptr, metadata)
        return self.driver.execute(self.queue, command)

    def get(self, slba: int, blocks: int, bits: int = 0, tags: Tags = NO_TAGS) -> tuple[Completion, bytes, bytes]:
        """Read: the completion, data and metadata; no byte besides may have been written."""
        size, apart = self.sizes(blocks, bits)
        command = self.command(NvmOpcode.READ, slba, blocks, bits, tags)
        place, beside = guarded(self.driver, size), guarded(self.driver, max(apart, 4), 8)
        command.prp1, command.prp2 = self.driver.prps(place, size)
        command.mptr = beside if apart else 0
        completion = self.driver.execute(self.queue, command)
        for start, length in ((place, size), (beside, apart)):
            assert is_untouched(self.driver, start + length, 8)
            assert is_untouched(self.driver, start - 8, 8)
        data, metadata = self.driver.bus.read_memory(place, size), self.driver.bus.read_memory(beside, apart)
        if completion.status == Status.SUCCESS and size > blocks * self.format.data_size:
            data, metadata = (bytes(one) for one in protection.split(self.format, data))
        return completion, data, metadata

    def tags(self, slba: int, application: int = 0x1234) -> Tags:
        """Those that a host uses for these blocks."""
        return Tags(slba, application, 0xBEEF if self.format.offered.storage_tag_size else 0)

    def blocks(self, slba: int, number: int, seed: int = 1) -> tuple[bytes, bytes]:
        """Data, and metadata with protection information that is right, for these blocks."""
        chance = random.Random(seed)
        data = chance.randbytes(number * self.format.data_size)
        metadata = bytearray(chance.randbytes(number * self.format.metadata_size))
        if self.format.protection is not None:
            protection.generate(self.format, data, metadata, self.tags(slba))
        return data, bytes(metadata)

    @property
    def checks(self) -> int:
        """All checks that the type has."""
        of = self.format.protection
        assert of is not None
        return BIT["guard"] | BIT["application"] | (BIT["reference"] if of.type != 3 else 0)


def make(new_bench: NewBench, format: Format) -> Rig:
    bench = new_bench(MemoryBackend(4 << 20), format=format, can_be_formatted=True)
    bench.driver.enable()
    know_extended_formats(bench.driver)
    return Rig(bench.driver, bench.driver.create_queues(1), bench)
