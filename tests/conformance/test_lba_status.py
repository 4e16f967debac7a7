"""Get LBA Status: blocks that may be unreadable, and the log and event that tell of them. NVM 1.0, 4.2.1 and 5.8."""

from __future__ import annotations

import errno
import struct

import pytest

from conformance.test_uncorrectable import BLOCK, uncorrectable
from conformance.tools import GUARD, NewBench, TellingBackend, aer, dsm_command, fails, guarded, identify_controller
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import (
    ActionType,
    CompletionCondition,
    FeatureId,
    FormatNvm,
    GetLbaStatus,
    LbaStatusDescriptor,
    LbaStatusElement,
    LbaStatusHead,
    LbaStatusLogHead,
    LbaStatusRange,
    LogId,
    Notice,
    Oacs,
    Status,
)
from nvmeemu.testing import PAGE, Bench, Driver

BLOCKS = 2048
TRACKED, SCAN, ALLOCATED = ActionType.TRACKED, ActionType.SCAN, ActionType.ALLOCATED


@pytest.fixture
def mapped(new_bench: NewBench) -> Bench:
    """An enabled controller with a namespace whose blocks have states, and one whose blocks have none."""
    bench = new_bench(MemoryBackend(BLOCKS * BLOCK), has_block_map=True, can_be_formatted=True)
    bench.subsystem.add(bench.namespace(2, MemoryBackend(BLOCKS * BLOCK), identity="two"))
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


def found(
    driver: Driver, atype: int, slba: int = 0, rl: int = 0, *, mndw: int = 64, nsid: int = 1
) -> tuple[int, list[tuple[int, int]]]:
    """CMPC and the runs. No byte is written beyond what is said and allowed."""
    place = guarded(driver, PAGE)
    driver.succeed(driver.admin, GetLbaStatus(nsid=nsid, prp1=place, slba=slba, rl=rl, mndw=mndw, atype=atype))
    data = driver.bus.read_memory(place, PAGE)
    head = LbaStatusHead(data[:8])
    end = 8 + 16 * head.nlsd
    assert end <= 4 * mndw
    assert data[end:] == GUARD * (PAGE - end), "more was written"
    runs = [LbaStatusDescriptor(data[start : start + 16]) for start in range(8, end, 16)]
    return head.cmpc, [(one.dslba, one.nlb) for one in runs]


@pytest.mark.fact(
    "F318", clause="NVM 1.0, 4.2.1", kills=("tracked-not-told", "allocated-is-all", "range-length-ignored")
)
def test_runs_of_blocks_are_told_by_what_they_are(mapped: Bench) -> None:
    driver, queue = mapped.driver, mapped.driver.queues[1]
    complete = CompletionCondition.COMPLETE
    assert identify_controller(driver).oacs & Oacs.GET_LBA_STATUS
    assert [found(driver, atype) for atype in (TRACKED, SCAN, ALLOCATED)] == [(complete, [])] * 3
    driver.write(10, b"x" * 10 * BLOCK)
    for slba, blocks in ((12, 2), (14, 1), (100, 3), (BLOCKS - 1, 1)):
        driver.succeed(queue, uncorrectable(slba, blocks))
    bad = [(12, 3), (100, 3), (BLOCKS - 1, 1)]
    assert found(driver, TRACKED) == found(driver, SCAN) == (complete, bad)
    assert found(driver, ALLOCATED) == (complete, [(10, 10), *bad[1:]])
    assert found(driver, TRACKED, 13, 88) == (complete, [(13, 2), (100, 1)])
    assert found(driver, SCAN, 13, 87) == (complete, [(13, 2)])
    assert found(driver, ALLOCATED, 11, 4) == (complete, [(11, 4)])
    driver.write(13, b"y" * BLOCK)
    driver.succeed(queue, dsm_command(driver, [(100, 3)]))
    assert found(driver, TRACKED) == (complete, [(12, 1), (14, 1), (BLOCKS - 1, 1)])
    assert found(driver, ALLOCATED, nsid=2) == (complete, [(0, BLOCKS)]), "nothing is known of it"
    assert found(driver, TRACKED, nsid=2) == (complete, [])
    driver.succeed(driver.admin, FormatNvm(nsid=1))
    assert found(driver, TRACKED) == (complete, [])


@pytest.mark.fact("F318", clause="NVM 1.0, 4.2.1, MNDW", kills=("mndw-exceeded", "always-complete"))
def test_no_more_is_written_than_the_host_has_room_for(mapped: Bench) -> None:
    """nvme-cli's own test has room for the head alone."""
    driver = mapped.driver
    for slba in (1, 3, 5):
        driver.succeed(driver.queues[1], uncorrectable(slba, 1))
    incomplete, complete = CompletionCondition
    for atype in (TRACKED, SCAN, ALLOCATED):
        assert found(driver, atype, rl=1, mndw=2) == (complete, [])
        assert found(driver, atype, mndw=2) == (incomplete, [])
        assert found(driver, atype, mndw=5) == (incomplete, [])
        assert found(driver, atype, mndw=10) == (incomplete, [(1, 1), (3, 1)])
        assert found(driver, atype, 0, 4, mndw=10) == (complete, [(1, 1), (3, 1)])
        assert found(driver, atype, mndw=14) == (complete, [(1, 1), (3, 1), (5, 1)])
    place = guarded(driver, PAGE)
    driver.succeed(driver.admin, GetLbaStatus(nsid=1, prp1=place, mndw=1, atype=TRACKED))
    assert driver.bus.read_memory(place + 4, 12) == GUARD * 12
    driver.succeed(driver.admin, GetLbaStatus(nsid=1, prp1=place, mndw=1 << 32, atype=TRACKED))


@pytest.mark.fact("F318", clause="NVM 1.0, 4.2.1", kills=("any-action-type", "status-beyond-the-end"))
def test_what_cannot_be_asked_is_refused(mapped: Bench) -> None:
    driver = mapped.driver

    def refused(status: Status, nsid: int = 1, slba: int = 0, rl: int = 0, atype: int = TRACKED) -> None:
        command = GetLbaStatus(nsid=nsid, prp1=driver.alloc(PAGE), slba=slba, rl=rl, mndw=64, atype=atype)
        fails(driver, driver.admin, command, status)

    for atype in (0, 1, 3, 0x0F, 0x12, 0xFF):
        refused(Status.INVALID_FIELD, atype=atype)
    for slba, rl in ((BLOCKS, 0), (BLOCKS - 1, 2), ((1 << 64) - 1, 1), ((1 << 64) - 1, 0)):
        refused(Status.LBA_OUT_OF_RANGE, slba=slba, rl=rl)
    for nsid, status in (
        (0, Status.INVALID_NAMESPACE),
        (3, Status.INVALID_FIELD),
        (0xFFFFFFFF, Status.INVALID_NAMESPACE),
    ):
        refused(status, nsid=nsid)


class HalfDead(TellingBackend):
    """Some of its bytes cannot be read."""

    def read(self, offset: int, views: list[memoryview]) -> None:  # type: ignore[override]
        size = sum(map(len, views))
        if any(offset < bad + BLOCK and bad < offset + size for bad in (7 * BLOCK, 8 * BLOCK, 2000 * BLOCK)):
            raise OSError(errno.EIO, "made to fail")
        super().read(offset, views)


@pytest.mark.fact("F318", clause="NVM 1.0, 4.2.1, ATYPE", kills=("scan-finds-nothing",))
def test_a_scan_finds_what_the_disk_cannot_read(new_bench: NewBench) -> None:
    for has_block_map in (False, True):
        driver = new_bench(HalfDead(), has_block_map=has_block_map).driver
        driver.enable()
        driver.create_queues(1)
        driver.write(0, bytes(16 * BLOCK))
        driver.write(2000, bytes(BLOCK))
        bad = [(7, 2), (2000, 1)]
        assert found(driver, SCAN) == (CompletionCondition.COMPLETE, bad)
        assert found(driver, SCAN, 8, 1) == (CompletionCondition.COMPLETE, [(8, 1)])
        assert found(driver, TRACKED) == (CompletionCondition.COMPLETE, [])


def log(driver: Driver) -> tuple[LbaStatusLogHead, list[tuple[int, int, list[tuple[int, int]]]]]:
    data = driver.get_log(LogId.LBA_STATUS, 2 * PAGE)
    head, at, elements = LbaStatusLogHead(data[:16]), 16, []
    for _ in range(head.nlslne):
        element = LbaStatusElement(data[at : at + 16])
        ranges = [LbaStatusRange(data[at + 16 * index :][:16]) for index in range(1, element.nlrd + 1)]
        elements.append((element.neid, element.ratype, [(one.rslba, one.rnlb) for one in ranges]))
        at += 16 + 16 * element.nlrd
    assert head.lslplen == at
    return head, elements


@pytest.mark.fact("F318", clause="Base 1.4, 5.14.1.14", kills=("status-log-of-nothing", "log-without-generation"))
def test_the_log_says_where_to_ask(mapped: Bench) -> None:
    driver = mapped.driver
    head, elements = log(driver)
    assert (bytes(head), elements) == (struct.pack("<I", 16) + bytes(12), [])
    for slba, blocks in ((5, 2), (70, 1)):
        driver.succeed(driver.queues[1], uncorrectable(slba, blocks))
    head, elements = log(driver)
    assert elements == [(1, TRACKED, [(5, 2), (70, 1)])]
    assert (head.estulb, head.lsgc) == (3, 2)
    for slba in range(100, 800, 2):  # more runs than the log has room for
        driver.succeed(driver.queues[1], uncorrectable(slba, 1))
    ranges = log(driver)[1][0][2]
    assert (len(ranges), sum(ranges[-1])) == (256, BLOCKS)


@pytest.mark.fact(
    "F318", clause="Base 1.4, Figure 147 and 5.21.1.21", kills=("status-alert-untold", "alerts-without-pause")
)
def test_the_host_is_told_as_often_as_it_wants(mapped: Bench) -> None:
    driver, queue = mapped.driver, mapped.driver.queues[1]
    assert identify_controller(driver).oaes & Notice.LBA_STATUS

    def told() -> list[int]:
        return [one.dw0 for one in driver.drain(driver.admin)]

    driver.submit(driver.admin, aer())
    driver.succeed(queue, uncorrectable(1, 1))
    assert told() == [], "it has not asked for that"
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, Notice.LBA_STATUS)
    driver.set_feature(FeatureId.LBA_STATUS_INFORMATION, 0x7777_0064)  # 10 s
    assert driver.get_feature(FeatureId.LBA_STATUS_INFORMATION) == 0x64
    driver.succeed(queue, uncorrectable(2, 1))
    event = 2 | 5 << 8 | LogId.LBA_STATUS << 16
    assert told() == [event]
    log(driver)
    driver.submit(driver.admin, aer())
    for slba in (3, 4):
        driver.succeed(queue, uncorrectable(slba, 1))
    mapped.clock.advance(9.9)
    mapped.settle()
    assert told() == [], "too early"
    mapped.clock.advance(0.2)
    mapped.settle()
    assert told() == [event]
    log(driver)
    driver.submit(driver.admin, aer())
    mapped.clock.advance(30.0)
    mapped.settle()
    assert told() == []
