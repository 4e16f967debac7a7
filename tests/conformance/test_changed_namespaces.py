"""Namespaces that come, go and change while a host uses them: what it is told, and where it finds which."""

from __future__ import annotations

import struct

import pytest

from conformance.tools import aer, fails, identify_controller, identify_namespace, read_command
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import Cns, FeatureId, LogId, Status
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.testing import Bench, Driver

NOTICES = 1 << 8  # of Asynchronous Event Configuration: Namespace Attribute Notices
CHANGED = 0x040002  # notice, Namespace Attribute Changed, Changed Namespace List


def changed(driver: Driver, *, rae: bool = False) -> list[int]:
    page = driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096, rae=rae)
    numbers = struct.unpack("<1024I", page)
    found = [number for number in numbers if number]
    assert numbers[: len(found)] == tuple(found), "zeros between the entries"
    return found


def add(bench: Bench, nsid: int = 3) -> Namespace:
    namespace = bench.namespace(nsid, MemoryBackend(1 << 20), identity=f"disk {nsid}")
    bench.subsystem.add(namespace)
    bench.settle()
    return namespace


def told(driver: Driver) -> list[int]:
    driver.bus.settle()
    return [completion.dw0 for completion in driver.drain(driver.admin)]


@pytest.mark.fact("A34", clause="Base 1.4, 5.2, Figure 147", kills=("namespace-notice-unasked", "oaes-zero"))
def test_a_host_is_told_only_if_it_has_asked_for_it(driver: Driver, bench: Bench) -> None:
    assert identify_controller(driver).oaes & NOTICES
    driver.submit(driver.admin, aer())
    add(bench)
    assert told(driver) == []
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
    add(bench, 4)
    assert told(driver) == [CHANGED]


@pytest.mark.fact(
    "A34",
    clause="Base 1.4, 5.14.1.4",
    kills=("changed-list-stays", "changed-list-ignores-rae", "changed-list-unsorted"),
)
def test_the_list_has_what_has_changed_since_it_was_read(driver: Driver, bench: Bench) -> None:
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
    for _ in range(2):
        driver.submit(driver.admin, aer())
    add(bench, 7)
    add(bench, 3)
    assert told(driver) == [CHANGED]  # the second one waits until the page is read
    assert changed(driver, rae=True) == [3, 7]
    assert changed(driver) == [3, 7]
    assert changed(driver) == []
    bench.subsystem.remove(3)
    assert told(driver) == [CHANGED]
    assert changed(driver) == [3]


@pytest.mark.fact("A34", clause="Base 1.4, 6.1.2 and 5.15.2", kills=("removed-namespace-serves",))
def test_what_is_removed_is_an_inactive_namespace(driver: Driver, bench: Bench) -> None:
    add(bench)
    queue = driver.create_queues(1)
    driver.write(0, b"x" * 512, nsid=3)
    bench.subsystem.remove(3)
    fails(driver, queue, read_command(driver.alloc(4096), nsid=3), Status.INVALID_FIELD)
    assert driver.identify(Cns.ACTIVE_NAMESPACES)[:8] == struct.pack("<2I", 1, 0)
    assert driver.identify(Cns.NAMESPACE, 3) == bytes(4096)


@pytest.mark.fact("A34", clause="Base 1.4, Figure 245, NSZE and NVMCAP", kills=("resized-nvmcap",))
def test_a_namespace_of_another_size_says_so_and_ends_there(driver: Driver, bench: Bench) -> None:
    queue = driver.create_queues(1)
    device = bench.controller.state
    device.subsystem.resize(1, 16)
    page = identify_namespace(driver)
    assert (page.nsze, page.ncap, page.nvmcap) == (16, 16, 16 * 512)
    assert changed(driver) == [1]
    driver.read(15, 1)
    fails(driver, queue, read_command(driver.alloc(4096), slba=16), Status.LBA_OUT_OF_RANGE)
    with pytest.raises(ValueError, match="its disk has no more"):
        device.subsystem.resize(1, 1 << 30)


@pytest.mark.fact("A34", clause="Base 1.4, 5.14.1.4 and 7.3.2", kills=("changed-list-lost-by-reset",))
@pytest.mark.parametrize("is_function_reset", [False, True])
def test_a_reset_keeps_what_has_changed(driver: Driver, bench: Bench, is_function_reset: bool) -> None:
    """The list is cleared by reading it and by nothing else. Otherwise the next driver would miss a namespace."""
    add(bench)
    if is_function_reset:
        bench.controller.reset()
    driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
    driver.submit(driver.admin, aer())
    assert told(driver) == []
    add(bench, 4)
    assert told(driver) == [CHANGED]
    assert changed(driver) == [3, 4]
