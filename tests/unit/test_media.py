"""Media by themselves: operations, errors, layers, steps."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from conformance.tools import TellingBackend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import (
    VERIFIED_AT_ONCE,
    Blocks,
    Budget,
    DeallocateBlocks,
    ErrorKind,
    Filter,
    FlushMedia,
    Layer,
    Media,
    MediaError,
    Operation,
    ReadBlocks,
    Steps,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
    flush_all,
    run,
)
from nvmeemu.testing import ManualWorker, VirtualClock
from unit.media import AtOnce, Durable, Inverted, Telling, TimedMedia

MIB = 1 << 20
DATA = memoryview(b"d" * 1024)
Ended = list[tuple[Any, BaseException | None]]


def disk(backend: MemoryBackend, size: int = 512) -> tuple[DiskMedia, ManualWorker]:
    worker = ManualWorker()
    return DiskMedia(backend, Format(size), worker), worker


def ended() -> tuple[Ended, Callable[[Any, BaseException | None], None]]:
    """What ``done`` was called with."""
    found: Ended = []
    return found, lambda result, error: found.append((result, error))


def perform(media: Media, operation: Operation, go: Callable[[], None]) -> Any:
    """The result of an operation that ends when ``go`` has been called; or raises its error."""
    found, done = ended()
    media.start(operation, done)
    go()
    ((result, error),) = found
    if error is not None:
        raise error
    return result


# --- formats


@pytest.mark.parametrize("wrong", [(0,), (256,), (513,), (768,), (512, -1), (512, 65536), (512, 0, True)])
def test_no_such_format(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="block"):
        Format(*wrong)


@pytest.mark.kills("metadata-is-left-out-of-what-is-held")
def test_a_block_is_its_data_and_its_metadata() -> None:
    assert (Format().block_size, Format(4096, 64).block_size) == (512, 4160)


# --- DiskMedia


@pytest.mark.parametrize(
    ("operation", "calls"),
    [
        (ReadBlocks(2, 3), [("read", 8192, 12288)]),
        (ReadBlocks(2, 3, is_from_media=True), [("flush", 0, 0), ("read", 8192, 12288)]),
        (VerifyBlocks(1, 1), [("read", 4096, 4096)]),
        (VerifyBlocks(1, 1, is_from_media=True), [("flush", 0, 0), ("read", 4096, 4096)]),
        (VerifyBlocks(0, 600), [("read", 0, MIB), ("read", MIB, MIB), ("read", 2 * MIB, 88 * 4096)]),
        (WriteBlocks(1, memoryview(bytes(8192))), [("write", 4096, 8192)]),
        (WriteBlocks(1, memoryview(bytes(8192)), is_durable=True), [("write fua", 4096, 8192)]),
        (ZeroBlocks(3, 2), [("zero", 12288, 8192)]),
        (ZeroBlocks(3, 2, is_deallocating=True, is_durable=True), [("zero deallocate", 12288, 8192), ("flush", 0, 0)]),
        (DeallocateBlocks([(0, 1), (5, 2)]), [("deallocate", 0, 4096), ("deallocate", 20480, 8192)]),
        (DeallocateBlocks([(0, 1)], is_durable=True), [("deallocate", 0, 4096), ("flush", 0, 0)]),
        (FlushMedia(), [("flush", 0, 0)]),
    ],
    ids=repr,
)
def test_what_a_backend_is_asked_for(operation: Operation, calls: list[tuple[str, int, int]]) -> None:
    backend = TellingBackend(4 * MIB)
    media, worker = disk(backend, 4096)
    found, done = ended()
    media.start(operation, done)
    assert (backend.calls, found) == ([], [])  # nothing waits on this thread
    worker.finish_all()
    assert backend.calls == calls
    assert len(found) == 1
    assert found[0][1] is None


def test_what_was_written_is_read() -> None:
    media, worker = disk(MemoryBackend(MIB))
    perform(media, WriteBlocks(7, DATA), worker.finish_all)
    assert perform(media, ReadBlocks(6, 3), worker.finish_all) == Blocks(bytes(512) + DATA)
    buffers = [memoryview(bytearray(100)), memoryview(bytearray(412))]
    assert media.read_now(7, buffers)
    assert b"".join(buffers) == DATA[:512]
    assert media.write_now(8, [memoryview(b"e" * 512)])
    assert perform(media, ReadBlocks(7, 2), worker.finish_all).data == DATA[:512].tobytes() + b"e" * 512


def test_it_is_what_its_backend_is() -> None:
    backend = TellingBackend(MIB, read_only=True, is_direct=True)
    media, _ = disk(backend, 4096)
    assert (media.blocks, media.read_only, media.volatile_cache) == (256, True, True)
    assert (media.identity, media.direct) == (backend.identity, backend.direct)
    backend.size = 2 * MIB
    media.refresh()
    assert media.blocks == 512


def test_a_backend_has_no_room_for_metadata() -> None:
    with pytest.raises(ValueError, match="metadata"):
        DiskMedia(MemoryBackend(MIB), Format(512, 8), ManualWorker())


@pytest.mark.kills("flushes-wait-behind-dead-writes")
def test_what_it_does_waits_at_this_medium() -> None:
    places = []

    class Placed(ManualWorker):
        def submit(self, work: Any, done: Any, at: object = None) -> Any:
            places.append(at)
            return super().submit(work, done, at)

    worker = Placed()
    several = [DiskMedia(MemoryBackend(MIB), Format(), worker) for _ in range(2)]
    for media in several:
        for operation in (ReadBlocks(0, 1), WriteBlocks(0, DATA), FlushMedia(), FlushMedia()):
            media.start(operation, lambda *_: None)
    numbers = [places.index(place) for place in places]  # where each has waited first
    assert numbers == [0, 0, 2, 2, 4, 4, 6, 6]  # not behind another disk's, and a flush behind flushes only


def test_what_has_not_begun_can_be_taken_back() -> None:
    backend = TellingBackend()
    media, worker = disk(backend)
    found, done = ended()
    assert media.start(FlushMedia(), done).cancel()
    job = media.start(FlushMedia(), done)
    worker.tasks[0].run()
    assert not job.cancel()
    worker.finish_all()
    assert (backend.names, found) == (["flush"], [(None, None)])


# --- errors


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (ReadBlocks(0, 1), "read"),
        (VerifyBlocks(0, 1), "read"),
        (ReadBlocks(0, 1, is_from_media=True), "flush"),
        (WriteBlocks(0, DATA), "write"),
        (ZeroBlocks(0, 1), "zero"),
        (DeallocateBlocks([(0, 1)]), "deallocate"),
        (FlushMedia(), "flush"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_an_errno_means(operation: Operation, name: str, number: int) -> None:
    backend = TellingBackend()
    backend.failures[name] = number
    media, worker = disk(backend)
    with pytest.raises(MediaError) as failed:
        perform(media, operation, worker.finish_all)
    kinds = {errno.EIO: ErrorKind.WRITE_FAULT, errno.EROFS: ErrorKind.READ_ONLY}
    kind = kinds.get(number, ErrorKind.NO_SPACE) if operation.is_changing else ErrorKind.UNRECOVERED_READ
    error = failed.value
    assert (error.kind, error.disk, error.lba, error.why) == (kind, backend.identity, None, "made to fail")
    assert error.is_lasting == (number != errno.EIO)
    assert isinstance(error.cause, OSError)
    assert error.cause.errno == number


def test_a_mistake_of_ours_is_no_error_of_the_disk() -> None:
    class Broken(MemoryBackend):
        def flush(self) -> None:
            raise ZeroDivisionError

    media, worker = disk(Broken(MIB))
    with pytest.raises(ZeroDivisionError):
        perform(media, FlushMedia(), worker.finish_all)


@pytest.mark.kills("checks-are-tried-again")
def test_what_checks_have_found_stays_wrong() -> None:
    checks = [ErrorKind.GUARD_CHECK, ErrorKind.APPLICATION_TAG_CHECK, ErrorKind.REFERENCE_TAG_CHECK]
    assert all(MediaError(kind, "disk", 5).is_lasting for kind in checks)
    assert str(MediaError(ErrorKind.GUARD_CHECK, "d", 5)) == "disk d: guard check: guard check at block 0x5"


# --- layers


def stacked() -> tuple[VirtualClock, TimedMedia, Callable[[Media, Operation], Any]]:
    clock = VirtualClock()
    return (
        clock,
        TimedMedia(clock, 1.0, Format(512, 8)),
        lambda media, one: perform(media, one, lambda: clock.advance(9)),
    )


def test_data_and_metadata_pass_layers() -> None:
    _, medium, go = stacked()
    metadata = b"metadata"
    layers = Layer(Telling(Layer(medium), "t", []))
    assert go(layers, WriteBlocks(3, DATA[:512], memoryview(metadata))) is None
    assert go(layers, ReadBlocks(3, 1)) == Blocks(bytes(DATA[:512]), metadata)
    assert go(layers, ReadBlocks(3, 2)) == Blocks(bytes(DATA[:512]) + bytes(512), metadata + bytes(8))
    inverted = Inverted(layers)
    assert go(inverted, ReadBlocks(3, 1)) == Blocks(
        bytes([0xFF ^ ord("d")]) * 512, bytes(0xFF ^ one for one in metadata)
    )
    assert (
        WriteBlocks(3, DATA[:512], memoryview(metadata)).held(medium.format)
        == ReadBlocks(3, 1).held(medium.format)
        == 520
    )


def test_the_order_of_layers_matters() -> None:
    _, medium, go = stacked()
    told: list[tuple[str, Operation]] = []
    above = Telling(Inverted(Telling(medium, "below", told)), "above", told)
    go(above, WriteBlocks(0, DATA))
    (first, asked), (second, made) = told
    assert (first, second) == ("above", "below")
    assert isinstance(asked, WriteBlocks)
    assert isinstance(made, WriteBlocks)
    assert bytes(asked.data) == bytes(0xFF ^ byte for byte in made.data) == DATA
    told.clear()
    go(Telling(Durable(Telling(medium, "below", told)), "above", told), WriteBlocks(0, DATA, is_durable=True))
    assert told == [
        ("above", WriteBlocks(0, DATA, is_durable=True)),
        ("below", WriteBlocks(0, DATA)),
        ("below", FlushMedia()),
    ]


@pytest.mark.kills("a-filter-is-passed-by")
def test_a_layer_is_what_is_below_and_a_filter_sees_all() -> None:
    backend = TellingBackend(MIB, read_only=True, is_direct=True)
    backend.read_now = lambda offset, views: True  # type: ignore[method-assign]
    backend.write_now = lambda offset, views: True  # type: ignore[method-assign]
    media, _ = disk(backend, 4096)
    for layer, is_open in ((Layer(media), True), (Telling(media, "t", []), False), (Layer(Inverted(media)), False)):
        assert (layer.format, layer.blocks, layer.identity) == (Format(4096), 256, backend.identity)
        assert (layer.read_only, layer.volatile_cache) == (True, True)
        assert layer.budget is media.budget
        assert (layer.read_now(0, []), layer.write_now(0, [])) == (is_open, is_open)
        assert layer.direct is (media.direct if is_open else None)
        backend.size = 2 * MIB
        assert layer.blocks == 512
        backend.size = MIB
    closed = []
    backend.refresh = lambda: closed.append("refresh")  # type: ignore[method-assign]
    backend.close = lambda: closed.append("close")  # type: ignore[method-assign]
    layer.refresh()
    layer.close()
    assert closed == ["refresh", "close"]


# --- steps


@pytest.mark.kills("steps-recurse")
def test_many_steps_that_end_at_once_are_no_recursion() -> None:
    media = AtOnce(VirtualClock())
    found, done = ended()
    run(flush_all([media] * 100_000), done)
    assert found == [(None, None)]
    assert media.most_pending == 1


@pytest.mark.kills("errors-of-a-step-are-its-result")
def test_steps_wait_for_each_other_and_get_results_and_errors() -> None:
    clock, medium, _ = stacked()
    medium.fail = lambda one: MediaError(ErrorKind.GUARD_CHECK, "m", 1) if isinstance(one, ReadBlocks) else None
    got: list[Any] = []

    def steps() -> Steps:
        got.append((yield medium, FlushMedia()))
        try:
            yield medium, ReadBlocks(1, 1)
        except MediaError as error:
            got.append(error.kind)
        medium.fail = lambda one: None
        got.append((yield medium, ReadBlocks(1, 1)))
        return "result"

    found, done = ended()
    run(steps(), done)
    for number in (1, 2, 3):
        assert (len(medium.began), medium.pending, found) == (number, 1, [])
        clock.advance(1.0)
    assert got == [None, ErrorKind.GUARD_CHECK, Blocks(bytes(512), bytes(8))]
    assert found == [("result", None)]


def test_the_first_flush_that_fails_is_the_last() -> None:
    clock, medium, _ = stacked()
    medium.fail = lambda one: MediaError(ErrorKind.WRITE_FAULT, "m")
    found, done = ended()
    run(flush_all([medium, TimedMedia(clock), medium]), done)
    clock.advance(9)
    ((_, error),) = found
    assert isinstance(error, MediaError)
    assert medium.began == [FlushMedia()]


@pytest.mark.parametrize("error", [MediaError(ErrorKind.NO_SPACE, "d"), ValueError("mistake")])
def test_what_a_layer_raises_is_the_end(error: Exception) -> None:
    class Full(Filter):
        def steps(self, operation: Operation) -> Steps:
            raise error
            yield

    found, done = ended()
    _, medium, _ = stacked()
    assert not Full(medium).start(FlushMedia(), done).cancel()
    assert found == [(None, error)]


@pytest.mark.parametrize("ran", [0, 1, 2])
@pytest.mark.kills("steps-are-cancelled-in-the-middle")
def test_steps_can_be_taken_back_until_the_first_has_begun(ran: int) -> None:
    backend = TellingBackend()
    media, worker = disk(backend)
    found, done = ended()
    job = run(flush_all([media, media]), done)
    if ran:
        worker.tasks[0].run()
    if ran == 2:
        worker.tasks[0].finish()
    assert job.cancel() == (ran == 0)
    worker.finish_all()
    assert backend.names == ([] if ran == 0 else ["flush"] * 2)
    assert found == ([] if ran == 0 else [(None, None)])


# --- what is held


def test_a_budget_is_full_when_all_of_it_is_held() -> None:
    budget = Budget(10)
    states = []
    for size in (9, 1, 5):
        budget.take(size)
        states.append(budget.is_full)
    budget.give_back(6)
    assert [*states, budget.is_full, budget.held] == [False, True, True, False, 9]


def held(operations: Sequence[Operation], format: Format) -> list[int]:
    return [operation.held(format) for operation in operations]


def test_what_operations_hold() -> None:
    some = [ReadBlocks(0, 3), VerifyBlocks(0, 3), WriteBlocks(0, DATA), ZeroBlocks(0, 3), FlushMedia()]
    assert held(some, Format(512)) == [1536, 1536, 1024, 0, 0]
    assert held([VerifyBlocks(0, 5000)], Format(512)) == [VERIFIED_AT_ONCE]
    assert 0 < held([DeallocateBlocks([(0, 1)] * 256)], Format(512))[0] < MIB
    assert [one.is_changing for one in some] == [False, False, True, True, True]
