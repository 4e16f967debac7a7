"""What survives a reset of either kind and a power cycle. Base 1.4, 7.3.2, 7.8.

A power cycle is a new controller with the saved state of the one before. Whether the state is durable is the business
of tests/state and tests/server.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from conformance.test_features import CAPABILITIES, SAVED, change, get, put, value
from conformance.test_interrupts import messages, submit
from conformance.tools import NewBench, TellingBackend, fails, identify_controller
from nvmeemu.ports import Changes, StateError
from nvmeemu.spec import BROADCAST, FeatureId, LogId, Oncs, SmartLog, Status
from nvmeemu.subsystem.saved import HEALTH, MemoryState
from nvmeemu.testing import CC, Bench, Driver

# FID, CDW11 that selects the value (of features that have several), NSID, the new value: all that can be saved.
SAVEABLE = (
    (FeatureId.ARBITRATION, 0, 0, 0x01020304),
    (FeatureId.TEMPERATURE_THRESHOLD, 0, 0, 340),
    (FeatureId.TEMPERATURE_THRESHOLD, 1 << 20, 0, 280),
    (FeatureId.ERROR_RECOVERY, 0, 1, 7),
    (FeatureId.ERROR_RECOVERY, 0, 2, 8),
    (FeatureId.VOLATILE_WRITE_CACHE, 0, 0, 0),
    (FeatureId.INTERRUPT_COALESCING, 0, 0, 0x0205),
    (FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 1, 0, 1 << 16),
    (FeatureId.INTERRUPT_VECTOR_CONFIGURATION, 2, 0, 1 << 16),
    (FeatureId.WRITE_ATOMICITY, 0, 0, 1),
    (FeatureId.ASYNC_EVENT_CONFIGURATION, 0, 0, 0x1F),
    (FeatureId.LBA_STATUS_INFORMATION, 0, 0, 5),
)
Cell = Callable[[Bench], Driver]


class LateState(MemoryState):
    """A saved state whose disk answers when the test wants it, and as the test wants it, once it ``is_late``."""

    def __init__(self) -> None:
        super().__init__()
        self.is_late = False
        self.waiting: list[tuple[Changes, Callable[[BaseException | None], None]]] = []

    def save(self, changes: Changes, done: Callable[[BaseException | None], None]) -> None:
        if self.is_late:
            self.waiting.append((changes, done))
        else:
            super().save(changes, done)

    def answer(self, error: BaseException | None = None) -> None:
        """To all."""
        while self.waiting:
            changes, done = self.waiting.pop(0)
            if error is None:
                self.put(changes)
            done(error)


@pytest.fixture
def power_up(new_bench: NewBench) -> Callable[[MemoryState], Bench]:
    """A drive of two namespaces with this state."""

    def make(state: MemoryState) -> Bench:
        bench = new_bench(TellingBackend(), state=state)
        bench.subsystem.add(bench.namespace(2, TellingBackend(), identity="disk 2"))
        bench.driver.enable()
        return bench

    return make


PowerUp = Callable[[MemoryState], Bench]


@pytest.fixture(params=["disable", "function reset", "shutdown and power", "power cut"])
def passed(request: pytest.FixtureRequest, power_up: PowerUp) -> Cell:
    """What comes over the drive, one column of the table after the other; the driver after it."""

    def come(bench: Bench) -> Driver:
        if request.param == "disable":
            bench.driver.enable()
            return bench.driver
        if request.param == "function reset":
            bench.controller.reset()
            bench.driver.enable()
            return bench.driver
        if request.param == "shutdown and power":
            shut_down(bench)
            bench.controller.reset()
        state = bench.subsystem.state
        assert isinstance(state, MemoryState)
        return power_up(state).driver

    return come


def shut_down(bench: Bench) -> None:
    bench.driver.set_reg(CC, bench.driver.reg(CC) | 1 << 14)
    bench.settle()
    assert bench.driver.status.shst == 2


def save(driver: Driver, fid: int, selector: int, nsid: int, new: int) -> None:
    driver.succeed(driver.admin, put(fid, selector | new, sv=True, nsid=nsid))


def current(driver: Driver, fid: int, selector: int, nsid: int, *, sel: int = 0) -> int:
    """The value without the bits that say which it is."""
    return value(driver, fid, sel=sel, cdw11=selector, nsid=nsid) & ~selector


@pytest.mark.fact("427", clause="Base 1.4, 7.8 and 5.13")
def test_the_list_has_every_feature_that_can_be_saved_and_identify_says_so(power_up: PowerUp) -> None:
    driver = power_up(MemoryState()).driver
    found = set()
    for fid in range(1, 0x100):
        answer = driver.execute(driver.admin, get(fid, sel=CAPABILITIES))
        if answer.status == Status.SUCCESS and answer.dw0 & 1:
            found.add(fid)
    assert found == {one[0] for one in SAVEABLE} | {FeatureId.POWER_MANAGEMENT}  # which has one value only
    assert identify_controller(driver).oncs & Oncs.SAVE_AND_SELECT


@pytest.mark.fact(
    "427",
    clause="Base 1.4, 7.8",
    kills=("saved-value-lost-by-reset", "sv-of-one-vector-is-of-all", "sv-saves-nothing"),
)
def test_what_was_saved_is_there_after_everything(power_up: PowerUp, passed: Cell) -> None:
    """All values at once: none takes the place of another. What was set after it without SV is gone."""
    bench = power_up(MemoryState())
    driver = bench.driver
    defaults = [current(driver, *one[:3]) for one in SAVEABLE]
    for one in SAVEABLE:
        save(driver, *one)
        assert current(driver, *one[:3]) == one[3]
    assert all(new != default for (*_, new), default in zip(SAVEABLE, defaults, strict=True))
    change(driver, FeatureId.ARBITRATION, 5)
    driver = passed(bench)
    for (*place, new), default in zip(SAVEABLE, defaults, strict=True):
        assert current(driver, *place) == new
        assert current(driver, *place, sel=SAVED) == new
        assert current(driver, *place, sel=1) == default


@pytest.mark.fact("427", clause="Base 1.4, 7.8", kills=("features-survive-reset", "sv-is-the-default"))
def test_what_was_never_saved_is_the_default_after_everything(power_up: PowerUp, passed: Cell) -> None:
    bench = power_up(MemoryState())
    driver = bench.driver
    defaults = [current(driver, *one[:3]) for one in SAVEABLE]
    for fid, selector, nsid, new in SAVEABLE:
        change(driver, fid, selector | new, nsid=nsid)
    for place, default in zip(SAVEABLE, defaults, strict=True):
        assert current(driver, *place[:3], sel=SAVED) == default
    driver = passed(bench)
    assert [current(driver, *one[:3]) for one in SAVEABLE] == defaults
    assert [current(driver, *one[:3], sel=SAVED) for one in SAVEABLE] == defaults


@pytest.mark.fact("427", clause="Base 1.4, 5.21")
def test_a_value_that_is_saved_for_all_namespaces_is_saved_for_each(power_up: PowerUp, passed: Cell) -> None:
    bench = power_up(MemoryState())
    save(bench.driver, FeatureId.ERROR_RECOVERY, 0, BROADCAST, 9)
    driver = passed(bench)
    assert [value(driver, FeatureId.ERROR_RECOVERY, nsid=nsid) for nsid in (1, 2)] == [9, 9]


@pytest.mark.fact("427", clause="Base 1.4, 5.21.1.8", kills=("saved-value-has-no-effect",))
def test_coalescing_that_was_saved_is_done(power_up: PowerUp, passed: Cell) -> None:
    """The value acts: four completions make one message."""
    bench = power_up(MemoryState())
    save(bench.driver, FeatureId.INTERRUPT_COALESCING, 0, 0, 0x0A03)
    driver = passed(bench)
    driver.create_queues(1, vector=1)
    assert isinstance(driver.bus, Bench)
    messages(driver.bus)
    assert [submit(driver.bus, 1) for _ in range(4)] == [[], [], [], [1]]


@pytest.mark.fact("427", clause="Base 1.4, 5.21.1.6")
def test_a_cache_that_was_saved_as_off_is_off(power_up: PowerUp, passed: Cell) -> None:
    """The value acts: each write is durable when it completes."""
    bench = power_up(MemoryState())
    save(bench.driver, FeatureId.VOLATILE_WRITE_CACHE, 0, 0, 0)
    driver = passed(bench)
    driver.create_queues(1)
    assert isinstance(driver.bus, Bench)
    bench = driver.bus
    driver.write(0, bytes(512))
    backend = bench.backend
    assert isinstance(backend, TellingBackend)
    assert backend.names[-1] == "write fua"


@pytest.mark.fact("427", clause="Base 1.4, 5.21", kills=("sv-fails-and-sets",))
def test_what_cannot_be_written_is_neither_saved_nor_set(power_up: PowerUp, caplog: pytest.LogCaptureFixture) -> None:
    state = LateState()
    driver = power_up(state).driver
    state.is_late = True
    before = value(driver, FeatureId.ARBITRATION)
    for _ in range(2):
        cid = driver.submit(driver.admin, put(FeatureId.ARBITRATION, 7, sv=True))
        driver.bus.settle()
        assert driver.drain(driver.admin) == []
        state.answer(StateError("the disk of drive.state is full"))
        driver.bus.settle()
        (completion,) = driver.drain(driver.admin)
        assert (completion.cid, completion.status, completion.dnr) == (cid, Status.INTERNAL_ERROR, False)
    assert value(driver, FeatureId.ARBITRATION) == value(driver, FeatureId.ARBITRATION, sel=SAVED) == before
    assert sum("the disk of drive.state is full" in message for message in caplog.messages) == 1


@pytest.mark.fact("427", clause="Base 1.4, 5.21 and 7.3.2", kills=("ready-while-saving",))
@pytest.mark.parametrize("is_function_reset", [False, True])
def test_a_reset_waits_for_what_is_being_saved(power_up: PowerUp, is_function_reset: bool) -> None:
    """The command gets no completion. Once the controller is ready, the value holds."""
    state = LateState()
    bench = power_up(state)
    driver = bench.driver
    state.is_late = True
    driver.submit(driver.admin, put(FeatureId.ARBITRATION, 7, sv=True))
    bench.settle()
    driver.patience = 3
    if is_function_reset:
        bench.controller.reset()
        with pytest.raises(TimeoutError, match="RDY=1"):
            driver.enable()
    else:
        with pytest.raises(TimeoutError, match="RDY=0"):
            driver.disable()
    state.answer()
    bench.settle()
    assert driver.status.rdy == is_function_reset
    if not is_function_reset:
        driver.enable()
    assert value(driver, FeatureId.ARBITRATION) == 7


@pytest.mark.fact("427", clause="Base 1.4, 7.6.2", kills=("shut-down-while-saving",))
def test_a_shutdown_waits_for_what_is_being_saved(power_up: PowerUp) -> None:
    state = LateState()
    bench = power_up(state)
    driver = bench.driver
    state.is_late = True
    driver.submit(driver.admin, put(FeatureId.ARBITRATION, 7, sv=True))
    bench.settle()
    driver.set_reg(CC, driver.reg(CC) | 1 << 14)
    bench.settle()
    assert (driver.status.shst, len(state.waiting)) == (1, 1)
    state.answer()
    bench.settle()
    assert (driver.status.shst, len(state.waiting)) == (1, 1)  # the counters
    state.answer()
    bench.settle()
    assert driver.status.shst == 2


def smart(driver: Driver) -> SmartLog:
    return SmartLog(driver.get_log(LogId.SMART, 512))


@pytest.mark.fact(
    "423",
    clause="Base 1.4, 5.14.1.1 and 5.14.1.2",
    kills=("counters-begin-anew", "error-count-begins-anew", "changed-list-begins-anew"),
)
def test_counters_and_what_has_changed_go_on_after_everything(power_up: PowerUp, passed: Cell) -> None:
    bench = power_up(MemoryState())
    driver = bench.driver
    driver.create_queues(1)
    driver.write(0, bytes(1024))
    driver.read(0, 1)
    for _ in range(3):
        fails(driver, driver.admin, put(0xC2), Status.INVALID_FIELD)
    bench.subsystem.changed(1)
    bench.clock.advance(2 * 3600)  # the counters are saved now and then
    bench.settle()
    before = smart(driver)
    assert (before.host_writes, before.host_reads, before.power_on_hours) == (1, 1, 2)
    assert (before.data_units_written, before.data_units_read, before.error_log_entries) == (1, 1, 3)
    driver = passed(bench)
    after = smart(driver)
    assert after.host_writes == before.host_writes
    assert after.host_reads == before.host_reads
    assert after.data_units_written == before.data_units_written
    assert after.power_on_hours == before.power_on_hours
    assert after.error_log_entries == before.error_log_entries
    assert driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096)[:12] == struct.pack("<3I", 1, 2, 0)
    driver.create_queues(1)
    driver.write(0, bytes(512))
    assert smart(driver).host_writes == before.host_writes + 1


@pytest.mark.fact("423", clause="Base 1.4, 5.14.1.2", kills=("shutdown-saves-no-counters",))
def test_a_shutdown_saves_the_counters_exactly(power_up: PowerUp) -> None:
    state = MemoryState()
    bench = power_up(state)
    bench.driver.create_queues(1)
    for _ in range(3):
        bench.driver.write(0, bytes(512))
    shut_down(bench)
    assert smart(power_up(state).driver).host_writes == 3


@pytest.mark.fact(
    "423",
    clause="Base 1.4, 5.14.1.2, Power Cycles and Unsafe Shutdowns",
    kills=("power-cut-is-safe", "power-cycle-not-counted", "shut-down-stays-in-use"),
)
def test_each_power_cycle_is_counted_and_is_unsafe_without_a_shutdown(power_up: PowerUp) -> None:
    state = MemoryState()

    def counted() -> tuple[int, int]:
        page = smart(bench.driver)
        return page.power_cycles, page.unsafe_shutdowns

    bench = power_up(state)
    assert counted() == (1, 0)
    shut_down(bench)
    bench = power_up(state)
    assert counted() == (2, 0)
    bench = power_up(state)  # power has gone from an enabled controller
    assert counted() == (3, 1)
    bench.driver.disable()
    bench = power_up(state)  # and from a disabled one, which nobody has shut down
    assert counted() == (4, 2)
    bench.controller.reset()  # counted at once, and not again
    bench = power_up(state)
    assert counted() == (5, 3)
    shut_down(bench)
    bench.driver.enable()
    bench = power_up(state)
    assert counted() == (6, 4)


@pytest.mark.fact("423", clause="Base 1.4, 5.14.1.2", kills=("idle-drive-saves",))
def test_a_drive_that_does_nothing_saves_nothing_but_its_hours(power_up: PowerUp) -> None:
    state = MemoryState()
    bench = power_up(state)
    bench.clock.advance(600)
    before = {scope: state.scope(scope) for scope in (HEALTH, "controller.1")}
    bench.clock.advance(599)
    assert {scope: state.scope(scope) for scope in before} == before
    bench.clock.advance(1)
    assert state.scope(HEALTH) == before[HEALTH] | {"power_on_seconds": 1200}


@pytest.mark.fact("427", clause="Base 1.4, 7.8")
@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("feature.01.0", 1 << 32),
        ("feature.01.0", -1),
        ("feature.01.0", "7"),
        ("feature.0e.0", 7),
        ("feature.c2.0", 7),
        ("feature.zz.0", 7),
        ("feature.09.999", 1 << 16),
    ],
)
def test_what_no_host_can_have_saved_does_no_harm(power_up: PowerUp, name: str, saved: int | str) -> None:
    state = MemoryState()
    state.put({("controller.1", name): saved})
    driver = power_up(state).driver
    assert value(driver, FeatureId.ARBITRATION) == 0
    fails(driver, driver.admin, put(0xC2), Status.INVALID_FIELD)


@pytest.mark.fact(
    "F434", clause="Base 1.4, 8.19", kills=("protection-is-not-remembered", "protection-for-one-power-cycle")
)
@pytest.mark.parametrize("state", [1, 2, 3])
def test_write_protection_is_there_after_everything(power_up: PowerUp, passed: Cell, state: int) -> None:
    """But for the one that ends with the power."""
    bench = power_up(MemoryState())
    before = bench.subsystem
    bench.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, state, nsid=2)
    driver = passed(bench)
    is_another_power_cycle = driver.bus.subsystem is not before  # type: ignore[attr-defined]
    wanted = 0 if state == 2 and is_another_power_cycle else state
    assert driver.get_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, nsid=2) == wanted
    assert driver.get_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, nsid=1) == 0


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protection-that-ended-comes-back",))
def test_a_protection_that_a_host_has_ended_does_not_come_back(power_up: PowerUp, passed: Cell) -> None:
    bench = power_up(MemoryState())
    for state in (1, 0):
        bench.driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, state, nsid=1)
    assert passed(bench).get_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, nsid=1) == 0
