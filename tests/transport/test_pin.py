"""The interrupt pin (INTx), for guests without MSI-X. It is a level. The VMM hears of it by events, which it masks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvmeemu.spec import NvmOpcode, ReadWrite
from nvmeemu.testing import INTMC, INTMS, Driver, QueuePair, VfioBus
from nvmeemu.testing.client import CONFIG, INTX, MSIX
from transport.served import ServedDisk

SOON = 5000  # milliseconds
NOW = 0
QUIET = 50  # longer than a host that was told gets before it is told again


@pytest.fixture
def served(path: str) -> Iterator[ServedDisk]:
    served = ServedDisk(path, "mem:1M", "--no-msix")
    yield served
    assert served.stop() == 0


@pytest.fixture
def bus(served: ServedDisk) -> Iterator[VfioBus]:
    with VfioBus(served.path, ram=4 << 20, vectors=0) as bus:
        yield bus


@pytest.fixture
def driver(bus: VfioBus) -> Driver:
    """Enabled, with queue pair 1; nothing pending, the pin unmasked."""
    driver = Driver(bus)
    driver.enable()
    driver.create_queues(1)
    fired(bus)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)
    return driver


def fired(bus: VfioBus, milliseconds: int = NOW) -> bool:
    """Whether there is an event. A round trip first: what the server does for a message is done behind it."""
    bus.client.device_info()
    bus.client.device_info()
    return bus.wait_for_interrupt(milliseconds) == [0]


def begin(driver: Driver, queue: QueuePair) -> None:
    """Submit a Flush."""
    driver.submit(queue, ReadWrite(opcode=NvmOpcode.FLUSH, nsid=1))


def finish(driver: Driver, queue: QueuePair) -> None:
    """Take its completion."""
    while driver.poll(queue) is None:
        driver.bus.settle()


def test_without_msix_there_is_the_pin_only(bus: VfioBus) -> None:
    assert bus.client.capability(0x11) == 0
    assert bus.client.interrupt_count(MSIX) == 0
    assert bus.client.interrupt_count(INTX) == 1
    assert bus.client.read(CONFIG, 0x3D, 1) == b"\x01"  # INTA#


def test_a_completion_fires_once_until_the_unmask(bus: VfioBus, driver: Driver) -> None:
    queue = driver.queues[1]
    begin(driver, queue)
    assert fired(bus, SOON)
    begin(driver, queue)
    assert not fired(bus)
    bus.client.unmask_pin()  # the level is still there; the host has a moment before it is told again
    assert fired(bus, SOON)
    finish(driver, queue)
    finish(driver, queue)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)
    begin(driver, queue)
    assert fired(bus, SOON)


def test_what_completes_while_masked_fires_at_the_unmask(bus: VfioBus, driver: Driver) -> None:
    queue = driver.queues[1]
    bus.client.mask_pin()
    begin(driver, queue)
    assert not fired(bus)
    bus.client.unmask_pin()
    assert fired(bus, SOON)


def test_what_was_consumed_while_masked_does_not_fire(bus: VfioBus, driver: Driver) -> None:
    queue = driver.queues[1]
    bus.client.mask_pin()
    begin(driver, queue)
    finish(driver, queue)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)


def test_a_queue_without_interrupts_never_fires(bus: VfioBus, driver: Driver) -> None:
    cq = driver.create_cq(2, 16, ien=False)
    queue = QueuePair(2, driver.create_sq(2, 16), cq, 16, 16)
    fired(bus)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)
    for _ in range(40):
        begin(driver, queue)
        finish(driver, queue)
        assert not fired(bus)
    begin(driver, queue)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)
    begin(driver, driver.queues[1])
    assert fired(bus, SOON)


def test_intms_and_intmc_hold_the_pin(bus: VfioBus, driver: Driver) -> None:
    queue = driver.queues[1]
    driver.set_reg(INTMS, 1)
    begin(driver, queue)
    assert not fired(bus)
    driver.set_reg(INTMC, 1)
    assert fired(bus, SOON)


def test_an_unmask_before_the_handler_has_consumed_fires_a_moment_later(bus: VfioBus, driver: Driver) -> None:
    """As by another processor's access. If the handler gets on meanwhile, there is nothing to fire for."""
    queue = driver.queues[1]
    for _ in range(20):
        begin(driver, queue)
        assert fired(bus, SOON)
        bus.client.unmask_pin()
        finish(driver, queue)
        bus.client.unmask_pin()
    begin(driver, queue)
    assert fired(bus, SOON)
    bus.client.unmask_pin()
    assert fired(bus, SOON)
    finish(driver, queue)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)


@pytest.mark.parametrize("again", [True, False], ids=["another client", "the end"])
def test_a_client_may_leave_while_the_pin_rests(served: ServedDisk, again: bool) -> None:
    with VfioBus(served.path, ram=4 << 20, vectors=0) as bus:
        driver = Driver(bus)
        driver.enable()
        begin(driver, driver.create_queues(1))
        assert fired(bus, SOON)
        bus.client.unmask_pin()
    if again:
        with VfioBus(served.path, ram=4 << 20, vectors=0) as bus:
            assert not fired(bus, QUIET)
            driver = Driver(bus)
            driver.enable()
            begin(driver, driver.create_queues(1))
            assert fired(bus, SOON)


@pytest.mark.parametrize("kind", ["device reset", "function level reset", "controller reset", "new client"])
def test_a_reset_lowers_the_pin(served: ServedDisk, bus: VfioBus, driver: Driver, kind: str) -> None:
    begin(driver, driver.queues[1])
    assert fired(bus, SOON)
    if kind == "device reset":
        bus.reset()
    elif kind == "function level reset":
        bus.function_level_reset()
    elif kind == "controller reset":
        driver.disable()
    else:
        bus.client.close()
        bus = VfioBus(served.path, ram=4 << 20, vectors=0)
    bus.client.unmask_pin()
    assert not fired(bus, QUIET)
    bus.client.enable_bus_master()
    again = Driver(bus)
    again.enable()
    begin(again, again.create_queues(1))
    assert fired(bus, SOON)
    if kind == "new client":
        bus.close()


def test_a_guest_that_waits_for_the_pin_alone_gets_on(bus: VfioBus, driver: Driver) -> None:
    """300 commands, one after another; each is looked for only after an event."""
    queue = driver.queues[1]
    for number in range(300):
        begin(driver, queue)
        assert fired(bus, SOON), number
        assert driver.poll(queue) is not None
        bus.client.unmask_pin()
    assert not fired(bus, QUIET)
