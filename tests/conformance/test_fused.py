"""Fused operations: Compare and Write of the same blocks, as one. Base 1.4, 4.12 and 6.2."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from conformance.tools import NewBench, TellingBackend, identify_controller, read_command, write_command
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import Abort, Compare, Completion, Copy, CopyRange, Fuse, NvmOpcode, ReadWrite, Status, Write
from nvmeemu.spec.features import FeatureId
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.testing import CC, PAGE, Bench, Driver, QueuePair

BLOCK = 512
MOST = 128  # ACWU
FIRST, SECOND = {"fuse": Fuse.FIRST}, {"fuse": Fuse.SECOND}
OLD, NEW, OTHER = b"o" * BLOCK, b"n" * BLOCK, b"x" * BLOCK
GOOD = [Status.SUCCESS, Status.SUCCESS]
MISSING = Status.MISSING_FUSED


def halves(driver: Driver, old: bytes = OLD, new: bytes = NEW, slba: int = 0, **fields: Any) -> list[ReadWrite]:
    """A Compare with ``old`` and a Write of ``new``."""
    made: list[ReadWrite] = []
    for kind, data, fuse in ((Compare, old, FIRST), (Write, new, SECOND)):
        place = driver.alloc(len(data))
        driver.bus.write_memory(place, data)
        prp1, prp2 = driver.prps(place, len(data))
        values = {"nsid": 1, "slba": slba, "nlb": len(data) // BLOCK, **fuse, **fields}
        made.append(kind(prp1=prp1, prp2=prp2, **values))
    return made


def submit(driver: Driver, *commands: ReadWrite | Copy, queue: QueuePair | None = None) -> list[int]:
    """All with one doorbell; returns their CIDs."""
    queue = queue or driver.queues[1]
    cids = [driver.submit(queue, command, ring=False) for command in commands]
    driver.ring_sq(queue)
    return cids


def run(driver: Driver, *commands: ReadWrite | Copy) -> list[Status]:
    """The statuses of these commands, in their order."""
    cids = submit(driver, *commands)
    found = {one.cid: one for one in driver.drain(driver.queues[1])}
    return [Status(found[cid].status) for cid in cids]


@pytest.fixture
def ready(new_bench: NewBench) -> Driver:
    driver = new_bench().driver
    driver.enable()
    driver.create_queues(1)
    driver.write(0, OLD * 4)
    return driver


@pytest.mark.fact("F315", clause="Base 1.4, Figure 247, FUSES", kills=("fused-is-not-promised",))
@pytest.mark.fact("F316", clause="NVM 1.0, 2.1.4", kills=("fused-write-after-failure", "fused-of-any-size"))
def test_the_write_is_done_only_if_the_compare_succeeds(ready: Driver) -> None:
    """Two completions come, that of the Compare first, and no more blocks than ACWU are fused."""
    page = identify_controller(ready)
    assert (page.fuses, page.acwu) == (1, MOST)
    cids = submit(ready, *halves(ready))
    done = ready.drain(ready.queues[1])
    assert [(one.cid, one.status) for one in done] == [(cid, 0) for cid in cids]
    assert ready.read(0, 2) == NEW + OLD
    assert run(ready, *halves(ready, new=OTHER)) == [Status.COMPARE_FAILURE, Status.FAILED_FUSED]
    assert run(ready, *halves(ready, NEW + OLD, OTHER * 2)) == GOOD
    assert ready.read(0, 3) == OTHER * 2 + OLD
    too_large = halves(ready, bytes((MOST + 1) * BLOCK), OTHER * (MOST + 1), slba=1000)
    assert run(ready, *too_large) == [Status.ATOMIC_WRITE_UNIT_EXCEEDED, Status.FAILED_FUSED]
    assert run(ready, *halves(ready, bytes(MOST * BLOCK), OTHER * MOST, slba=1000)) == GOOD
    assert ready.read(1000, MOST) == OTHER * MOST
    assert run(ready, *halves(ready, slba=1 << 40)) == [Status.LBA_OUT_OF_RANGE, Status.FAILED_FUSED]
    assert run(ready, *halves(ready, nsid=99)) == [Status.INVALID_NAMESPACE, Status.FAILED_FUSED]


@pytest.mark.fact("F315", clause="Base 1.4, 4.12", kills=("fused-anything", "fused-alone", "fused-reserved"))
def test_halves_that_do_not_fit_are_refused(ready: Driver) -> None:
    """And those without the other one: also where another command that the engine serves stands between them. All else
    in the queue is as always."""
    compare, write = halves(ready)
    read = read_command(ready.alloc(PAGE))

    def fresh(command: ReadWrite, **fields: Any) -> ReadWrite:
        made = type(command)()
        made.data = bytearray(command.data)
        made.cid = 0
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def refused(*commands: tuple[ReadWrite, dict[str, Any]], status: list[Status]) -> None:
        assert run(ready, *(fresh(one, **fields) for one, fields in commands)) == status

    invalid, good = Status.INVALID_FIELD, Status.SUCCESS
    refused((compare, {}), (write, {"slba": 1}), status=[invalid] * 2)
    refused((compare, {}), (write, {"nlb": 2}), status=[invalid] * 2)
    refused((read, FIRST), (write, {}), status=[invalid] * 2)
    refused((compare, {}), (compare, SECOND), status=[invalid] * 2)
    refused((compare, {"fuse": Fuse.RESERVED}), (write, {}), status=[invalid, MISSING])
    refused((write, {}), status=[MISSING])
    refused((write, {}), (compare, {}), (read, {}), status=[MISSING, MISSING, good])
    refused((compare, {}), (read, {}), (write, {}), status=[MISSING, good, MISSING])
    refused((compare, {}), (compare, {}), (write, {}), (read, {}), status=[MISSING, good, good, good])
    assert ready.read(0, 2) == NEW + OLD
    admin = ready.execute(ready.admin, read_command(0, slba=0).__class__(opcode=6, fuse=Fuse.FIRST, cdw10=1))
    assert admin.status == Status.INVALID_FIELD


@pytest.mark.fact("F315", clause="Base 1.4, 4.12", kills=("fused-in-one-doorbell",))
def test_the_second_may_be_at_the_other_end_of_the_queue_and_come_later(ready: Driver) -> None:
    """The first one waits for it; other queues do not."""
    queue = ready.create_queues(2, 4)
    for _ in range(5):
        commands = halves(ready, ready.read(0, 1), OTHER if queue.sq_tail % 2 else NEW)
        submit(ready, *commands, queue=queue)
        assert [one.status for one in ready.drain(queue)] == GOOD
        submit(ready, read_command(ready.alloc(PAGE)), queue=queue)
        assert [one.status for one in ready.drain(queue)] == GOOD[:1]
    compare, write = halves(ready, ready.read(0, 1), OLD)
    submit(ready, compare)
    assert ready.drain(ready.queues[1]) == []
    assert ready.read(1, 1, qid=2) == OLD
    submit(ready, write)
    assert [one.status for one in ready.drain(ready.queues[1])] == GOOD
    assert ready.read(0, 1) == OLD


@pytest.mark.fact(
    "F316",
    clause="NVM 1.0, 2.1.4",
    kills=("fused-among-others", "fused-while-others-end", "fused-for-ever"),
)
def test_nothing_else_happens_to_the_namespace_meanwhile(new_bench: NewBench) -> None:
    """Commands that had begun end before the Compare begins. All that come later wait, of this controller and of
    another one. Another namespace is not delayed."""
    bench = new_bench(TellingBackend(), manual=True)
    other = new_bench(subsystem=bench.subsystem, cntlid=2, manual=True)
    other.worker = bench.worker
    bench.subsystem.add(bench.namespace(2, MemoryBackend(1 << 20), identity="second"))
    driver, tasks = bench.driver, bench.worker.tasks
    for one in (bench, other):
        one.driver.enable()
        one.driver.create_queues(1)
        one.driver.create_queues(2)

    def finish(benches: tuple[Bench, ...] = (bench, other)) -> str:
        """The next task at the disk; its name."""
        backend = bench.backend
        assert isinstance(backend, TellingBackend)
        backend.calls.clear()
        tasks[0].finish()
        for one in benches:
            one.settle()
        return backend.names[0]

    place = driver.alloc(PAGE)
    driver.bus.write_memory(place, OLD)
    driver.submit(driver.queues[2], write_command(place))
    submit(driver, *halves(driver))
    assert len(tasks) == 1, "the Compare waits for the Write that has begun"
    others = [other.driver.alloc(PAGE), driver.alloc(PAGE)]
    other.driver.submit(other.driver.queues[1], read_command(others[0]))
    driver.submit(driver.queues[2], read_command(others[1]))
    driver.submit(driver.queues[2], read_command(driver.alloc(PAGE), nsid=2))
    zeroes = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=0, nlb=1)
    other.driver.submit(other.driver.queues[1], zeroes)
    assert finish() == "write"
    assert len(driver.drain(driver.queues[2])) == 2, "the Write, and the other namespace's Read"
    assert len(tasks) == 1
    assert finish() == "read"
    assert [one.status for one in driver.drain(driver.queues[1])] == [Status.SUCCESS]
    assert len(tasks) == 1, "nothing comes between the two"
    assert finish() == "write"
    assert [one.status for one in driver.drain(driver.queues[1])] == [Status.SUCCESS]
    bench.worker.finish_all()
    for one in (bench, other):
        one.settle()
    bench.worker.finish_all()
    for one in (bench, other):
        one.settle()
    assert [one.status for one in other.driver.drain(other.driver.queues[1])] == GOOD
    assert [one.status for one in driver.drain(driver.queues[2])] == [Status.SUCCESS]
    assert bench.namespaces.by_nsid[1].media.budget.held == 0
    assert bench.read_memory(others[1], BLOCK) in (NEW, bytes(BLOCK))
    assert other.read_memory(others[0], BLOCK) in (NEW, bytes(BLOCK))


@pytest.mark.fact("F316", clause="NVM 1.0, 2.1.4", kills=("fused-among-others",))
def test_an_engine_lets_go_of_the_namespace_and_gets_it_back(new_bench: NewBench) -> None:
    """Its reads and writes go through Python as long as a pair is under way."""
    bench = new_bench(MemoryBackend(1 << 20), manual=True)
    driver, tasks = bench.driver, bench.worker.tasks
    driver.enable()
    driver.create_queues(1)
    queue = driver.create_queues(2)
    driver.write(0, OLD)
    for compared, status in ((OLD, GOOD), (OLD, [Status.COMPARE_FAILURE, Status.FAILED_FUSED])):
        submit(driver, *halves(driver, compared))
        assert len(tasks) == 1
        driver.submit(queue, read_command(driver.alloc(PAGE)))
        assert driver.drain(queue) == []
        tasks[0].finish()
        bench.settle()
        assert [one.status for one in driver.drain(driver.queues[1])] == status
        assert [one.status for one in driver.drain(queue)] == [Status.SUCCESS]
        assert tasks == []
        assert driver.read(0, 1, qid=2) == NEW


@pytest.mark.fact(
    "F316",
    clause="Base 1.4, 5.1; NVM 1.0, 2.1.4",
    kills=("fused-abort-forgets-the-other", "fused-for-ever-after-a-reset"),
)
def test_aborts_and_failures_of_one_are_told_of_both(new_bench: NewBench) -> None:
    """The first one without the second, the second one while it waits, a disk that fails, and a reset between them: all
    others go on after it."""
    backend = TellingBackend()
    bench = new_bench(backend, manual=True)
    driver, tasks = bench.driver, bench.worker.tasks
    driver.enable()
    queue = driver.create_queues(1)
    aborted = Status.ABORT_REQUESTED

    def abort(cid: int) -> None:
        assert not driver.succeed(driver.admin, Abort(sqid=1, target_cid=cid)).dw0 & 1

    def statuses() -> dict[int, int]:
        bench.worker.finish_all()
        bench.settle()
        bench.worker.finish_all()
        bench.settle()
        return {one.cid: one.status for one in driver.drain(queue)}

    compare, write = halves(driver, bytes(BLOCK))
    first = submit(driver, compare)[0]
    abort(first)
    second = submit(driver, write)[0]
    assert statuses() == {first: aborted, second: Status.FAILED_FUSED}
    first, second = submit(driver, *halves(driver, bytes(BLOCK)))
    abort(first)
    assert statuses() == {first: aborted, second: Status.FAILED_FUSED}
    first, second = submit(driver, *halves(driver, bytes(BLOCK)))
    abort(second)
    assert statuses() == {first: Status.SUCCESS, second: aborted}
    assert backend.names[-1] == "read"
    backend.failures = {"read": errno.EIO}
    first, second = submit(driver, *halves(driver, bytes(BLOCK)))
    assert statuses() == {first: Status.UNRECOVERED_READ_ERROR, second: Status.FAILED_FUSED}
    backend.failures = {"write": errno.EIO}
    first, second = submit(driver, *halves(driver, bytes(BLOCK)))
    assert statuses() == {first: Status.SUCCESS, second: Status.WRITE_FAULT}
    backend.failures = {}
    first, second = submit(driver, *halves(driver, bytes(BLOCK)))
    tasks[0].run()
    driver.set_reg(CC, 0)
    bench.worker.finish_all()
    bench.settle()
    bench.clock.advance(2e-3)
    driver.enable()
    queue = driver.create_queues(1)
    submit(driver, read_command(driver.alloc(PAGE)))
    assert list(statuses().values()) == [Status.SUCCESS]
    first = submit(driver, halves(driver)[0])[0]
    assert driver.delete_sq(1).status == Status.SUCCESS
    assert statuses() == {first: Status.ABORTED_SQ_DELETION}
    driver.enable()
    driver.create_queues(1)
    submit(driver, halves(driver)[0])
    driver.enable()
    queue = driver.create_queues(1)
    second = submit(driver, halves(driver)[1])[0]
    assert statuses() == {second: MISSING}


@pytest.mark.fact("F316", clause="NVM 1.0, 2.1.4; 5.2", kills=("fused-copies-go-on",))
def test_blocks_with_protection_are_fused_too_and_copies_wait(new_bench: NewBench) -> None:
    """A Copy that is at another namespace waits before its next piece goes to this one."""
    format = Format(512, 8, protection=Protection(1))
    bench = new_bench(MemoryBackend(1 << 20), format=format, manual=True)
    driver, tasks = bench.driver, bench.worker.tasks
    bench.subsystem.add(bench.namespace(2, MemoryBackend(1 << 20), identity="second"))
    driver.enable()
    queue = driver.create_queues(1)
    place = driver.alloc(PAGE)
    driver.bus.write_memory(place, bytes(CopyRange(snsid=2, slba=0, nlb=1)))
    driver.bus.write_memory(place + 512, bytes((0, 0, 0, 0, 4)))
    driver.succeed(driver.admin, host_behavior(place + 512))
    pract = 8
    copy = Copy(nsid=1, prp1=place, nr=1, sdlba=0, desfmt=2, prinfow=pract)
    submit(driver, copy)
    pair = halves(driver, bytes(BLOCK), NEW)
    for half in pair:
        half.mptr = driver.alloc(8, 8)
    pair[1].pract = True
    submit(driver, *pair)
    assert len(tasks) == 2, "the Copy reads the other namespace, the Compare this one"
    tasks[0].finish()
    bench.settle()
    assert len(tasks) == 1, "and its write waits"
    while tasks:
        tasks[0].finish()
        bench.settle()
    done: list[Completion] = driver.drain(queue)
    assert [one.status for one in done] == [Status.SUCCESS] * 3
    assert done[-1].cid == copy.cid


def host_behavior(place: int) -> ReadWrite:
    """Set Features of what lies there: CDFE."""
    return ReadWrite(opcode=9, cdw10=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place)
