"""Controller Reset: what goes, what stays, and that nothing of the past comes after it. Base 1.4, 7.3.2."""

from __future__ import annotations

import random

import pytest

from conformance.tools import aer, flush_command, read_command, write_command
from nvmeemu.spec import DOORBELLS, Configuration, ControllerStatus, FeatureId
from nvmeemu.testing import ACQ, AQA, ASQ, CC, INTMC, INTMS, PAGE, Bench, Driver

CHANGEABLE = 4  # in the capabilities of a feature


def memory(bench: Bench) -> bytes:
    """What the driver has taken of the guest's memory, and a page more."""
    return bench.ram.read(0, bench.driver.alloc(PAGE) + PAGE)


@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("reset-clears-aqa",))
def test_the_admin_queue_registers_survive_a_reset(driver: Driver) -> None:
    """The host may enable again without writing them."""
    driver.identify(1)
    before = [driver.reg(AQA), driver.reg(ASQ, 8), driver.reg(ACQ, 8)]
    driver.disable()
    assert [driver.reg(AQA), driver.reg(ASQ, 8), driver.reg(ACQ, 8)] == before
    driver.bus.write_memory(driver.admin.cq, bytes(driver.admin.cq_entries * 16))
    driver.admin.sq_tail = driver.admin.cq_head = 0
    driver.admin.phase = 1
    driver.set_reg(CC, driver.reg(CC) | 1)
    for _ in range(100):
        driver.bus.settle()
    assert driver.status.rdy
    assert len(driver.identify(1)) == PAGE


@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("io-queues-survive-reset",))
def test_io_queues_are_gone_after_a_reset(driver: Driver) -> None:
    driver.create_queues(1)
    driver.enable()
    driver.submit(driver.admin, aer())
    driver.set_reg(DOORBELLS + 2 * driver.stride, 1)
    assert [completion.dw0 for completion in driver.drain(driver.admin)] == [0x010000]  # a doorbell of no queue
    pair = driver.create_queues(1)
    driver.succeed(pair, flush_command())


@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("reset-completes-the-rest",))
def test_event_requests_end_without_a_completion_at_a_reset(driver: Driver) -> None:
    for _ in range(3):
        driver.submit(driver.admin, aer())
    driver.bus.settle()
    before = driver.bus.read_memory(driver.admin.cq, 512)
    admin = driver.admin
    driver.enable()
    assert driver.bus.read_memory(admin.cq, 512) == before
    for _ in range(3):
        driver.submit(driver.admin, aer())
    assert driver.drain(driver.admin) == []


@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("reset-completes-the-rest", "reset-keeps-work"))
@pytest.mark.parametrize("is_function_reset", [False, True])
def test_a_thousand_commands_in_flight_end_without_a_trace(slow: Bench, is_function_reset: bool) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    driver = slow.driver
    for qid in (1, 2):
        pair = driver.create_queues(qid, 512)
        place = driver.alloc(PAGE)
        for _ in range(500):
            command = chance.choice((read_command, write_command))(place)
            driver.submit(pair, command, ring=False)
        driver.ring_sq(pair)
    for _ in range(5):
        driver.submit(driver.admin, aer())
    assert len(slow.worker.tasks) == 1000
    begun = chance.sample(slow.worker.tasks, 100)
    for task in begun:
        task.run()
    before = memory(slow)
    slow.ram.interrupts.clear()
    if is_function_reset:
        slow.controller.reset()
    else:
        slow.write_bar(CC, bytes(4))
    slow.settle()
    assert set(slow.worker.tasks) == set(begun)
    chance.shuffle(begun)
    for task in begun:
        task.finish()
        slow.settle()
    assert memory(slow).startswith(before)
    assert slow.ram.interrupts == []
    assert driver.status == ControllerStatus()
    driver.enable()
    assert len(driver.identify(1)) == PAGE


@pytest.mark.fact("A9", clause="Base 1.4, 3.1.6 RDY", kills=("rdy-falls-under-a-writer",))
def test_rdy_falls_only_when_no_worker_writes_any_more(slow: Bench) -> None:
    driver = slow.driver
    pair = driver.create_queues(1)
    driver.submit(pair, write_command(driver.alloc(PAGE)))
    slow.worker.tasks[0].run()
    driver.set_reg(CC, driver.reg(CC) & ~1)
    assert driver.status.rdy
    slow.worker.finish_all()
    assert not driver.status.rdy


@pytest.mark.fact("A9", clause="Base 1.4, 3.1.6 RDY", kills=("rdy-rises-over-a-writer",))
def test_a_host_that_does_not_wait_for_rdy_0_waits_for_rdy_1(slow: Bench) -> None:
    """Also after a function reset, which clears RDY at once."""
    driver = slow.driver
    for is_function_reset in (False, True):
        pair = driver.create_queues(1)
        driver.submit(pair, write_command(driver.alloc(PAGE)))
        slow.worker.tasks[0].run()
        aqa, asq, acq = driver.reg(AQA), driver.reg(ASQ, 8), driver.reg(ACQ, 8)
        if is_function_reset:
            slow.controller.reset()
            driver.set_reg(AQA, aqa)
            driver.set_reg(ASQ, asq, 8)
            driver.set_reg(ACQ, acq, 8)
        driver.set_reg(CC, 0)
        driver.set_reg(CC, int(Configuration(en=True, iosqes=6, iocqes=4)))
        assert not driver.status.rdy
        slow.worker.finish_all()
        assert driver.status == ControllerStatus(rdy=True)
        driver.enable()


@pytest.mark.fact("A9", clause="Base 1.4, 5.21 and 7.8", kills=("feature-values-survive-reset",))
@pytest.mark.fact("B4", clause="Base 1.4, 7.8", kills=("feature-values-survive-reset",))
def test_feature_values_are_back_at_their_defaults_after_a_reset(driver: Driver) -> None:
    """QEMU keeps what was set."""
    values = {
        FeatureId.ARBITRATION: 0x01010103,
        FeatureId.TEMPERATURE_THRESHOLD: 0x0155,
        FeatureId.INTERRUPT_COALESCING: 0x0102,
        FeatureId.ASYNC_EVENT_CONFIGURATION: 0x1F,
    }
    changed = {fid: value for fid, value in values.items() if driver.get_feature(fid, sel=3) & CHANGEABLE}
    assert changed
    before = {fid: driver.get_feature(fid) for fid in changed}
    for fid, value in changed.items():
        driver.set_feature(fid, value)
    assert {fid: driver.get_feature(fid) for fid in changed} == changed
    driver.enable()
    assert {fid: driver.get_feature(fid) for fid in changed} == before


@pytest.mark.fact("A9", clause="Base 1.4, 3.1.3", kills=("interrupt-mask-survives-reset",))
def test_the_interrupt_mask_is_clear_after_a_reset(bench: Bench) -> None:
    driver = bench.driver
    bench.ram.msix_enabled = False
    driver.enable()
    driver.set_reg(INTMS, 1)
    driver.enable()
    assert driver.reg(INTMS) == driver.reg(INTMC) == 0
    driver.submit(driver.admin, flush_command())
    assert bench.ram.pin_level


@pytest.mark.fact("A9", clause="Base 1.4, 7.3.2", kills=("reset-completes-the-rest",))
def test_a_reset_at_any_moment_leaves_a_working_controller(slow: Bench) -> None:
    """And nothing of the time before it reaches the host, whatever the disk was at."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    driver = slow.driver
    for _ in range(30):
        slow.worker.finish_all()
        driver.enable()
        pair = driver.create_queues(1, 16)
        place = driver.alloc(PAGE)
        for _ in range(chance.randrange(1, 15)):
            driver.submit(pair, chance.choice((read_command, write_command))(place))
            if slow.worker.tasks and chance.random() < 0.5:
                chance.choice((chance.choice(slow.worker.tasks).run, slow.worker.tasks[0].finish))()
                slow.settle()
        before = memory(slow)
        slow.write_bar(CC, bytes(4))
        slow.settle()
        while slow.worker.tasks and chance.random() < 0.8:
            slow.worker.tasks[0].finish()
        assert memory(slow).startswith(before)
