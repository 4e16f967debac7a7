"""Get Log Page. Base 1.4, 5.14."""

from __future__ import annotations

import itertools
import struct

import pytest

from conformance.tools import (
    NewBench,
    TellingBackend,
    fails,
    guarded,
    identify_controller,
    is_untouched,
    read_command,
)
from nvmeemu.spec import (
    BROADCAST,
    Command,
    Completion,
    ErrorLogEntry,
    FeatureEffectsLog,
    FirmwareSlotLog,
    LogId,
    NvmOpcode,
    ReadWrite,
    SmartLog,
    Status,
)
from nvmeemu.testing import PAGE, VS, Bench, Driver

NOT_SPECIFIC = 0xFFFF  # Parameter Error Location
UNIT = 512 * 1000  # bytes of a data unit


def command(lid: int, size: int = 512, *, nsid: int = BROADCAST, lpo: int = 0, prp1: int = 0, prp2: int = 0) -> Command:
    """Its dwords by hand: what the device and our declarations have wrong together must show, too."""
    numd = size // 4 - 1
    command = Command(opcode=0x02, nsid=nsid, prp1=prp1, prp2=prp2)
    command.cdw10, command.cdw11 = lid | (numd & 0xFFFF) << 16, numd >> 16
    command.cdw12, command.cdw13 = lpo & 0xFFFFFFFF, lpo >> 32
    return command


def smart(driver: Driver) -> SmartLog:
    return SmartLog(driver.get_log(LogId.SMART, SmartLog.SIZE))


def errors(driver: Driver) -> list[ErrorLogEntry]:
    """The entries of the Error Information log that hold something."""
    size = identify_controller(driver).elpe * ErrorLogEntry.SIZE
    data = driver.get_log(LogId.ERROR_INFORMATION, size)
    entries = [ErrorLogEntry(data[start : start + 64]) for start in range(0, size, 64)]
    return [entry for entry in entries if entry.error_count]


def fail_once(driver: Driver) -> Completion:
    """A command that must fail: an unknown log page of namespace 1."""
    page = driver.alloc(PAGE)
    return fails(driver, driver.admin, command(0xBF, nsid=1, prp1=page), Status.INVALID_LOG_PAGE)


@pytest.mark.fact("A15", clause="Base 1.4, Figure 200, Invalid Log Page", kills=("unknown-lid-invalid-field",))
@pytest.mark.fact("B4", clause="Base 1.4, Figure 200, Invalid Log Page", kills=("unknown-lid-invalid-field",))
@pytest.mark.parametrize("lid", [0x0F, 0x7F, 0xBF])
def test_an_unknown_page_is_an_invalid_log_page(driver: Driver, lid: int) -> None:
    """QEMU calls it an invalid field."""
    place = guarded(driver, PAGE)
    fails(driver, driver.admin, command(lid, prp1=place), Status.INVALID_LOG_PAGE)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("A20", clause="Base 2.0, 5.16.1.1", kills=("supported-pages-wrong",))
def test_the_list_of_supported_pages_says_what_get_log_page_answers(driver: Driver) -> None:
    words = struct.unpack("<256I", driver.get_log(LogId.SUPPORTED_LOG_PAGES, 1024))
    page = driver.alloc(PAGE)
    for lid, word in enumerate(words):
        completion = driver.execute(driver.admin, command(lid, prp1=page))
        assert (completion.status != Status.INVALID_LOG_PAGE) == bool(word & 1), f"LID {lid:#x}"


@pytest.mark.fact(
    "A20", clause="Base 2.0, 5.16.1.18", kills=("supported-features-wrong", "feature-scope-wrong", "no-feature-effects")
)
def test_the_list_of_supported_features_says_what_get_features_answers(driver: Driver) -> None:
    """And the scope is the one that Get Features tells: a controller of Base 2.0 has this page."""
    if driver.reg(VS) < 0x20000:
        return
    assert driver.get_log(LogId.SUPPORTED_LOG_PAGES, 1024)[4 * LogId.FEATURE_EFFECTS] & 1
    log = FeatureEffectsLog(driver.get_log(LogId.FEATURE_EFFECTS, FeatureEffectsLog.SIZE))
    page = driver.alloc(PAGE)
    for fid, one in enumerate(log.features):
        asked = Command(opcode=0x0A, prp1=page)  # Get Features
        asked.cdw10 = fid | 3 << 8  # SEL: capabilities
        completion = driver.execute(driver.admin, asked)
        assert (completion.status == Status.SUCCESS) == one.fsupp, f"FID {fid:#x}"
        if one.fsupp:
            assert one.fsp == (1 if completion.dw0 & 0b10 else 2), f"FID {fid:#x}"


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, LPOL", kills=("log-offset-ignored",))
@pytest.mark.fact("B3", clause="Base 1.4, 5.14, LPOL", kills=("log-offset-ignored",))
@pytest.mark.parametrize(("lid", "size"), [(LogId.SMART, 512), (LogId.COMMAND_EFFECTS, 4096)])
def test_a_page_read_in_pieces_is_the_page_read_at_once(driver: Driver, lid: int, size: int) -> None:
    """OpenVMM ignores the offset and gives the beginning again."""
    whole = driver.get_log(lid, size)
    assert any(whole)
    assert whole[:64] != whole[64:128]
    for piece in (64, 128, size // 2):
        found = b"".join(driver.get_log(lid, piece, lpo=start) for start in range(0, size, piece))
        assert found == whole
    assert driver.get_log(lid, 4, lpo=size - 4) == whole[-4:]


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, NUMDL", kills=("log-length-off-by-one",))
@pytest.mark.parametrize("size", [4, 8, 508, 512])
def test_exactly_the_asked_dwords_are_transferred(driver: Driver, size: int) -> None:
    """NUMD is 0's based: 0 means one dword."""
    whole = driver.get_log(LogId.SMART, 512)
    place = guarded(driver, PAGE)
    driver.succeed(driver.admin, command(LogId.SMART, size, prp1=place))
    assert driver.bus.read_memory(place, size) == whole[:size]
    assert is_untouched(driver, place + size, PAGE - size)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, NUMDU", kills=("numdu-ignored",))
def test_the_upper_half_of_the_length_counts(driver: Driver) -> None:
    """256 KiB and more need NUMDU (LPA bit 2); past the end of the page we return zeros."""
    size = (1 << 18) + 512
    assert identify_controller(driver).lpa & 1 << 2
    place = guarded(driver, size)
    prp1, prp2 = driver.prps(place, size)
    driver.succeed(driver.admin, command(LogId.SMART, size, prp1=prp1, prp2=prp2))
    assert driver.bus.read_memory(place + 512, size - 512) == bytes(size - 512)
    assert is_untouched(driver, place + size, PAGE)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, LPOL", kills=("log-offset-unaligned",))
@pytest.mark.parametrize("lpo", [1, 2, 3, 5, 511])
def test_an_offset_is_a_multiple_of_a_dword(driver: Driver, lpo: int) -> None:
    page = driver.alloc(PAGE)
    fails(driver, driver.admin, command(LogId.COMMAND_EFFECTS, 4, lpo=lpo, prp1=page), Status.INVALID_FIELD)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, LPOL and LPOU", kills=("log-offset-past-the-end", "lpou-ignored"))
def test_an_offset_past_the_end_is_refused(driver: Driver) -> None:
    page = driver.alloc(PAGE)
    for lid, size in ((LogId.SMART, 512), (LogId.FIRMWARE_SLOT, 512), (LogId.COMMAND_EFFECTS, 4096)):
        for lpo in (size + 4, 1 << 32, 1 << 63):
            fails(driver, driver.admin, command(lid, 4, lpo=lpo, prp1=page), Status.INVALID_FIELD)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14", kills=("log-past-the-end",))
def test_past_the_end_of_a_page_there_are_zeros(driver: Driver) -> None:
    """The specification leaves these bytes undefined; ours are zeros, never old memory."""
    whole = driver.get_log(LogId.SMART, 512)
    assert driver.get_log(LogId.SMART, 1024, lpo=256) == whole[256:] + bytes(768)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-of-any-namespace", "smart-nsid-zero-refused"))
def test_the_smart_log_is_the_controllers(driver: Driver) -> None:
    page = driver.alloc(PAGE)
    for nsid in (0, BROADCAST):
        assert len(driver.get_log(LogId.SMART, 512, nsid=nsid)) == 512
    completion = driver.execute(driver.admin, command(LogId.SMART, nsid=1, prp1=page))
    if identify_controller(driver).lpa & 1:
        assert completion.status == Status.SUCCESS
    else:
        assert (completion.status, completion.dnr) == (Status.INVALID_FIELD, True)


@pytest.mark.fact("B9", clause="Base 1.4, 4.3", kills=("identify-past-prp1",))
@pytest.mark.parametrize("offset", [PAGE - 4, PAGE - 256, PAGE - 508])
def test_a_page_that_crosses_the_page_of_prp1_goes_on_at_prp2(driver: Driver, offset: int) -> None:
    whole = driver.get_log(LogId.SMART, 512)
    first, second = guarded(driver, PAGE), guarded(driver, PAGE)
    driver.succeed(driver.admin, command(LogId.SMART, 512, prp1=first + offset, prp2=second))
    head = PAGE - offset
    assert driver.bus.read_memory(first + offset, head) == whole[:head]
    assert driver.bus.read_memory(second, 512 - head) == whole[head:]
    assert is_untouched(driver, first + PAGE, PAGE)
    assert is_untouched(driver, second + 512 - head, PAGE)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.1", kills=("error-log-empty", "error-log-oldest-first"))
@pytest.mark.fact("B4", clause="Base 1.4, 5.14.1.1", kills=("error-log-empty",))
def test_failed_commands_are_in_the_error_log_newest_first(driver: Driver) -> None:
    """QEMU's error log is always zeros."""
    before = smart(driver).error_log_entries
    completions = [fail_once(driver) for _ in range(3)]
    newest = errors(driver)[:3]
    assert [entry.error_count for entry in newest] == [before + 3, before + 2, before + 1]
    assert [entry.cid for entry in newest] == [completion.cid for completion in reversed(completions)]
    assert smart(driver).error_log_entries == before + 3


@pytest.mark.fact("A20", clause="Base 1.4, Figure 192", kills=("error-log-sqid", "error-log-without-nsid"))
def test_an_entry_says_which_command_failed_and_how(driver: Driver) -> None:
    queue = driver.create_queues()
    completion = fail_once(driver)
    entry = errors(driver)[0]
    assert (entry.sqid, entry.cid, entry.nsid) == (0, completion.cid, 1)
    assert entry.status & 0x7FF == Status.INVALID_LOG_PAGE
    assert bool(entry.status >> 14 & 1) == completion.dnr
    assert entry.location in (NOT_SPECIFIC, 40)  # LID: byte 40 of the command
    completion = fails(driver, queue, read_command(driver.alloc(PAGE), slba=1 << 40), Status.LBA_OUT_OF_RANGE)
    entry = errors(driver)[0]
    assert (entry.sqid, entry.cid, entry.nsid, entry.lba) == (1, completion.cid, 1, 1 << 40)


@pytest.mark.fact("A20", clause="Base 1.4, Figure 124, M", kills=("no-more-bit", "more-bit-always"))
def test_the_more_bit_is_set_exactly_when_the_log_has_more(driver: Driver) -> None:
    before = len(errors(driver))
    assert driver.execute(driver.admin, command(LogId.SMART, prp1=driver.alloc(PAGE))).more is False
    assert len(errors(driver)) == before
    assert fail_once(driver).more is True
    assert len(errors(driver)) == before + 1


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.1", kills=("error-log-drops-last",))
@pytest.mark.fact("B7", clause="Base 1.4, 5.14.1.1", kills=("error-log-drops-last",))
def test_the_log_holds_as_many_entries_as_it_promises(driver: Driver) -> None:
    """FEMU drops the last entry of ELPE, which is 0's based."""
    most = identify_controller(driver).elpe
    for _ in range(most + 3):
        fail_once(driver)
    entries = errors(driver)
    assert len(entries) == most
    newest = entries[0].error_count
    assert [entry.error_count for entry in entries] == list(range(newest, newest - most, -1))


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.1", kills=("error-count-reset",))
def test_the_error_count_goes_on_over_a_reset(driver: Driver) -> None:
    fail_once(driver)
    before = errors(driver)[0].error_count
    driver.enable()
    fail_once(driver)
    assert errors(driver)[0].error_count == before + 1


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-rounds-down", "smart-counts-writes-as-reads"))
def test_smart_counts_reads_and_writes_in_thousands_of_512_bytes(driver: Driver) -> None:
    queue = driver.create_queues()
    assert driver.execute(queue, read_command(driver.alloc(PAGE))).status == Status.SUCCESS
    log = smart(driver)
    assert (log.data_units_read, log.host_reads) == (1, 1)  # rounded up
    assert (log.data_units_written, log.host_writes) == (0, 0)
    driver.write(0, bytes(UNIT // 2))
    driver.write(0, bytes(UNIT // 2))
    log = smart(driver)
    assert (log.data_units_written, log.host_writes) == (1, 2)
    driver.write(0, bytes(512))
    assert smart(driver).data_units_written == 2
    assert (smart(driver).data_units_read, smart(driver).host_reads) == (1, 1)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-forgets-compare",))
def test_smart_counts_compare_as_a_read(driver: Driver) -> None:
    queue = driver.create_queues()
    opcode = NvmOpcode.COMPARE
    driver.succeed(queue, ReadWrite(opcode=opcode, nsid=1, prp1=driver.alloc(PAGE), nlb=1))
    assert (smart(driver).host_reads, smart(driver).data_units_read) == (1, 1)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-spare", "smart-celsius"))
def test_a_new_disk_is_healthy(driver: Driver) -> None:
    log = smart(driver)
    controller = identify_controller(driver)
    assert log.critical_warning == 0
    assert log.available_spare == 100
    assert 0 < log.spare_threshold < 100
    assert log.percentage_used == 0
    assert 273 < log.temperature < controller.wctemp <= controller.cctemp
    assert log.media_errors == 0


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-no-media-errors", "smart-hours-in-seconds"))
def test_smart_counts_media_errors_and_hours(new_bench: NewBench) -> None:
    disk = TellingBackend()
    bench = new_bench(disk)
    driver = bench.driver
    driver.enable()
    before = smart(driver)
    disk.failures["read"] = 5  # EIO
    queue = driver.create_queues()
    fails(driver, queue, read_command(driver.alloc(PAGE)), Status.UNRECOVERED_READ_ERROR, dnr=None)
    bench.clock.advance(3 * 3600)
    assert smart(driver).media_errors == before.media_errors + 1
    assert smart(driver).power_on_hours == before.power_on_hours + 3


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.2", kills=("smart-every-end-unsafe",))
def test_an_end_without_a_shutdown_is_counted_and_one_with_it_is_not(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    before = smart(driver).unsafe_shutdowns
    bench.controller.reset()
    driver.enable()
    assert smart(driver).unsafe_shutdowns == before + 1
    driver.set_reg(0x14, driver.reg(0x14) | 1 << 14)  # CC.SHN
    bench.settle()
    assert driver.status.shst == 2
    bench.controller.reset()
    driver.enable()
    assert smart(driver).unsafe_shutdowns == before + 1


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.3", kills=("firmware-slot-empty",))
def test_the_firmware_log_names_the_running_firmware(driver: Driver) -> None:
    log = FirmwareSlotLog(driver.get_log(LogId.FIRMWARE_SLOT, 512))
    assert log.afi & 7 == 1
    assert log.frs1 == identify_controller(driver).fr


@pytest.mark.fact("A20", clause="Base 1.4, 5.14.1.4", kills=("changed-list-missing",))
def test_no_namespace_has_changed(driver: Driver) -> None:
    assert driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096) == bytes(4096)


@pytest.mark.fact("A20", clause="Base 1.4, 5.14, MDTS", kills=("log-beyond-mdts",))
def test_a_transfer_beyond_mdts_is_refused(driver: Driver) -> None:
    mdts = identify_controller(driver).mdts
    assert mdts
    place = guarded(driver, PAGE)
    prps = driver.prp_list(itertools.repeat(place, 512))
    size = (PAGE << mdts) + 4
    fails(driver, driver.admin, command(LogId.SMART, size, prp1=place, prp2=prps), Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)
