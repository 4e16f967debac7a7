"""Submission and completion queues: wrap, full and empty, phase, deletion under load. Base 1.4, 4.1, 4.6 and 5.6."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from conformance.queue_commands import delete, new_cq, number_of_queues
from conformance.tools import flush_command, read_command, write_command
from nvmeemu.spec import CQE_SIZE, SQE_SIZE, AdminOpcode, Command, Completion, Status
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair, Ram


@pytest.fixture
def slow(slow: Bench) -> Bench:
    """With one queue pair."""
    slow.driver.create_queues(1)
    return slow


# --- what goes round


@pytest.mark.fact("A1", clause="Base 1.4, 4.1.1 and 4.1.2", kills=("sq-holds-one-less",))
@pytest.mark.parametrize("entries", [2, 3, 8])
def test_all_but_one_entry_of_a_submission_queue_can_be_used(driver: Driver, entries: int) -> None:
    pair = driver.create_queues(1, entries)
    for _ in range(2 * entries + 1):
        cids = [driver.submit(pair, flush_command(), ring=False) for _ in range(entries - 1)]
        driver.ring_sq(pair)
        assert [completion.cid for completion in finish(driver, pair, entries - 1)] == cids


def finish(driver: Driver, pair: QueuePair, number: int) -> list[Completion]:
    """The next completions, in the order of their commands' identifiers."""
    found: list[Completion] = []
    for _ in range(100):
        found += driver.drain(pair)
        if len(found) >= number:
            break
        driver.bus.settle()
    return sorted(found, key=lambda completion: completion.cid)


@pytest.mark.fact("A1", clause="Base 1.4, 4.1.2", kills=("cq-full-ignores-wrap", "cq-never-full"))
@pytest.mark.fact("B1", clause="Base 1.4, 4.1.2", kills=("cq-full-ignores-wrap",))
def test_a_full_completion_queue_holds_what_comes_and_goes_on_at_its_doorbell(driver: Driver) -> None:
    """nvmet-pci-epf takes tail = size - 1, head = 0 for free, and overwrites an entry."""
    entries, number = 4, 31
    place = driver.create_cq(1, entries)
    pair = QueuePair(1, driver.create_sq(1, 64), place, 64, entries)
    cids = [driver.submit(pair, flush_command(), ring=False) for _ in range(number)]
    driver.ring_sq(pair)
    seen: list[int] = []
    while len(seen) < number:
        for _ in range(10):
            driver.bus.settle()
        in_hand: list[int] = []
        while (completion := driver.poll(pair, ring=False)) is not None:
            in_hand.append(completion.cid)
            assert len(in_hand) < entries, "a completion was posted into a full queue"
        assert len(in_hand) == min(entries - 1, number - len(seen))
        seen += in_hand
        driver.ring_cq(pair)
    assert sorted(seen) == cids


@pytest.mark.fact("A7", clause="Base 1.4, 5.6", kills=("deletion-drops-what-waits-for-others",))
def test_a_deletion_keeps_what_waits_in_a_shared_completion_queue_for_others(slow: Bench) -> None:
    driver = slow.driver
    place = driver.create_cq(2, 4)
    deleted, kept = (QueuePair(qid, driver.create_sq(qid, 16, cqid=2), place, 16, 4) for qid in (2, 3))
    cids = [driver.submit(kept, write_command(driver.alloc(PAGE))) for _ in range(5)]
    driver.submit(deleted, write_command(driver.alloc(PAGE)))
    slow.worker.finish_all()
    slow.settle()
    assert driver.delete_sq(2).status == Status.SUCCESS
    found = [completion for completion in finish(driver, deleted, 5) if completion.sqid == 3]
    assert [completion.cid for completion in found] == cids


@pytest.mark.fact("A1", clause="Base 1.4, 4.1.2", kills=("full-cq-loses-completions",))
def test_completions_that_found_no_room_come_in_their_order(slow: Bench) -> None:
    """The disk answers while the queue is full."""
    driver = slow.driver
    place = driver.create_cq(2, 2)
    pair = QueuePair(2, driver.create_sq(2, 16), place, 16, 2)
    cids = [driver.submit(pair, write_command(driver.alloc(PAGE))) for _ in range(5)]
    assert len(slow.worker.tasks) == 5
    slow.worker.finish_all()
    seen = []
    for _ in cids:
        completion = driver.poll(pair, ring=False)
        assert completion is not None
        assert driver.poll(replace(pair), ring=False) is None
        seen.append(completion.cid)
        driver.ring_cq(pair)
    assert seen == cids


@pytest.mark.fact("B1", clause="Base 1.4, 4.1 and 4.6", kills=("cqe-names-the-cq", "cqe-sqhd-is-zero"))
@pytest.mark.fact("A3", clause="Base 1.4, 4.6", kills=("cqe-names-the-cq",))
def test_several_submission_queues_share_a_completion_queue(driver: Driver) -> None:
    """nvmet-pci-epf looks the completion queue up by the submission queue's number."""
    number = min(3, driver.io_queues())
    place = driver.create_cq(1, 64)
    pairs = [QueuePair(sqid, driver.create_sq(sqid, 8, cqid=1), place, 8, 64) for sqid in range(1, number + 1)]
    expected = {(pair.qid, driver.submit(pair, flush_command(), ring=False)) for pair in pairs for _ in range(5)}
    for pair in pairs:
        driver.bus.write_bar(0x1000 + 8 * pair.qid, pair.sq_tail.to_bytes(4, "little"))
    found = finish(driver, QueuePair(1, 0, place, 8, 64), len(expected))
    assert {(completion.sqid, completion.cid) for completion in found} == expected
    assert {completion.sqhd for completion in found if completion.sqid == number} <= set(range(1, 6))
    assert max(completion.sqhd for completion in found) == 5


@pytest.mark.fact("A2", clause="Base 1.4, 4.6 P", kills=("phase-never-inverts",))
def test_the_phase_tag_inverts_at_each_wrap(driver: Driver) -> None:
    entries = 4
    pair = driver.create_queues(1, entries)
    phases = [driver.succeed(pair, flush_command()).phase for _ in range(4 * entries)]
    assert phases == ([True] * entries + [False] * entries) * 2


@pytest.mark.fact("A2", clause="Base 1.4, 4.6 P", kills=("phase-of-the-past",))
def test_the_phase_of_every_new_completion_queue_begins_with_1(driver: Driver) -> None:
    """After deletion as well as after a reset, whatever it was before."""
    for _ in range(2):
        pair = driver.create_queues(1, 4)
        assert [driver.succeed(pair, flush_command()).phase for _ in range(5)] == [True] * 4 + [False]
        driver.delete_sq(1)
        driver.delete_cq(1)
    driver.enable(acqs=2)
    assert [driver.execute(driver.admin, number_of_queues(0)).phase for _ in range(3)] == [True, True, False]


@pytest.mark.fact("B9", clause="Base 1.4, 4.6", kills=("status-reaches-the-phase-tag",))
def test_no_status_touches_the_phase_tag(driver: Driver) -> None:
    """bhyve's internal "no status" value flipped it, and the admin queue hung."""
    driver.enable(acqs=5)
    bad = (Command(opcode=0xFF), delete(AdminOpcode.DELETE_SQ, 0), number_of_queues(0xFFFF), new_cq(driver, qsize=1))
    phases = [driver.execute(driver.admin, command).phase for _ in range(5) for command in bad]
    assert phases == ([True] * 5 + [False] * 5) * 2


@pytest.mark.fact("A3", clause="Base 1.4, 4.6", kills=("cqe-sqhd-is-zero", "cqe-dw1-is-dirty"))
def test_a_completion_names_head_queue_and_command(driver: Driver) -> None:
    """SQHD is the head after this command's fetch, or later if more were fetched."""
    pair = driver.create_queues(1, 8)
    place = driver.alloc(PAGE)
    cids = [0xFFFE, 1, 0x8000, 0, 0x1234]
    for cid in cids:
        command = read_command(place)
        command.cid = cid
        driver.bus.write_memory(pair.sq + pair.sq_tail * SQE_SIZE, bytes(command))
        pair.sq_tail += 1
    driver.ring_sq(pair)
    found = finish(driver, pair, len(cids))
    assert {completion.cid for completion in found} == set(cids)
    for completion in found:
        assert completion.sqid == 1
        assert cids.index(completion.cid) < completion.sqhd <= len(cids)
        assert completion.dw0 == completion.dw1 == completion.status == 0


class _Watched:
    """A memoryview of guest memory that tells which bytes are stored, in order."""

    def __init__(self, view: memoryview, stores: list[int], start: int = 0) -> None:
        self._view = view
        self._stores = stores
        self._start = start

    def __getitem__(self, key: slice) -> _Watched:
        return _Watched(self._view[key], self._stores, self._start + (key.start or 0))

    def __setitem__(self, key: int | slice, value: Any) -> None:
        index = key if isinstance(key, int) else key.indices(len(self._view))[0]
        self._stores.append(self._start + index * self._view.itemsize)
        self._view[key] = value

    def cast(self, form: str) -> _Watched:
        return _Watched(self._view.cast(form), self._stores, self._start)  # type: ignore[call-overload]


@pytest.mark.fact("A2", clause="Base 1.4, 4.6 P", kills=("phase-before-the-rest",))
@pytest.mark.parametrize("engine", ["python", "native"], indirect=True)  # a paused lane finds no mapped doorbell
def test_the_phase_tag_is_stored_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = bench.driver
    driver.enable()
    stores: list[int] = []
    view = Ram.view

    def watched(ram: Ram, iova: int, size: int) -> Any:
        found = view(ram, iova, size)
        return _Watched(found, stores) if iova == driver.admin.cq else found

    monkeypatch.setattr(Ram, "view", watched)
    bench.controller.quiesce()
    driver.execute(driver.admin, Command(opcode=0xFF))
    assert stores == sorted(stores)
    assert stores[-1] == 8  # a 64-bit store with DW3, or all 16 bytes at once from 0
    assert len(stores) == 2


@pytest.mark.fact("A2", clause="Base 1.4, 7.5", kills=("interrupt-before-the-completion",))
def test_at_the_interrupt_data_and_completion_are_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, vector=1)
    bench.backend.write(0, [memoryview(b"\x5a" * 512)])
    place = driver.alloc(PAGE)
    seen = []

    def interrupt(vector: int) -> None:
        seen.append((vector, bench.ram.read(place, 512), Completion(bench.ram.read(pair.cq, CQE_SIZE)).phase))

    monkeypatch.setattr(bench.ram, "interrupt", interrupt)
    driver.submit(pair, read_command(place))
    assert seen == [(1, b"\x5a" * 512, True)]


# --- deletion with commands in flight


def completions(bench: Bench, pair: QueuePair) -> dict[int, int]:
    """What has been posted: CID -> status."""
    return {completion.cid: completion.status for completion in bench.driver.drain(pair)}


@pytest.mark.fact("A7", clause="Base 1.4, 5.6", kills=("delete-sq-at-once", "begun-writes-are-aborted"))
def test_deleting_a_submission_queue_aborts_what_it_can_and_waits_for_the_rest(slow: Bench) -> None:
    """A write that a worker has begun may still change the media: the deletion completes after it."""
    driver, pair = slow.driver, slow.driver.queues[1]
    begun, waiting = (driver.submit(pair, write_command(driver.alloc(PAGE))) for _ in range(2))
    read = driver.submit(pair, read_command(driver.alloc(PAGE)))
    for task in (slow.worker.tasks[0], slow.worker.tasks[2]):
        task.run()
    deletion = driver.submit(driver.admin, delete(AdminOpcode.DELETE_SQ, 1))
    assert driver.drain(driver.admin) == []
    assert completions(slow, pair) == {waiting: Status.ABORTED_SQ_DELETION, read: Status.ABORTED_SQ_DELETION}
    slow.worker.finish_all()
    assert completions(slow, slow.driver.admin) == {deletion: Status.SUCCESS}
    assert completions(slow, pair) == {begun: Status.SUCCESS}
    driver.ring_sq(pair)
    slow.settle()
    assert completions(slow, pair) == {}


@pytest.mark.fact("A7", clause="Base 1.4, 5.6", kills=("deleted-queue-posts-late",))
def test_nothing_of_a_deleted_submission_queue_comes_after_the_deletion(slow: Bench) -> None:
    """Not even what had found the completion queue full."""
    driver = slow.driver
    place = driver.create_cq(2, 2)
    pair = QueuePair(2, driver.create_sq(2, 16), place, 16, 2)
    for _ in range(4):
        driver.submit(pair, write_command(driver.alloc(PAGE)))
    slow.worker.finish_all()
    assert driver.delete_sq(2).status == Status.SUCCESS
    assert driver.poll(pair) is not None
    slow.settle()
    assert driver.poll(pair) is None
