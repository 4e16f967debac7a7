"""Get Features and Set Features. Base 1.4, 5.13 and 5.21."""

from __future__ import annotations

import struct

import pytest

from conformance.tools import (
    DriverOf,
    NewBench,
    TellingBackend,
    dsm_command,
    fails,
    flush_command,
    guarded,
    identify_controller,
    is_untouched,
    write_command,
)
from nvmeemu.spec import BROADCAST, Abort, AdminOpcode, Command, Completion, FeatureId, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench, Driver

CURRENT, DEFAULT, SAVED, CAPABILITIES = range(4)
GET, SET = 0x0A, 0x09
OF_NAMESPACES = (FeatureId.ERROR_RECOVERY,)
CHANGES = (  # (FID, a value that is not the default), both of one dword
    (FeatureId.ARBITRATION, 0x01020304),
    (FeatureId.TEMPERATURE_THRESHOLD, 340),
    (FeatureId.INTERRUPT_COALESCING, 0x0205),
    (FeatureId.WRITE_ATOMICITY, 1),
    (FeatureId.ASYNC_EVENT_CONFIGURATION, 0x1F),
)


def get(fid: int, *, sel: int = CURRENT, cdw11: int = 0, nsid: int = 0, prp1: int = 0) -> Command:
    """Its dwords by hand: what the device and our declarations have wrong together must show, too."""
    return Command(opcode=GET, nsid=nsid, cdw10=fid | sel << 8, cdw11=cdw11, prp1=prp1)


def put(fid: int, cdw11: int = 0, *, sv: bool = False, nsid: int = 0, prp1: int = 0) -> Command:
    return Command(opcode=SET, nsid=nsid, cdw10=fid | sv << 31, cdw11=cdw11, prp1=prp1)


def value(driver: Driver, fid: int, *, sel: int = CURRENT, cdw11: int = 0, nsid: int = 0) -> int:
    return driver.succeed(driver.admin, get(fid, sel=sel, cdw11=cdw11, nsid=nsid)).dw0


def is_changeable(driver: Driver, fid: int) -> bool:
    """What the controller says of it; if it says no, it refuses to change it."""
    if value(driver, fid, sel=CAPABILITIES) & 4:
        return True
    fails(driver, driver.admin, put(fid), Status.FEATURE_NOT_CHANGEABLE)
    return False


def must_be_changeable(driver: Driver, fid: int) -> None:
    """Skip the test if it is not."""
    if not is_changeable(driver, fid):
        pytest.skip(f"this controller does not let feature {fid:#x} be changed")


def change(driver: Driver, fid: int, cdw11: int, *, nsid: int = 0) -> Completion:
    return driver.succeed(driver.admin, put(fid, cdw11, nsid=nsid))


@pytest.mark.fact("A15", clause="Base 1.4, 5.21.1", kills=("unknown-fid-succeeds",))
@pytest.mark.parametrize("fid", [0x00, 0x03, 0x18, 0x1F, 0x7F, 0xBF])
def test_an_unknown_feature_is_an_invalid_field(driver: Driver, fid: int) -> None:
    """0Ch and others are left out: a controller may have them."""
    place = guarded(driver, PAGE)
    fails(driver, driver.admin, get(fid, prp1=place), Status.INVALID_FIELD)
    fails(driver, driver.admin, put(fid, prp1=place), Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("A18", clause="Base 1.4, 5.21", kills=("set-feature-forgets",))
@pytest.mark.parametrize(("fid", "new"), CHANGES)
def test_a_value_that_was_set_is_there(driver: Driver, fid: FeatureId, new: int) -> None:
    must_be_changeable(driver, fid)
    assert value(driver, fid) != new
    change(driver, fid, new)
    assert value(driver, fid) == new


@pytest.mark.fact("A18", clause="Base 1.4, 7.8 and Figure 271", kills=("features-survive-reset",))
@pytest.mark.fact("B4", clause="Base 1.4, 7.3.2 and 7.8", kills=("features-survive-reset",))
@pytest.mark.parametrize(("fid", "new"), CHANGES)
def test_a_controller_reset_brings_the_default_back(driver: Driver, fid: FeatureId, new: int) -> None:
    """In QEMU the values survive."""
    must_be_changeable(driver, fid)
    default = value(driver, fid)
    change(driver, fid, new)
    driver.enable()
    assert value(driver, fid) == default


@pytest.mark.fact("A18", clause="Base 1.4, 5.13.1, SEL", kills=("sel-default-is-current",))
@pytest.mark.parametrize(("fid", "new"), CHANGES)
def test_the_default_can_be_asked_for_and_stays(driver: Driver, fid: FeatureId, new: int) -> None:
    must_be_changeable(driver, fid)
    default = value(driver, fid)
    change(driver, fid, new)
    assert value(driver, fid, sel=DEFAULT) == default
    if not value(driver, fid, sel=CAPABILITIES) & 1:
        assert value(driver, fid, sel=SAVED) == default  # not saveable: as the default (Base 1.4, 5.13.1)
    assert value(driver, fid, sel=CURRENT) == new


@pytest.mark.fact("B7", clause="Base 1.4, 5.13 and 5.21", kills=("get-fid-whole-dword", "set-fid-whole-dword"))
def test_the_fid_is_the_low_byte_of_cdw10(driver: Driver) -> None:
    """FEMU compares all of CDW10 with the FID, so that SEL or SV makes every feature unknown."""
    for fid in (FeatureId.ARBITRATION, FeatureId.WRITE_ATOMICITY):
        for sel in (CURRENT, DEFAULT, SAVED, CAPABILITIES):
            assert driver.execute(driver.admin, get(fid, sel=sel)).status == Status.SUCCESS
        refused = driver.execute(driver.admin, put(fid, sv=True))
        assert refused.status in (Status.SUCCESS, Status.FEATURE_NOT_SAVEABLE)


@pytest.mark.fact("A18", clause="Base 1.4, 5.13.1, SEL", kills=("sel-reserved-succeeds",))
@pytest.mark.parametrize("sel", [4, 5, 6, 7])
def test_reserved_selections_are_refused(driver: Driver, sel: int) -> None:
    fails(driver, driver.admin, get(FeatureId.ARBITRATION, sel=sel), Status.INVALID_FIELD)


@pytest.mark.fact("A18", clause="Base 1.4, 5.13.1, Figure 187", kills=("capabilities-say-saveable",))
def test_the_capabilities_of_a_feature_are_true(driver: Driver) -> None:
    """Bit 0: saveable, bit 1: of a namespace, bit 2: changeable."""
    for fid, new in CHANGES:
        capabilities = value(driver, fid, sel=CAPABILITIES)
        assert capabilities & 1 == (driver.execute(driver.admin, put(fid, new, sv=True)).status == Status.SUCCESS)
        assert not capabilities & 2
        assert is_changeable(driver, fid) == bool(capabilities & 4)
    for fid in OF_NAMESPACES:
        assert value(driver, fid, sel=CAPABILITIES, nsid=1) & 2
    queues = value(driver, FeatureId.NUMBER_OF_QUEUES, sel=CAPABILITIES)
    assert queues & 4
    saved = driver.execute(driver.admin, put(FeatureId.NUMBER_OF_QUEUES, 0, sv=True))
    assert queues & 1 == (saved.status == Status.SUCCESS)


@pytest.mark.fact("A18", clause="Base 1.4, 5.21, SV", kills=("sv-taken",))
@pytest.mark.parametrize(("fid", "new"), [*CHANGES, (FeatureId.NUMBER_OF_QUEUES, 0)])
def test_what_cannot_be_saved_refuses_to_be(driver: Driver, fid: FeatureId, new: int) -> None:
    before = value(driver, fid)
    if value(driver, fid, sel=CAPABILITIES) & 1:
        driver.succeed(driver.admin, put(fid, new, sv=True))
        assert value(driver, fid) == value(driver, fid, sel=SAVED) == new
    else:
        fails(driver, driver.admin, put(fid, new, sv=True), Status.FEATURE_NOT_SAVEABLE)
        assert value(driver, fid) == before


@pytest.mark.fact("A18", clause="Base 1.4, 5.21 and Figure 201", kills=("set-for-one-namespace-taken",))
@pytest.mark.parametrize("nsid", [1, 2, 0x1000])
def test_a_feature_of_the_controller_is_not_set_for_a_namespace(driver: Driver, nsid: int) -> None:
    statuses = {Status.FEATURE_NOT_NAMESPACE_SPECIFIC}
    if nsid > identify_controller(driver).nn:
        statuses |= {Status.INVALID_NAMESPACE, Status.INVALID_FIELD}  # two things are wrong
    for fid in (FeatureId.ARBITRATION, FeatureId.ASYNC_EVENT_CONFIGURATION):
        completion = driver.execute(driver.admin, put(fid, 1, nsid=nsid))
        assert completion.status in statuses
        assert completion.dnr


@pytest.mark.fact("A18", clause="Base 1.4, 5.21 and 6.1", kills=("set-broadcast-refused", "get-with-nsid-refused"))
def test_nsid_broadcast_sets_and_any_nsid_gets_a_feature_of_the_controller(driver: Driver) -> None:
    """Tools send such Gets; QEMU takes them as well."""
    change(driver, FeatureId.WRITE_ATOMICITY, 1, nsid=BROADCAST)
    for nsid in (0, 1, BROADCAST):
        assert value(driver, FeatureId.WRITE_ATOMICITY, nsid=nsid) == 1


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.5", kills=("error-recovery-shared",))
def test_error_recovery_is_each_namespaces_own(driver_of: DriverOf) -> None:
    driver = driver_of({1: (1 << 20, 512), 3: (1 << 20, 512)})
    driver.enable()
    change(driver, FeatureId.ERROR_RECOVERY, 100, nsid=1)
    change(driver, FeatureId.ERROR_RECOVERY, 200, nsid=3)
    assert value(driver, FeatureId.ERROR_RECOVERY, nsid=1) == 100
    assert value(driver, FeatureId.ERROR_RECOVERY, nsid=3) == 200
    change(driver, FeatureId.ERROR_RECOVERY, 300, nsid=BROADCAST)
    assert [value(driver, FeatureId.ERROR_RECOVERY, nsid=nsid) for nsid in (1, 3)] == [300, 300]
    assert value(driver, FeatureId.ERROR_RECOVERY, nsid=1, sel=DEFAULT) == 0


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.5 and 6.1", kills=("error-recovery-any-nsid",))
def test_error_recovery_needs_a_namespace(driver: Driver) -> None:
    nn = identify_controller(driver).nn
    fails(driver, driver.admin, get(FeatureId.ERROR_RECOVERY, nsid=nn + 1), Status.INVALID_NAMESPACE)
    fails(driver, driver.admin, put(FeatureId.ERROR_RECOVERY, nsid=nn + 1), Status.INVALID_NAMESPACE)


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.8 and 5.21.1.11", kills=("freebsd-attach-refused",))
def test_what_freebsd_and_linux_set_at_each_attach_is_taken(driver: Driver) -> None:
    """FreeBSD sets 08h and firmware bits of 0Bh, Linux 07h, 0Bh, 0Eh and 16h. Only what is really reserved
    may be refused; FreeBSD lives with a refusal of 08h, and complains."""
    change(driver, FeatureId.INTERRUPT_COALESCING, 0)
    change(driver, FeatureId.ASYNC_EVENT_CONFIGURATION, 0x1 << 9 | 1 << 8 | 0x1F)
    change(driver, FeatureId.NUMBER_OF_QUEUES, 1 | 1 << 16)
    page = driver.alloc(PAGE)
    driver.succeed(driver.admin, put(FeatureId.TIMESTAMP, prp1=page))
    driver.succeed(driver.admin, put(FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=page))


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.2", kills=("any-power-state",))
def test_only_power_states_that_exist_can_be_entered(driver: Driver) -> None:
    must_be_changeable(driver, FeatureId.POWER_MANAGEMENT)
    last = identify_controller(driver).npss - 1
    change(driver, FeatureId.POWER_MANAGEMENT, last)
    fails(driver, driver.admin, put(FeatureId.POWER_MANAGEMENT, last + 1), Status.INVALID_FIELD)
    assert value(driver, FeatureId.POWER_MANAGEMENT) & 0x1F == last


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.4", kills=("one-temperature-threshold",))
def test_the_over_and_the_under_threshold_are_two_values(driver: Driver) -> None:
    under = 1 << 20  # THSEL
    over_default, under_default = (value(driver, FeatureId.TEMPERATURE_THRESHOLD, cdw11=which) for which in (0, under))
    assert over_default == identify_controller(driver).wctemp
    change(driver, FeatureId.TEMPERATURE_THRESHOLD, 280 | under)
    assert value(driver, FeatureId.TEMPERATURE_THRESHOLD, cdw11=under) == 280 != under_default
    assert value(driver, FeatureId.TEMPERATURE_THRESHOLD) == over_default


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.4", kills=("any-temperature-sensor",))
def test_a_threshold_for_what_is_not_there_is_refused(driver: Driver) -> None:
    fails(driver, driver.admin, put(FeatureId.TEMPERATURE_THRESHOLD, 300 | 2 << 20), Status.INVALID_FIELD)  # THSEL


@pytest.mark.fact("A31", clause="Base 1.4, 5.21.1.9", kills=("admin-vector-coalesced", "vectors-share-a-value"))
def test_each_vector_has_its_configuration_and_the_admin_vector_is_never_coalesced(driver: Driver) -> None:
    fid = FeatureId.INTERRUPT_VECTOR_CONFIGURATION
    assert value(driver, fid, cdw11=0) == 1 << 16  # CD
    assert value(driver, fid, cdw11=1) == 1
    change(driver, fid, 1 | 1 << 16)
    assert value(driver, fid, cdw11=1) == 1 | 1 << 16
    assert value(driver, fid, cdw11=2) == 2


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.9", kills=("any-vector",))
def test_a_vector_that_is_not_there_has_no_configuration(driver: Driver) -> None:
    fid = FeatureId.INTERRUPT_VECTOR_CONFIGURATION
    for vector in (0x8000, 0xFFFF):
        fails(driver, driver.admin, get(fid, cdw11=vector), Status.INVALID_FIELD)
        refused = driver.execute(driver.admin, put(fid, vector)).status
        assert refused in (Status.INVALID_FIELD, Status.FEATURE_NOT_CHANGEABLE)


def timestamp(driver: Driver) -> tuple[int, int]:
    """(milliseconds, origin). Base 1.4, Figure 283."""
    page = driver.alloc(PAGE)
    driver.succeed(driver.admin, get(FeatureId.TIMESTAMP, prp1=page))
    number: int = struct.unpack("<Q", driver.bus.read_memory(page, 8))[0]
    return number & (1 << 48) - 1, number >> 49 & 7


@pytest.mark.fact("A18", clause="Base 1.4, 5.21.1.14", kills=("timestamp-since-power-on", "timestamp-origin"))
def test_the_timestamp_counts_from_the_reset_until_it_is_set(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    bench.clock.advance(1000)
    driver.enable()
    assert timestamp(driver) == (0, 0)
    bench.clock.advance(2)
    assert timestamp(driver) == (2000, 0)
    page = driver.alloc(PAGE)
    driver.bus.write_memory(page, struct.pack("<Q", 1_700_000_000_000))
    driver.succeed(driver.admin, put(FeatureId.TIMESTAMP, prp1=page))
    bench.clock.advance(5)
    assert timestamp(driver) == (1_700_000_005_000, 1)
    driver.enable()
    assert timestamp(driver) == (0, 0)


@pytest.mark.fact("A28", clause="Base 1.4, 5.21.1.22", kills=("host-behavior-any",))
def test_host_behavior_is_kept_and_reserved_values_are_refused(driver: Driver) -> None:
    place = guarded(driver, PAGE)
    driver.succeed(driver.admin, get(FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place))
    assert driver.bus.read_memory(place, 512) == bytes(512)
    assert is_untouched(driver, place + 512, PAGE - 512)
    page = driver.alloc(PAGE)
    driver.bus.write_memory(page, b"\x01")  # ACRE
    driver.succeed(driver.admin, put(FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=page))
    driver.succeed(driver.admin, get(FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place))
    assert driver.bus.read_memory(place, 1) == b"\x01"
    driver.bus.write_memory(page, b"\x02")
    fails(driver, driver.admin, put(FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=page), Status.INVALID_FIELD)


@pytest.mark.fact("A19", clause="Base 1.4, 5.21.1.6", kills=("vwc-feature-without-cache",))
@pytest.mark.fact("B5", clause="Base 1.4, 5.21.1.6", kills=("vwc-feature-without-cache",))
def test_without_a_write_cache_there_is_no_such_feature(new_bench: NewBench) -> None:
    """Propolis took the command and changed nothing (propolis#493)."""
    driver = new_bench(TellingBackend(volatile_cache=False)).driver
    driver.enable()
    assert identify_controller(driver).vwc & 1 == 0
    fails(driver, driver.admin, get(FeatureId.VOLATILE_WRITE_CACHE), Status.INVALID_FIELD)
    for enable in (0, 1):
        fails(driver, driver.admin, put(FeatureId.VOLATILE_WRITE_CACHE, enable), Status.INVALID_FIELD)


@pytest.mark.fact(
    "A19",
    clause="Base 1.4, 5.21.1.6",
    kills=("vwc-off-forgets-what-is-under-way", "a-flush-after-the-cache-is-off-can-be-aborted"),
)
def test_a_write_that_ends_after_the_cache_is_off_is_durable(slow: Bench) -> None:
    driver, disk = slow.driver, slow.backend
    queue = driver.create_queues()
    cids = [
        driver.submit(queue, write_command(driver.alloc(PAGE))),
        driver.submit(queue, ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, nlb=1)),
    ]
    driver.submit(driver.admin, put(FeatureId.VOLATILE_WRITE_CACHE, 0))
    for number in (2, 0, 0):
        slow.worker.tasks[number].finish()
    assert isinstance(disk, TellingBackend)
    assert disk.names == ["flush", "write", "zero"]
    slow.settle()
    assert not driver.drain(queue)  # neither is durable yet
    driver.drain(driver.admin)
    for number, cid in enumerate(cids, 1):
        assert driver.succeed(driver.admin, Abort(opcode=AdminOpcode.ABORT, sqid=1, target_cid=cid)).dw0 == 1
        slow.worker.tasks[0].finish()
        slow.settle()
        assert disk.names == ["flush", "write", "zero"] + ["flush"] * number
        (completion,) = driver.drain(queue)
        assert (completion.cid, completion.status) == (cid, Status.SUCCESS)


@pytest.mark.fact("A19", clause="Base 1.4, 5.21.1.6", kills=("vwc-off-lies", "vwc-off-does-not-flush"))
@pytest.mark.fact("B5", clause="Base 1.4, 5.21.1.6", kills=("vwc-off-lies", "vwc-off-deallocates"))
@pytest.mark.parametrize("is_direct", [False, True])
def test_with_the_write_cache_off_every_write_is_durable(new_bench: NewBench, is_direct: bool) -> None:
    disk = TellingBackend(is_direct=is_direct)
    driver = new_bench(disk).driver
    driver.enable()
    queue = driver.create_queues()
    page = driver.alloc(PAGE)
    assert identify_controller(driver).vwc & 1 == 1
    assert value(driver, FeatureId.VOLATILE_WRITE_CACHE) == 1
    driver.succeed(queue, write_command(page))
    change(driver, FeatureId.VOLATILE_WRITE_CACHE, 0)
    assert value(driver, FeatureId.VOLATILE_WRITE_CACHE) == 0
    assert disk.names[-1] == "flush"  # what the cache held
    del disk.calls[:]
    driver.succeed(queue, write_command(page))
    driver.succeed(queue, ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, nlb=1))
    assert disk.names == ["write fua", "zero", "flush"]
    del disk.calls[:]
    driver.succeed(queue, dsm_command(driver, [(0, 8)]))
    assert disk.names == ["deallocate", "flush"]  # what has been read as zeros stays so
    del disk.calls[:]
    change(driver, FeatureId.VOLATILE_WRITE_CACHE, 1)
    driver.succeed(queue, write_command(page))
    driver.succeed(queue, dsm_command(driver, [(0, 8)]))
    driver.succeed(queue, flush_command())
    assert disk.names[-1] == "flush"
    assert set(disk.names) - {"write"} in ({"deallocate", "flush"}, {"flush"})
