"""MSI-X messages and the interrupt pin. Base 1.4, 7.5 and 3.1.3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from conformance.tools import NewBench, flush_command, read_command, write_command
from nvmeemu.spec import DOORBELLS, FeatureId
from nvmeemu.testing import CC, INTMC, INTMS, PAGE, Bench, Driver, QueuePair, Ram

CLAUSE = "Base 1.4, 7.5"
PIN = "Base 1.4, 7.5.1"


@pytest.fixture
def pinned(bench: Bench) -> Bench:
    """An enabled controller whose host has no MSI-X, with two queue pairs."""
    bench.ram.msix_enabled = False
    bench.driver.enable()
    bench.driver.create_queues(1)
    bench.driver.create_queues(2)
    assert not bench.ram.pin_level
    return bench


def messages(bench: Bench) -> list[int]:
    """The vectors of the messages sent since the last call."""
    found = list(bench.ram.interrupts)
    bench.ram.interrupts.clear()
    return found


@pytest.mark.fact("A31", clause=CLAUSE, kills=("vector-is-qid",))
def test_a_message_goes_to_the_vector_of_its_completion_queue(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    one, two = driver.create_queues(1, vector=7), driver.create_queues(2, vector=7)
    three = driver.create_queues(3, vector=bench.controller.vectors - 1)
    assert set(messages(bench)) == {0}
    for pair, vector in ((one, 7), (two, 7), (three, bench.controller.vectors - 1), (driver.admin, 0)):
        driver.submit(pair, flush_command())
        assert messages(bench) == [vector]


@pytest.mark.fact("A31", clause="Base 1.4, 5.3 IEN", kills=("ien-ignored",))
def test_a_queue_without_interrupts_sends_none(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    place = driver.create_cq(1, vector=1, ien=False)
    pair = QueuePair(1, driver.create_sq(1), place, 64, 64)
    messages(bench)
    driver.succeed(pair, flush_command())
    assert messages(bench) == []
    bench.ram.msix_enabled = False
    driver.submit(pair, flush_command())
    assert not bench.ram.pin_level


@pytest.mark.fact("A31", clause=CLAUSE, kills=("a-message-for-each-completion",))
def test_a_batch_of_completions_is_one_message(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, vector=1)
    messages(bench)
    for _ in range(20):
        driver.submit(pair, flush_command(), ring=False)
    driver.ring_sq(pair)
    assert messages(bench) == [1]
    assert len(driver.drain(pair)) == 20


class CountingRam(Ram):
    """Counts the messages of vector 1 as a kernel does, in an eventfd: the native engine sends them itself, and two
    before Python looks are not one."""

    def __init__(self) -> None:
        super().__init__(0)
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)

    def interrupt_fd(self, vector: int) -> int:
        return self._eventfd if vector == 1 else -1

    def interrupt(self, vector: int) -> None:
        if vector == 1:
            os.eventfd_write(self._eventfd, 1)

    def take(self) -> int:
        """Messages since the last call."""
        with suppress(BlockingIOError):
            return os.eventfd_read(self._eventfd)
        return 0

    def close(self) -> None:
        os.close(self._eventfd)


@pytest.fixture
def counting() -> Iterator[CountingRam]:
    with closing(CountingRam()) as ram:
        yield ram


@pytest.mark.fact("A31", clause=CLAUSE, kills=("a-message-for-each-completion",))
def test_a_batch_of_reads_is_one_message(new_bench: NewBench, counting: CountingRam) -> None:
    """Nobody waits for anything between the doorbell and the end of the batch, which is shorter than a queue's turn."""
    bench = new_bench(ram=counting)
    bench.map(0, bytearray(4 << 20))
    bench.controller.interrupts_changed()
    driver = bench.driver
    driver.enable()
    pair, place = driver.create_queues(1, vector=1), driver.alloc(PAGE)
    for _ in range(10):
        for _ in range(20):
            driver.submit(pair, read_command(place), ring=False)
        bench.write_bar(DOORBELLS + 2 * driver.stride, pair.sq_tail.to_bytes(4, "little"))
        if bench.engine is not None:
            bench.engine.wait_until_idle()
        bench.settle()
        assert counting.take() == 1
        assert len(driver.drain(pair)) == 20


@pytest.mark.fact("A31", clause="Base 1.4, 7.5 and 5.21.1.8", kills=("no-message-for-the-waiting",))
def test_completions_that_waited_for_room_are_announced(slow: Bench) -> None:
    driver = slow.driver
    place = driver.create_cq(1, 2, vector=1)
    pair = QueuePair(1, driver.create_sq(1, 8), place, 8, 2)
    for _ in range(3):
        driver.submit(pair, write_command(driver.alloc(PAGE)))
    slow.worker.finish_all()
    slow.settle()
    messages(slow)
    assert driver.poll(pair) is not None
    assert messages(slow) == [1]


@pytest.mark.fact("A31", clause="Base 1.4, 5.21.1.8", kills=("admin-queue-is-coalesced",))
def test_the_admin_queue_is_never_coalesced(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    driver.set_feature(FeatureId.INTERRUPT_COALESCING, 0xFFFF)  # 256 entries or 25.5 ms
    messages(bench)
    for _ in range(3):
        driver.execute(driver.admin, flush_command())
        assert messages(bench) == [0]


COALESCING = "Base 1.4, 5.21.1.8"
TICK = 100e-6  # seconds, the unit of the Aggregation Time


def coalesce(driver: Driver, *, time: int, completions: int) -> None:
    driver.set_feature(FeatureId.INTERRUPT_COALESCING, time << 8 | completions - 1)


def advance(bench: Bench, seconds: float) -> None:
    bench.clock.advance(seconds)
    bench.settle()


@pytest.fixture
def coalescing(bench: Bench) -> Bench:
    """Two queue pairs with vectors 1 and 2, whose messages wait for 4 completions or 1 ms."""
    bench.driver.enable()
    for qid in (1, 2):
        bench.driver.create_queues(qid, vector=qid)
    coalesce(bench.driver, time=10, completions=4)
    messages(bench)
    return bench


def submit(bench: Bench, qid: int, *, is_read: bool = True) -> list[int]:
    """Run a command; the vectors of the messages since the last call. With the engine, reads are its own, a Flush is
    Python's."""
    command = read_command(bench.driver.alloc(PAGE)) if is_read else flush_command()
    bench.driver.submit(bench.driver.queues[qid], command)
    return messages(bench)


@pytest.mark.fact("A31", clause=COALESCING, kills=("never-coalesced", "threshold-is-not-zero-based"))
def test_a_message_waits_for_the_aggregation_threshold(coalescing: Bench) -> None:
    for is_read in (True, False):
        for _ in range(3):
            assert [submit(coalescing, 1, is_read=is_read) for _ in range(4)] == [[], [], [], [1]]
    assert [submit(coalescing, 1, is_read=number % 2 == 0) for number in range(4)] == [[], [], [], [1]]


@pytest.mark.fact("A31", clause=COALESCING, kills=("aggregation-time-in-milliseconds", "message-held-for-ever"))
def test_a_message_waits_for_no_longer_than_the_aggregation_time(coalescing: Bench) -> None:
    for is_read in (True, False):
        assert submit(coalescing, 1, is_read=is_read) == []
        advance(coalescing, 9.5 * TICK)
        assert messages(coalescing) == []
        advance(coalescing, TICK)
        assert messages(coalescing) == [1]
        advance(coalescing, 100 * TICK)
        assert messages(coalescing) == []


@pytest.mark.fact("A31", clause=COALESCING, kills=("aggregation-time-begins-anew",))
def test_the_aggregation_time_begins_with_the_first_completion(coalescing: Bench) -> None:
    assert submit(coalescing, 1) == []
    advance(coalescing, 6 * TICK)
    assert submit(coalescing, 1, is_read=False) == []
    advance(coalescing, 4.5 * TICK)
    assert messages(coalescing) == [1]


@pytest.mark.fact("A31", clause=COALESCING, kills=("threshold-leaves-the-time-running",))
def test_a_message_for_the_threshold_ends_the_wait(coalescing: Bench) -> None:
    for _ in range(4):
        submit(coalescing, 1)
    advance(coalescing, 9 * TICK)
    assert submit(coalescing, 1) == []
    advance(coalescing, 2 * TICK)
    assert messages(coalescing) == []
    advance(coalescing, 8.5 * TICK)
    assert messages(coalescing) == [1]


@pytest.mark.fact("A31", clause=COALESCING, kills=("coalesced-across-vectors",))
def test_completions_are_counted_for_each_vector(coalescing: Bench) -> None:
    assert [submit(coalescing, qid) for qid in (1, 2, 1, 2, 1, 2)] == [[]] * 6
    assert submit(coalescing, 2) == [2]
    assert submit(coalescing, 1) == [1]


@pytest.mark.fact("A31", clause=COALESCING, kills=("coalesced-for-each-queue",))
def test_queues_that_share_a_vector_are_counted_together(coalescing: Bench) -> None:
    coalescing.driver.create_queues(3, vector=1)
    messages(coalescing)
    assert [submit(coalescing, qid) for qid in (1, 3, 1, 3)] == [[], [], [], [1]]


@pytest.mark.fact("A31", clause="Base 1.4, 5.21.1.9 CD", kills=("coalescing-disable-ignored",))
def test_a_vector_can_be_left_out(coalescing: Bench) -> None:
    configuration = FeatureId.INTERRUPT_VECTOR_CONFIGURATION
    coalescing.driver.set_feature(configuration, 1 << 16 | 1)
    messages(coalescing)
    assert [submit(coalescing, qid) for qid in (1, 2, 1)] == [[1], [], [1]]
    coalescing.driver.set_feature(configuration, 1)
    messages(coalescing)
    assert [submit(coalescing, 1) for _ in range(4)] == [[], [], [], [1]]


@pytest.mark.fact("A31", clause=COALESCING, kills=("admin-vector-is-coalesced",))
def test_the_admin_queues_vector_is_never_coalesced(coalescing: Bench) -> None:
    """Not even if the host asks for it, nor for an I/O queue that shares it."""
    driver = coalescing.driver
    driver.set_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 0)
    driver.create_queues(3, vector=0)
    messages(coalescing)
    assert submit(coalescing, 3) == [0]
    driver.execute(driver.admin, flush_command())
    assert messages(coalescing) == [0]


@pytest.mark.fact("A31", clause=COALESCING, kills=("no-time-is-for-ever",))
@pytest.mark.parametrize(("time", "completions"), [(0, 4), (10, 1), (0, 1)])
def test_without_time_or_threshold_nothing_waits(coalescing: Bench, time: int, completions: int) -> None:
    coalesce(coalescing.driver, time=time, completions=completions)
    messages(coalescing)
    assert [submit(coalescing, 1), submit(coalescing, 2, is_read=False)] == [[1], [2]]


@pytest.mark.fact("A31", clause=COALESCING, kills=("forgotten-when-switched-off",))
def test_what_has_waited_is_sent_when_coalescing_ends(coalescing: Bench) -> None:
    assert submit(coalescing, 1) == []
    coalesce(coalescing.driver, time=0, completions=1)
    assert sorted(messages(coalescing)) == [0, 1]
    advance(coalescing, 100 * TICK)
    assert messages(coalescing) == []


@pytest.mark.fact("A31", clause="Base 1.4, 7.3.2", kills=("held-across-a-reset",))
def test_a_reset_ends_coalescing_and_what_has_waited(coalescing: Bench) -> None:
    assert submit(coalescing, 1) == []
    coalescing.driver.enable()
    coalescing.driver.create_queues(1, vector=1)
    messages(coalescing)
    advance(coalescing, 100 * TICK)
    assert messages(coalescing) == []
    assert submit(coalescing, 1) == [1]


@pytest.mark.fact("A31", clause="Base 1.4, 3.1.3", kills=("intms-masks-messages",))
def test_the_mask_registers_have_no_effect_on_messages(bench: Bench) -> None:
    """FreeBSD writes them with MSI-X too."""
    driver = bench.driver
    driver.enable()
    pair = driver.create_queues(1, vector=1)
    messages(bench)
    driver.set_reg(INTMS, 0xFFFFFFFF)
    driver.succeed(pair, flush_command())
    assert messages(bench) == [1]


@pytest.mark.fact("A32", clause="PCI Express Base, 7.7.2", kills=("too-many-vectors",))
def test_windows_can_have_all_vectors(bench: Bench) -> None:
    """It takes at most 128 messages (fact A32)."""
    assert 2 <= bench.controller.vectors <= 128
    assert bench.controller.vectors > bench.controller.state.limits.io_queues


@pytest.mark.fact("A31", clause=PIN, kills=("pin-of-the-admin-queue-only", "pin-falls-with-the-first"))
def test_the_pin_is_asserted_while_any_queue_has_completions(pinned: Bench) -> None:
    driver = pinned.driver
    one, two = driver.queues[1], driver.queues[2]
    driver.submit(one, flush_command())
    assert pinned.ram.pin_level
    driver.submit(one, flush_command())
    driver.submit(two, flush_command())
    driver.submit(driver.admin, flush_command())
    for pair in (driver.admin, one, one, two):
        assert pinned.ram.pin_level
        assert driver.poll(pair) is not None
    assert not pinned.ram.pin_level
    assert messages(pinned) == []


@pytest.mark.fact("A31", clause=PIN, kills=("pin-without-admin",))
def test_the_admin_queue_asserts_the_pin_too(pinned: Bench) -> None:
    pinned.driver.submit(pinned.driver.admin, flush_command())
    assert pinned.ram.pin_level
    pinned.driver.drain(pinned.driver.admin)
    assert not pinned.ram.pin_level


@pytest.mark.fact("A31", clause="Base 1.4, 3.1.3 and 3.1.4", kills=("pin-ignores-mask", "intmc-sets"))
def test_the_mask_registers_hold_the_pin_down(pinned: Bench) -> None:
    driver = pinned.driver
    driver.submit(driver.queues[1], flush_command())
    driver.set_reg(INTMS, 0b11)
    assert driver.reg(INTMS) == driver.reg(INTMC) == 0b11
    assert not pinned.ram.pin_level
    driver.submit(driver.queues[2], flush_command())
    assert not pinned.ram.pin_level
    driver.set_reg(INTMC, 0b10)
    assert driver.reg(INTMS) == driver.reg(INTMC) == 0b01
    assert not pinned.ram.pin_level
    driver.set_reg(INTMC, 0b01)
    assert pinned.ram.pin_level
    driver.drain(driver.queues[1])
    driver.drain(driver.queues[2])
    assert not pinned.ram.pin_level


VFIO = "vfio: INTx is masked automatically when it fires"
LONG = 1.0  # seconds, much longer than a host gets for its interrupt handler


class Vmm:
    """The VMM's end of the pin of a ``pinned`` bench: an event, and no other one until it is unmasked."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bench = bench
        self._events = 0
        self._is_masked = False
        self.level = False
        monkeypatch.setattr(bench.ram, "pin", self._pin)

    def _pin(self, asserted: bool) -> None:
        self.level = asserted
        if asserted and not self._is_masked:
            self._is_masked = True
            self._events += 1

    def unmask(self) -> None:
        self._is_masked = False
        self._bench.controller.pin_unmasked()
        self._bench.settle()

    def events(self, seconds: float = 0.0) -> int:
        """Since the last call, after so long."""
        if seconds:
            self._bench.clock.advance(seconds)
        self._bench.settle()
        events, self._events = self._events, 0
        return events


@pytest.fixture
def vmm(pinned: Bench, monkeypatch: pytest.MonkeyPatch) -> Vmm:
    """Nothing is pending, and the pin unmasked."""
    vmm = Vmm(pinned, monkeypatch)
    vmm.unmask()
    return vmm


@pytest.mark.fact("A31", clause=VFIO, kills=("unmask-forgets-the-level",))
def test_the_pin_is_raised_again_at_unmask_while_it_is_needed(pinned: Bench, vmm: Vmm) -> None:
    """At once for what the host was not told of."""
    driver = pinned.driver
    driver.submit(driver.queues[1], flush_command())
    driver.submit(driver.queues[1], flush_command())
    assert vmm.events() == 1
    driver.poll(driver.queues[1])
    assert vmm.level
    assert vmm.events(LONG) == 0
    vmm.unmask()
    assert vmm.events() == 1
    driver.poll(driver.queues[1])
    assert not vmm.level
    vmm.unmask()
    assert vmm.events(LONG) == 0
    driver.submit(driver.queues[1], flush_command())
    assert vmm.events() == 1
    driver.set_reg(INTMS, 1)
    assert not vmm.level
    vmm.unmask()
    assert vmm.events(LONG) == 0


@pytest.mark.fact("A31", clause=VFIO, kills=("unmask-tells-twice", "rest-of-the-pin-never-ends"))
def test_the_host_has_time_for_what_it_was_told_of(pinned: Bench, vmm: Vmm) -> None:
    """Another processor's access of BAR0 makes the VMM unmask the pin before the handler has consumed a thing. An event
    at that moment was taken up when the handler was done: QEMU's line stayed up, "irq N: nobody cared"."""
    driver = pinned.driver
    one = driver.queues[1]
    driver.submit(one, flush_command())
    assert vmm.events() == 1
    vmm.unmask()
    driver.submit(one, flush_command())  # the handler will see this one, too
    vmm.unmask()
    assert vmm.events() == 0
    assert vmm.level
    for _ in range(2):
        assert driver.poll(one, ring=False) is not None
    driver.ring_cq(one)
    assert not vmm.level
    assert vmm.events(LONG) == 0
    driver.submit(one, flush_command())
    vmm.unmask()
    assert vmm.events() == 1  # no UNMASK was asked for by what was consumed before
    assert vmm.events(LONG) == 1  # and one that got lost on the way is told again
    vmm.unmask()
    assert vmm.events(LONG) == 1
    driver.drain(one)
    vmm.unmask()
    assert vmm.events(LONG) == 0


@pytest.mark.fact("A31", clause=VFIO, kills=("rest-of-the-pin-begins-anew",))
def test_unmasking_again_and_again_does_not_put_the_event_off(pinned: Bench, vmm: Vmm) -> None:
    pinned.driver.submit(pinned.driver.queues[1], flush_command())
    assert vmm.events() == 1
    for _ in range(1000):
        vmm.unmask()
        pinned.clock.advance(LONG / 2000)
    assert vmm.events() >= 1


@pytest.mark.fact("A31", clause=VFIO, kills=("rest-of-the-pin-for-all-queues",))
def test_a_queue_that_the_host_was_not_told_of_does_not_wait(pinned: Bench, vmm: Vmm) -> None:
    driver = pinned.driver
    driver.submit(driver.queues[1], flush_command())
    assert vmm.events() == 1
    vmm.unmask()
    assert vmm.events() == 0
    driver.submit(driver.queues[2], flush_command())
    assert vmm.events() == 1
    vmm.unmask()
    assert vmm.events() == 0
    driver.drain(driver.queues[1])
    assert vmm.level
    assert vmm.events(LONG) == 1


@pytest.mark.fact("A31", clause=VFIO, kills=("rest-of-the-pin-is-blind",))
@pytest.mark.parametrize("way", ["mask register", "controller reset", "function reset", "MSI-X", "fatal"])
def test_nothing_is_told_after_a_rest_if_the_level_has_gone(pinned: Bench, vmm: Vmm, way: str) -> None:
    driver = pinned.driver
    driver.submit(driver.queues[1], flush_command())
    assert vmm.events() == 1
    vmm.unmask()
    if way == "mask register":
        driver.set_reg(INTMS, 1)
    elif way == "controller reset":
        driver.set_reg(CC, 0)
    elif way == "function reset":
        pinned.controller.reset()
    elif way == "MSI-X":
        pinned.ram.msix_enabled = True
        pinned.controller.interrupts_changed()
    else:
        pinned.controller.fail("a test")
    assert vmm.events(LONG) == 0
    assert not vmm.level
    if way == "mask register":
        driver.set_reg(INTMC, 1)
        assert vmm.events() == 1
    elif way != "MSI-X":
        driver.enable()
        driver.submit(driver.create_queues(1), flush_command())
        assert vmm.events() == 1


@pytest.mark.fact("A31", clause=PIN, kills=("pin-survives-reset",))
@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("pin-survives-reset",))
def test_a_reset_lets_the_pin_go(pinned: Bench) -> None:
    driver = pinned.driver
    for is_function_reset in (False, True):
        driver.enable()
        driver.submit(driver.admin, flush_command())
        assert pinned.ram.pin_level
        if is_function_reset:
            pinned.controller.reset()
        else:
            driver.set_reg(CC, 0)
        assert not pinned.ram.pin_level


@pytest.mark.fact("A31", clause=PIN, kills=("pin-and-messages",))
def test_msix_takes_over_from_the_pin(pinned: Bench) -> None:
    driver = pinned.driver
    driver.submit(driver.queues[1], flush_command())
    assert pinned.ram.pin_level
    pinned.ram.msix_enabled = True
    driver.submit(driver.queues[1], flush_command())
    assert not pinned.ram.pin_level
    assert messages(pinned) == [0]
