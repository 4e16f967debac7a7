"""What any controller with Namespace Attachment does, QEMU's too: lists, attach, detach. Base 2.0, 5.22 and 8.11."""

from __future__ import annotations

import pytest

from conformance.namespace_commands import attach, cntlids, detach, nsids, refused, succeeds
from conformance.tools import DriverOf, fails, identify_namespace, read_command
from nvmeemu.spec import PAGE_MIN, Cns, Status
from nvmeemu.testing import Bench, Driver

DISK = 1 << 20


@pytest.fixture
def host(request: pytest.FixtureRequest, driver_of: DriverOf) -> Driver:
    """Of a controller with namespaces 1 and 2."""
    if request.config.getoption("--judge", default=False):
        driver = driver_of({1: (DISK, 512), 2: (DISK, 512)})
    else:
        bench: Bench = request.getfixturevalue("new_bench")(pool=1 << 20)
        bench.subsystem.add(bench.namespace(2, bench.backend, identity="two"))
        driver = bench.driver
    driver.enable()
    return driver


@pytest.mark.fact("F111", clause="Base 2.0, Figure 273, CNS 10h to 13h")
def test_what_is_there_is_listed(host: Driver) -> None:
    (cntlid,) = cntlids(host, Cns.CONTROLLERS)
    assert nsids(host) == nsids(host, Cns.ALLOCATED_NAMESPACES) == [1, 2]
    assert nsids(host, Cns.ALLOCATED_NAMESPACES, 1) == [2]
    assert cntlids(host, Cns.ATTACHED_CONTROLLERS, 2) == [cntlid]
    assert host.identify(Cns.ALLOCATED_NAMESPACE, 2) == host.identify(Cns.NAMESPACE, 2)


@pytest.mark.fact("F108", clause="Base 2.0, 5.22")
@pytest.mark.fact("F117", clause="Base 2.0, 8.11")
def test_what_is_detached_is_inactive_until_it_is_attached(host: Driver) -> None:
    (cntlid,) = cntlids(host, Cns.CONTROLLERS)
    queue = host.create_queues(1)
    whole = host.identify(Cns.NAMESPACE, 2)
    succeeds(detach(host, 2, cntlid))
    assert (nsids(host), nsids(host, Cns.ALLOCATED_NAMESPACES)) == ([1], [1, 2])
    assert cntlids(host, Cns.ATTACHED_CONTROLLERS, 2) == []
    assert identify_namespace(host, 2).nsze == 0
    assert host.identify(Cns.ALLOCATED_NAMESPACE, 2) == whole
    fails(host, queue, read_command(host.alloc(PAGE_MIN), nsid=2), Status.INVALID_FIELD)
    succeeds(attach(host, 2, cntlid))
    assert (nsids(host), host.identify(Cns.NAMESPACE, 2)) == ([1, 2], whole)
    assert host.read(0, 1, nsid=2) == bytes(512)


@pytest.mark.fact("F109", clause="Base 2.0, Figure 297")
def test_what_is_so_already_is_an_error(host: Driver) -> None:
    (cntlid,) = cntlids(host, Cns.CONTROLLERS)
    refused(attach(host, 1, cntlid), Status.NAMESPACE_ALREADY_ATTACHED)
    succeeds(detach(host, 1, cntlid))
    refused(detach(host, 1, cntlid), Status.NAMESPACE_NOT_ATTACHED)


@pytest.mark.fact("F108", clause="Base 2.0, Figure 137")
def test_a_list_without_controllers_is_refused(host: Driver) -> None:
    refused(attach(host, 1), Status.INVALID_CONTROLLER_LIST)
