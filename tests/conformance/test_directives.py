"""Directives: which a host can use, and Streams. Base 1.4, 9."""

from __future__ import annotations

import struct

import pytest

from conformance.tools import GUARD, NewBench, fails, guarded, identify_controller, write_command
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import (
    BROADCAST,
    PAGE_MIN,
    DirectiveParameters,
    DirectiveReceive,
    DirectiveSend,
    DirectiveType,
    FormatNvm,
    Oacs,
    Status,
    StreamsParameters,
    StreamsReceive,
    StreamsSend,
)
from nvmeemu.testing import Bench, Driver

MOST = 16  # streams of the subsystem
STREAMS = DirectiveType.STREAMS


@pytest.fixture
def drive(new_bench: NewBench) -> Bench:
    """With two namespaces."""
    bench = new_bench(MemoryBackend(1 << 20), can_be_formatted=True)
    bench.subsystem.add(bench.namespace(2, MemoryBackend(1 << 20), identity="two"))
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


@pytest.fixture
def host(drive: Bench) -> Driver:
    return drive.driver


def enable(driver: Driver, nsid: int = 1, *, is_on: bool = True) -> None:
    driver.succeed(driver.admin, DirectiveSend(nsid=nsid, numd=1, doper=1, endir=is_on, tdtype=STREAMS))


def receive(driver: Driver, dtype: int, doper: int, size: int, nsid: int = 1) -> bytes:
    place = guarded(driver, 4096)
    command = DirectiveReceive(nsid=nsid, prp1=place, numd=size // 4, doper=doper, dtype=dtype)
    driver.succeed(driver.admin, command)
    assert driver.bus.read_memory(place + size, 64) == GUARD * 64, "more than NUMD was written"
    return driver.bus.read_memory(place, size)


def parameters(driver: Driver, nsid: int = 1) -> StreamsParameters:
    return StreamsParameters(receive(driver, STREAMS, StreamsReceive.RETURN_PARAMETERS, 32, nsid))


def opened(driver: Driver, nsid: int = 1) -> list[int]:
    found = receive(driver, STREAMS, StreamsReceive.GET_STATUS, 256, nsid)
    number = int.from_bytes(found[:2], "little")
    return list(struct.unpack_from(f"<{number}H", found, 2))


def write(driver: Driver, *streams: int, nsid: int = 1, slba: int = 0) -> None:
    for stream in streams:
        command = write_command(driver.alloc(PAGE_MIN), slba=slba, nsid=nsid)
        command.cdw12 |= STREAMS << 20
        command.cdw13 = stream << 16
        driver.succeed(driver.queues[1], command)


def allocate(driver: Driver, number: int, nsid: int = 1) -> int:
    command = DirectiveReceive(nsid=nsid, numd=1, doper=StreamsReceive.ALLOCATE_RESOURCES, dtype=STREAMS, nsr=number)
    return driver.succeed(driver.admin, command).dw0


def refused(driver: Driver, command: DirectiveSend | DirectiveReceive, status: Status = Status.INVALID_FIELD) -> None:
    command.prp1 = driver.alloc(PAGE_MIN)
    fails(driver, driver.admin, command, status)


def sent(doper: int, nsid: int = 1, dspec: int = 0) -> DirectiveSend:
    return DirectiveSend(nsid=nsid, numd=1, doper=doper, dtype=STREAMS, dspec=dspec)


@pytest.mark.fact("F325", clause="Base 1.4, 9.2", kills=("streams-for-all-namespaces", "numd-ignored"))
def test_a_host_enables_streams_for_one_namespace_or_all(host: Driver) -> None:
    """Linux enables them for all at once."""
    assert identify_controller(host).oacs & Oacs.DIRECTIVES
    identify = DirectiveType.IDENTIFY

    def enabled(nsid: int) -> int:
        page = DirectiveParameters(receive(host, identify, 1, 4096, nsid))
        assert (page.supported, page.persistent) == (0b11, 0)
        return page.enabled

    enable(host, 2)
    assert [enabled(nsid) for nsid in (1, 2, BROADCAST)] == [0b01, 0b11, 0b01]
    enable(host, BROADCAST)
    enable(host)  # once more
    assert [enabled(nsid) for nsid in (1, 2, BROADCAST)] == [0b11] * 3
    enable(host, 1, is_on=False)
    assert [enabled(nsid) for nsid in (1, 2)] == [0b01, 0b11]
    assert receive(host, identify, 1, 8)[:1] == b"\3"


@pytest.mark.fact("F325", clause="Base 1.4, 9.2", kills=("any-directive", "streams-without-being-enabled"))
def test_what_is_no_directive_is_refused(host: Driver) -> None:
    for tdtype in (DirectiveType.IDENTIFY, 2, 0x55):
        for is_on in (False, True):
            refused(host, DirectiveSend(nsid=1, numd=1, doper=1, endir=is_on, tdtype=tdtype))
    refused(host, DirectiveSend(nsid=1, numd=1, doper=2))
    refused(host, DirectiveReceive(nsid=1, numd=1, doper=2))
    refused(host, DirectiveReceive(nsid=1, numd=1, doper=1, dtype=2))
    for nsid, status in ((0, Status.INVALID_NAMESPACE), (5, Status.INVALID_FIELD), (999, Status.INVALID_NAMESPACE)):
        refused(host, DirectiveReceive(nsid=nsid, numd=1, doper=1), status)
    for is_enabled in (False, True):
        if is_enabled:
            enable(host)
        refused(host, DirectiveReceive(nsid=1, numd=1, doper=4, dtype=STREAMS))
        refused(host, sent(3))
    for operation in StreamsReceive:
        refused(host, DirectiveReceive(nsid=2, numd=1, doper=operation, dtype=STREAMS))
    for release in StreamsSend:
        refused(host, sent(release, nsid=2))
        refused(host, sent(release, nsid=BROADCAST))
    refused(host, DirectiveReceive(nsid=BROADCAST, numd=1, doper=3, dtype=STREAMS, nsr=1))
    refused(host, DirectiveReceive(nsid=1, numd=1 << 22, doper=1))  # longer than MDTS


@pytest.mark.fact(
    "F326",
    clause="Base 1.4, 9.3",
    kills=("stream-zero", "streams-without-end", "newest-stream-closed", "status-unsorted"),
)
def test_writes_open_streams_and_the_oldest_is_closed(host: Driver) -> None:
    write(host, 7)  # not enabled: it does not count
    enable(host, BROADCAST)
    assert opened(host) == []
    write(host, 0)
    write(host, 65535, 3, 65535)
    write(host, 5, nsid=2)
    page = parameters(host)
    assert (opened(host), opened(host, 2), opened(host, BROADCAST)) == ([3, 65535], [5], [3, 5, 65535])
    assert (page.msl, page.nssa, page.nsso, page.nsa, page.nso) == (MOST, MOST, 3, 0, 2)
    assert (page.sws * 512, page.sgs) == (PAGE_MIN, 1)
    of_all = parameters(host, BROADCAST)
    assert (of_all.nsso, of_all.sws, of_all.nso) == (3, 0, 0)
    write(host, *range(100, 100 + MOST - 2))  # one more than there is room for
    assert opened(host) == [3, *range(100, 100 + MOST - 2)]
    assert parameters(host).nsso == MOST
    write(host, 1)
    assert 3 not in opened(host)
    assert opened(host, 2) == [5]


@pytest.mark.fact("F326", clause="Base 1.4, 9.3.1.3", kills=("streams-allocated-twice", "own-streams-from-the-shared"))
def test_a_host_gets_streams_of_its_own(host: Driver) -> None:
    enable(host, BROADCAST)
    write(host, 1, 2)
    write(host, 3, nsid=2)
    assert allocate(host, 3) == 3
    refused(host, DirectiveReceive(nsid=1, numd=1, doper=3, dtype=STREAMS, nsr=1))
    write(host, 11, 12, 13, 14)
    page = parameters(host)
    assert opened(host) == [12, 13, 14]
    assert (page.nssa, page.nsso, page.nsa, page.nso) == (MOST - 3, 1, 3, 3)
    assert allocate(host, 1000, nsid=2) == MOST - 3
    assert parameters(host).nssa == 0
    host.succeed(host.admin, sent(StreamsSend.RELEASE_RESOURCES))
    assert allocate(host, 0xFFFF) == 3
    host.succeed(host.admin, sent(StreamsSend.RELEASE_RESOURCES))
    host.succeed(host.admin, sent(StreamsSend.RELEASE_RESOURCES))  # nothing is left
    assert (opened(host), parameters(host).nssa) == ([], 3)


@pytest.mark.fact("F326", clause="Base 1.4, 9.3.1.3", kills=("streams-of-nothing",))
def test_when_all_are_somebodys_there_is_none(host: Driver) -> None:
    enable(host, BROADCAST)
    write(host, 9)
    assert allocate(host, MOST, nsid=2) == MOST
    assert opened(host) == []
    write(host, 9)  # it is written, and opens nothing
    assert opened(host) == []
    command = DirectiveReceive(nsid=1, numd=1, doper=3, dtype=STREAMS, nsr=1)
    refused(host, command, Status.STREAM_RESOURCE_ALLOCATION_FAILED)


@pytest.mark.fact("F326", clause="Base 1.4, 9.3.2", kills=("release-closes-nothing",))
def test_a_stream_is_released_open_or_not(host: Driver) -> None:
    enable(host)
    write(host, 1, 2)
    for identifier in (1, 1, 77):
        host.succeed(host.admin, sent(StreamsSend.RELEASE_IDENTIFIER, dspec=identifier))
    assert opened(host) == [2]
    enable(host, is_on=False)
    enable(host)
    assert opened(host) == []


@pytest.mark.fact(
    "F326",
    clause="Base 1.4, 9.3",
    kills=("streams-outlive-a-reset", "streams-outlive-a-format", "streams-outlive-their-namespace"),
)
def test_format_a_reset_and_the_end_of_a_namespace_close_them(drive: Bench, new_bench: NewBench) -> None:
    host = drive.driver
    other = new_bench(subsystem=drive.subsystem, cntlid=2).driver
    other.enable()
    other.create_queues(1)
    for driver in (host, other):
        enable(driver, BROADCAST)
        write(driver, 4, nsid=2)
    write(host, 5)
    allocate(host, 2, nsid=2)
    assert opened(other, 2) == [4], "each host has its own"
    host.succeed(host.admin, FormatNvm(nsid=1))
    assert (opened(host), opened(other, 2)) == ([], [4])
    drive.subsystem.detach(2, 2)
    assert parameters(host).nsso == 0
    drive.subsystem.remove(2)
    assert parameters(host).nssa == MOST
    drive.controller.reset()
    host.enable()
    refused(host, DirectiveReceive(nsid=1, numd=1, doper=2, dtype=STREAMS))
    assert opened(other) == []


@pytest.mark.fact("F326", clause="NVM 1.0, 3.2.6", kills=("stream-of-a-write-that-fails",))
def test_data_written_with_a_stream_is_like_all_other(host: Driver) -> None:
    """Also with metadata; a write that is refused opens nothing."""
    host.succeed(host.admin, FormatNvm(nsid=1, lbafl=1, mset=True))
    for nsid in (1, 2):
        enable(host, nsid)
        write(host, 6, nsid=nsid, slba=5)
        assert opened(host, nsid) == [6]
        command = write_command(1, nsid=nsid)  # PRP1 is no dword
        command.dtype, command.dspec = STREAMS, 8
        fails(host, host.queues[1], command, Status.INVALID_PRP_OFFSET)
        assert opened(host, nsid) == [6]
    assert host.read(5, 1, nsid=2) == bytes(512)
