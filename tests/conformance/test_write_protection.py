"""Namespace Write Protection: what a host can no longer do, and what ends it. Base 1.4, 5.21.1.29 and 8.19."""

from __future__ import annotations

import errno

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    aer,
    dsm_command,
    fails,
    flush_command,
    identify_controller,
    identify_namespace,
    read_command,
    write_command,
)
from nvmeemu.spec import (
    BROADCAST,
    Cns,
    FeatureId,
    IndependentNamespace,
    LogId,
    NvmOpcode,
    ReadWrite,
    SetFeatures,
    Status,
)
from nvmeemu.spec import WriteProtection as State
from nvmeemu.testing import PAGE, Bench, Driver

FID = FeatureId.NAMESPACE_WRITE_PROTECTION
CAPABILITIES, DEFAULT = 3, 1  # SEL
PER_NAMESPACE_AND_CHANGEABLE = 0b110
NOTICES, CHANGED = 1 << 8, 0x040002


@pytest.fixture(autouse=True)
def _judge_has_it(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--judge", default=False):
        judged: Driver = request.getfixturevalue("driver")
        if not identify_controller(judged).nwpc:
            pytest.skip("this controller has no write protection")


def state(driver: Driver, nsid: int = 1) -> int:
    return driver.get_feature(FID, nsid=nsid)


def put(driver: Driver, wanted: int, nsid: int = 1) -> None:
    driver.set_feature(FID, wanted, nsid=nsid)


def refuses(driver: Driver, wanted: int, status: Status, nsid: int = 1) -> None:
    fails(driver, driver.admin, SetFeatures(fid=FID, cdw11=wanted, nsid=nsid), status)


@pytest.mark.fact("F434", clause="Base 1.4, Figure 247, NWPC", kills=("nwpc-zero",))
def test_what_there_is_is_told(driver: Driver) -> None:
    assert identify_controller(driver).nwpc == 0b111
    assert driver.get_feature(FID, nsid=1, sel=CAPABILITIES) == PER_NAMESPACE_AND_CHANGEABLE
    assert driver.get_feature(FID, nsid=1, sel=DEFAULT) == State.NONE == state(driver)


@pytest.mark.fact("F434", clause="Base 1.4, 8.19, Figure 480", kills=("protection-is-not-kept", "protection-of-reads"))
@pytest.mark.parametrize("wanted", [State.PROTECTED, State.UNTIL_POWER_CYCLE, State.PERMANENT])
def test_a_protected_namespace_is_read_and_not_written(driver: Driver, wanted: State) -> None:
    queue = driver.create_queues(1)
    driver.write(3, b"x" * 512)
    put(driver, wanted)
    assert state(driver) == wanted
    page = driver.alloc(PAGE)
    zeroes = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=3, nlb=1)
    for command in (write_command(page, slba=3), zeroes, dsm_command(driver, [(3, 1)])):
        fails(driver, queue, command, Status.NAMESPACE_WRITE_PROTECTED)
    assert driver.read(3, 1) == b"x" * 512
    for command in (flush_command(), dsm_command(driver, [(3, 1)], ad=False)):
        driver.succeed(queue, command)
    verify = ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, slba=3, nlb=1)
    driver.succeed(queue, verify)


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protection-cannot-be-ended",))
def test_it_ends_when_the_host_wants_it(driver: Driver) -> None:
    queue = driver.create_queues(1)
    put(driver, State.PROTECTED)
    put(driver, State.PROTECTED)
    fails(driver, queue, write_command(driver.alloc(PAGE)), Status.NAMESPACE_WRITE_PROTECTED)
    put(driver, State.NONE)
    driver.write(0, b"y" * 512)
    assert driver.read(0, 1) == b"y" * 512


@pytest.mark.fact("F434", clause="Base 1.4, 8.19.1", kills=("permanent-can-be-ended",))
@pytest.mark.parametrize("stays", [State.UNTIL_POWER_CYCLE, State.PERMANENT])
def test_two_states_cannot_be_left(driver: Driver, stays: State) -> None:
    put(driver, stays)
    put(driver, stays)
    for other in set(State) - {stays}:
        refuses(driver, other, Status.FEATURE_NOT_CHANGEABLE)
    assert state(driver) == stays


@pytest.mark.fact("F434", clause="Base 1.4, Figure 313", kills=("reserved-protection-taken",))
@pytest.mark.parametrize("wanted", [4, 7])
def test_a_reserved_state_is_an_invalid_field(driver: Driver, wanted: int) -> None:
    refuses(driver, wanted, Status.INVALID_FIELD)
    assert state(driver) == State.NONE


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protection-ends-with-a-reset",))
@pytest.mark.parametrize("wanted", [State.PROTECTED, State.UNTIL_POWER_CYCLE, State.PERMANENT])
def test_a_controller_reset_does_not_end_it(driver: Driver, bench: Bench, wanted: State) -> None:
    put(driver, wanted)
    driver.enable()
    assert state(driver) == wanted
    bench.controller.reset()
    driver.enable()
    assert state(driver) == wanted
    queue = driver.create_queues(1)
    fails(driver, queue, write_command(driver.alloc(PAGE)), Status.NAMESPACE_WRITE_PROTECTED)


@pytest.mark.fact("F434", clause="Base 1.4, Figure 245, NSATTR; 5.2, Figure 147", kills=("protection-without-event",))
def test_identify_and_an_event_tell_of_it(driver: Driver) -> None:
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
    driver.submit(driver.admin, aer())
    put(driver, State.PROTECTED)
    driver.bus.settle()
    assert [one.dw0 for one in driver.drain(driver.admin)] == [CHANGED]
    assert driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4) == b"\1\0\0\0"
    assert identify_namespace(driver).nsattr & 1
    assert IndependentNamespace(driver.identify(Cns.INDEPENDENT_NAMESPACE, 1)).nsattr & 1
    put(driver, State.NONE)
    assert not identify_namespace(driver).nsattr & 1


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protection-of-all",))
def test_each_namespace_has_its_own(driver: Driver, bench: Bench) -> None:
    bench.subsystem.add(bench.namespace(2, TellingBackend(), identity="another"))
    queue = driver.create_queues(1)
    put(driver, State.PROTECTED, nsid=2)
    driver.write(0, b"x" * 512)
    fails(driver, queue, write_command(driver.alloc(PAGE), nsid=2), Status.NAMESPACE_WRITE_PROTECTED)
    put(driver, State.PROTECTED, nsid=BROADCAST)
    assert (state(driver, 1), state(driver, 2)) == (1, 1)
    refuses(driver, State.NONE, Status.INVALID_NAMESPACE, nsid=0)
    refuses(driver, State.NONE, Status.INVALID_FIELD, nsid=3)
    fails(driver, queue, read_command(driver.alloc(PAGE), nsid=3), Status.INVALID_FIELD)


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protected-before-it-is-durable",))
def test_what_is_cached_is_durable_before_the_command_completes(new_bench: NewBench) -> None:
    backend = TellingBackend()
    driver = new_bench(backend).driver
    driver.enable()
    driver.create_queues(1)
    driver.write(0, b"x" * 512)
    put(driver, State.PROTECTED)
    assert backend.names[-1] == "flush"


@pytest.mark.fact("F434", clause="Base 1.4, 8.19", kills=("protected-though-the-flush-failed",))
def test_if_that_fails_the_namespace_is_as_it_was(new_bench: NewBench) -> None:
    backend = TellingBackend()
    driver = new_bench(backend).driver
    driver.enable()
    driver.create_queues(1)
    backend.failures["flush"] = errno.EIO
    failing = SetFeatures(fid=FID, cdw11=State.PERMANENT, nsid=1)
    fails(driver, driver.admin, failing, Status.WRITE_FAULT, dnr=False)
    assert state(driver) == State.NONE
    backend.failures.clear()
    driver.write(0, b"x" * 512)
