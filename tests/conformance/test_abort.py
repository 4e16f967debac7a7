"""Abort. Base 1.4, 5.1."""

from __future__ import annotations

import pytest

from conformance.tools import TellingBackend, aer, fails, guarded, identify_controller, is_untouched
from conformance.tools import read_command as read
from conformance.tools import write_command as write
from nvmeemu.spec import Command, Completion, Status
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair

NOT_ABORTED = 1  # DW0 bit 0


def abort(sqid: int, cid: int) -> Command:
    return Command(opcode=0x08, cdw10=sqid | cid << 16)


def aborted(completion: Completion, cid: int) -> bool:
    return completion.cid == cid and completion.status == Status.ABORT_REQUESTED and not completion.dnr


@pytest.fixture
def busy(slow: Bench) -> tuple[Bench, QueuePair]:
    """A controller whose disk works when the test says so, and an I/O queue."""
    return slow, slow.driver.create_queues()


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-says-not-aborted", "abort-after-its-own-completion"))
@pytest.mark.fact("B7", clause="Base 1.4, 5.1", kills=("abort-parked-for-ever",))
def test_a_parked_event_request_is_aborted_and_completes_first(driver: Driver) -> None:
    """NVMeVirt's Abort never completes."""
    cid = driver.submit(driver.admin, aer())
    assert driver.poll(driver.admin) is None
    abort_cid = driver.submit(driver.admin, abort(0, cid))
    first, second = driver.drain(driver.admin)
    assert aborted(first, cid)
    assert (second.cid, second.status, second.dw0) == (abort_cid, Status.SUCCESS, 0)


@pytest.mark.fact("A17", clause="Base 1.4, 5.1 and 5.2", kills=("aborted-aers-still-count",))
def test_an_aborted_event_request_leaves_its_place_to_another(driver: Driver) -> None:
    most = identify_controller(driver).aerl
    cids = [driver.submit(driver.admin, aer()) for _ in range(most)]
    for _ in range(3):
        driver.submit(driver.admin, abort(0, cids[0]))
        assert aborted(driver.drain(driver.admin)[0], cids.pop(0))
        cids.append(driver.submit(driver.admin, aer()))
        assert driver.poll(driver.admin) is None
    fails(driver, driver.admin, aer(), Status.AER_LIMIT_EXCEEDED, dnr=None)


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-unknown-fails", "abort-unknown-aborted"))
def test_what_is_not_there_is_not_aborted_and_that_is_no_error(driver: Driver) -> None:
    queue = driver.create_queues()
    page = driver.alloc(PAGE)
    driver.succeed(queue, read(page))
    for sqid, cid in ((0, 0x7777), (1, 0x7777), (1, 1)):
        completion = driver.succeed(driver.admin, abort(sqid, cid))
        assert completion.dw0 == NOT_ABORTED


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-of-any-queue",))
@pytest.mark.fact("B4", clause="Base 1.4, 5.1", kills=("abort-of-any-queue",))
@pytest.mark.parametrize("sqid", [2, 64, 65, 1000, 0x8000, 0xFFFF])
def test_a_queue_that_is_not_there_does_no_harm(driver: Driver, sqid: int) -> None:
    """QEMU looked the queue up before it checked its number."""
    completion = driver.execute(driver.admin, abort(sqid, 1))
    assert completion.status in (Status.SUCCESS, Status.INVALID_FIELD)
    assert completion.status != Status.SUCCESS or completion.dw0 == NOT_ABORTED
    assert driver.execute(driver.admin, abort(0, 0x7777)).dw0 == NOT_ABORTED


@pytest.mark.fact("A17", clause="Base 1.4, 5.1, ACL", kills=("abort-limit-off",), is_less=True)
def test_as_many_aborts_as_acl_says_may_be_under_way(driver: Driver) -> None:
    """ACL is 0's based. The fact's other half, that one more is refused with Abort Command Limit Exceeded, cannot occur
    here and is not tested: an Abort completes when it is fetched, so never are two under way."""
    acl = identify_controller(driver).acl
    for _ in range(acl):
        driver.submit(driver.admin, abort(0, 0x7777), ring=False)
    driver.ring_sq(driver.admin)
    completions = driver.drain(driver.admin)
    assert [(completion.status, completion.dw0) for completion in completions] == [(0, NOT_ABORTED)] * acl


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-running-read-refused",))
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_read_at_the_disk_is_aborted_and_transfers_nothing(busy: tuple[Bench, QueuePair], has_begun: bool) -> None:
    bench, queue = busy
    driver = bench.driver
    place = guarded(driver, PAGE)
    cid = driver.submit(queue, read(place))
    task = bench.worker.tasks[0]
    if has_begun:
        task.run()
    assert driver.succeed(driver.admin, abort(1, cid)).dw0 == 0
    completion = driver.poll(queue)
    assert completion is not None
    assert aborted(completion, cid)
    if has_begun:
        task.finish()
    bench.settle()
    assert driver.poll(queue) is None
    assert is_untouched(driver, place, PAGE)
    assert not bench.worker.tasks


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-running-write",))
def test_a_write_that_has_begun_is_not_aborted(busy: tuple[Bench, QueuePair]) -> None:
    """It may still change the disk: to call it aborted would be a lie."""
    bench, queue = busy
    driver = bench.driver
    cid = driver.submit(queue, write(driver.alloc(PAGE)))
    task = bench.worker.tasks[0]
    task.run()
    assert driver.succeed(driver.admin, abort(1, cid)).dw0 == NOT_ABORTED
    assert driver.poll(queue) is None
    task.finish()
    completion = driver.poll(queue)
    assert completion is not None
    assert (completion.cid, completion.status) == (cid, Status.SUCCESS)


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-queued-write-refused",))
def test_a_write_that_waits_for_its_turn_is_aborted_and_never_written(busy: tuple[Bench, QueuePair]) -> None:
    bench, queue = busy
    driver = bench.driver
    first = driver.submit(queue, write(driver.alloc(PAGE)))
    second = driver.submit(queue, write(driver.alloc(PAGE), slba=8))
    bench.worker.tasks[0].run()
    assert driver.succeed(driver.admin, abort(1, second)).dw0 == 0
    completion = driver.poll(queue)
    assert completion is not None
    assert aborted(completion, second)
    bench.worker.finish_all()
    completion = driver.poll(queue)
    assert completion is not None
    assert (completion.cid, completion.status) == (first, Status.SUCCESS)
    assert isinstance(bench.backend, TellingBackend)
    assert bench.backend.calls == [("write", 0, 512)]


@pytest.mark.fact("A17", clause="Base 1.4, 5.1", kills=("abort-by-cid-only",))
def test_only_the_named_queue_is_looked_at(busy: tuple[Bench, QueuePair]) -> None:
    """Two queues may have a command of the same identifier."""
    bench, first = busy
    driver = bench.driver
    second = driver.create_queues(2)
    for queue in (first, second):
        command = read(driver.alloc(PAGE))
        command.cid = 0x1234
        driver.submit(queue, command)
    assert driver.succeed(driver.admin, abort(2, 0x1234)).dw0 == 0
    assert driver.poll(first) is None
    completion = driver.poll(second)
    assert completion is not None
    assert aborted(completion, 0x1234)
