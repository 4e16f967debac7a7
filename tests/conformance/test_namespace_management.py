"""Namespaces that hosts create, delete, attach and detach. Base 2.0, 5.22, 5.23 and 8.11."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from conformance.namespace_commands import (
    attach,
    capacity,
    cntlids,
    create,
    created,
    delete,
    detach,
    info,
    nsids,
    refused,
    succeeds,
)
from conformance.test_changed_namespaces import CHANGED, NOTICES, changed, told
from conformance.tools import (
    NewBench,
    TellingBackend,
    aer,
    fails,
    flush_command,
    identify_controller,
    identify_namespace,
    read_command,
    write_command,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.limits import Limits
from nvmeemu.ports import StateError
from nvmeemu.spec import (
    BROADCAST,
    PAGE_MIN,
    AdminOpcode,
    AttachmentSelect,
    Cns,
    CommandEffectsLog,
    ControllerList,
    Ctratt,
    Effect,
    FeatureId,
    HostNamespace,
    Identify,
    IdentifyNamespace,
    IndependentNamespace,
    LogId,
    ManagementSelect,
    NamespaceAttachment,
    NamespaceManagement,
    NsFeat,
    Oacs,
    SetFeatures,
    Status,
)
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import FORMATS
from nvmeemu.subsystem.saved import MemoryState
from nvmeemu.testing import Bench, Driver

ROOM = 64 << 20  # bytes of the pool
LARGE = next(index for index, one in enumerate(FORMATS) if (one.data_size, one.metadata_size) == (4096, 0))
GIVEN = 1 << 20  # bytes of the user's disk


@pytest.fixture
def drive(new_bench: NewBench) -> Bench:
    """A drive with a pool and namespace 1, whose disk the user has given."""
    bench = new_bench(MemoryBackend(GIVEN), pool=ROOM)
    bench.driver.enable()
    return bench


@pytest.fixture
def host(drive: Bench) -> Driver:
    return drive.driver


@pytest.fixture
def empty(new_bench: NewBench) -> Driver:
    """Of a drive with a pool alone."""
    bench = new_bench(pool=ROOM)
    bench.subsystem.remove(1)
    bench.driver.enable()
    return bench.driver


@pytest.fixture
def pair(new_bench: NewBench) -> tuple[Driver, Driver]:
    """Two controllers, 1 and 2, of one drive that has a pool alone."""
    first = new_bench(pool=ROOM)
    first.subsystem.remove(1)
    second = new_bench(subsystem=first.subsystem, cntlid=2)
    for bench in (first, second):
        bench.driver.enable()
    return first.driver, second.driver


def listen(*drivers: Driver) -> None:
    """Each asks for events, and has read of what was before."""
    for driver in drivers:
        changed(driver)
        driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, NOTICES)
        driver.submit(driver.admin, aer())


# --- what the bit promises


@pytest.mark.fact("F101", clause="Base 2.0, Figure 275, OACS", kills=("management-without-pool",))
def test_without_a_pool_nothing_is_promised_and_nothing_is_there(bench: Bench) -> None:
    driver = bench.driver
    driver.enable()
    page = identify_controller(driver)
    assert not page.oacs & Oacs.NAMESPACE_MANAGEMENT
    assert (page.tnvmcap, page.unvmcap, page.mnan, page.maxcna) == (0, 0, 0, 0)
    for command in (NamespaceManagement(sel=1, nsid=1), NamespaceAttachment(nsid=1)):
        fails(driver, driver.admin, command, Status.INVALID_OPCODE)
    for cns in (0x10, 0x11, 0x12, 0x13, 0x16, 0x1A, 0x1B, 0x1F):
        fails(driver, driver.admin, Identify(cns=cns, nsid=1, prp1=driver.alloc(PAGE_MIN)), Status.INVALID_FIELD)
    fails(driver, driver.admin, Identify(nsid=BROADCAST, prp1=driver.alloc(PAGE_MIN)), Status.INVALID_NAMESPACE)


@pytest.mark.fact("F101", clause="Base 2.0, Figure 275, OACS", kills=("management-unsaid",))
@pytest.mark.fact("F112", clause="Base 2.0, Figure 275, NN and MNAN", kills=("nn-is-a-count", "mnan-zero"))
def test_the_bit_comes_with_all_that_it_promises(host: Driver) -> None:
    page = identify_controller(host)
    assert page.oacs & Oacs.NAMESPACE_MANAGEMENT
    assert page.oaes & NOTICES
    assert page.nn == page.mnan == page.maxcna == 16
    assert (page.tnvmcap, page.unvmcap) == (ROOM + GIVEN, ROOM)
    for _ in range(3):
        created(host, 8)
    assert identify_controller(host).nn == 16


@pytest.mark.fact("F116", clause="Base 2.0, Figure 211", kills=("management-without-effects",))
def test_the_effects_log_tells_what_they_change(host: Driver) -> None:
    log = CommandEffectsLog(host.get_log(LogId.COMMAND_EFFECTS, 4096))
    both = Effect.CSUPP | Effect.NIC
    assert int(log.admin[AdminOpcode.NAMESPACE_MANAGEMENT]) & 0xFFFF == both | Effect.NCC
    assert int(log.admin[AdminOpcode.NAMESPACE_ATTACHMENT]) & 0xFFFF == both


@pytest.mark.fact(
    "F102", clause="Base 2.0, Figures 295 and 299", kills=("management-select-ignored", "attachment-select-ignored")
)
@pytest.mark.parametrize("select", range(2, 16))
def test_a_reserved_select_is_an_invalid_field(host: Driver, select: int) -> None:
    place = host.alloc(PAGE_MIN)
    host.bus.write_memory(place, struct.pack("<2H", 1, 1))
    fails(host, host.admin, NamespaceManagement(sel=select, nsid=1, prp1=place), Status.INVALID_FIELD)
    fails(host, host.admin, NamespaceAttachment(sel=select, nsid=1, prp1=place), Status.INVALID_FIELD)
    assert nsids(host) == [1]


# --- create


@pytest.mark.fact("F102", clause="Base 2.0, 5.23", kills=("created-under-a-wish",))
def test_the_controller_chooses_the_number(host: Driver) -> None:
    for nsid in (1, 2, 17, BROADCAST):
        refused(create(host, 8, nsid=nsid), Status.INVALID_FIELD)
    assert nsids(host, Cns.ALLOCATED_NAMESPACES) == [1]


@pytest.mark.fact("F102", clause="Base 2.0, 5.23 and Figure 87")
def test_the_page_may_cross_one_boundary(host: Driver) -> None:
    place = host.alloc(3 * PAGE_MIN) + 2048
    host.bus.write_memory(place, struct.pack("<2Q", 9, 9))
    command = NamespaceManagement(prp1=place, prp2=place - 2048 + PAGE_MIN)
    nsid = host.succeed(host.admin, command).dw0
    assert IdentifyNamespace(host.identify(Cns.ALLOCATED_NAMESPACE, nsid)).nsze == 9


@pytest.mark.fact("F103", clause="Base 2.0, Figure 301")
def test_all_else_in_the_page_is_ignored(host: Driver) -> None:
    page = bytearray(b"\xff" * 4096)
    ours = struct.pack("<2Q10xB2xBB61xI4xHH", 16, 16, LARGE, 0, 1, 0, 0, 0)
    page[: len(ours)] = ours
    for start, end in ((16, 26), (27, 29), (31, 92), (96, 100)):
        page[start:end] = b"\xff" * (end - start)
    place = host.alloc(PAGE_MIN)
    host.bus.write_memory(place, bytes(page))
    nsid = host.succeed(host.admin, NamespaceManagement(prp1=place)).dw0
    found = IdentifyNamespace(host.identify(Cns.ALLOCATED_NAMESPACE, nsid))
    assert (found.nsze, found.ncap, found.flbas, found.dps, found.nmic) == (16, 16, LARGE, 0, 1)


@pytest.mark.fact("F104", clause="Base 2.0, 5.23 and 8.11", kills=("highest-nsid-first", "created-is-attached"))
def test_the_lowest_free_number_is_given_and_the_namespace_is_attached_to_nobody(empty: Driver) -> None:
    assert [created(empty, 8) for _ in range(16)] == list(range(1, 17))
    refused(create(empty, 8), Status.NSID_UNAVAILABLE)
    for nsid in (5, 9):
        succeeds(delete(empty, nsid))
    assert [created(empty, 8) for _ in range(2)] == [5, 9]
    assert nsids(empty) == []
    assert identify_namespace(empty, 5).nsze == 0
    assert cntlids(empty, Cns.ATTACHED_CONTROLLERS, 5) == []
    assert nsids(empty, Cns.ALLOCATED_NAMESPACES) == list(range(1, 17))


@pytest.mark.fact(
    "F104",
    clause="Base 2.0, 8.11 and Figure 97, NSFEAT",
    kills=("ids-of-the-deleted", "reuse-unsaid", "data-of-the-deleted"),
)
def test_a_namespace_with_an_old_number_has_neither_its_data_nor_its_identifiers(empty: Driver) -> None:
    empty.create_queues(1)
    seen: set[bytes] = set()
    for number in range(3):
        nsid = created(empty, 64)
        succeeds(attach(empty, nsid, 1))
        page = identify_namespace(empty, nsid)
        assert page.nsfeat & NsFeat.IDS_NOT_REUSED
        assert not page.nsattr
        descriptors = empty.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
        assert page.nguid not in seen
        assert descriptors not in seen
        seen |= {page.nguid, descriptors}
        assert empty.read(0, 64, nsid=nsid) == bytes(64 * 512)
        empty.write(0, bytes([number + 1]) * 64 * 512, nsid=nsid)
        succeeds(delete(empty, nsid))


@pytest.mark.fact("F105", clause="Base 2.0, Figure 275, TNVMCAP and UNVMCAP", kills=("unvmcap-stays",))
@pytest.mark.parametrize("flbas", [0, LARGE])
def test_capacities_add_up(host: Driver, flbas: int) -> None:
    size = FORMATS[flbas].data_size
    total, before = capacity(host)
    numbers = []
    for blocks in (1, 7, 100):
        numbers.append(created(host, blocks, flbas=flbas))
        page = IdentifyNamespace(host.identify(Cns.ALLOCATED_NAMESPACE, numbers[-1]))
        assert page.nvmcap >= blocks * size
        assert capacity(host) == (total, before - page.nvmcap)
        before -= page.nvmcap
    caps = [IdentifyNamespace(host.identify(Cns.ALLOCATED_NAMESPACE, nsid)).nvmcap for nsid in (1, *numbers)]
    assert sum(caps) + before == total
    for nsid in numbers:
        succeeds(delete(host, nsid))
    assert capacity(host) == (total, ROOM)


@pytest.mark.fact("F105", clause="Base 2.0, 5.23")
@pytest.mark.parametrize("flbas", [0, LARGE])
def test_one_namespace_can_have_it_all(empty: Driver, flbas: int) -> None:
    total, _ = capacity(empty)
    created(empty, total // FORMATS[flbas].data_size, flbas=flbas)
    assert capacity(empty) == (total, 0)


@pytest.mark.fact("F106", clause="Base 2.0, Figure 304", kills=("format-unchecked", "absent-format-taken"))
@pytest.mark.parametrize("flbas", [*(number for number, one in enumerate(FORMATS) if one.needs_extension), 14, 15])
def test_a_format_that_is_not_available_is_refused(host: Driver, flbas: int) -> None:
    """Those with a long guard or a storage tag are for hosts that know of them (LBAFEE); others are not there."""
    refused(create(host, 8, flbas=flbas), Status.INVALID_FORMAT)


@pytest.mark.fact("F106", clause="Base 2.0, Figure 304", kills=("protection-unchecked",))
@pytest.mark.parametrize("dps", range(1, 8))
def test_protection_without_room_for_it_is_refused(host: Driver, dps: int) -> None:
    refused(create(host, 8, flbas=LARGE, dps=dps), Status.INVALID_FORMAT)


@pytest.mark.fact(
    "F106",
    clause="Base 2.0, Figures 301 and 304",
    kills=("ncap-unchecked", "thin-taken", "csi-taken", "ana-group-taken", "nvm-set-taken"),
)
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"ncap": 9}, Status.INVALID_FIELD),
        ({"ncap": 7}, Status.THIN_PROVISIONING_NOT_SUPPORTED),
        ({"ncap": 0}, Status.THIN_PROVISIONING_NOT_SUPPORTED),
        ({"nsze": 0, "ncap": 0}, Status.INVALID_FIELD),
        ({"csi": 2}, Status.COMMAND_SET_NOT_SUPPORTED),
        ({"csi": 1}, Status.COMMAND_SET_NOT_SUPPORTED),
        ({"anagrpid": 1}, Status.ANA_GROUP_INVALID),
        ({"nvmsetid": 1}, Status.INVALID_FIELD),
        ({"nvmsetid": 1, "endgid": 1}, Status.INVALID_FIELD),
    ],
)
def test_what_no_namespace_can_be_is_refused(host: Driver, given: dict[str, Any], status: Status) -> None:
    before = capacity(host)
    refused(create(host, 8, **given), status)
    assert nsids(host, Cns.ALLOCATED_NAMESPACES) == [1]
    assert capacity(host) == before


@pytest.mark.fact("F106", clause="Base 2.0, Figure 304", kills=("capacity-unchecked", "shortage-untold"))
@pytest.mark.parametrize("blocks", [(ROOM >> 9) + 1, 1 << 62, (1 << 64) - 1])
def test_what_is_too_large_is_refused_and_the_log_tells_what_it_needs(host: Driver, blocks: int) -> None:
    """The specification says: all that is required, and not what is missing."""
    refused(create(host, blocks), Status.INSUFFICIENT_CAPACITY)
    assert info(host) == min(blocks * 512, (1 << 64) - 1)
    created(host, ROOM >> 9)
    refused(create(host, 1), Status.INSUFFICIENT_CAPACITY)
    assert info(host) == 512


@pytest.mark.fact("F106", clause="NVM 1.0, 5.4; Base 2.0, 5.27.1.18, LBAFEE")
@pytest.mark.fact("F103", clause="Base 2.0, Figure 301, FLBAS and DPS", kills=("extended-unasked",))
@pytest.mark.parametrize("number", [number for number, one in enumerate(FORMATS) if one.can_be_protected])
def test_every_format_with_protection_can_be_had(empty: Driver, number: int) -> None:
    empty.bus.write_memory(place := empty.alloc(PAGE_MIN), b"\0\0\1")
    empty.succeed(empty.admin, SetFeatures(fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place))
    nsid = created(empty, 8, flbas=number | 1 << 4, dps=1)
    succeeds(attach(empty, nsid, 1))
    page = identify_namespace(empty, nsid)
    assert (page.flbas, page.dps, page.nsze, page.nuse) == (number | 1 << 4, 1, 8, 0)
    assert page.nvmcap == 8 * FORMATS[number].data_size


# --- delete


@pytest.mark.fact("F107", clause="Base 2.0, 5.23", kills=("unallocated-deleted",))
def test_only_what_is_there_is_deleted(host: Driver) -> None:
    refused(delete(host, 2), Status.INVALID_FIELD)
    for nsid in (0, 17, BROADCAST - 1):
        refused(delete(host, nsid), Status.INVALID_NAMESPACE)


@pytest.mark.fact("F107", clause="Base 2.0, 5.23", kills=("delete-all-needs-one",))
def test_all_are_deleted_also_if_there_are_none(empty: Driver) -> None:
    succeeds(delete(empty, BROADCAST))
    for _ in range(3):
        succeeds(attach(empty, created(empty, 8), 1))
    succeeds(delete(empty, BROADCAST))
    assert nsids(empty) == nsids(empty, Cns.ALLOCATED_NAMESPACES) == []
    assert capacity(empty) == (ROOM, ROOM)


@pytest.mark.fact("F107", clause="Base 2.0, 8.11", kills=("deleted-stays-attached",))
def test_what_is_deleted_is_detached_and_inactive(pair: tuple[Driver, Driver]) -> None:
    nsid = created(pair[0], 64, nmic=1)
    succeeds(attach(pair[0], nsid, 1, 2))
    for driver in pair:
        driver.create_queues(1)
        driver.write(0, bytes(512), nsid=nsid, block_size=512)
    succeeds(delete(pair[0], nsid))
    for driver in pair:
        assert nsids(driver) == []
        place = driver.alloc(PAGE_MIN)
        for command in (read_command(place, nsid=nsid), write_command(place, nsid=nsid), flush_command(nsid)):
            fails(driver, driver.queues[1], command, Status.INVALID_FIELD)
        assert identify_namespace(driver, nsid).nsze == 0


@pytest.mark.fact("F107", clause="Base 2.0, 8.11", kills=("commands-outlive-their-namespace",))
@pytest.mark.parametrize("is_deleted", [True, False])
def test_commands_that_wait_end_as_those_to_an_inactive_namespace(new_bench: NewBench, is_deleted: bool) -> None:
    bench = new_bench(TellingBackend(), manual=True, pool=ROOM)
    bench.namespaces.by_nsid[1].is_deletable = True
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    for command in (read_command(driver.alloc(PAGE_MIN)), write_command(driver.alloc(PAGE_MIN))):
        driver.submit(queue, command)
    bench.settle()
    assert driver.drain(queue) == []
    succeeds(delete(driver, 1) if is_deleted else detach(driver, 1, 1))
    bench.settle()
    assert [(one.status, one.dnr) for one in driver.drain(queue)] == [(Status.INVALID_FIELD, True)] * 2
    bench.worker.finish_all()
    bench.settle()
    assert driver.drain(queue) == []


@pytest.mark.fact(
    "F107", clause="Base 2.0, 8.11", kills=("user-disk-deleted", "some-of-all-deleted", "delete-floods-the-log")
)
def test_what_the_user_has_given_is_not_deleted(host: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """An addition of ours: Operation Denied. The user is told once how to allow it. If one is refused, all stay."""
    nsid = created(host, 8)
    for which in (1, BROADCAST):
        refused(delete(host, which), Status.OPERATION_DENIED)
    assert nsids(host, Cns.ALLOCATED_NAMESPACES) == [1, nsid]
    assert ['delete = "allow"' in message for message in caplog.messages].count(True) == 1


@pytest.mark.fact("F107", clause="Base 2.0, 8.11")
@pytest.mark.fact("F105", clause="Base 2.0, Figure 275, UNVMCAP", kills=("deleted-disk-is-lost",))
def test_what_the_user_lets_go_can_be_deleted(drive: Bench) -> None:
    gone: list[int] = []
    drive.subsystem.on_delete = lambda namespace: gone.append(namespace.nsid)
    drive.namespaces.by_nsid[1].is_deletable = True
    succeeds(delete(drive.driver, 1))
    assert gone == [1]
    assert capacity(drive.driver) == (ROOM + GIVEN, ROOM + GIVEN)
    assert created(drive.driver, 8) == 1


@pytest.mark.fact("F107", clause="Base 2.0, Figure 304", kills=("protected-deleted",))
@pytest.mark.fact("F117", clause="NVM 1.0, 5.12")
def test_what_is_write_protected_is_not_deleted_and_protection_dies_with_it(empty: Driver) -> None:
    nsid = created(empty, 8)
    succeeds(attach(empty, nsid, 1))
    empty.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 1, nsid=nsid)
    for which in (nsid, BROADCAST):
        refused(delete(empty, which), Status.NAMESPACE_WRITE_PROTECTED)
    empty.set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 0, nsid=nsid)
    succeeds(delete(empty, nsid))


# --- attach and detach


@pytest.mark.fact("F108", clause="Base 2.0, 5.22", kills=("inactive-is-invalid",))
def test_only_what_is_there_is_attached(host: Driver) -> None:
    for act in (attach, detach):
        for nsid in (0, 17, BROADCAST):
            refused(act(host, nsid, 1), Status.INVALID_NAMESPACE)
        refused(act(host, 2, 1), Status.INVALID_FIELD)


@pytest.mark.fact(
    "F108",
    clause="Base 2.0, 5.22 and Figure 137",
    kills=("empty-controller-list", "unknown-controller", "controllers-unsorted"),
)
@pytest.mark.parametrize(
    ("cntlids", "number", "place"),
    [((), 0, 0), ((1,), 2048, 0), ((0,), 1, 2), ((3,), 1, 2), ((1, 1), 2, 4), ((2, 1), 2, 4), ((1, 0xFFFF), 2, 4)],
)
def test_a_bad_list_changes_nothing(
    pair: tuple[Driver, Driver], cntlids: tuple[int, ...], number: int, place: int
) -> None:
    nsid = created(pair[0], 8, nmic=1)
    for act in (attach, detach):
        refused(act(pair[0], nsid, *cntlids, number=number), Status.INVALID_CONTROLLER_LIST)
        assert info(pair[0]) == place
    assert nsids(pair[0]) == nsids(pair[1]) == []


@pytest.mark.fact("F109", clause="Base 2.0, Figure 297", kills=("attached-twice", "failed-entry-untold"))
def test_what_is_attached_is_not_attached_again_and_the_first_error_stops(pair: tuple[Driver, Driver]) -> None:
    """Those before it stay done."""
    nsid = created(pair[0], 8, nmic=1)
    succeeds(attach(pair[0], nsid, 2))
    refused(attach(pair[0], nsid, 1, 2), Status.NAMESPACE_ALREADY_ATTACHED)
    assert info(pair[0]) == 4
    assert nsids(pair[0]) == nsids(pair[1]) == [nsid]
    succeeds(detach(pair[0], nsid, 1))
    refused(detach(pair[0], nsid, 1, 2), Status.NAMESPACE_NOT_ATTACHED)
    assert info(pair[0]) == 2
    assert (nsids(pair[0]), nsids(pair[1])) == ([], [nsid])


@pytest.mark.fact("F109", clause="Base 2.0, Figure 297", kills=("private-is-shared",))
def test_a_private_namespace_has_one_controller(pair: tuple[Driver, Driver]) -> None:
    nsid = created(pair[0], 8)
    refused(attach(pair[0], nsid, 1, 2), Status.NAMESPACE_IS_PRIVATE)
    assert info(pair[0]) == 4
    assert (nsids(pair[0]), nsids(pair[1])) == ([nsid], [])
    succeeds(detach(pair[1], nsid, 1))
    succeeds(attach(pair[1], nsid, 2))
    assert (nsids(pair[0]), nsids(pair[1])) == ([], [nsid])


@pytest.mark.fact("F109", clause="Base 2.0, Figure 297, 27h", kills=("no-attachment-limit",))
def test_a_controller_has_no_more_than_its_limit(new_bench: NewBench) -> None:
    driver = new_bench(limits=Limits(attached=2), pool=ROOM).driver
    driver.enable()
    assert identify_controller(driver).maxcna == 2
    first, second = created(driver, 8), created(driver, 8)
    succeeds(attach(driver, first, 1))
    refused(attach(driver, second, 1), Status.ATTACHMENT_LIMIT_EXCEEDED)
    succeeds(detach(driver, 1, 1))
    succeeds(attach(driver, second, 1))


@pytest.mark.fact("F117", clause="Base 2.0, 3.2.1.3 and 8.11")
def test_what_is_not_attached_is_inactive(host: Driver) -> None:
    queue = host.create_queues(1)
    place = host.alloc(PAGE_MIN)
    nsid = created(host, 8)
    for which in (nsid, 1):
        if which == 1:
            succeeds(detach(host, 1, 1))
        for command in (read_command(place, nsid=which), write_command(place, nsid=which), flush_command(which)):
            fails(host, queue, command, Status.INVALID_FIELD)
        fails(host, host.admin, SetFeatures(fid=FeatureId.ERROR_RECOVERY, nsid=which), Status.INVALID_FIELD)
        fails(host, host.admin, Identify(cns=3, nsid=which, prp1=place), Status.INVALID_FIELD)
        assert identify_namespace(host, which).nsze == 0
        assert IndependentNamespace(host.identify(Cns.INDEPENDENT_NAMESPACE, which)).nstat == 0
    succeeds(attach(host, 1, 1))
    assert host.read(0, 1) == bytes(512)


@pytest.mark.fact("F117", clause="Base 2.0, 5.27", kills=("features-outlive-their-namespace",))
def test_features_of_a_namespace_die_with_it(empty: Driver) -> None:
    """Also what was saved of them."""
    for is_saved in (False, True):
        nsid = created(empty, 8)
        succeeds(attach(empty, nsid, 1))
        empty.succeed(empty.admin, SetFeatures(fid=FeatureId.ERROR_RECOVERY, nsid=nsid, cdw11=7, sv=is_saved))
        succeeds(delete(empty, nsid))
        assert created(empty, 8) == nsid
        succeeds(attach(empty, nsid, 1))
        for select in (0, 2):
            assert empty.get_feature(FeatureId.ERROR_RECOVERY, nsid=nsid, sel=select) == 0
        empty.enable()
        assert empty.get_feature(FeatureId.ERROR_RECOVERY, nsid=nsid) == 0
        succeeds(delete(empty, nsid))


# --- what Identify lists


@pytest.mark.fact("F111", clause="Base 2.0, Figure 273, CNS 10h", kills=("allocated-list-is-active-list",))
def test_the_allocated_list_has_all_that_there_are(host: Driver) -> None:
    second, third = created(host, 8), created(host, 8)
    for cns in (Cns.ALLOCATED_NAMESPACES, Cns.CSI_ALLOCATED_NAMESPACES):
        assert nsids(host, cns) == [1, second, third]
        assert nsids(host, cns, 1) == [second, third]
        assert nsids(host, cns, third) == []
        for nsid in (0xFFFFFFFE, BROADCAST):
            fails(host, host.admin, Identify(cns=cns, nsid=nsid, prp1=host.alloc(PAGE_MIN)), Status.INVALID_NAMESPACE)
    fails(host, host.admin, Identify(cns=0x1A, csi=2, prp1=host.alloc(PAGE_MIN)), Status.INVALID_FIELD)


@pytest.mark.fact("F111", clause="Base 2.0, Figure 273, CNS 11h, 1Bh and 1Fh", kills=("allocated-is-active",))
def test_an_allocated_namespace_is_described_whether_it_is_attached_or_not(host: Driver) -> None:
    nsid = created(host, 8)
    pages = [host.identify(cns, nsid) for cns in (Cns.ALLOCATED_NAMESPACE, Cns.INDEPENDENT_ALLOCATED_NAMESPACE)]
    assert IdentifyNamespace(pages[0]).nsze == 8
    assert IndependentNamespace(pages[1]).nsfeat == NsFeat.IDS_NOT_REUSED
    succeeds(attach(host, nsid, 1))
    assert [host.identify(cns, nsid) for cns in (Cns.NAMESPACE, Cns.INDEPENDENT_NAMESPACE)] == pages
    assert host.identify(Cns.CSI_ALLOCATED_NAMESPACE, nsid) == host.identify(Cns.CSI_NAMESPACE, nsid)
    for cns in (Cns.ALLOCATED_NAMESPACE, Cns.CSI_ALLOCATED_NAMESPACE, Cns.INDEPENDENT_ALLOCATED_NAMESPACE):
        assert host.identify(cns, 16) == bytes(PAGE_MIN)
        for bad in (0, 17, BROADCAST):
            fails(host, host.admin, Identify(cns=cns, nsid=bad, prp1=host.alloc(PAGE_MIN)), Status.INVALID_NAMESPACE)


@pytest.mark.fact(
    "F111", clause="Base 2.0, Figure 273, CNS 12h and 13h", kills=("cntid-ignored", "controllers-of-broadcast")
)
def test_controllers_are_listed(pair: tuple[Driver, Driver]) -> None:
    driver = pair[1]
    nsid = created(driver, 8, nmic=1)
    assert cntlids(driver, Cns.ATTACHED_CONTROLLERS, nsid) == []
    succeeds(attach(driver, nsid, 1, 2))
    for cns, which in ((Cns.ATTACHED_CONTROLLERS, nsid), (Cns.CONTROLLERS, 0), (Cns.CONTROLLERS, BROADCAST)):
        lists = [cntlids(driver, cns, which, cntid) for cntid in (0, 1, 2, 3)]
        assert lists == [[1, 2], [1, 2], [2], []]
    succeeds(detach(driver, nsid, 1))
    assert cntlids(driver, Cns.ATTACHED_CONTROLLERS, nsid) == [2]
    for bad, status in (
        (BROADCAST, Status.INVALID_FIELD),
        (0, Status.INVALID_NAMESPACE),
        (17, Status.INVALID_NAMESPACE),
    ):
        fails(driver, driver.admin, Identify(cns=0x12, nsid=bad, prp1=driver.alloc(PAGE_MIN)), status)


@pytest.mark.fact("F111", clause="Base 2.0, Figure 273, CNS 16h; Figure 97 of FFFFFFFFh", kills=("common-has-a-size",))
def test_what_all_namespaces_have_in_common(host: Driver) -> None:
    common = IdentifyNamespace(host.identify(Cns.NAMESPACE, BROADCAST))
    assert (common.nsze, common.ncap, common.nuse, common.nvmcap) == (0, 0, 0, 0)
    assert common.nguid == bytes(16)
    own = identify_namespace(host)
    assert [bytes(one) for one in own.lbaf] == [bytes(one) for one in common.lbaf]
    assert own.nlbaf == common.nlbaf
    assert [(1 << one.lbads, one.ms) for one in common.lbaf[: common.nlbaf]] == [
        (one.data_size, one.metadata_size) for one in FORMATS
    ]
    assert host.identify(Cns.CSI_NAMESPACE, BROADCAST)[12:] == host.identify(Cns.CSI_NAMESPACE, 1)[12:]
    # Any size is taken. So CTRATT does not ask for multiples: nvme-cli 2.16 would round up a namespace that takes all
    # there is, and what it says about that breaks its own JSON output (create-ns --verbose --output-format=json).
    assert not identify_controller(host).ctratt & Ctratt.NAMESPACE_GRANULARITY
    page = host.identify(Cns.NAMESPACE_GRANULARITY)
    assert struct.unpack_from("<IB27x2Q", page) == (0, 0, 4096, 4096)


# --- who is told


@pytest.mark.fact("F113", clause="Base 2.0, 8.11 and Figure 147", kills=("attachment-untold",))
@pytest.mark.fact("F115", clause="Base 2.0, 5.2")
def test_attach_and_detach_are_told_to_those_whose_list_changes(pair: tuple[Driver, Driver]) -> None:
    """Also to the one that has processed it, at once; and to no other."""
    nsid = created(pair[0], 8, nmic=1)
    listen(*pair)
    assert told(pair[0]) == told(pair[1]) == []
    for act in (attach, detach):
        for target in (0, 1):
            succeeds(act(pair[0], nsid, target + 1))
            other = 1 - target
            assert (told(pair[target]), told(pair[other])) == ([CHANGED], [])
            assert (changed(pair[target]), changed(pair[other])) == ([nsid], [])
            pair[target].submit(pair[target].admin, aer())


@pytest.mark.fact("F113", clause="Base 2.0, 8.11", kills=("deleter-is-told",))
def test_a_delete_is_told_to_all_others_that_had_it(pair: tuple[Driver, Driver]) -> None:
    both, first = created(pair[0], 8, nmic=1), created(pair[0], 8)
    succeeds(attach(pair[0], both, 1, 2))
    succeeds(attach(pair[0], first, 1))
    listen(*pair)
    succeeds(delete(pair[0], both))
    assert (told(pair[0]), told(pair[1])) == ([], [CHANGED])
    assert (changed(pair[0]), changed(pair[1])) == ([], [both])
    succeeds(delete(pair[1], first))
    assert (told(pair[0]), changed(pair[0]), changed(pair[1])) == ([CHANGED], [first], [])


@pytest.mark.fact("F113", clause="Base 2.0, 5.2")
def test_what_the_user_takes_away_is_told_to_all_that_had_it(pair: tuple[Driver, Driver]) -> None:
    nsid = created(pair[0], 8)
    succeeds(attach(pair[0], nsid, 2))
    listen(*pair)
    bench = pair[0].bus
    assert isinstance(bench, Bench)
    bench.subsystem.remove(nsid)
    assert (told(pair[0]), told(pair[1])) == ([], [CHANGED])


@pytest.mark.fact("F113", clause="NVM 1.0, 5.12")
def test_a_change_of_what_identify_says_is_told_to_those_that_have_it(pair: tuple[Driver, Driver]) -> None:
    nsid = created(pair[0], 8, nmic=1)
    succeeds(attach(pair[0], nsid, 1))
    listen(*pair)
    pair[0].set_feature(FeatureId.NAMESPACE_WRITE_PROTECTION, 1, nsid=nsid)
    assert (changed(pair[0]), changed(pair[1])) == ([nsid], [])


@pytest.mark.fact("F114", clause="Base 2.0, 5.16.1.5", kills=("changed-list-overflows",))
@pytest.mark.parametrize("engine", ["python"], indirect=True)
def test_more_changes_than_the_list_holds(new_bench: NewBench) -> None:
    bench = new_bench(limits=Limits(namespaces=2000, attached=2000), pool=1200 * 4096)
    driver = bench.driver
    driver.enable()
    for expected in (1024, 1025):
        for _ in range(expected):
            succeeds(attach(driver, created(driver, 1), 1))
        numbers = changed(driver)
        assert numbers == ([BROADCAST] if expected > 1024 else list(range(2, 1026)))
        assert changed(driver) == []
        for nsid in range(2, expected + 2):
            bench.subsystem.delete(nsid, 1)


# --- what stays


@pytest.mark.fact("F110", clause="Base 2.0, 8.11", kills=("attachments-die-with-a-reset",))
@pytest.mark.parametrize("is_function_reset", [False, True])
def test_no_reset_changes_what_is_there_and_attached(pair: tuple[Driver, Driver], is_function_reset: bool) -> None:
    nsid, other = created(pair[0], 8, nmic=1), created(pair[0], 8)
    succeeds(attach(pair[0], nsid, 2))
    pages = [pair[1].identify(Cns.ALLOCATED_NAMESPACE, one) for one in (nsid, other)]
    for driver in pair:
        if is_function_reset:
            assert isinstance(driver.bus, Bench)
            driver.bus.controller.reset()
        driver.enable()
        assert (nsids(pair[1]), nsids(driver, Cns.ALLOCATED_NAMESPACES)) == ([nsid], [nsid, other])
        assert [driver.identify(Cns.ALLOCATED_NAMESPACE, one) for one in (nsid, other)] == pages
    assert nsids(pair[0]) == []


class LateState(MemoryState):
    """A saved state that answers when the test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Any, Any]] = []
        self.is_late = False

    def save(self, changes: Any, done: Any) -> None:
        if self.is_late:
            self.waiting.append((changes, done))
        else:
            super().save(changes, done)

    def answer(self, error: StateError | None = None) -> None:
        changes, done = self.waiting.pop(0)
        if error is None:
            self.put(changes)
        done(error)


@pytest.mark.fact("F110", clause="Base 2.0, 8.11", kills=("attached-before-it-is-saved",))
def test_what_is_not_durable_is_not_there(new_bench: NewBench) -> None:
    """A command completes when its change is saved; one whose change cannot be saved changes nothing."""
    state = LateState()
    driver = new_bench(state=state, pool=ROOM).driver
    driver.enable()
    nsid = created(driver, 8)
    succeeds(detach(driver, 1, 1))
    state.is_late = True
    page = driver.alloc(PAGE_MIN)
    driver.bus.write_memory(page, struct.pack("<2H", 1, 1))
    for error, after in ((StateError("the disk is full"), []), (None, [nsid])):
        cid = driver.submit(driver.admin, NamespaceAttachment(nsid=nsid, prp1=page))
        assert driver.drain(driver.admin) == []
        assert nsids(driver) == []
        state.answer(error)
        driver.bus.settle()
        (completion,) = driver.drain(driver.admin)
        assert (completion.cid, completion.status) == (cid, Status.INTERNAL_ERROR if error else Status.SUCCESS)
        assert not completion.dnr
        assert nsids(driver) == after


@pytest.mark.fact("F104", clause="Base 2.0, 5.23", kills=("half-a-namespace",))
def test_a_namespace_whose_blocks_cannot_be_made_leaves_nothing(drive: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    assert drive.subsystem.pool is not None
    monkeypatch.setattr(drive.subsystem.pool, "make", fail)
    before = capacity(drive.driver)
    assert create(drive.driver, 8).status == Status.INTERNAL_ERROR
    assert nsids(drive.driver, Cns.ALLOCATED_NAMESPACES) == [1]
    assert capacity(drive.driver) == before
    state = drive.subsystem.state
    assert isinstance(state, MemoryState)
    assert not state.scope("trash")
    monkeypatch.undo()
    assert created(drive.driver, 8) == 2


# --- as others do it


@pytest.mark.fact("F104", clause="nvme-cli, nvme_create_max_ns_test")
@pytest.mark.fact("F105", clause="nvme-cli, nvme_create_max_ns_test")
@pytest.mark.parametrize("flbas", [0, LARGE])
def test_the_sequence_of_nvme_clis_own_test(empty: Driver, flbas: int) -> None:
    succeeds(delete(empty, BROADCAST))
    page = identify_controller(empty)
    blocks = page.tnvmcap // FORMATS[flbas].data_size // page.nn // 2
    for expected in range(1, page.nn + 1):
        assert created(empty, blocks, flbas=flbas) == expected
    for nsid in range(1, page.nn + 1):
        succeeds(attach(empty, nsid, *cntlids(empty, Cns.CONTROLLERS)[:1]))
        assert nsids(empty) == list(range(1, nsid + 1))
    assert nsids(empty, Cns.ALLOCATED_NAMESPACES) == list(range(1, page.nn + 1))
    for nsid in range(1, page.nn + 1):
        assert identify_namespace(empty, nsid).nsze == blocks
        succeeds(detach(empty, nsid, 1))
        succeeds(delete(empty, nsid))
    assert capacity(empty) == (page.tnvmcap, page.tnvmcap)


@pytest.mark.fact("F105", clause="Base 2.0, 8.11")
def test_the_memory_of_a_deleted_namespace_is_given_back(empty: Driver) -> None:
    bench = empty.bus
    assert isinstance(bench, Bench)
    nsid = created(empty, 8)
    media = bench.namespaces.by_nsid[nsid].media
    assert isinstance(media, DiskMedia)
    closed: list[bool] = []
    media.backend.close = lambda: closed.append(True)  # type: ignore[method-assign]
    succeeds(delete(empty, nsid))
    bench.clock.advance(1.0)
    bench.settle()
    assert closed == [True]
    assert not bench.subsystem.state.scope("trash")


@pytest.mark.fact("F109", clause="Base 2.0, 5.22", kills=("changes-that-wait-overflow-the-stack",))
def test_a_thousand_changes_may_wait_for_one(new_bench: NewBench) -> None:
    """They end one after the other, once it has ended: a host decides how many there are."""
    bench = new_bench(MemoryBackend(GIVEN), pool=ROOM, manual=True)
    driver = bench.driver
    driver.enable(asqs=1024, acqs=1024)
    new, cntlids = driver.alloc(PAGE_MIN), driver.alloc(PAGE_MIN)
    driver.bus.write_memory(new, bytes(HostNamespace(nsze=8, ncap=8)))
    driver.bus.write_memory(cntlids, bytes(ControllerList(number=1, ids=struct.pack("<H", 1))))
    driver.submit(driver.admin, NamespaceManagement(sel=ManagementSelect.CREATE, prp1=new), ring=False)
    many = range(1000)
    for number in many:
        select = AttachmentSelect.ATTACH if number % 2 else AttachmentSelect.DETACH
        driver.submit(driver.admin, NamespaceAttachment(nsid=1, sel=select, prp1=cntlids), ring=False)
    driver.ring_sq(driver.admin)
    driver.bus.settle()
    assert driver.drain(driver.admin) == []
    while bench.worker.tasks:
        bench.worker.finish_all()
        bench.settle()
    assert [one.status for one in driver.drain(driver.admin)] == [Status.SUCCESS] * (len(many) + 1)
