"""Disks with a companion in the native engine: blocks with states, with metadata and with protection information. What
it does itself, and that it does what Python does, which serves the same commands beside it.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from native.test_media import open_disk, served
from nvmeemu.backend import open_backend
from nvmeemu.backend.companion import CHUNK, Companion, beside
from nvmeemu.backend.shared_map import SharedMap
from nvmeemu.spec import (
    AdminOpcode,
    Command,
    DatasetManagement,
    DsmRange,
    LogId,
    NvmOpcode,
    Psdt,
    ReadWrite,
    Status,
)
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import BlockState
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.protection import Tags
from nvmeemu.testing import PAGE, Bench
from nvmeemu.testing.sgl import data_block

BLOCKS = CHUNK + 64
FORMATS = {
    "plain": Format(512),
    "512+8": Format(512, 8),
    "512+64 extended": Format(512, 64, True),
    "4096+8 type 1": Format(4096, 8, protection=Protection(1)),
    "512+8 type 1 extended": Format(512, 8, True, Protection(1)),
    "512+16 type 1 first": Format(512, 16, protection=Protection(1, is_first=True)),
    "4096+64 type 1 extended": Format(4096, 64, True, Protection(1)),
}
KINDS = ("memory", "memory file", "file", "direct")
PRACT, GUARD, APPLICATION, REFERENCE = (1 << bit for bit in (29, 28, 27, 26))
CHECKS = GUARD | APPLICATION | REFERENCE
NSID = 2
UNMAPPED = 1 << 40


@dataclass
class Rig:
    """Namespace 2 of a controller, with a companion, and its driver."""

    bench: Bench
    media: PairedMedia

    @property
    def format(self) -> Format:
        return self.media.format

    def execute(self, command: Command) -> int:
        """The status, with DNR."""
        driver = self.bench.driver
        driver.submit(driver.queues[1], command)
        self.bench.settle()
        completion = driver.poll(driver.queues[1])
        if completion is None:  # it waits for memory that does not come
            self.bench.clock.advance(1)
            self.bench.settle()
            completion = driver.poll(driver.queues[1])
        assert completion is not None
        return int(completion.status) | completion.dnr << 15

    def take_counts(self) -> tuple[int, int]:
        """Reads and writes of the engine's since the last call."""
        return served(self.bench)[:2]


def open_pair(kind: str, format: Format, folder: Path, bench: Bench) -> PairedMedia:
    size = BLOCKS * format.data_size
    if kind == "memory":
        return PairedMedia(open_backend(f"mem:{size}"), Companion.in_memory(format, size), bench.worker)
    name = f"{folder.name}-{os.getpid()}-{bench.engine is None}"  # another run's folder may have that name, too
    place = Path("/dev/shm") / name if kind == "memory file" else Path("/var/tmp") / name  # no tmpfs
    try:
        backend = open_backend(str(place), create=True, size=size, direct=kind == "direct")
        return PairedMedia(backend, Companion.make(beside(str(place)), format, size), bench.worker)
    finally:
        place.unlink(missing_ok=True)
        Path(beside(str(place))).unlink(missing_ok=True)


def open_rig(stack: ExitStack, kind: str, format: Format, folder: Path, engine: str) -> Rig:
    bench = Bench(engine=engine)
    media = open_pair(kind, format, folder, bench)
    stack.callback(media.close)
    stack.enter_context(closing(bench))
    bench.namespaces.add(Namespace(NSID, media))
    bench.driver.enable()
    bench.driver.create_queues(1)
    return Rig(bench, media)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# --- what a host sends


@dataclass
class Sent:
    """A Read or Write, and its places in guest memory: where they begin, and their sizes."""

    command: ReadWrite
    data: tuple[int, int]
    metadata: tuple[int, int]


def transfer(rig: Rig, opcode: int, slba: int, blocks: int, cdw12: int = 0, psdt: int = Psdt.PRP) -> Sent:
    """One that is right, with application tag 1234h in all bits."""
    format, driver = rig.format, rig.bench.driver
    command = ReadWrite(opcode=opcode, nsid=NSID, slba=slba, nlb=blocks)
    command.cdw12 |= cdw12
    command.cdw14, command.cdw15 = slba & 0xFFFFFFFF, 0xFFFF1234
    is_stripped = cdw12 & PRACT and format.protection is not None and format.metadata_size == 8
    size = blocks * (format.block_size if format.is_extended and not is_stripped else format.data_size)
    apart = 0 if format.is_extended or is_stripped else blocks * format.metadata_size
    data, metadata = driver.alloc(size), driver.alloc(max(apart, 16))
    if psdt == Psdt.PRP:
        command.prp1, command.prp2 = driver.prps(data, size)
    else:
        command.psdt, command.sgl1 = psdt, bytes(data_block(data, size))
    command.mptr = metadata
    return Sent(command, (data, size), (metadata, apart))


def content(format: Format, slba: int, blocks: int, seed: int) -> tuple[bytes, bytearray]:
    """Data, and metadata with protection information that is right."""
    chance = random.Random(seed)
    data, metadata = chance.randbytes(blocks * format.data_size), chance.randbytes(blocks * format.metadata_size)
    made = bytearray(metadata)
    if format.protection is not None:
        protection.generate(format, data, made, Tags(slba & 0xFFFFFFFF, 0x1234))
    return data, made


def put(rig: Rig, sent: Sent, data: bytes, metadata: bytes | bytearray) -> None:
    """What the host gives, in guest memory."""
    if sent.data[1] > len(data):
        data = bytes(protection.interleave(rig.format, data, metadata))
    rig.bench.write_memory(sent.data[0], data)
    rig.bench.write_memory(sent.metadata[0], bytes(metadata[: sent.metadata[1]]))


def got(rig: Rig, sent: Sent) -> tuple[bytes, bytes]:
    """What the host has got, as it lies in guest memory."""
    return rig.bench.read_memory(*sent.data), rig.bench.read_memory(*sent.metadata)


# --- what the engine does itself


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_reads_and_writes_them_itself(kind: str, name: str, tmp_path: Path, stack: ExitStack) -> None:
    """From the second command of a chunk on: the first one takes the chunk's map into memory."""
    rig = open_rig(stack, kind, FORMATS[name], tmp_path, "native")
    checks = 0 if rig.format.protection is None else CHECKS
    for number, (slba, blocks, psdt) in enumerate([(8, 1, Psdt.PRP), (9, 7, Psdt.PRP), (16, 8, Psdt.SGL)]):
        sent = transfer(rig, NvmOpcode.WRITE, slba, blocks, checks, psdt)
        data, metadata = content(rig.format, slba, blocks, number)
        put(rig, sent, data, metadata)
        assert rig.execute(sent.command) == Status.SUCCESS
        assert rig.take_counts() == (0, 0 if number == 0 else 1)
        back = transfer(rig, NvmOpcode.READ, slba, blocks, checks, psdt)
        assert rig.execute(back.command) == Status.SUCCESS
        assert rig.take_counts() == (1, 0)
        assert got(rig, back) == got(rig, sent)
    assert list(rig.media.companion.states(8, 17)) == [
        (BlockState.WRITTEN, 8, 16),
        (BlockState.DEALLOCATED, 24, 1),
    ]
    assert rig.media.companion.written == 16
    if rig.format.protection is not None:
        sent = transfer(rig, NvmOpcode.WRITE, 8, 2, PRACT)
        put(rig, sent, *content(rig.format, 8, 2, 9))
        assert rig.execute(sent.command) == Status.SUCCESS
        back = transfer(rig, NvmOpcode.READ, 8, 2, PRACT | CHECKS)
        assert rig.execute(back.command) == Status.SUCCESS
        assert rig.take_counts() == (1, 1)
        assert got(rig, back)[0][:512] == content(rig.format, 8, 2, 9)[0][:512]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_namespace_is_the_engines_after_a_format(kind: str, tmp_path: Path, stack: ExitStack) -> None:
    backend = open_disk(kind, tmp_path)
    bench = stack.enter_context(closing(Bench(backend, engine="native", can_be_formatted=True)))
    stack.callback(backend.close)
    driver = bench.driver
    driver.enable()
    driver.create_queues(1)
    driver.write(0, b"x" * 512)
    for number, size in ((4, 4096), (0, 512), (1, 512), (0, 512)):
        command = Command(opcode=AdminOpcode.FORMAT_NVM, nsid=1, cdw10=number)
        bench.driver.submit(driver.admin, command)
        for _ in range(200):
            bench.settle()
            bench.clock.advance(1e-3)
        assert driver.poll(driver.admin).status == Status.SUCCESS  # type: ignore[union-attr]
        served(bench)
        assert driver.read(0, 8, block_size=size) == bytes(8 * size)
        assert served(bench) == (0, 0, 0), "deallocated blocks are Python's"
        driver.write(0, b"y" * 8 * size, block_size=size)
        assert driver.read(2, 4, block_size=size) == b"y" * 4 * size
        assert served(bench) == (1, 1, 0)


# --- what it leaves to Python


def spoil(chance: random.Random, rig: Rig, sent: Sent, metadata: bytearray) -> None:
    """Make something of it wrong, or odd."""
    command, format = sent.command, rig.format
    kind = chance.randrange(11)
    if kind == 0:
        command.cdw14 ^= 1 << chance.randrange(32)
    elif kind == 1:
        command.cdw15 ^= 1 << chance.randrange(32)
    elif kind in (2, 3, 4) and metadata:
        place = chance.randrange(len(metadata))
        metadata[place] ^= 1 << chance.randrange(8)
    elif kind == 5 and format.protection is not None:  # escape
        at = chance.randrange(sent.command.nlb) * format.metadata_size + format.protection_offset
        metadata[at + 2 : at + 4] = b"\xff\xff"
    elif kind == 6:
        command.mptr += chance.choice([1, 2, 4, UNMAPPED])
    elif kind == 7:
        command.prp1 += chance.choice([1, UNMAPPED])
    elif kind == 8:
        command.slba = BLOCKS - chance.choice([0, 1])
    elif kind == 9:
        command.cdw12 |= 1 << chance.choice([24, 25, 30, 31])
    elif kind == 10:
        command.psdt = chance.choice([Psdt.SGL_BOTH, 3])


def other(chance: random.Random, rig: Rig) -> Command:
    """A command that changes the states of blocks, or only reads them."""
    slba, blocks = chance.randrange(30), chance.randint(1, 6)
    kind = chance.randrange(5)
    if kind == 0:
        place = rig.bench.driver.alloc(PAGE)
        rig.bench.write_memory(place, bytes(DsmRange(slba=slba, length=blocks)))
        return DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=NSID, nr=1, prp1=place, ad=True)
    opcodes = (NvmOpcode.WRITE_UNCORRECTABLE, NvmOpcode.WRITE_ZEROES, NvmOpcode.VERIFY, NvmOpcode.FLUSH)
    command = ReadWrite(opcode=opcodes[kind - 1], nsid=NSID)
    if kind < 4:
        command.slba, command.nlb, command.cdw14 = slba, blocks, slba
    return command


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_both_paths_do_the_same(kind: str, name: str, tmp_path: Path, stack: ExitStack) -> None:
    """Status, what the host gets, what the medium has in the end, and the error log. Blocks with wrong tags get there
    by writes that check nothing."""
    rigs = [open_rig(stack, kind, FORMATS[name], tmp_path, engine) for engine in ("native", "python")]
    reads = writes = 0
    for seed in range(300):
        chance = random.Random(f"{seed} {name}")
        results = []
        for rig in rigs:
            chance = random.Random(f"{seed} {name}")
            with rig.bench.driver.scratch():
                results.append(_one(chance, rig, seed))
        assert results[0] == results[1], seed
    counts = rigs[0].take_counts()
    reads, writes = counts
    assert reads > 20, counts
    assert writes > 50, counts
    logs = [rig.bench.driver.get_log(LogId.ERROR_INFORMATION, 64 * 16) for rig in rigs]
    assert logs[0] == logs[1]
    ours, theirs = (list(rig.media.companion.states(0, BLOCKS)) for rig in rigs)
    assert ours == theirs
    assert rigs[0].media.companion.written == rigs[1].media.companion.written
    for state, slba, blocks in ours:
        if state is BlockState.WRITTEN:
            found = [whole(rig, slba, blocks) for rig in rigs]
            assert found[0] == found[1]


def whole(rig: Rig, slba: int, blocks: int) -> tuple[bytes, bytes]:
    """Data and metadata as the medium has them."""
    place = bytearray(PAGE + blocks * rig.format.data_size)
    data = memoryview(place)[: blocks * rig.format.data_size]
    rig.media.backend.read(slba * rig.format.data_size, [data])
    return bytes(data), bytes(rig.media.companion.read_metadata(slba, blocks))


def _one(chance: random.Random, rig: Rig, seed: int) -> object:
    """Execute a command; what is to be the same."""
    if chance.random() < 0.15:
        return rig.execute(other(chance, rig))
    opcode = chance.choice([NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.WRITE])
    slba = chance.choice([chance.randrange(30), chance.randrange(30), CHUNK - chance.randrange(5)])
    blocks = chance.randint(1, 8)
    bits = sum(bit for bit in (PRACT, GUARD, APPLICATION, REFERENCE) if chance.random() < 0.4)
    if rig.format.protection is None and chance.random() < 0.8:
        bits = 0
    sent = transfer(rig, opcode, slba, blocks, bits, chance.choice([Psdt.PRP, Psdt.PRP, Psdt.SGL]))
    data, metadata = content(rig.format, slba, blocks, seed)
    if chance.random() < 0.4:
        spoil(chance, rig, sent, metadata)
    if opcode == NvmOpcode.WRITE:
        put(rig, sent, data, metadata)
    else:
        put(rig, sent, b"\xaa" * len(data), b"\xaa" * len(metadata))
    status = rig.execute(sent.command)
    return (status, got(rig, sent)) if status == Status.SUCCESS else status


def test_what_has_to_last_and_what_changes_the_map_otherwise_is_pythons(tmp_path: Path, stack: ExitStack) -> None:
    """Both files have to be synced."""
    rig = open_rig(stack, "file", FORMATS["512+8"], tmp_path, "native")
    for fua, wanted in ((0, 0), (0, 1), (1 << 30, 0)):
        sent = transfer(rig, NvmOpcode.WRITE, 0, 4, fua)
        put(rig, sent, *content(rig.format, 0, 4, wanted))
        assert rig.execute(sent.command) == Status.SUCCESS
        assert served(rig.bench) == (0, wanted, 0)
    for opcode in (NvmOpcode.FLUSH, NvmOpcode.WRITE_ZEROES):
        assert rig.execute(ReadWrite(opcode=opcode, nsid=NSID)) == Status.SUCCESS
    place = rig.bench.driver.alloc(PAGE)
    rig.bench.write_memory(place, bytes(DsmRange(slba=1, length=2)))
    dataset = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=NSID, nr=1, prp1=place, ad=True)
    assert rig.execute(dataset) == Status.SUCCESS
    assert served(rig.bench) == (0, 0, 0)
    assert list(rig.media.companion.states(0, 5)) == [
        (BlockState.WRITTEN, 0, 1),
        (BlockState.DEALLOCATED, 1, 2),
        (BlockState.WRITTEN, 3, 1),
        (BlockState.DEALLOCATED, 4, 1),
    ]


@pytest.mark.parametrize("name", ["plain", "512+8"])
@pytest.mark.parametrize("kind", ["memory file", "file"])
def test_a_block_whose_data_cannot_be_written_does_not_count_as_written(
    kind: str, name: str, tmp_path: Path, stack: ExitStack
) -> None:
    """Neither for the engine, nor for Python, which tries again."""
    rig = open_rig(stack, kind, FORMATS[name], tmp_path, "native")
    companion, disk = rig.media.companion, rig.media.backend.direct
    assert disk is not None
    companion.load(0, 1)
    only_read = os.open(f"/proc/self/fd/{disk.fd}", os.O_RDONLY)
    os.dup2(only_read, disk.fd)
    os.close(only_read)
    sent = transfer(rig, NvmOpcode.WRITE, 0, 4)
    put(rig, sent, *content(rig.format, 0, 4, 1))
    assert rig.execute(sent.command) & 0x7FFF == Status.WRITE_FAULT
    assert list(companion.states(0, 4)) == [(BlockState.DEALLOCATED, 0, 4)]
    assert rig.take_counts() == (0, 0)


def test_mdts_counts_metadata_in_the_buffer_of_the_data(tmp_path: Path, stack: ExitStack) -> None:
    """The largest number of blocks is the engine's, one block more is refused."""
    rig = open_rig(stack, "memory file", FORMATS["512+64 extended"], tmp_path, "native")
    rig.media.companion.load(0, 1)
    most = rig.bench.controller.state.limits.transfer // rig.format.block_size
    for blocks, wanted in ((most, Status.SUCCESS), (most + 1, Status.INVALID_FIELD | 1 << 15)):
        with rig.bench.driver.scratch():
            sent = transfer(rig, NvmOpcode.WRITE, 0, blocks)
            put(rig, sent, *content(rig.format, 0, blocks, 1))
            assert rig.execute(sent.command) == wanted
        assert rig.take_counts() == (0, int(wanted == Status.SUCCESS))


def test_the_second_chunk_lies_behind_the_first(tmp_path: Path, stack: ExitStack) -> None:
    """What the engine writes there, another start finds."""
    rig = open_rig(stack, "memory file", FORMATS["512+8"], tmp_path, "native")
    rig.media.companion.load(CHUNK, 1)
    sent = transfer(rig, NvmOpcode.WRITE, CHUNK + 9, 4)
    data, metadata = content(rig.format, CHUNK + 9, 4, 1)
    put(rig, sent, data, metadata)
    assert rig.execute(sent.command) == Status.SUCCESS
    assert rig.take_counts() == (0, 1)
    copy = rig.media.companion.copy()  # of the file
    stack.callback(copy.close)
    assert list(copy.states(CHUNK, 20)) == [
        (BlockState.DEALLOCATED, CHUNK, 9),
        (BlockState.WRITTEN, CHUNK + 9, 4),
        (BlockState.DEALLOCATED, CHUNK + 13, 7),
    ]
    assert copy.read_metadata(CHUNK + 9, 4) == metadata


# --- the map in memory


def test_blocks_that_share_a_byte_are_marked_at_the_same_time() -> None:
    map = SharedMap(1)
    map.add(0, bytes(CHUNK // 4))

    def mark(first: int) -> None:
        for block in range(first, CHUNK, 4):
            with map.changing(0, block, 1, BlockState.WRITTEN + first % 2):
                pass

    threads = [Thread(target=mark, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes(map.view(0, 0, CHUNK // 4)) == b"\x99" * (CHUNK // 4)
    assert map.written == CHUNK


def test_the_engine_knows_the_layout_of_the_map() -> None:
    map_lib = importlib.import_module("nvmeemu.backend._block_map").lib
    assert (map_lib.MAP_BLOCKS, map_lib.MAP_BYTES) == (CHUNK, CHUNK // 4)
