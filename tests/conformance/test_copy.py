"""Copy: blocks go from ranges of one or more namespaces to one range. NVM 1.0, 3.2.2; descriptor formats 2 and 3: NVM
1.1."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from typing import Any

import pytest

from conformance.tools import (
    DriverOf,
    NewBench,
    TellingBackend,
    dsm_command,
    fails,
    identify_controller,
    identify_namespace,
    know_extended_formats,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.limits import Limits
from nvmeemu.ports import Job
from nvmeemu.spec import (
    Abort,
    CommandEffectsLog,
    Completion,
    Copy,
    CopyRange,
    ErrorLogEntry,
    FeatureId,
    GetFeatures,
    HostBehaviorSupport,
    IdentifyController,
    LogId,
    LongCopyRange,
    NvmOpcode,
    Ocfs,
    ReadWrite,
    SetFeatures,
    Status,
)
from nvmeemu.spec import WriteProtection as State
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import Blocks, Layer, Operation, ReadBlocks, WriteBlocks
from nvmeemu.subsystem.protection import Tags
from nvmeemu.subsystem.steps import Done
from nvmeemu.testing import CC, PAGE, Bench, Driver

Range = tuple[int, int] | CopyRange | LongCopyRange
PRACT, GUARD, APPLICATION, REFERENCE = 8, 4, 2, 1  # PRINFO
SEEN = 3 << 2  # CDFE: formats 2 and 3


def copying(driver: Driver, ranges: Sequence[Range], sdlba: int, **fields: Any) -> Copy:
    """Copy of ranges (slba, blocks), or of entries, of namespace 1."""
    fields = {"nsid": 1, "nr": len(ranges), **fields}
    kind = LongCopyRange if fields.get("desfmt", 0) in (1, 3) else CopyRange
    data = b"".join(bytes(kind(slba=one[0], nlb=one[1]) if isinstance(one, tuple) else one) for one in ranges)
    place = driver.alloc(max(len(data), PAGE))
    driver.bus.write_memory(place, data)
    prp1, prp2 = driver.prps(place, len(data))
    return Copy(prp1=prp1, prp2=prp2, sdlba=sdlba, **fields)


def stops(driver: Driver, command: Copy, status: Status, index: int = 0, *, dnr: bool | None = True) -> Completion:
    """It ends with this status, and says that the ranges before this one are copied."""
    completion = driver.execute(driver.queues[1], command)
    assert (completion.status, completion.dw0) == (status, index), f"{completion!r} for {command!r}"
    assert dnr is None or completion.dnr == dnr
    return completion


def want_formats(driver: Driver, cdfe: int = SEEN) -> None:
    """Set CDFE of Host Behavior Support."""
    page = driver.alloc(PAGE)
    driver.bus.write_memory(page, bytes(HostBehaviorSupport(lbafee=1, cdfe=cdfe)))
    driver.succeed(driver.admin, SetFeatures(fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=page))


def content(blocks: int, seed: int = 1, size: int = 512) -> bytes:
    return random.Random(seed).randbytes(blocks * size)


@pytest.fixture
def ready(driver: Driver) -> Driver:
    """A driver with a queue, of a controller that has Copy."""
    if not identify_controller(driver).oncs & 1 << 8:
        pytest.skip("no Copy")
    driver.create_queues(1)
    return driver


def at_medium(bench: Bench, operation: Operation, nsid: int = 1) -> Any:
    """The result of what a medium is asked, past all commands."""
    found: list[Any] = []
    bench.namespaces.by_nsid[nsid].media.start(operation, lambda result, error: found.append(error or result))
    bench.worker.finish_all()
    return found[0]


def holds(bench: Bench, slba: int, blocks: int, nsid: int = 1) -> Blocks:
    found = at_medium(bench, ReadBlocks(slba, blocks), nsid)
    return Blocks(bytes(found.data), bytes(found.metadata))


def two(new_bench: NewBench, first: Format, second: Format) -> Bench:
    """An enabled controller with two namespaces, whose host knows all formats."""
    bench = new_bench(MemoryBackend(1 << 20), format=first, has_block_map=True)
    bench.subsystem.add(
        bench.namespace(2, MemoryBackend(1 << 20), identity="second", format=second, has_block_map=True)
    )
    bench.driver.enable()
    bench.driver.create_queues(1)
    want_formats(bench.driver)
    return bench


# --- what every controller does


@pytest.mark.fact("F309", clause="NVM 1.0, 3.2.2", kills=("copy-all-to-the-start", "copy-one-range"))
def test_ranges_are_copied_one_behind_the_other(ready: Driver) -> None:
    """Also one over itself, and to where blocks were before; nothing besides is written. xNVMe's test copies blocks to
    those right behind them, and compares."""
    data = content(24)
    ready.write(0, data)
    done = ready.succeed(ready.queues[1], copying(ready, [(20, 3), (0, 1), (7, 9), (7, 1)], 30))
    assert done.dw0 == 0
    pieces = [(20, 3), (0, 1), (7, 9), (7, 1)]
    assert ready.read(30, 14) == b"".join(data[512 * slba : 512 * (slba + blocks)] for slba, blocks in pieces)
    assert ready.read(0, 24) == data
    assert ready.read(24, 6) == bytes(6 * 512)
    assert ready.read(44, 4) == bytes(4 * 512)
    ready.succeed(ready.queues[1], copying(ready, [(slba, 1) for slba in range(8)], 8, fua=True))
    assert ready.read(0, 16) == data[: 8 * 512] * 2


@pytest.mark.fact("F311", clause="Base 2.0, Figure 275, OCFS", kills=("copy-any-format",))
def test_ocfs_says_which_descriptor_formats_there_are(ready: Driver) -> None:
    """A host has to ask for those that name namespaces, and a reset forgets that. Formats of long guards are not for
    blocks without one."""
    offered = identify_controller(ready).ocfs
    assert offered & Ocfs.FORMAT_0
    ready.write(0, content(2))
    for desfmt in range(4, 16):
        stops(ready, copying(ready, [(0, 1)], 8, desfmt=desfmt), Status.INVALID_FIELD)
    for desfmt in (2, 3):
        stops(ready, copying(ready, [(0, 1)], 8, desfmt=desfmt), Status.INVALID_FIELD)
    if offered & Ocfs.FORMAT_1:
        stops(ready, copying(ready, [(0, 1)], 8, desfmt=1), Status.INVALID_FORMAT)
    if not offered & Ocfs.FORMAT_2:
        return
    want_formats(ready)
    place = ready.alloc(PAGE)
    ready.succeed(ready.admin, GetFeatures(fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place))
    assert HostBehaviorSupport(ready.bus.read_memory(place, 512)).cdfe == SEEN
    ready.succeed(ready.queues[1], copying(ready, [CopyRange(snsid=1, slba=0, nlb=2)], 8, desfmt=2))
    assert ready.read(8, 2) == content(2)
    stops(ready, copying(ready, [LongCopyRange(snsid=1, slba=0, nlb=2)], 8, desfmt=3), Status.INVALID_FORMAT)
    ready.enable()
    ready.create_queues(1)
    stops(ready, copying(ready, [CopyRange(snsid=1, slba=0, nlb=2)], 8, desfmt=2), Status.INVALID_FIELD)


@pytest.mark.fact("F312", clause="NVM 1.0, 3.2.2; Figure 97, MSSRL, MCL, MSRC", kills=("copy-any-size",))
def test_the_limits_are_those_of_identify(driver_of: DriverOf) -> None:
    """What is just within them works, and MDTS has nothing to do with it."""
    driver = driver_of({1: (129 << 20, 512)})
    driver.enable()
    page = identify_namespace(driver)
    if not page.mcl:
        pytest.skip("no Copy")
    driver.create_queues(1)
    assert 0 < page.mssrl <= page.mcl
    full, rest = divmod(page.mcl, page.mssrl)
    most = [(0, page.mssrl)] * full + [(0, rest)] * bool(rest)
    to, limit = page.nsze - page.mcl, Status.COMMAND_SIZE_LIMIT_EXCEEDED
    driver.write(page.mssrl - 1, content(1))
    driver.succeed(driver.queues[1], copying(driver, most, to))
    assert driver.read(to + page.mssrl - 1, 1) == content(1)
    stops(driver, copying(driver, [(0, page.mssrl + 1)], to), limit)
    stops(driver, copying(driver, [*most[:-1], (0, most[-1][1] + 1)], 0), limit)
    driver.succeed(driver.queues[1], copying(driver, [(slba % 8, 1) for slba in range(page.msrc)], 1000))
    stops(driver, copying(driver, [(0, 1)] * (page.msrc + 1), 1000), limit)


@pytest.mark.fact("F313", clause="NVM 1.0, 3.2.2.1", kills=("copy-beyond-the-end",))
def test_ranges_that_are_not_there_are_refused(ready: Driver) -> None:
    blocks = identify_namespace(ready).nsze
    for slba, number, sdlba in ((blocks, 1, 0), (blocks - 1, 2, 0), ((1 << 64) - 1, 1, 0), (0, 2, blocks - 1)):
        stops(ready, copying(ready, [(0, 1), (slba, number)], sdlba), Status.LBA_OUT_OF_RANGE)
    stops(ready, copying(ready, [(0, 1)], (1 << 64) - 1), Status.LBA_OUT_OF_RANGE)
    stops(ready, copying(ready, [(0, 1)], 0, nsid=0xFFFFFFFF), Status.INVALID_NAMESPACE)
    ready.succeed(ready.queues[1], copying(ready, [(blocks - 1, 1)], blocks - 2))


@pytest.mark.fact("F313", clause="NVM 1.1, 3.3.2, SNSID", kills=("copy-of-itself",))
def test_a_range_can_be_of_another_namespace(driver_of: DriverOf) -> None:
    """Of which there may be none, or one with other blocks. Then overlaps in one namespace are refused."""
    driver = driver_of({1: (1 << 20, 512), 2: (1 << 20, 512), 3: (1 << 20, 4096)})
    driver.enable()
    if not identify_controller(driver).ocfs & Ocfs.FORMAT_2:
        pytest.skip("no Copy between namespaces")
    driver.create_queues(1)
    want_formats(driver)
    driver.write(0, content(8, 1))
    driver.write(0, content(8, 2), nsid=2)
    ranges = [CopyRange(snsid=nsid, slba=slba, nlb=2) for nsid, slba in ((2, 2), (1, 0), (2, 6))]
    driver.succeed(driver.queues[1], copying(driver, ranges, 100, desfmt=2))
    first, second = content(8, 1), content(8, 2)
    assert driver.read(100, 6) == second[1024:2048] + first[:1024] + second[3072:]
    assert driver.read(100, 6, nsid=2) == bytes(6 * 512)

    def refused(status: Status, sdlba: int = 100, **fields: Any) -> None:
        stops(driver, copying(driver, [CopyRange(**{"snsid": 1, "nlb": 4, **fields})], sdlba, desfmt=2), status)

    refused(Status.INVALID_NAMESPACE, snsid=0)
    refused(Status.INVALID_NAMESPACE, snsid=0xFFFFFFFF)
    refused(Status.INVALID_FIELD, snsid=9)
    refused(Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT, snsid=3)
    for slba in (100, 97, 103):
        refused(Status.OVERLAPPING_IO_RANGE, slba=slba)
    driver.succeed(driver.queues[1], copying(driver, [CopyRange(snsid=2, slba=97, nlb=4)], 100, desfmt=2))
    for slba in (96, 104):
        driver.succeed(driver.queues[1], copying(driver, [CopyRange(snsid=1, slba=slba, nlb=4)], 100, desfmt=2))


# --- ours


@pytest.mark.fact("F309", clause="Base 2.0, Figure 275, ONCS; 5.16.1.6", kills=("copy-promised-to-old-hosts",))
def test_copy_is_offered_with_all_that_it_needs(new_bench: NewBench) -> None:
    """Before Base 2.0 its bits were reserved."""
    for version, is_there in (("2.0", True), ("1.4", False)):
        driver = new_bench(MemoryBackend(1 << 20), limits=Limits(version=version)).driver
        driver.enable()
        driver.create_queues(1)
        controller, page = IdentifyController(driver.identify(1)), identify_namespace(driver)
        assert bool(controller.oncs & 1 << 8) == is_there
        assert controller.ocfs == (0xF if is_there else 0)
        assert (page.mssrl, page.mcl, page.msrc) == ((65535, 131072, 128) if is_there else (0, 0, 1))
        effects = CommandEffectsLog(driver.get_log(LogId.COMMAND_EFFECTS, 4096)).io[NvmOpcode.COPY]
        assert (effects.csupp, effects.lbcc) == (is_there, is_there)
        if not is_there:
            stops(driver, copying(driver, [(0, 1)], 8), Status.INVALID_OPCODE)


@pytest.mark.fact("F313", clause="NVM 1.0, 3.2.2", kills=("copy-overlap-forwards", "copy-overlap-backwards"))
def test_ranges_that_overlap_with_where_they_go_are_read_before_they_are_written(new_bench: NewBench) -> None:
    """Each as if it was copied as a whole, in order; they are larger than what is copied at once."""
    bench = new_bench(MemoryBackend(16 << 20))
    driver = bench.driver
    driver.enable()
    driver.create_queues(1)
    expected = bytearray(content(16000))
    at_medium(bench, WriteBlocks(0, memoryview(bytes(expected))))
    for slba, to in ((0, 5), (3000, 1000)):
        ranges = [(slba, 6000), (slba + 1, 3)]
        driver.succeed(driver.queues[1], copying(driver, ranges, to))
        for first, blocks in ranges:
            expected[512 * to : 512 * (to + blocks)] = expected[512 * first : 512 * (first + blocks)]
            to += blocks
        assert holds(bench, 0, 16000).data == expected


@pytest.mark.fact("F313", clause="NVM 1.0, 3.2.2; 3.2.2.1", kills=("copy-says-nothing",))
def test_dw0_of_a_failure_is_the_first_range_that_is_not_copied(new_bench: NewBench) -> None:
    """Those before it are. A failure of the disk, blocks that nobody has written where the host wants to hear of them,
    uncorrectable ones, and an Abort."""
    backend = TellingBackend(1 << 20)
    bench = new_bench(backend, has_block_map=True)
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    driver.write(0, content(8))
    uncorrectable = ReadWrite(opcode=NvmOpcode.WRITE_UNCORRECTABLE, nsid=1, slba=5, nlb=1)
    driver.succeed(queue, uncorrectable)
    stops(driver, copying(driver, [(0, 2), (2, 2), (4, 2), (6, 1)], 32), Status.UNRECOVERED_READ_ERROR, 2)
    assert driver.read(32, 4) == content(8)[:2048]
    assert ErrorLogEntry(driver.get_log(LogId.ERROR_INFORMATION, 64)).lba == 5
    assert driver.read(36, 4) == bytes(2048)
    driver.set_feature(FeatureId.ERROR_RECOVERY, 1 << 16, nsid=1)
    stops(driver, copying(driver, [(0, 2), (300, 1)], 64), Status.DEALLOCATED_BLOCK, 1)
    assert driver.read(64, 2) == content(8)[:1024]
    for name, status in (("read", Status.UNRECOVERED_READ_ERROR), ("write", Status.WRITE_FAULT)):
        backend.failures = {name: errno.EIO}
        stops(driver, copying(driver, [(0, 2)], 64), status, 0, dnr=False)
    backend.failures = {}


@pytest.mark.fact("F314", clause="NVM 1.0, 3.2.2; Base 2.0, 8.12", kills=("copy-to-protected", "copy-is-not-durable"))
def test_it_is_a_write_of_its_destination(new_bench: NewBench) -> None:
    """To a protected namespace there is none, but from it. With FUA, or without a write cache, each range is durable
    before the command completes."""
    first, second = TellingBackend(1 << 20), TellingBackend(1 << 20)
    bench = new_bench(first)
    bench.subsystem.add(bench.namespace(2, second, identity="second"))
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    want_formats(driver)
    first.calls.clear()
    driver.succeed(queue, copying(driver, [(0, 2), (6, 2)], 32))
    assert first.names == ["read", "write"] * 2
    driver.succeed(queue, copying(driver, [(0, 2)], 32, fua=True))
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    first.calls.clear()
    driver.succeed(queue, copying(driver, [(0, 2)], 32))
    assert first.names == ["read", "write fua"]
    driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, State.PROTECTED, nsid=1)
    first.calls.clear()
    stops(driver, copying(driver, [(0, 1)], 8), Status.NAMESPACE_WRITE_PROTECTED)
    assert first.calls == []
    driver.succeed(queue, copying(driver, [CopyRange(snsid=1, slba=0, nlb=1)], 8, desfmt=2, nsid=2))
    fast = [CopyRange(snsid=1, slba=0, nlb=1, fco=True)]
    stops(driver, copying(driver, fast, 8, desfmt=2, nsid=2), Status.FAST_COPY_NOT_POSSIBLE)


@pytest.mark.fact(
    "F312", clause="NVM 1.0, 3.2.2", kills=("copy-at-once", "copy-aborts-with-zero", "copy-goes-on-after-a-reset")
)
def test_a_large_copy_is_made_in_pieces(new_bench: NewBench) -> None:
    """Between them other commands run, an Abort ends it (the ranges before stay copied), and so does a reset: no block
    is written after it."""
    backend = TellingBackend(16 << 20)
    bench = new_bench(backend, manual=True)
    driver, tasks = bench.driver, bench.worker.tasks
    driver.enable()
    queue = driver.create_queues(1)

    def begin() -> int:
        backend.calls.clear()
        return driver.submit(queue, copying(driver, [(0, 1), (0, 8192)], 16384))

    def step(number: int) -> None:
        for _ in range(number):
            assert len(tasks) == 1
            tasks[0].finish()
            bench.settle()

    cid = begin()
    step(5)
    assert [length for _, _, length in backend.calls] == [512, 512, 1 << 20, 1 << 20, 1 << 20]
    assert bench.controller.state.namespaces[1].media.budget.held <= 2 << 20
    assert driver.drain(queue) == []
    step(1)
    aborted = driver.execute(driver.admin, Abort(sqid=1, target_cid=cid))
    assert aborted.dw0 & 1 == 0
    completion = driver.poll(queue)
    assert completion is not None
    assert (completion.status, completion.dw0) == (Status.ABORT_REQUESTED, 1)
    begin()
    step(3)
    writing = tasks[0]
    writing.run()
    driver.set_reg(CC, 0)
    assert driver.status.rdy
    writing.finish()
    bench.settle()
    assert (backend.names, tasks) == (["read", "write"] * 2, [])
    assert not driver.status.rdy


@pytest.mark.fact("F313", clause="Base 2.0, 5.23", kills=("copy-from-another-namespace-now",))
def test_a_namespace_that_goes_meanwhile_ends_the_copy(new_bench: NewBench) -> None:
    """Also that of a range, which is not the one that the command names."""
    bench = new_bench(TellingBackend(1 << 20), manual=True)
    bench.subsystem.add(bench.namespace(2, TellingBackend(1 << 20), identity="second"))
    driver, tasks = bench.driver, bench.worker.tasks
    driver.enable()
    queue = driver.create_queues(1)
    want_formats(driver)
    ranges = [CopyRange(snsid=2, slba=slba, nlb=1) for slba in (0, 1)]
    driver.submit(queue, copying(driver, ranges, 8, desfmt=2))
    tasks[0].finish()
    bench.settle()
    bench.subsystem.remove(2)
    bench.worker.finish_all()
    bench.settle()
    completion = driver.poll(queue)
    assert completion is not None
    assert (completion.status, completion.dw0) == (Status.INVALID_FIELD, 1)


PAIRS = {
    "none": (Format(512), Format(512)),
    "opaque": (Format(512, 16), Format(512, 16, True)),
    "type 1": (Format(512, 8, protection=Protection(1)), Format(512, 8, protection=Protection(1))),
    "64 bits": (
        Format(4096, 16, protection=Protection(1, Guard.CRC64)),
        Format(4096, 16, True, protection=Protection(1, Guard.CRC64)),
    ),
    "to protected": (Format(512), Format(512, 8, protection=Protection(2))),
    "from protected": (Format(4096, 16, protection=Protection(3, Guard.CRC64)), Format(4096)),
    "other guards": (
        Format(4096, 16, protection=Protection(1, Guard.CRC64)),
        Format(4096, 16, protection=Protection(2, Guard.CRC32, 16)),
    ),
    "more than protection": (Format(512, 64, protection=Protection(1)), Format(512, 64)),
    "other place": (
        Format(512, 16, protection=Protection(1)),
        Format(512, 16, protection=Protection(1, is_first=True)),
    ),
    "other types": (
        Format(512, 16, protection=Protection(1)),
        Format(512, 16, protection=Protection(2)),
    ),
}
"""Formats of a source and of a destination."""
# Whether a copy goes: PRACT of neither, of what is read, of what is written, of both. None: it is an Invalid Field.
GOES = {
    "none": (True, True, True, True),
    "opaque": (True, True, True, True),
    "type 1": (True, None, None, True),
    "64 bits": (True, None, None, True),
    "to protected": (False, False, True, True),
    "from protected": (False, True, False, True),
    "other guards": (False, False, False, True),
    "more than protection": (False, True, False, True),
    "other place": (False, False, False, False),
    "other types": (False, False, False, False),
}


@pytest.mark.fact("F310", clause="NVM 1.0, Figures 36 and 37", kills=("copy-tags-little-endian",))
@pytest.mark.fact(
    "F313",
    clause="NVM 1.0, 5.2.3",
    kills=("copy-any-protection", "copy-makes-no-guard", "copy-tags-of-the-first", "copy-any-pract"),
)
@pytest.mark.parametrize("name", PAIRS)
def test_protection_goes_with_the_blocks_or_is_made_anew(new_bench: NewBench, name: str) -> None:
    """As PRACT of what is read and of what is written say, where the formats of both namespaces allow it."""
    first, second = PAIRS[name]
    bench = two(new_bench, second, first)  # from namespace 2 to 1
    driver, size = bench.driver, first.data_size
    data, metadata = content(4, 1, size), bytearray(content(4, 2, first.metadata_size))
    theirs, ours = Tags(8, 0x1234, 0xBEE), Tags(0x20, 0x4321, 0xADE)
    if first.protection is not None:
        protection.generate(first, data, metadata, theirs)
    at_medium(bench, WriteBlocks(8, memoryview(data), memoryview(metadata)), 2)
    is_long = any(one.guard is not Guard.CRC16 for one in (first.protection, second.protection) if one is not None)
    has_references = first.protection is not None and first.protection.type != 3
    checks = GUARD | APPLICATION | (REFERENCE if has_references else 0)
    for pract, goes in enumerate(GOES[name]):
        ranges = [entry(first, theirs, slba, blocks, is_long) for slba, blocks in ((8, 1), (9, 3))]
        command = copying(driver, ranges, 0x20, desfmt=3 if is_long else 2)
        command.prinfor, command.prinfow = checks | (PRACT if pract & 1 else 0), PRACT if pract & 2 else 0
        command.lbat = ours.application
        if second.protection is not None:
            value = ours.reference | ours.storage << second.protection.reference_bits
            command.cdw14, command.cdw3 = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
            command.cdw2 = value >> 64
        at_medium(bench, WriteBlocks(0x20, memoryview(bytes(4 * size)), memoryview(bytes(4 * second.metadata_size))))
        if not goes:
            refusal = Status.INVALID_FIELD if goes is None else Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT
            stops(driver, command, refusal)
            assert holds(bench, 0x20, 4).data == bytes(4 * size)
            continue
        driver.succeed(driver.queues[1], command)
        expected = (
            bytearray(metadata) if first.metadata_size == second.metadata_size else bytearray(4 * second.metadata_size)
        )
        if second.protection is not None and pract & 2:
            protection.generate(second, data, expected, ours)
        assert holds(bench, 0x20, 4) == Blocks(data, bytes(expected))


def entry(format: Format, tags: Tags, slba: int, blocks: int, is_long: bool) -> CopyRange | LongCopyRange:
    """A range of namespace 2, whose block 8 has these tags."""
    value = 0
    if format.protection is not None:
        reference = tags.reference + (slba - 8 if format.protection.type != 3 else 0)
        value = reference | tags.storage << format.protection.reference_bits
    fields: dict[str, Any] = {"snsid": 2, "slba": slba, "nlb": blocks, "elbat": tags.application, "elbatm": 0xFFFF}
    if is_long:
        return LongCopyRange(elbt=value.to_bytes(10, "big"), **fields)
    return CopyRange(elbt=value & 0xFFFFFFFF, **fields)


@pytest.mark.fact("F310", clause="NVM 1.0, Figure 36", kills=("copy-checks-nothing",))
@pytest.mark.fact("F313", clause="NVM 1.0, 3.2.2; 5.2.3", kills=("copy-checks-nothing", "copy-writes-unchecked"))
def test_both_sides_are_checked(new_bench: NewBench) -> None:
    """What is read by the tags of its range, what is written by those of the command; DW0 tells how far it came."""
    format = Format(512, 8, protection=Protection(1))
    bench = two(new_bench, format, format)
    driver = bench.driver
    data, metadata = content(4), bytearray(4 * 8)
    protection.generate(format, data, metadata, Tags(8, 0x1234))
    metadata[3 * 8] ^= 1  # the guard of the last block
    at_medium(bench, WriteBlocks(8, memoryview(data), memoryview(metadata)))

    def command(prinfor: int = 0, prinfow: int = 0, application: int = 0x1234, **fields: Any) -> Copy:
        ranges = [CopyRange(slba=slba, nlb=2, elbt=slba, elbat=application, elbatm=0xFFFF) for slba in (8, 10)]
        return copying(driver, ranges, 0x20, prinfor=prinfor, prinfow=prinfow, **fields)

    driver.succeed(driver.queues[1], command(APPLICATION | REFERENCE))
    assert holds(bench, 0x20, 4) == Blocks(data, bytes(metadata))
    stops(driver, command(GUARD), Status.GUARD_CHECK_ERROR, 1)
    assert ErrorLogEntry(driver.get_log(LogId.ERROR_INFORMATION, 64)).lba == 11
    stops(driver, command(APPLICATION, application=0x1235), Status.APPLICATION_TAG_CHECK_ERROR)
    stops(driver, command(0, GUARD), Status.GUARD_CHECK_ERROR, 1)
    stops(driver, command(0, APPLICATION, lbat=7, lbatm=0xFFFF), Status.APPLICATION_TAG_CHECK_ERROR)
    stops(driver, command(0, REFERENCE, cdw14=0x20), Status.REFERENCE_TAG_CHECK_ERROR)
    stops(driver, command(0, REFERENCE, cdw14=0x21), Status.INVALID_PROTECTION_INFORMATION)
    wrong = [CopyRange(slba=8, nlb=1, elbt=9)]
    stops(driver, copying(driver, wrong, 0x20, prinfor=REFERENCE), Status.INVALID_PROTECTION_INFORMATION)
    driver.succeed(driver.queues[1], dsm_command(driver, [(8, 4)]))
    driver.succeed(driver.queues[1], command(GUARD | APPLICATION | REFERENCE, GUARD))
    assert holds(bench, 0x20, 4) == Blocks(bytes(4 * 512), b"\xff" * 32)


@pytest.mark.fact("F311", clause="NVM 1.0, 3.2.2, Descriptor Format", kills=("copy-any-guard",))
def test_a_descriptor_format_is_for_some_guards(new_bench: NewBench) -> None:
    plain, long = Format(4096, 8, protection=Protection(1)), Format(4096, 16, protection=Protection(1, Guard.CRC64))
    for format, right in ((plain, (0, 2)), (long, (1, 3))):
        driver = two(new_bench, format, format).driver
        for desfmt in range(4):
            kind = LongCopyRange if desfmt in (1, 3) else CopyRange
            command = copying(driver, [kind(snsid=1, slba=1, nlb=1)], 8, desfmt=desfmt)
            if desfmt in right:
                driver.succeed(driver.queues[1], command)
            else:
                stops(driver, command, Status.INVALID_FORMAT)
    driver.enable()
    driver.create_queues(1)
    stops(driver, copying(driver, [(0, 1)], 8, desfmt=1), Status.INVALID_NAMESPACE)
    know_extended_formats(driver)
    driver.succeed(driver.queues[1], copying(driver, [(0, 1)], 8, desfmt=1))
    fails(driver, driver.queues[1], copying(driver, [(0, 1)], 8, desfmt=1, nsid=99), Status.INVALID_NAMESPACE)


@pytest.mark.fact("F312", clause="NVM 1.0, 3.2.2", kills=("many-operations-overflow-the-stack",))
def test_a_medium_that_answers_at_once_makes_no_deep_stack(new_bench: NewBench) -> None:
    """Many ranges are many operations, one after the other."""
    bench = new_bench(MemoryBackend(1 << 20))
    namespace = bench.namespaces.by_nsid[1]

    class AtOnce(Layer):
        direct = None

        def start(self, operation: Operation, done: Done) -> Job:
            job = self.inner.start(operation, done)
            bench.worker.finish_all()
            return job

    namespace.media = AtOnce(namespace.media)
    driver = bench.driver
    driver.enable()
    driver.create_queues(1)
    driver.write(0, content(128))
    driver.succeed(driver.queues[1], copying(driver, [(slba, 1) for slba in range(127, -1, -1)], 1000))
    assert driver.read(1000, 1) == content(128)[-512:]
    assert namespace.media.budget.held == 0
