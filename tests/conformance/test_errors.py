"""What a failing disk does to the guest, and what makes data durable. Base 1.4, 4.6.1.2.3, 6.8, 6.9, 6.15."""

from __future__ import annotations

import errno

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    dsm_command,
    fails,
    flush_command,
    guarded,
    identify_controller,
    is_untouched,
    read_command,
    write_command,
)
from nvmeemu.spec import BROADCAST, Command, Completion, ErrorLogEntry, LogId, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair

WITH_AND_WITHOUT_THE_ENGINE = pytest.mark.parametrize("disk", [False, True], indirect=True, ids=["told", "direct"])
PLAIN = {"read": 2, "write": 1, "compare": 5, "verify": 0x0C}


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> TellingBackend:
    return TellingBackend(is_direct=getattr(request, "param", False))


@pytest.fixture
def queue(new_bench: NewBench, disk: TellingBackend) -> tuple[Driver, QueuePair]:
    driver = new_bench(disk).driver
    driver.enable()
    return driver, driver.create_queues()


def blocks(opcode: int, prp1: int = 0, *, fua: bool = False) -> ReadWrite:
    return ReadWrite(opcode=opcode, nsid=1, prp1=prp1, nlb=1, fua=fua)


def command_named(driver: Driver, name: str, *, fua: bool = False) -> Command:
    page = driver.alloc(PAGE)
    if name == "flush":
        return flush_command()
    if name == "deallocate":
        return dsm_command(driver, [(0, 8)])
    if name == "zero":
        return blocks(NvmOpcode.WRITE_ZEROES, fua=fua)
    return blocks(PLAIN[name], page, fua=fua)


@pytest.mark.fact("A27", clause="Base 1.4, Figure 129", kills=("media-errors-internal",))
@pytest.mark.parametrize(
    ("name", "operation", "status"),
    [
        ("read", "read", Status.UNRECOVERED_READ_ERROR),
        ("compare", "read", Status.UNRECOVERED_READ_ERROR),
        ("verify", "read", Status.UNRECOVERED_READ_ERROR),
        ("write", "write", Status.WRITE_FAULT),
        ("zero", "zero", Status.WRITE_FAULT),
        ("deallocate", "deallocate", Status.WRITE_FAULT),
        ("flush", "flush", Status.WRITE_FAULT),
    ],
)
def test_a_failing_disk_gives_each_command_its_media_error(
    disk: TellingBackend, queue: tuple[Driver, QueuePair], name: str, operation: str, status: Status
) -> None:
    driver, pair = queue
    disk.failures[operation] = errno.EIO
    fails(driver, pair, command_named(driver, name), status, dnr=None)
    disk.failures.clear()
    assert driver.execute(pair, command_named(driver, name)).status == Status.SUCCESS


@pytest.mark.fact("A28", clause="Base 1.4, Figure 124, DNR", kills=("disk-errors-never-retried",))
@pytest.mark.fact("A28", clause="Base 1.4, Figure 124, DNR", kills=("full-disk-retried",))
def test_only_an_error_that_may_pass_is_worth_another_attempt(
    disk: TellingBackend, queue: tuple[Driver, QueuePair]
) -> None:
    driver, pair = queue
    for number, dnr in (
        (errno.EIO, False),
        (errno.ENOMEM, False),
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EFBIG, True),
        (errno.EROFS, True),
    ):
        disk.failures = {"write": number, "read": number}
        fails(driver, pair, command_named(driver, "write"), Status.WRITE_FAULT, dnr=dnr)
        fails(driver, pair, command_named(driver, "read"), Status.UNRECOVERED_READ_ERROR, dnr=dnr)


@pytest.mark.fact("A28", clause="Base 1.4, Figure 124, CRD", kills=("crd-without-acre",))
def test_no_retry_delay_is_given_to_a_host_that_did_not_ask(
    disk: TellingBackend, queue: tuple[Driver, QueuePair]
) -> None:
    driver, pair = queue
    disk.failures["read"] = errno.EIO

    def crd(completion: Completion) -> int:
        return int.from_bytes(bytes(completion)[12:], "little") >> 28 & 3

    assert crd(driver.execute(pair, command_named(driver, "read"))) == 0
    assert crd(driver.execute(driver.admin, Command(opcode=0xFF))) == 0


@pytest.mark.fact("A27", clause="Base 1.4, 6.9", kills=("failed-read-transfers",))
def test_a_failed_read_leaves_memory_alone_and_is_in_the_error_log(
    disk: TellingBackend, queue: tuple[Driver, QueuePair]
) -> None:
    driver, pair = queue
    place = guarded(driver, PAGE)
    disk.failures["read"] = errno.EIO
    completion = fails(driver, pair, read_command(place), Status.UNRECOVERED_READ_ERROR, dnr=None)
    assert completion.more
    assert is_untouched(driver, place, PAGE)
    entry = ErrorLogEntry(driver.get_log(LogId.ERROR_INFORMATION, 64))
    assert (entry.sqid, entry.cid, entry.nsid) == (1, completion.cid, 1)
    assert entry.status & 0x7FF == Status.UNRECOVERED_READ_ERROR


@pytest.mark.fact("A19", clause="Base 1.4, 6.15, FUA", kills=("fua-ignored",))
@WITH_AND_WITHOUT_THE_ENGINE
def test_a_write_with_fua_is_durable_when_it_completes(disk: TellingBackend, queue: tuple[Driver, QueuePair]) -> None:
    driver, pair = queue
    driver.succeed(pair, command_named(driver, "write"))
    assert disk.names in (["write"], [])
    del disk.calls[:]
    driver.succeed(pair, command_named(driver, "write", fua=True))
    assert disk.names == ["write fua"]


@pytest.mark.fact("A19", clause="Base 1.4, 6.16, FUA", kills=("zeroes-fua-ignored",))
def test_write_zeroes_with_fua_is_durable_when_it_completes(
    disk: TellingBackend, queue: tuple[Driver, QueuePair]
) -> None:
    driver, pair = queue
    driver.succeed(pair, command_named(driver, "zero"))
    driver.succeed(pair, command_named(driver, "zero", fua=True))
    assert disk.names == ["zero", "zero", "flush"]
    disk.failures["flush"] = errno.EIO
    fails(driver, pair, command_named(driver, "zero", fua=True), Status.WRITE_FAULT, dnr=None)


@pytest.mark.fact("A19", clause="Base 1.4, 6.9, FUA", kills=("read-fua-ignored",))
@pytest.mark.parametrize("name", ["read", "compare", "verify"])
@WITH_AND_WITHOUT_THE_ENGINE
def test_what_is_read_with_fua_is_durable(disk: TellingBackend, queue: tuple[Driver, QueuePair], name: str) -> None:
    """A Read with FUA returns what is on the medium: what only the cache has must get there first."""
    driver, pair = queue
    driver.succeed(pair, command_named(driver, name))
    assert disk.names in (["read"], [])
    del disk.calls[:]
    driver.succeed(pair, command_named(driver, name, fua=True))
    assert disk.names == ["flush", "read"]


@pytest.mark.fact("A19", clause="Base 1.4, 6.8", kills=("flush-does-nothing",))
@pytest.mark.fact("B6", clause="Base 1.4, 6.8 and 7.6.2", kills=("flush-does-nothing",))
@WITH_AND_WITHOUT_THE_ENGINE
def test_flush_reaches_the_disk(disk: TellingBackend, queue: tuple[Driver, QueuePair]) -> None:
    driver, pair = queue
    driver.succeed(pair, command_named(driver, "write"))
    del disk.calls[:]
    driver.succeed(pair, flush_command())
    driver.succeed(pair, flush_command(BROADCAST))
    assert disk.names == ["flush", "flush"]


@pytest.mark.fact("A19", clause="Base 1.4, Figure 247, VWC bits 2:1", kills=("flush-broadcast-refused",))
def test_flush_of_every_namespace_is_as_vwc_says(driver: Driver) -> None:
    queue = driver.create_queues()
    what = identify_controller(driver).vwc >> 1 & 3
    completion = driver.execute(queue, flush_command(BROADCAST))
    expected = {2: Status.INVALID_NAMESPACE, 3: Status.SUCCESS}
    assert completion.status == expected[what]


@pytest.mark.fact("A19", clause="Base 1.4, Figure 247, VWC", kills=("cache-always-said",))
def test_a_cache_is_said_to_be_there_exactly_if_it_is(new_bench: NewBench) -> None:
    for is_volatile in (False, True):
        driver = new_bench(TellingBackend(volatile_cache=is_volatile)).driver
        driver.enable()
        assert identify_controller(driver).vwc & 1 == is_volatile


@pytest.mark.fact("A19", clause="Base 1.4, 6.8", kills=("flush-done-early",))
def test_a_flush_completes_after_the_disk_has_flushed(slow: Bench) -> None:
    driver = slow.driver
    queue = driver.create_queues()
    for command in (flush_command(), write_command(driver.alloc(PAGE))):
        cid = driver.submit(queue, command)
        assert driver.poll(queue) is None
        slow.worker.finish_all()
        completion = driver.poll(queue)
        assert completion is not None
        assert (completion.cid, completion.status) == (cid, Status.SUCCESS)
