"""Submission and completion queues: sizes, wrap, phase, creation and deletion. Base 1.4, 4.1, 4.6, 5.3 to 5.6."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from conformance.tools import TellingBackend, fails, flush_command, read_command, write_command
from nvmeemu.spec import (
    CQE_SIZE,
    SQE_SIZE,
    AdminOpcode,
    Command,
    Completion,
    CreateCq,
    CreateSq,
    DeleteQueue,
    FeatureId,
    SetFeatures,
    Status,
)
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair, Ram

MOST_ENTRIES = 1 << 16  # that QSIZE can say


@pytest.fixture
def slow() -> Bench:
    """A disk whose work the test begins and finishes by hand; the controller is enabled, with one queue pair."""
    bench = Bench(TellingBackend(), manual=True)
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


def new_cq(driver: Driver, **fields: Any) -> CreateCq:
    """A good Create I/O Completion Queue for queue 1, with some fields changed."""
    values = {"prp1": driver.alloc(PAGE), "qid": 1, "qsize": 16, "pc": True, "ien": True} | fields
    return CreateCq(None, opcode=AdminOpcode.CREATE_CQ, **values)


def new_sq(driver: Driver, **fields: Any) -> CreateSq:
    """A good Create I/O Submission Queue 1 for completion queue 1, with some fields changed."""
    values = {"prp1": driver.alloc(PAGE), "qid": 1, "qsize": 16, "pc": True, "cqid": 1} | fields
    return CreateSq(None, opcode=AdminOpcode.CREATE_SQ, **values)


def delete(opcode: AdminOpcode, qid: int) -> DeleteQueue:
    return DeleteQueue(opcode=opcode, qid=qid)


# --- creation and deletion


@pytest.mark.fact("A1", clause="Base 1.4, 4.1.3 and 5.3", kills=("queue-of-one-entry",))
def test_a_queue_of_one_entry_is_refused(driver: Driver) -> None:
    fails(driver, driver.admin, new_cq(driver, qsize=1), Status.INVALID_QUEUE_SIZE)
    driver.create_cq(1)
    fails(driver, driver.admin, new_sq(driver, qsize=1), Status.INVALID_QUEUE_SIZE)


@pytest.mark.fact("A1", clause="Base 1.4, 3.1.1 MQES", kills=("queue-beyond-mqes",))
def test_a_queue_of_mqes_entries_is_the_largest(driver: Driver) -> None:
    mqes = driver.capabilities.mqes
    for beyond in {min(mqes + 1, MOST_ENTRIES), MOST_ENTRIES} - {mqes}:
        fails(driver, driver.admin, new_cq(driver, qsize=beyond), Status.INVALID_QUEUE_SIZE)
    driver.create_cq(1, mqes)
    for beyond in {min(mqes + 1, MOST_ENTRIES), MOST_ENTRIES} - {mqes}:
        fails(driver, driver.admin, new_sq(driver, qsize=beyond), Status.INVALID_QUEUE_SIZE)
    driver.create_sq(1, mqes)


@pytest.mark.fact("A5", clause="Base 1.4, 5.3 and 5.4", kills=("create-takes-a-qid-in-use",))
def test_queue_0_and_queues_in_use_cannot_be_created(driver: Driver) -> None:
    fails(driver, driver.admin, new_cq(driver, qid=0), Status.INVALID_QUEUE_ID)
    driver.create_queues(1)
    fails(driver, driver.admin, new_cq(driver), Status.INVALID_QUEUE_ID)
    fails(driver, driver.admin, new_sq(driver), Status.INVALID_QUEUE_ID)
    fails(driver, driver.admin, new_sq(driver, qid=0), Status.INVALID_QUEUE_ID)


@pytest.mark.fact("A5", clause="Base 1.4, 5.3 and 5.4", kills=("create-takes-any-qid",))
def test_queues_above_the_granted_number_cannot_be_created(driver: Driver) -> None:
    beyond = driver.io_queues() + 1
    fails(driver, driver.admin, new_cq(driver, qid=beyond), Status.INVALID_QUEUE_ID)
    driver.create_cq(1)
    for qid in (beyond, 0xFFFF):
        fails(driver, driver.admin, new_sq(driver, qid=qid), Status.INVALID_QUEUE_ID)


@pytest.mark.fact("A5", clause="Base 1.4, 5.3", kills=("queue-at-any-address",))
def test_a_queue_has_to_begin_at_a_page(driver: Driver) -> None:
    place = driver.alloc(PAGE)
    for offset in (4, 64, 2048):
        fails(driver, driver.admin, new_cq(driver, prp1=place + offset), Status.INVALID_PRP_OFFSET)
    driver.create_cq(1)
    fails(driver, driver.admin, new_sq(driver, prp1=place + 64), Status.INVALID_PRP_OFFSET)


@pytest.mark.fact("A5", clause="Base 1.4, 5.3 PC and 3.1.1 CQR", kills=("queue-in-pieces",))
def test_queues_are_contiguous_where_cap_cqr_says_so(driver: Driver) -> None:
    assert driver.capabilities.cqr
    fails(driver, driver.admin, new_cq(driver, pc=False), Status.INVALID_FIELD)
    driver.create_cq(1)
    fails(driver, driver.admin, new_sq(driver, pc=False), Status.INVALID_FIELD)


@pytest.mark.fact("A5", clause="Base 1.4, 5.3 IV", kills=("any-interrupt-vector", "vector-out-by-one"))
def test_a_vector_that_is_not_there_is_refused(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    vectors = bench.controller.vectors
    for vector in (vectors, 0xFFFF):
        fails(driver, driver.admin, new_cq(driver, iv=vector), Status.INVALID_INTERRUPT_VECTOR)
    driver.succeed(driver.admin, new_cq(driver, iv=vectors - 1))


@pytest.mark.fact("A5", clause="Base 1.4, 5.3 IV", kills=("vectors-without-msix",))
def test_without_msix_only_vector_0_is_there(bench: Bench) -> None:
    driver = bench.driver
    bench.ram.msix_enabled = False
    driver.enable()
    fails(driver, driver.admin, new_cq(driver, iv=1), Status.INVALID_INTERRUPT_VECTOR)
    driver.succeed(driver.admin, new_cq(driver, iv=0))


@pytest.mark.fact("A5", clause="Base 1.4, 5.4 CQID", kills=("any-cqid",))
def test_a_completion_queue_that_cannot_be_is_an_invalid_queue_identifier(driver: Driver) -> None:
    for cqid in (0, driver.io_queues() + 1, 0xFFFF):
        fails(driver, driver.admin, new_sq(driver, cqid=cqid), Status.INVALID_QUEUE_ID)


@pytest.mark.fact("A5", clause="Base 1.4, 5.4 CQID", kills=("missing-cq-is-an-invalid-qid",))
def test_a_completion_queue_that_was_not_created_is_an_invalid_completion_queue(driver: Driver) -> None:
    fails(driver, driver.admin, new_sq(driver, cqid=2), Status.INVALID_CQ)


@pytest.mark.fact("A5", clause="Base 1.4, 3.1.5 IOSQES", kills=("entry-sizes-unchecked",))
@pytest.mark.fact("A11", clause="Base 1.4, 3.1.5 IOSQES", kills=("entry-sizes-unchecked",))
def test_io_queues_need_entry_sizes_that_are_offered(driver: Driver) -> None:
    """Until then the sizes may be zero: EDK2 and small systems only use the admin queue at first."""
    driver.enable(iosqes=0, iocqes=0)
    assert len(driver.identify(1)) == PAGE
    fails(driver, driver.admin, new_cq(driver), Status.INVALID_QUEUE_SIZE)
    driver.enable(iosqes=7, iocqes=4)
    statuses = [driver.execute(driver.admin, command).status for command in (new_cq(driver), new_sq(driver))]
    assert Status.INVALID_QUEUE_SIZE in statuses  # QEMU looks at both sizes for either queue


@pytest.mark.fact("A6", clause="Base 1.4, 5.5", kills=("delete-cq-under-its-sqs",))
def test_a_completion_queue_with_submission_queues_cannot_be_deleted(driver: Driver) -> None:
    pair = driver.create_queues(1)
    driver.create_sq(2, cqid=1)
    for sqid in (1, 2):
        fails(driver, driver.admin, delete(AdminOpcode.DELETE_CQ, 1), Status.INVALID_QUEUE_DELETION, dnr=None)
        if sqid == 1:
            driver.succeed(pair, flush_command())
        assert driver.delete_sq(sqid).status == Status.SUCCESS
    assert driver.delete_cq(1).status == Status.SUCCESS


@pytest.mark.fact("A6", clause="Base 1.4, 5.5 and 5.6", kills=("delete-missing-cq-is-an-invalid-cq",))
@pytest.mark.fact("B4", clause="Base 1.4, 5.5", kills=("delete-missing-cq-is-an-invalid-cq",))
def test_a_queue_that_is_missing_cannot_be_deleted(driver: Driver) -> None:
    """QEMU says Completion Queue Invalid, which only Create I/O Submission Queue may."""
    for opcode in (AdminOpcode.DELETE_SQ, AdminOpcode.DELETE_CQ):
        for qid in (1, driver.io_queues() + 1, 0xFFFF):
            fails(driver, driver.admin, delete(opcode, qid), Status.INVALID_QUEUE_ID)


@pytest.mark.fact("A6", clause="Base 1.4, 5.5 and 5.6", kills=("delete-the-admin-sq", "delete-the-admin-cq"))
def test_the_admin_queues_cannot_be_deleted(driver: Driver) -> None:
    for opcode in (AdminOpcode.DELETE_CQ, AdminOpcode.DELETE_SQ):
        fails(driver, driver.admin, delete(opcode, 0), Status.INVALID_QUEUE_ID)
    assert len(driver.identify(1)) == PAGE


@pytest.mark.fact("A6", clause="Base 1.4, 5.5 and 5.6", kills=("deleted-cq-stays",))
def test_queues_can_be_created_again_after_deletion(driver: Driver) -> None:
    for _ in range(3):
        pair = driver.create_queues(1, 4)
        for _ in range(6):
            driver.succeed(pair, flush_command())
        assert driver.delete_sq(1).status == Status.SUCCESS
        assert driver.delete_cq(1).status == Status.SUCCESS


@pytest.mark.fact("A8", clause="Base 1.4, 5.21.1.7", kills=("queue-numbers-ffff",))
@pytest.mark.parametrize("cdw11", [0xFFFF, 0xFFFF0000, 0xFFFFFFFF])
def test_a_number_of_queues_of_ffff_is_refused(driver: Driver, cdw11: int) -> None:
    fails(driver, driver.admin, number_of_queues(cdw11), Status.INVALID_FIELD)


@pytest.mark.fact("A8", clause="Base 1.4, 5.21.1.7", kills=("queue-numbers-at-any-time",))
def test_the_number_of_queues_is_settled_by_the_first_one(driver: Driver) -> None:
    driver.create_cq(1)
    fails(driver, driver.admin, number_of_queues(0), Status.COMMAND_SEQUENCE_ERROR)
    driver.delete_cq(1)
    fails(driver, driver.admin, number_of_queues(0), Status.COMMAND_SEQUENCE_ERROR)


@pytest.mark.fact("A8", clause="Base 1.4, 5.21.1.7", kills=("queue-numbers-locked-for-ever",))
def test_the_number_of_queues_is_open_again_after_a_reset(driver: Driver) -> None:
    driver.create_cq(1)
    driver.enable()
    driver.succeed(driver.admin, number_of_queues(0))


@pytest.mark.fact("A8", clause="Base 1.4, 5.21.1.7", kills=("queue-numbers-echoed",))
def test_the_number_of_queues_is_what_is_allocated(driver: Driver) -> None:
    """And all of these can be created, however few were asked for."""
    answers = {driver.set_feature(FeatureId.NUMBER_OF_QUEUES, asked) for asked in (0, 0x00010001, 0xFFFEFFFE)}
    assert answers == {driver.get_feature(FeatureId.NUMBER_OF_QUEUES)}
    for qid in range(1, driver.io_queues() + 1):
        driver.create_queues(qid, 4)
        driver.succeed(driver.queues[qid], flush_command())


def number_of_queues(cdw11: int) -> Command:
    return SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.NUMBER_OF_QUEUES, cdw11=cdw11)


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
