"""Asynchronous Event Requests. Base 1.4, 5.2."""

from __future__ import annotations

import pytest

from conformance.tools import Advance, aer, fails, identify_controller
from nvmeemu.controller.events import Event
from nvmeemu.spec import (
    AdminOpcode,
    Completion,
    CriticalWarning,
    EventType,
    FeatureId,
    LogId,
    SetFeatures,
    SmartLog,
    Status,
)
from nvmeemu.testing import Bench, Driver

ERROR, SMART = 0, 1  # types
DOORBELL_REGISTER, DOORBELL_VALUE = 0, 1  # information of an error
RELIABILITY, TEMPERATURE, SPARE = 0, 1, 2  # information of a SMART event
DOORBELLS = 0x1000
UNDER = 1 << 20  # THSEL of Temperature Threshold


def event(completion: Completion | None) -> tuple[int, int, int] | None:
    """(type, information, log page) of a completed request. Base 1.4, Figure 144."""
    if completion is None:
        return None
    assert completion.status == Status.SUCCESS
    return completion.dw0 & 7, completion.dw0 >> 8 & 0xFF, completion.dw0 >> 16 & 0xFF


def told(driver: Driver) -> list[tuple[int, int, int] | None]:
    driver.bus.settle()
    return [event(completion) for completion in driver.drain(driver.admin)]


def set_threshold(driver: Driver, cdw11: int) -> list[tuple[int, int, int] | None]:
    """Set the Temperature Threshold; what was told meanwhile."""
    fid = FeatureId.TEMPERATURE_THRESHOLD
    cid = driver.submit(driver.admin, SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=fid, cdw11=cdw11))
    driver.bus.settle()
    completions = driver.drain(driver.admin)
    assert [one.status for one in completions if one.cid == cid] == [Status.SUCCESS]
    return [event(one) for one in completions if one.cid != cid]


def park(driver: Driver, number: int = 1) -> None:
    for _ in range(number):
        driver.submit(driver.admin, aer())
    assert driver.poll(driver.admin) is None


def bad_value(driver: Driver) -> None:
    """Write a tail that the I/O queue cannot have."""
    driver.set_reg(DOORBELLS + 2 * driver.stride, 0x7FFF)


def no_queue(driver: Driver) -> None:
    """Ring a queue that does not exist."""
    driver.set_reg(DOORBELLS + 2 * 9 * driver.stride, 1)


def smart(driver: Driver, *, rae: bool = True) -> SmartLog:
    return SmartLog(driver.get_log(LogId.SMART, 512, rae=rae))


def clear(driver: Driver, log: LogId) -> None:
    driver.get_log(log, 64)


def listen(driver: Driver, warnings: int = 0b111) -> None:
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, warnings)


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("aer-completes-at-once", "aer-rejected"))
@pytest.mark.fact("B5", clause="Base 1.4, 5.2", kills=("aer-rejected",))
@pytest.mark.fact("B7", clause="Base 1.4, 5.2", kills=("aer-completes-at-once",))
def test_a_request_waits_until_something_happens(driver: Driver) -> None:
    """Propolis rejected it: Windows 11 24H2 then sees no disk. NVMeVirt completes it at once: Windows resubmits
    it for ever."""
    park(driver)
    for _ in range(3):
        driver.identify(1)
    assert driver.poll(driver.admin) is None


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("aer-times-out",))
def test_a_request_has_no_time_out(driver: Driver, advance: Advance) -> None:
    park(driver)
    advance(30 * 86400)
    assert driver.poll(driver.admin) is None


@pytest.mark.fact("A16", clause="Base 1.4, 5.2 and Figure 247, AERL", kills=("aerl-off-by-one",))
def test_as_many_requests_wait_as_aerl_says_and_the_next_is_refused(driver: Driver) -> None:
    most = identify_controller(driver).aerl
    park(driver, most)
    fails(driver, driver.admin, aer(), Status.AER_LIMIT_EXCEEDED, dnr=None)
    assert driver.poll(driver.admin) is None


@pytest.mark.fact("A4", clause="Base 1.4, 5.2, Figure 145", kills=("doorbell-events-swapped", "event-log-id"))
@pytest.mark.fact("A16", clause="Base 1.4, Figure 144", kills=("event-log-id",))
def test_a_bad_doorbell_is_told_with_type_information_and_log_page(driver: Driver) -> None:
    driver.create_queues()
    park(driver)
    bad_value(driver)
    assert told(driver) == [(ERROR, DOORBELL_VALUE, LogId.ERROR_INFORMATION)]
    clear(driver, LogId.ERROR_INFORMATION)
    park(driver)
    no_queue(driver)
    assert told(driver) == [(ERROR, DOORBELL_REGISTER, LogId.ERROR_INFORMATION)]


@pytest.mark.fact("A4", clause="Base 1.4, 5.2, Figure 145", kills=("doorbell-events-kept",))
def test_a_bad_doorbell_that_nobody_waits_for_is_forgotten(driver: Driver) -> None:
    driver.create_queues()
    bad_value(driver)
    park(driver)
    bad_value(driver)
    assert told(driver) == [(ERROR, DOORBELL_VALUE, LogId.ERROR_INFORMATION)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("events-not-masked",))
def test_a_type_is_masked_until_its_log_page_has_been_read(driver: Driver) -> None:
    driver.create_queues()
    park(driver, 3)
    for _ in range(3):
        bad_value(driver)
        no_queue(driver)
    assert told(driver) == [(ERROR, DOORBELL_VALUE, LogId.ERROR_INFORMATION)]
    clear(driver, LogId.ERROR_INFORMATION)
    no_queue(driver)
    assert told(driver) == [(ERROR, DOORBELL_REGISTER, LogId.ERROR_INFORMATION)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.14, RAE", kills=("rae-ignored",))
def test_a_log_page_read_with_rae_leaves_the_mask(driver: Driver) -> None:
    driver.create_queues()
    park(driver, 2)
    bad_value(driver)
    assert len(told(driver)) == 1
    driver.get_log(LogId.ERROR_INFORMATION, 64, rae=True)
    bad_value(driver)
    assert told(driver) == []
    clear(driver, LogId.ERROR_INFORMATION)
    bad_value(driver)
    assert len(told(driver)) == 1


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("any-log-clears",))
def test_another_log_page_does_not_lift_the_mask(driver: Driver) -> None:
    driver.create_queues()
    park(driver, 2)
    bad_value(driver)
    assert len(told(driver)) == 1
    clear(driver, LogId.SMART)
    clear(driver, LogId.FIRMWARE_SLOT)
    bad_value(driver)
    assert told(driver) == []


@pytest.mark.fact("A16", clause="Base 1.4, 5.21.1.4 and 5.2", kills=("no-smart-events",))
def test_a_threshold_below_the_temperature_is_told(driver: Driver) -> None:
    listen(driver)
    park(driver)
    assert set_threshold(driver, smart(driver).temperature - 10) == [(SMART, TEMPERATURE, LogId.SMART)]
    assert smart(driver).critical_warning == CriticalWarning.TEMPERATURE


@pytest.mark.fact("A16", clause="Base 1.4, 5.21.1.4", kills=("under-threshold-ignored",))
def test_so_is_an_under_threshold_above_it(driver: Driver) -> None:
    listen(driver)
    park(driver)
    assert set_threshold(driver, smart(driver).temperature + 5 | UNDER) == [(SMART, TEMPERATURE, LogId.SMART)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.14.1.2, Figure 193", kills=("warning-sticks",))
def test_the_warning_ends_with_its_reason(driver: Driver) -> None:
    threshold = driver.get_feature(FeatureId.TEMPERATURE_THRESHOLD)
    driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, smart(driver).temperature)  # equal is over
    assert smart(driver).critical_warning == CriticalWarning.TEMPERATURE
    driver.set_feature(FeatureId.TEMPERATURE_THRESHOLD, threshold)
    assert smart(driver).critical_warning == 0


@pytest.mark.fact("A16", clause="Base 1.4, 5.21.1.11", kills=("event-mask-ignored", "events-on-by-default"))
def test_what_the_host_does_not_want_to_hear_is_not_told(driver: Driver) -> None:
    """Feature 0Bh begins with nothing."""
    park(driver)
    temperature = smart(driver).temperature
    assert set_threshold(driver, temperature - 10) == []
    listen(driver, CriticalWarning.SPARE | CriticalWarning.RELIABILITY)
    assert set_threshold(driver, temperature - 20) == []
    assert smart(driver).critical_warning == CriticalWarning.TEMPERATURE


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("smart-events-repeated",))
def test_a_warning_that_lasts_is_told_once(driver: Driver) -> None:
    listen(driver)
    park(driver, 3)
    temperature = smart(driver).temperature
    assert set_threshold(driver, temperature - 10) == [(SMART, TEMPERATURE, LogId.SMART)]
    assert set_threshold(driver, temperature - 20) == []
    clear(driver, LogId.SMART)
    assert set_threshold(driver, temperature - 30) == []


@pytest.mark.fact("A16", clause="Base 1.4, 5.2, Figure 146", kills=("health-change-silent", "smart-event-info"))
def test_every_critical_warning_has_its_event_and_its_bit(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    listen(driver)
    park(driver, 3)
    bench.controller.set_health(temperature=360)
    bench.settle()
    assert told(driver) == [(SMART, TEMPERATURE, LogId.SMART)]
    assert (smart(driver, rae=False).critical_warning, smart(driver).temperature) == (0b010, 360)
    bench.controller.set_health(temperature=300, spare=9)
    bench.settle()
    assert told(driver) == [(SMART, SPARE, LogId.SMART)]
    log = smart(driver, rae=False)
    assert (log.critical_warning, log.available_spare, log.spare_threshold) == (0b001, 9, 10)
    bench.controller.set_health(spare=10, is_degraded=True)
    bench.settle()
    assert told(driver) == [(SMART, RELIABILITY, LogId.SMART)]
    assert smart(driver).critical_warning == 0b100


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("events-lost-without-request", "event-without-interrupt"))
def test_a_smart_event_waits_for_its_request(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    listen(driver)
    bench.controller.set_health(spare=0)
    bench.settle()
    bench.ram.interrupts.clear()
    cid = driver.submit(driver.admin, aer())
    completion = driver.poll(driver.admin)
    assert completion is not None
    assert completion.cid == cid
    assert event(completion) == (SMART, SPARE, LogId.SMART)
    assert bench.ram.interrupts == [0]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("pending-events-outlive-their-log",))
@pytest.mark.parametrize("parked", [0, 1])
def test_what_the_host_has_read_in_the_log_page_is_not_told_later(bench: Bench, parked: int) -> None:
    """Neither what met no request nor what its type's mask held back."""
    driver = bench.driver
    driver.enable()
    listen(driver)
    park(driver, parked)
    bench.controller.set_health(temperature=360)
    bench.controller.set_health(spare=0)
    bench.settle()
    assert len(told(driver)) == parked
    assert smart(driver, rae=False).critical_warning == 0b011
    park(driver)
    bench.controller.set_health(is_degraded=True)
    bench.settle()
    assert told(driver) == [(SMART, RELIABILITY, LogId.SMART)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2 and 5.14, RAE", kills=("any-log-forgets-events", "rae-ignored"))
@pytest.mark.parametrize(("log", "rae"), [(LogId.SMART, True), (LogId.ERROR_INFORMATION, False)])
def test_what_it_has_not_cleared_is_told_later(bench: Bench, log: LogId, rae: bool) -> None:
    driver = bench.driver
    driver.enable()
    listen(driver)
    bench.controller.set_health(spare=0)
    bench.settle()
    driver.get_log(log, 512, rae=rae)
    driver.submit(driver.admin, aer())
    assert told(driver) == [(SMART, SPARE, LogId.SMART)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("one-mask-for-all-types",))
def test_a_masked_type_does_not_hold_up_another(driver: Driver) -> None:
    driver.create_queues()
    listen(driver)
    temperature = smart(driver).temperature
    park(driver, 2)
    bad_value(driver)
    assert [one and one[0] for one in told(driver)] == [ERROR]
    assert [one and one[0] for one in set_threshold(driver, temperature - 10)] == [SMART]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2 and 7.3.2", kills=("events-survive-reset",))
def test_a_reset_forgets_events_masks_and_requests(driver: Driver) -> None:
    driver.create_queues()
    park(driver, 2)
    bad_value(driver)
    assert len(told(driver)) == 1
    driver.enable()
    driver.create_queues()
    bad_value(driver)
    assert told(driver) == []
    park(driver)
    bad_value(driver)
    assert told(driver) == [(ERROR, DOORBELL_VALUE, LogId.ERROR_INFORMATION)]


@pytest.mark.fact("A16", clause="Base 1.4, 5.2", kills=("events-without-bound",))
def test_of_events_that_nobody_fetches_the_last_ones_are_kept(bench: Bench) -> None:
    """Each of its own log page here, so that none takes another's place; no device of ours has so many."""
    driver, events = bench.driver, bench.controller.state.events
    driver.enable()
    for number in range(200):
        events.report(Event(EventType.NOTICE, number, LogId.SUPPORTED_LOG_PAGES + number))  # type: ignore[arg-type]
    found: list[int] = []
    driver.submit(driver.admin, aer())
    bench.settle()
    while completions := driver.drain(driver.admin):
        found += [completion.dw0 >> 8 & 0xFF for completion in completions]
        events.was_read(LogId.SUPPORTED_LOG_PAGES + found[-1])
        driver.submit(driver.admin, aer())
        bench.settle()
    assert found == list(range(200 - 64, 200))
