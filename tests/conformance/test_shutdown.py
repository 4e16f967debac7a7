"""Shutdown: everything becomes durable, then nothing is served until a reset. Base 1.4, 3.1.5 SHN and 7.6.2."""

from __future__ import annotations

import errno

import pytest
from _pytest.mark import ParameterSet

from conformance.tools import Advance, TellingBackend, aer, flush_command, read_command, write_command
from nvmeemu.spec import (
    DOORBELLS,
    SHN_ABRUPT,
    SHN_NORMAL,
    SHST_COMPLETE,
    SHST_NORMAL,
    SHST_OCCURRING,
    Configuration,
    Status,
)
from nvmeemu.testing import CC, PAGE, Bench, Driver

CLAUSE = "Base 1.4, 3.1.5 SHN and 7.6.2"


@pytest.fixture
def slow(slow: Bench) -> Bench:
    """With one queue pair."""
    slow.driver.create_queues(1)
    return slow


def calls(bench: Bench) -> list[str]:
    assert isinstance(bench.backend, TellingBackend)
    return bench.backend.names


def request_shutdown(driver: Driver, shn: int = SHN_NORMAL) -> None:
    configuration = Configuration.of(driver.reg(CC))
    configuration.data = bytearray(configuration.data)
    configuration.shn = shn
    driver.set_reg(CC, int(configuration))


def shut_down(driver: Driver, shn: int = SHN_NORMAL) -> None:
    request_shutdown(driver, shn)
    for _ in range(100):
        if driver.status.shst == SHST_COMPLETE:
            return
        driver.bus.settle()
    raise TimeoutError(f"the shutdown does not end: {driver.status!r}")


def kind(name: str, shn: int, *marks: pytest.MarkDecorator) -> ParameterSet:
    return pytest.param(shn, id=name, marks=marks)


@pytest.mark.fact("A12", clause=CLAUSE, kills=("served-after-shutdown",))
@pytest.mark.fact("B4", clause=CLAUSE, kills=("served-after-shutdown",))
@pytest.mark.parametrize(
    "shn",
    [
        kind("normal", SHN_NORMAL),
        kind("abrupt", SHN_ABRUPT, pytest.mark.fact("B7", clause=CLAUSE, kills=("abrupt-never-completes",))),
    ],
)
def test_nothing_is_served_after_a_shutdown_until_a_reset(driver: Driver, shn: int) -> None:
    """QEMU goes on; NVMeVirt never completes an abrupt one. EN stays 1."""
    pair = driver.create_queues(1)
    shut_down(driver, shn)
    assert driver.status.rdy
    driver.submit(pair, flush_command())
    driver.submit(driver.admin, flush_command())
    for _ in range(20):
        driver.bus.settle()
    assert driver.drain(pair) == []
    assert driver.drain(driver.admin) == []
    driver.enable()
    assert driver.status.shst == SHST_NORMAL
    driver.succeed(driver.create_queues(1), flush_command())


@pytest.mark.fact("A12", clause=CLAUSE, kills=("no-shutdown-while-disabled",))
def test_a_disabled_controller_can_be_shut_down(driver: Driver) -> None:
    driver.disable()
    shut_down(driver)
    assert not driver.status.rdy
    request_shutdown(driver, 0)
    driver.enable()
    assert driver.status.shst == SHST_NORMAL
    assert len(driver.identify(1)) == PAGE


@pytest.mark.fact("A12", clause=CLAUSE, kills=("shutdown-without-flush", "shutdown-completes-before-flush"))
@pytest.mark.fact("B6", clause=CLAUSE, kills=("shutdown-without-flush",))
@pytest.mark.parametrize("shn", [SHN_NORMAL, SHN_ABRUPT])
def test_a_shutdown_completes_when_the_disk_has_flushed(slow: Bench, shn: int) -> None:
    """bhyve reports completion without having flushed anything."""
    driver = slow.driver
    request_shutdown(driver, shn)
    assert driver.status.shst == SHST_OCCURRING
    slow.worker.tasks[0].run()
    assert calls(slow) == ["flush"]
    assert driver.status.shst == SHST_OCCURRING
    slow.worker.finish_all()
    assert driver.status.shst == SHST_COMPLETE
    assert calls(slow) == ["flush"]


@pytest.mark.fact("A12", clause=CLAUSE, kills=("shutdown-overtakes-commands",))
def test_a_shutdown_waits_for_the_commands_that_run(slow: Bench) -> None:
    driver, pair = slow.driver, slow.driver.queues[1]
    cids = {driver.submit(pair, command(driver.alloc(PAGE))) for command in (write_command, read_command)}
    slow.worker.tasks[0].run()
    request_shutdown(driver)
    assert len(slow.worker.tasks) == 2  # no flush yet
    slow.worker.tasks[0].finish()
    slow.settle()
    assert driver.status.shst == SHST_OCCURRING
    assert len(slow.worker.tasks) == 1
    slow.worker.finish_all()
    slow.settle()
    assert driver.status.shst == SHST_COMPLETE
    assert calls(slow)[-1] == "flush"
    assert {completion.cid for completion in driver.drain(pair)} == cids


@pytest.mark.fact("A12", clause=CLAUSE, kills=("shutdown-hangs-on-a-held-command",))
def test_a_shutdown_ends_though_a_command_waits_for_memory(driver: Driver, advance: Advance) -> None:
    """Or has not waited."""
    pair = driver.create_queues(1)
    driver.submit(pair, read_command(1 << 50))
    found = driver.drain(pair)
    request_shutdown(driver)
    assert driver.status.shst == (SHST_COMPLETE if found else SHST_OCCURRING)
    advance(0.2)
    assert driver.status.shst == SHST_COMPLETE
    found += driver.drain(pair)
    assert [completion.status for completion in found] == [Status.DATA_TRANSFER_ERROR]


@pytest.mark.fact("A12", clause=CLAUSE, kills=("failed-flush-hangs-shutdown",))
def test_a_disk_that_cannot_flush_does_not_hold_the_shutdown_up(slow: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """There is no status to say it with; our user is told."""
    assert isinstance(slow.backend, TellingBackend)
    slow.backend.failures["flush"] = errno.EIO
    request_shutdown(slow.driver)
    slow.worker.finish_all()
    assert slow.driver.status.shst == SHST_COMPLETE
    assert "may be lost" in caplog.text


@pytest.mark.fact("A12", clause="Base 1.4, 3.1.5 SHN", kills=("reserved-shn-shuts-down",))
def test_the_reserved_notification_does_nothing(driver: Driver) -> None:
    request_shutdown(driver, 3)
    assert driver.status.shst == SHST_NORMAL
    assert len(driver.identify(1)) == PAGE


@pytest.mark.fact("A12", clause=CLAUSE, kills=("old-flush-completes-new-shutdown",))
def test_a_flush_of_before_a_reset_does_not_complete_a_later_shutdown(slow: Bench) -> None:
    driver = slow.driver
    request_shutdown(driver)
    old = slow.worker.tasks[0]
    old.run()
    slow.write_bar(CC, bytes(4))
    assert driver.status.shst == SHST_NORMAL
    driver.enable()
    request_shutdown(driver)
    assert len(slow.worker.tasks) == 2
    old.finish()
    assert driver.status.shst == SHST_OCCURRING
    slow.worker.finish_all()
    assert driver.status.shst == SHST_COMPLETE


@pytest.mark.fact("A12", clause=CLAUSE, kills=("events-after-shutdown",))
def test_no_event_is_told_after_a_shutdown(driver: Driver) -> None:
    driver.submit(driver.admin, aer())
    shut_down(driver)
    driver.set_reg(DOORBELLS + 8, 1)
    assert driver.drain(driver.admin) == []


@pytest.mark.fact("A12", clause=CLAUSE, kills=("heads-ignored-after-shutdown",))
@pytest.mark.fact("A31", clause="Base 1.4, 7.5.1", kills=("heads-ignored-after-shutdown",))
def test_completions_can_be_consumed_after_a_shutdown(bench: Bench) -> None:
    """Otherwise the interrupt pin would stay asserted."""
    driver = bench.driver
    bench.ram.msix_enabled = False
    driver.enable()
    pair = driver.create_queues(1)
    driver.submit(pair, flush_command())
    shut_down(driver)
    assert bench.ram.pin_level
    assert len(driver.drain(pair)) == 1
    assert not bench.ram.pin_level
