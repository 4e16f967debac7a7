"""A medium that answers by timers of the event loop: a controller uses it without threads, for many requests.

This is what a client of a network disk will be: ``start`` sends, and ``done`` is called when the answer is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.media_status import STATUS_OF
from nvmeemu.spec import (
    BROADCAST,
    Abort,
    AdminOpcode,
    Command,
    DatasetManagement,
    DsmRange,
    FeatureId,
    LogId,
    NvmOpcode,
    ReadWrite,
    Status,
)
from nvmeemu.subsystem.media import (
    DeallocateBlocks,
    ErrorKind,
    FlushMedia,
    Layer,
    MediaError,
    Operation,
    ReadBlocks,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.testing import CC, Bench, CommandError, Driver, QueuePair
from unit.media import AtOnce, Inverted, TimedMedia

NSID, BLOCK, SECONDS = 2, 512, 0.01
FLUSH = Command(opcode=NvmOpcode.FLUSH, nsid=NSID)


@pytest.fixture(params=["python", "native"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Namespace 1 is memory."""
    with Bench(MemoryBackend(1 << 20), engine=str(request.param), manual=True) as bench:
        yield bench
        assert not bench.worker.tasks  # nothing ever went to a thread


@pytest.fixture
def medium(bench: Bench) -> TimedMedia:
    """Namespace 2, with I/O queues 1."""
    medium = TimedMedia(bench.clock, SECONDS)
    bench.namespaces.add(Namespace(NSID, medium))
    start(bench)
    return medium


def start(bench: Bench) -> None:
    bench.driver.enable()
    bench.driver.create_queues(1, 512)


def command(opcode: NvmOpcode, place: int = 0, slba: int = 0, blocks: int = 1, *, fua: bool = False) -> ReadWrite:
    return ReadWrite(opcode=opcode, nsid=NSID, prp1=place, slba=slba, nlb=blocks, fua=fua)


def later(bench: Bench) -> None:
    bench.clock.advance(SECONDS)
    bench.settle()


def run(bench: Bench, one: Command, queue: QueuePair | None = None) -> int:
    """The status of a command that takes no longer than a second."""
    queue = queue or bench.driver.queues[1]
    cid = bench.driver.submit(queue, one)
    for _ in range(100):
        if found := bench.driver.drain(queue):
            (completion,) = found
            assert completion.cid == cid
            return completion.status
        later(bench)
    raise AssertionError("it does not end")


def test_all_that_a_queue_has_is_under_way_at_once_without_threads(bench: Bench, medium: TimedMedia) -> None:
    driver, queue, threads = bench.driver, bench.driver.queues[1], threading.active_count()
    contents = [bytes([number]) * BLOCK for number in range(200)]
    for opcode in (NvmOpcode.WRITE, NvmOpcode.READ):
        places = [driver.alloc(BLOCK) for _ in contents]
        for slba, (place, content) in enumerate(zip(places, contents, strict=True)):
            bench.write_memory(place, content if opcode == NvmOpcode.WRITE else bytes(BLOCK))
            driver.submit(queue, command(opcode, place, slba), ring=False)
        driver.ring_sq(queue)
        bench.settle()
        assert (medium.pending, driver.drain(queue)) == (200, [])
        assert threading.active_count() == threads
        later(bench)
        assert {one.status for one in driver.drain(queue)} == {Status.SUCCESS}
        assert [bench.read_memory(place, BLOCK) for place in places] == contents
    assert medium.most_pending == 200
    assert not bench.controller.is_busy


def test_every_command_gets_there_as_an_operation(bench: Bench, medium: TimedMedia) -> None:
    place = bench.driver.alloc(4096)
    bench.write_memory(place, bytes(DsmRange(slba=9, length=2)))
    dsm = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=NSID, prp1=place, nr=1, ad=True)
    page = bench.read_memory(place, BLOCK)
    some = [
        (command(NvmOpcode.WRITE, place, 1), WriteBlocks(1, memoryview(page))),
        (command(NvmOpcode.WRITE, place, 1, fua=True), WriteBlocks(1, memoryview(page), is_durable=True)),
        (command(NvmOpcode.READ, place, 1, 2), ReadBlocks(1, 2)),
        (command(NvmOpcode.READ, place, 1, fua=True), ReadBlocks(1, 1, is_from_media=True)),
        (command(NvmOpcode.VERIFY, 0, 5, 3), VerifyBlocks(5, 3)),
        (command(NvmOpcode.COMPARE, place, 1), ReadBlocks(1, 1)),
        (command(NvmOpcode.WRITE_ZEROES, 0, 7, 8), ZeroBlocks(7, 8)),
        (command(NvmOpcode.WRITE_ZEROES, 0, 7, 8, fua=True), ZeroBlocks(7, 8, is_durable=True)),
        (dsm, DeallocateBlocks([(9, 2)])),
        (FLUSH, FlushMedia()),
    ]
    for one, operation in some:
        bench.write_memory(place, page)
        assert run(bench, one) == Status.SUCCESS
        assert medium.began.pop() == operation
        assert not medium.began


def test_a_flush_of_all_waits_for_each(bench: Bench, medium: TimedMedia) -> None:
    another = TimedMedia(bench.clock, SECONDS)
    bench.namespaces.add(Namespace(3, another))
    bench.driver.submit(bench.driver.queues[1], Command(opcode=NvmOpcode.FLUSH, nsid=BROADCAST))
    bench.worker.finish_all()  # namespace 1
    assert (medium.began, another.began) == ([FlushMedia()], [])
    later(bench)
    assert (bench.driver.drain(bench.driver.queues[1]), another.began) == ([], [FlushMedia()])
    later(bench)
    assert len(bench.driver.drain(bench.driver.queues[1])) == 1


PASSING = (ErrorKind.UNRECOVERED_READ, ErrorKind.WRITE_FAULT, ErrorKind.FORMATTING)


@pytest.mark.parametrize("kind", ErrorKind)
@pytest.mark.kills("the-block-of-an-error-is-not-told")
def test_each_kind_of_error_has_its_status(
    kind: ErrorKind, bench: Bench, medium: TimedMedia, caplog: pytest.LogCaptureFixture
) -> None:
    driver, place = bench.driver, bench.driver.alloc(4096)
    medium.fail = lambda operation: MediaError(kind, "timed", lba=0x77)
    for _ in range(2):
        cid = driver.submit(driver.queues[1], command(NvmOpcode.READ, place, 0x70, 8))
        later(bench)
        (completion,) = driver.drain(driver.queues[1])
        assert (completion.cid, completion.status) == (cid, STATUS_OF[kind])
        assert completion.dnr == (kind not in PASSING)
    entry = driver.get_log(LogId.ERROR_INFORMATION, 64)
    assert int.from_bytes(entry[16:24], "little") == 0x77
    media_errors = 0 if kind is ErrorKind.FORMATTING else 2
    assert int.from_bytes(driver.get_log(LogId.SMART, 512)[160:176], "little") == media_errors
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    status = STATUS_OF[kind].name
    wanted = f"disk timed failed: {kind.value}: the guest gets {status} (logged once)"
    is_asked_for = kind in (
        ErrorKind.DEALLOCATED,
        ErrorKind.UNCORRECTABLE,
        ErrorKind.FORMATTING,
    )  # by a host: nothing for the user to do
    assert told == ([] if is_asked_for else [wanted])


def test_the_statuses_of_checks() -> None:
    """NVM 1.0, Figure 124 (Media and Data Integrity Error Values)."""
    checks = (ErrorKind.GUARD_CHECK, ErrorKind.APPLICATION_TAG_CHECK, ErrorKind.REFERENCE_TAG_CHECK)
    assert [STATUS_OF[kind] for kind in checks] == [0x282, 0x283, 0x284]
    assert STATUS_OF.keys() == set(ErrorKind)


def test_reads_are_aborted_and_writes_are_not(bench: Bench, medium: TimedMedia) -> None:
    driver, queue, place = bench.driver, bench.driver.queues[1], bench.driver.alloc(4096)
    bench.write_memory(place, b"n" * BLOCK)
    for opcode, is_aborted in ((NvmOpcode.READ, True), (NvmOpcode.WRITE, False)):
        cid = driver.submit(queue, command(opcode, place))
        answer = driver.execute(driver.admin, Abort(opcode=AdminOpcode.ABORT, sqid=1, target_cid=cid))
        assert answer.dw0 == (not is_aborted)
        assert len(driver.drain(queue)) == is_aborted
        later(bench)
        assert len(driver.drain(queue)) == (not is_aborted)
        assert bench.read_memory(place, BLOCK) == b"n" * BLOCK  # the aborted read has written nothing there


def test_a_reset_waits_for_writes_only(bench: Bench, medium: TimedMedia) -> None:
    driver, place = bench.driver, bench.driver.alloc(4096)
    for opcode, is_waiting in ((NvmOpcode.READ, False), (NvmOpcode.WRITE, True)):
        driver.submit(driver.queues[1], command(opcode, place))
        bench.write_bar(CC, bytes(4))
        bench.settle()
        assert bench.controller.status.rdy == is_waiting
        later(bench)
        assert not bench.controller.status.rdy
        start(bench)


def test_a_shutdown_waits_for_what_has_begun_and_flushes(bench: Bench, medium: TimedMedia) -> None:
    driver = bench.driver
    driver.submit(driver.queues[1], command(NvmOpcode.WRITE, driver.alloc(4096)))
    bench.controller.write(CC, (int.from_bytes(bench.read_bar(CC, 4), "little") | 1 << 14).to_bytes(4, "little"))
    states = []
    for _ in range(3):
        bench.worker.finish_all()  # namespace 1 is flushed there
        bench.settle()
        states.append((bench.controller.status.shst, [type(one) for one in medium.began]))
        later(bench)
    assert states == [(1, [WriteBlocks]), (1, [WriteBlocks, FlushMedia]), (2, [WriteBlocks, FlushMedia])]


def test_what_ends_after_the_cache_was_switched_off_is_flushed_first(bench: Bench, medium: TimedMedia) -> None:
    driver, queue = bench.driver, bench.driver.queues[1]
    medium.seconds = 5 * SECONDS
    driver.submit(queue, command(NvmOpcode.WRITE, driver.alloc(4096)))
    medium.seconds = SECONDS
    driver.submit(driver.admin, Command(opcode=AdminOpcode.SET_FEATURES, cdw10=FeatureId.VOLATILE_WRITE_CACHE, cdw11=0))
    bench.worker.finish_all()
    later(bench)
    assert [type(one) for one in medium.began] == [WriteBlocks, FlushMedia]
    assert len(driver.drain(driver.admin)) == 1
    for _ in range(4):
        later(bench)
    assert (driver.drain(queue), [type(one) for one in medium.began]) == ([], [WriteBlocks, FlushMedia, FlushMedia])
    later(bench)
    assert [one.status for one in driver.drain(queue)] == [Status.SUCCESS]


def test_a_cache_that_cannot_be_flushed_stays_on(bench: Bench, medium: TimedMedia) -> None:
    driver = bench.driver
    medium.fail = lambda operation: MediaError(ErrorKind.WRITE_FAULT, "timed")
    off = Command(opcode=AdminOpcode.SET_FEATURES, cdw10=FeatureId.VOLATILE_WRITE_CACHE, cdw11=0)
    driver.submit(driver.admin, off)
    bench.worker.finish_all()
    later(bench)
    assert [one.status for one in driver.drain(driver.admin)] == [Status.WRITE_FAULT]
    assert driver.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 1


@pytest.mark.kills("what-is-held-is-never-given-back")
def test_it_has_a_budget_of_its_own(bench: Bench, medium: TimedMedia) -> None:
    """What has no room waits in order, and other namespaces go on."""
    driver, queue = bench.driver, bench.driver.queues[1]
    medium.budget.most = 10 * BLOCK
    place = driver.alloc(4096)
    for _ in range(25):
        driver.submit(queue, command(NvmOpcode.READ, place), ring=False)
    driver.ring_sq(queue)
    bench.settle()
    rounds = []
    while medium.pending:
        rounds.append(medium.pending)
        driver.write(0, bytes(BLOCK), nsid=1)
        later(bench)
    assert rounds == [10, 10, 5]
    assert len(driver.drain(queue)) == 25
    assert medium.budget.held == 0


def test_layers_above_it(bench: Bench) -> None:
    medium = TimedMedia(bench.clock, SECONDS)
    bench.namespaces.add(Namespace(NSID, Layer(Inverted(medium))))
    start(bench)
    driver, place = bench.driver, bench.driver.alloc(4096)
    bench.write_memory(place, b"\x0f" * BLOCK)
    assert run(bench, command(NvmOpcode.WRITE, place)) == Status.SUCCESS
    (operation,) = medium.began
    assert isinstance(operation, WriteBlocks)
    assert bytes(operation.data) == b"\xf0" * BLOCK
    bench.write_memory(place, bytes(BLOCK))
    assert run(bench, command(NvmOpcode.READ, place)) == Status.SUCCESS
    assert driver.bus.read_memory(place, BLOCK) == b"\x0f" * BLOCK


def test_an_answer_may_be_there_at_once(bench: Bench) -> None:
    """Before ``start`` has returned: a cache has it, say."""
    medium = AtOnce(bench.clock)
    bench.namespaces.add(Namespace(NSID, medium))
    start(bench)
    driver: Driver = bench.driver
    driver.write(3, b"x" * BLOCK, nsid=NSID)
    assert driver.read(3, 1, nsid=NSID) == b"x" * BLOCK
    medium.fail = lambda operation: MediaError(ErrorKind.UNRECOVERED_READ, "timed")
    with pytest.raises(CommandError, match="UNRECOVERED_READ"):
        driver.read(3, 1, nsid=NSID)
    assert not bench.controller.is_busy
    assert medium.budget.held == 0


def test_what_was_read_and_waits_for_guest_memory_is_held(bench: Bench, medium: TimedMedia) -> None:
    driver, queue, place = bench.driver, bench.driver.queues[1], 0x10000000
    bench.map(place, bytearray(4096))
    driver.submit(queue, command(NvmOpcode.READ, place))
    memory = bench.unmap(place)
    later(bench)
    assert (driver.drain(queue), medium.budget.held) == ([], BLOCK)
    bench.map(place, memory)
    assert len(driver.drain(queue)) == 1
    assert medium.budget.held == 0


def test_a_mistake_in_a_medium_is_an_internal_error(bench: Bench, medium: TimedMedia) -> None:
    def fail(operation: Operation) -> MediaError | None:
        return KeyError("a mistake")  # type: ignore[return-value]

    medium.fail = fail
    assert run(bench, command(NvmOpcode.READ, bench.driver.alloc(4096))) == Status.INTERNAL_ERROR
