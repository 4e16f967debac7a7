"""Creating, deleting and counting I/O queues. Base 1.4, 5.3 to 5.6 and 5.21.1.7."""

from __future__ import annotations

import pytest

from conformance.queue_commands import delete, new_cq, new_sq, number_of_queues
from conformance.tools import fails, flush_command
from nvmeemu.spec import AdminOpcode, FeatureId, Status
from nvmeemu.testing import PAGE, Bench, Driver

MOST_ENTRIES = 1 << 16  # that QSIZE can say


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
    """Until then they may be anything."""
    for iosqes, iocqes in ((7, 4), (6, 5), (5, 3), (15, 15)):
        driver.enable(iosqes=iosqes, iocqes=iocqes)
        assert len(driver.identify(1)) == PAGE
        statuses = [driver.execute(driver.admin, command).status for command in (new_cq(driver), new_sq(driver))]
        assert Status.INVALID_QUEUE_SIZE in statuses  # QEMU looks at both sizes for either queue


@pytest.mark.fact("A5", clause="Base 1.4, 3.1.5 IOSQES", kills=("entry-size-of-zero-refused",))
@pytest.mark.parametrize(("iosqes", "iocqes"), [(0, 0), (0, 4), (6, 0)])
def test_an_entry_size_of_zero_is_the_one_there_is(driver: Driver, iosqes: int, iocqes: int) -> None:
    """Some drivers leave zeros there, and devices take them."""
    driver.enable(iosqes=iosqes, iocqes=iocqes)
    pair = driver.create_queues(1, 4)
    for _ in range(6):
        driver.succeed(pair, flush_command())


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
