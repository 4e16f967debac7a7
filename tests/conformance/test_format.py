"""Format NVM: what a host may ask for, what becomes of the namespace, and what goes on meanwhile. Base 1.4, 5.23."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    aer,
    fails,
    flush_command,
    identify_controller,
    identify_namespace,
    know_extended_formats,
    read_command,
    write_command,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.limits import Limits
from nvmeemu.spec import (
    BROADCAST,
    Abort,
    AdminOpcode,
    Cns,
    CommandEffectsLog,
    Completion,
    Effect,
    FeatureId,
    Fna,
    FormatNvm,
    Fpi,
    IndependentNamespace,
    LogId,
    Oacs,
    Status,
    WriteProtection,
)
from nvmeemu.subsystem.formats import FORMATS, Guard, OfferedFormat
from nvmeemu.testing import PAGE, Bench, Driver

SIZE = 1 << 20
PLAIN_4096 = FORMATS.index(OfferedFormat(4096))
WITH_8 = FORMATS.index(OfferedFormat(512, 8))
WITH_64 = FORMATS.index(OfferedFormat(4096, 64))
EXTENDED = FORMATS.index(OfferedFormat(4096, 16, Guard.CRC64))
NOTICES, CHANGED = 1 << 8, 0x040002
CHECKS = 0b111 << 26
CRYPTOGRAPHIC = 2


@pytest.fixture
def formattable(new_bench: NewBench) -> Bench:
    bench = new_bench(MemoryBackend(SIZE), can_be_formatted=True)
    bench.driver.enable()
    return bench


@pytest.fixture
def slow(new_bench: NewBench) -> Bench:
    """What its disk has to do waits for the test."""
    bench = new_bench(TellingBackend(8 * SIZE), can_be_formatted=True, manual=True)
    bench.driver.enable()
    return bench


def command(number: int, nsid: int = 1, **fields: Any) -> FormatNvm:
    return FormatNvm(opcode=AdminOpcode.FORMAT_NVM, nsid=nsid, lbafl=number & 0xF, lbafu=number >> 4, **fields)


def format(driver: Driver, number: int, nsid: int = 1, **fields: Any) -> Completion:
    return driver.succeed(driver.admin, command(number, nsid, **fields))


def progress(driver: Driver) -> Fpi:
    found = identify_namespace(driver).fpi
    assert IndependentNamespace(driver.identify(Cns.INDEPENDENT_NAMESPACE, 1)).fpi == found
    return Fpi.of(found)


def finish(bench: Bench) -> None:
    while bench.worker.tasks:
        bench.worker.finish_all()
        bench.settle()


# --- what is told of it


@pytest.mark.fact("F221", clause="Base 1.4, Figure 247, OACS and FNA", kills=("no-crypto-erase", "format-without-oacs"))
def test_what_there_is_is_told(formattable: Bench, new_bench: NewBench) -> None:
    page = identify_controller(formattable.driver)
    assert page.oacs & Oacs.FORMAT_NVM
    assert page.fna == Fna.CRYPTO_ERASE  # each namespace by itself, and FFFFFFFFh is taken
    assert progress(formattable.driver) == Fpi(is_supported=True)
    other = new_bench(MemoryBackend(SIZE)).driver
    other.enable()
    page = identify_controller(other)
    assert not page.oacs & Oacs.FORMAT_NVM
    assert not page.fna
    assert progress(other) == Fpi()
    fails(other, other.admin, command(0), Status.INVALID_OPCODE)


@pytest.mark.fact("F224", clause="Base 1.4, Figure 199", kills=("format-without-effects",))
def test_hosts_know_that_they_have_to_look_again(formattable: Bench) -> None:
    log = CommandEffectsLog(formattable.driver.get_log(LogId.COMMAND_EFFECTS, CommandEffectsLog.SIZE))
    found = int(log.admin[AdminOpcode.FORMAT_NVM])
    assert found & 0xFFFFF == Effect.CSUPP | Effect.LBCC | Effect.NCC | Effect.ALONE_IN_NAMESPACE


# --- what cannot be


@pytest.mark.fact("F220", clause="Base 1.4, Figure 328", kills=("any-erasure-taken",))
@pytest.mark.parametrize("ses", range(8))
def test_there_are_three_kinds_of_erasure(formattable: Bench, ses: int) -> None:
    if ses <= CRYPTOGRAPHIC:
        format(formattable.driver, 0, ses=ses)
    else:
        fails(formattable.driver, formattable.driver.admin, command(0, ses=ses), Status.INVALID_FIELD)


@pytest.mark.fact("F220", clause="Base 1.4, 5.23.1", kills=("format-that-is-not-there",))
@pytest.mark.parametrize(
    "wanted",
    [
        command(len(FORMATS)),
        command(15),
        command(0, pi=1),  # no metadata
        command(PLAIN_4096, pi=3),
        *(command(WITH_8, pi=pi) for pi in range(4, 8)),
    ],
    ids=lambda one: f"{one.lbafl} {one.pi}",
)
def test_a_format_that_cannot_be_is_refused(formattable: Bench, wanted: FormatNvm) -> None:
    driver = formattable.driver
    driver.create_queues(1)
    driver.write(3, b"x" * 512)
    fails(driver, driver.admin, wanted, Status.INVALID_FORMAT)
    assert driver.read(3, 1) == b"x" * 512


@pytest.mark.fact("F217", clause="NVM 1.0, 4.1.1; Base 2.0, 5.27.1.18", kills=("format-unchecked",))
def test_extended_formats_are_for_hosts_that_know_them(formattable: Bench) -> None:
    driver = formattable.driver
    fails(driver, driver.admin, command(EXTENDED), Status.INVALID_FORMAT)
    know_extended_formats(driver)
    format(driver, EXTENDED)
    assert identify_namespace(driver).flbas == EXTENDED
    fails(driver, driver.admin, command(EXTENDED, pi=1, pil=True), Status.INVALID_FORMAT)  # they have it last
    driver.enable()
    fails(driver, driver.create_queues(1), read_command(driver.alloc(PAGE)), Status.INVALID_NAMESPACE)
    format(driver, 0)  # a plain one can be chosen
    driver.read(0, 1)


@pytest.mark.fact("F220", clause="NVM 1.0, 4.1.1", kills=("upper-bits-for-all",))
def test_the_upper_bits_of_the_format_count_for_hosts_that_know_them(formattable: Bench) -> None:
    driver = formattable.driver
    format(driver, PLAIN_4096 | 16)
    assert identify_namespace(driver).flbas == PLAIN_4096
    know_extended_formats(driver)
    fails(driver, driver.admin, command(PLAIN_4096 | 16), Status.INVALID_FORMAT)


@pytest.mark.fact("F221", clause="Base 1.4, Figure 126; 5.23", kills=())
@pytest.mark.parametrize(
    ("nsid", "status"), [(0, Status.INVALID_NAMESPACE), (2, Status.INVALID_FIELD), (100, Status.INVALID_NAMESPACE)]
)
def test_a_namespace_that_is_not_there_is_not_formatted(formattable: Bench, nsid: int, status: Status) -> None:
    fails(formattable.driver, formattable.driver.admin, command(0, nsid), status)


@pytest.mark.fact("F222", clause="Base 1.4, 8.19.1", kills=("protected-namespaces-are-formatted",))
def test_a_write_protected_namespace_is_not_formatted(formattable: Bench) -> None:
    driver = formattable.driver
    driver.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, WriteProtection.PROTECTED, nsid=1)
    fails(driver, driver.admin, command(0), Status.NAMESPACE_WRITE_PROTECTED)


@pytest.mark.fact("F221", clause="Base 1.4, 5.23.1", kills=("users-images-are-formatted",))
def test_what_the_user_has_not_allowed_is_denied(formattable: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """And with FFFFFFFFh nothing begins, unless all can be formatted."""
    bench, driver = formattable, formattable.driver
    bench.subsystem.add(bench.namespace(2, MemoryBackend(SIZE), identity="theirs"))
    driver.create_queues(1)
    for nsid in (1, 2):
        driver.write(3, b"x" * 512, nsid=nsid)
    for nsid in (2, BROADCAST):
        fails(driver, driver.admin, command(0, nsid), Status.OPERATION_DENIED)
    for nsid in (1, 2):
        assert driver.read(3, 1, nsid=nsid) == b"x" * 512
    told = [record.getMessage() for record in caplog.records if "may not" in record.getMessage()]
    assert len(told) == 1
    assert "--format allow" in told[0]


@pytest.mark.fact("F221", clause="Base 1.4, 5.23", kills=("broadcast-formats-one",))
def test_all_namespaces_at_once(formattable: Bench) -> None:
    bench, driver = formattable, formattable.driver
    second = bench.namespace(2, MemoryBackend(SIZE), identity="second")
    bench.allow_format(second)
    bench.subsystem.add(second)
    format(driver, PLAIN_4096, BROADCAST)
    assert [identify_namespace(driver, nsid).flbas for nsid in (1, 2)] == [PLAIN_4096] * 2
    bench.subsystem.detach(1, 1)
    bench.subsystem.detach(2, 1)
    format(driver, 0, BROADCAST)  # none is there


# --- what becomes of it


@pytest.mark.fact(
    "F222",
    clause="Base 1.4, 5.23",
    kills=("format-keeps-the-size", "old-data-after-a-format", "chosen-format-does-not-show"),
)
@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_each_format_can_be_chosen(formattable: Bench, number: int) -> None:
    driver, row = formattable.driver, FORMATS[number]
    queue = driver.create_queues(1)
    know_extended_formats(driver)
    before = identify_namespace(driver)
    driver.write(0, b"x" * PAGE)
    format(driver, number, mset=True, pil=True)
    page = identify_namespace(driver)
    assert page.flbas == (number | 0x10 if row.metadata_size else number)
    assert (page.nsze, page.ncap, page.nuse) == (SIZE // row.data_size, SIZE // row.data_size, 0)
    assert (page.nvmcap, page.nguid, page.dps) == (before.nvmcap, before.nguid, 0)
    size = row.data_size + row.metadata_size
    place = driver.alloc(2 * PAGE)
    prp1, prp2 = driver.prps(place, size)
    driver.succeed(queue, read_command(prp1, prp2))
    assert driver.bus.read_memory(place, size) == bytes(size)


@pytest.mark.fact("F222", clause="Base 1.4, 5.23", kills=("protection-unchecked",))
@pytest.mark.parametrize(("pi", "pil"), [(1, False), (2, True), (3, False)])
def test_protection_information_can_be_chosen(formattable: Bench, pi: int, pil: bool) -> None:
    """What was never written passes all checks: its tags are the escape."""
    driver = formattable.driver
    queue = driver.create_queues(1)
    format(driver, WITH_8, pi=pi, pil=pil)
    assert identify_namespace(driver).dps == pi | pil << 3
    read = read_command(driver.alloc(PAGE))
    read.mptr = driver.alloc(8)
    read.cdw12 |= CHECKS & (~(1 << 26) if pi == 3 else CHECKS)
    driver.succeed(queue, read)
    assert driver.bus.read_memory(read.mptr, 8) == b"\xff" * 8


@pytest.mark.fact("F222", clause="Base 1.4, 5.23", kills=("old-metadata-after-a-format",))
@pytest.mark.parametrize("ses", range(3))
def test_nothing_of_before_is_read_in_any_format(formattable: Bench, ses: int) -> None:
    """512 -> 4096 -> 512 bytes, also with metadata."""
    driver = formattable.driver
    queue = driver.create_queues(1)
    format(driver, WITH_8)
    place, beside = driver.alloc(PAGE), driver.alloc(PAGE)
    for slba in range(0, 64, 8):
        driver.bus.write_memory(place, b"old!" * 1024)
        driver.bus.write_memory(beside, b"meta" * 16)
        write = write_command(place, slba=slba, blocks=8)
        write.mptr = beside
        driver.succeed(queue, write)
    assert identify_namespace(driver).nuse == 64
    for number in (WITH_64, WITH_8):
        format(driver, number, ses=ses)
        row = FORMATS[number]
        for slba in range(8):
            read = read_command(place, slba=slba)
            read.mptr = beside
            driver.succeed(queue, read)
            assert driver.bus.read_memory(place, row.data_size) == bytes(row.data_size)
            assert driver.bus.read_memory(beside, row.metadata_size) == bytes(row.metadata_size)
    assert identify_namespace(driver).nuse == 0


@pytest.mark.fact("F222", clause="Base 1.4, 5.23.1, SES", kills=("erasure-only-deallocates",))
def test_erasure_overwrites_what_cannot_be_deallocated(new_bench: NewBench) -> None:
    class Keeps(MemoryBackend):
        def deallocate(self, offset: int, length: int) -> None:
            pass

    disk = Keeps(SIZE)
    driver = new_bench(disk, can_be_formatted=True).driver
    driver.enable()
    driver.create_queues(1)
    for ses in (0, 1, 2):
        view = memoryview(bytearray(512))
        disk.write_now(512, [memoryview(b"x" * 512)])
        format(driver, 0, ses=ses)
        assert driver.read(1, 1) == bytes(512)
        disk.read_now(512, [view])
        assert bytes(view) == (bytes(512) if ses else b"x" * 512)


@pytest.mark.fact("F222", clause="Base 1.4, 5.23", kills=("smaller-namespaces-grow",))
def test_a_namespace_that_is_smaller_than_its_disk_keeps_its_capacity(formattable: Bench) -> None:
    formattable.subsystem.resize(1, 64)
    format(formattable.driver, PLAIN_4096)
    assert identify_namespace(formattable.driver).nsze == 8


# --- meanwhile


@pytest.mark.fact(
    "F223", clause="Base 1.4, 5.23; Figure 126", kills=("reads-while-it-is-formatted", "progress-is-not-told")
)
def test_while_it_is_formatted_its_blocks_cannot_be_reached(slow: Bench) -> None:
    driver = slow.driver
    queue = driver.create_queues(1)
    driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    place = driver.alloc(PAGE)
    left = [100]
    assert progress(driver) == Fpi(is_supported=True, left=100)
    while slow.worker.tasks:
        for one in (read_command(place), write_command(place), flush_command()):
            fails(driver, queue, one, Status.FORMAT_IN_PROGRESS, dnr=False)
        fails(driver, driver.admin, command(0), Status.FORMAT_IN_PROGRESS, dnr=False)
        assert driver.poll(driver.admin) is None
        slow.worker.tasks[0].finish()
        left.append(progress(driver).left)
    assert left[-1] == 0
    assert all(left[:-1])
    assert left == sorted(left, reverse=True)
    assert len(set(left)) >= 8
    completion = driver.poll(driver.admin)
    assert completion is not None
    assert completion.status == Status.SUCCESS
    assert identify_namespace(driver).flbas == PLAIN_4096
    driver.submit(queue, read_command(place))
    driver.bus.settle()
    finish(slow)
    found = driver.poll(queue)
    assert found is not None
    assert found.status == Status.SUCCESS


@pytest.mark.fact("F223", clause="Base 1.4, 5.23", kills=("format-overtakes-writes",))
def test_what_had_begun_ends_first(slow: Bench) -> None:
    """Or an old write could come after the erasure."""
    driver, disk = slow.driver, slow.backend
    assert isinstance(disk, TellingBackend)
    queue = driver.create_queues(1)
    written = driver.submit(queue, write_command(driver.alloc(PAGE), slba=7))
    driver.bus.settle()
    driver.submit(driver.admin, command(0))
    driver.bus.settle()
    slow.clock.advance(1)
    driver.bus.settle()
    assert len(slow.worker.tasks) == 1
    slow.worker.finish_all()
    slow.settle()
    completion = driver.poll(queue)
    assert completion is not None
    assert (completion.cid, completion.status) == (written, Status.SUCCESS)
    slow.clock.advance(1)
    finish(slow)
    assert disk.names.index("write") < disk.names.index("deallocate")
    completion = driver.poll(driver.admin)
    assert completion is not None
    assert completion.status == Status.SUCCESS


@pytest.mark.fact("F223", clause="Base 1.4, 5.1", kills=("format-is-aborted",))
def test_a_format_that_has_begun_is_not_aborted(slow: Bench) -> None:
    driver = slow.driver
    cid = driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    completion = driver.succeed(driver.admin, Abort(sqid=0, target_cid=cid))
    assert completion.dw0 == 1
    finish(slow)
    found = driver.poll(driver.admin)
    assert found is not None
    assert (found.cid, found.status) == (cid, Status.SUCCESS)


@pytest.mark.fact("F223", clause="Base 2.0, 5.14; What survives what", kills=("format-ends-with-a-reset",))
def test_a_reset_does_not_end_it(slow: Bench) -> None:
    """The host of the time after is told, because it has not asked for it."""
    driver = slow.driver
    driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    driver.enable()
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
    driver.submit(driver.admin, aer())
    fails(driver, driver.create_queues(1), read_command(driver.alloc(PAGE)), Status.FORMAT_IN_PROGRESS, dnr=False)
    finish(slow)
    assert [one.dw0 for one in driver.drain(driver.admin)] == [CHANGED]
    assert identify_namespace(driver).flbas == PLAIN_4096


@pytest.mark.fact("F222", clause="Base 1.4, 5.2, Figure 147", kills=("format-tells-who-knows", "format-without-event"))
def test_other_controllers_are_told_and_the_one_that_formats_is_not(slow: Bench, new_bench: NewBench) -> None:
    limits = Limits()
    second = new_bench(subsystem=slow.subsystem, cntlid=2, limits=limits)
    second.driver.enable()
    for driver in (slow.driver, second.driver):
        driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
        driver.submit(driver.admin, aer())
    cid = slow.driver.submit(slow.driver.admin, command(PLAIN_4096))
    slow.driver.bus.settle()
    assert [one.dw0 for one in second.driver.drain(second.driver.admin)] == [CHANGED]
    assert second.driver.get_log(LogId.CHANGED_NAMESPACE_LIST, PAGE)[:8] == b"\1".ljust(8, b"\0")
    second.driver.submit(second.driver.admin, aer())
    finish(slow)
    assert [one.dw0 for one in second.driver.drain(second.driver.admin)] == [CHANGED]
    assert [one.cid for one in slow.driver.drain(slow.driver.admin)] == [cid]
    assert identify_namespace(second.driver).flbas == PLAIN_4096


@pytest.mark.fact("F222", clause="Base 1.4, 5.23", kills=("failed-format-keeps-the-namespace-away",))
def test_a_format_that_fails_leaves_the_old_one(slow: Bench) -> None:
    driver, disk = slow.driver, slow.backend
    assert isinstance(disk, TellingBackend)
    disk.failures["deallocate"] = errno.EIO
    driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    finish(slow)
    completion = driver.poll(driver.admin)
    assert completion is not None
    assert completion.status == Status.WRITE_FAULT
    assert identify_namespace(driver).flbas == 0
    assert progress(driver).left == 0
    read = driver.submit(driver.create_queues(1), read_command(driver.alloc(PAGE)))
    driver.bus.settle()
    finish(slow)
    found = driver.poll(driver.queues[1])
    assert found is not None
    assert (found.cid, found.status) == (read, Status.SUCCESS)
    disk.failures.clear()
    driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    finish(slow)
    assert identify_namespace(driver).flbas == PLAIN_4096


@pytest.mark.fact("F223", clause="Base 1.4, 5.21.1.6", kills=("what-is-formatted-is-flushed",))
def test_what_is_formatted_need_not_be_flushed(slow: Bench) -> None:
    driver = slow.driver
    driver.submit(driver.admin, command(PLAIN_4096))
    driver.bus.settle()
    driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    finish(slow)
    assert driver.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 0
    assert identify_namespace(driver).flbas == PLAIN_4096


@pytest.mark.fact("F221", clause="Base 1.4, 5.23")
def test_the_format_of_all_namespaces_may_wait_for_the_first_one(new_bench: NewBench) -> None:
    """While that lasts, all others end: 254 of them, as many as there can be."""
    bench = new_bench(MemoryBackend(128 * SIZE), can_be_formatted=True, limits=Limits(namespaces=255))
    for nsid in range(2, 256):
        namespace = bench.namespace(nsid, MemoryBackend(SIZE), identity=f"disk {nsid}")
        bench.allow_format(namespace)
        bench.subsystem.add(namespace)
    bench.driver.enable()
    format(bench.driver, PLAIN_4096, BROADCAST)
    assert {identify_namespace(bench.driver, nsid).flbas for nsid in (1, 2, 255)} == {PLAIN_4096}
