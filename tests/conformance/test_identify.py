"""Identify. Base 1.4, 5.15."""

from __future__ import annotations

import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conformance.identify_rules import broken_rules
from conformance.tools import (
    DriverOf,
    NewBench,
    admin,
    fails,
    guarded,
    identify_controller,
    identify_namespace,
    is_untouched,
)
from nvmeemu.backend import open_backend
from nvmeemu.spec import BROADCAST, AdminOpcode, Cns, Command, Identify, IndependentNamespace, Status
from nvmeemu.testing import CAP, CC, PAGE, VS, Driver

VERSION_1_4 = 0x00010400
DISKS: dict[str, dict[str, Any]] = {
    "memory": {},
    "file": {},
    "read-only": {"read_only": True},
    "overlay": {"overlay": True},
    "direct": {"direct": True},
}
OF_COMMAND_SET = (Cns.CSI_NAMESPACE, Cns.CSI_CONTROLLER, Cns.CSI_ACTIVE_NAMESPACES)


def command(cns: int, nsid: int = 0, csi: int = 0, prp1: int = 0, prp2: int = 0) -> Identify:
    return Identify(opcode=AdminOpcode.IDENTIFY, nsid=nsid, prp1=prp1, prp2=prp2, cns=cns, csi=csi)


def active(driver: Driver, after: int = 0, cns: int = Cns.ACTIVE_NAMESPACES) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", driver.identify(cns, after)) if nsid]


def inactive_nsid(driver: Driver) -> int:
    nn = identify_controller(driver).nn
    return next(nsid for nsid in range(1, nn + 1) if nsid not in active(driver))


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.1; Base 2.0, 5.17.2.8", kills=("identify-inactive-fails",))
@pytest.mark.parametrize("cns", [Cns.NAMESPACE, Cns.CSI_NAMESPACE, Cns.INDEPENDENT_NAMESPACE])
def test_an_inactive_namespace_reads_as_zeros(driver: Driver, cns: int) -> None:
    assert driver.identify(cns, inactive_nsid(driver)) == bytes(PAGE)


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.4 and 6.1.5", kills=("inactive-is-invalid",))
def test_an_inactive_namespace_has_no_descriptors(driver: Driver) -> None:
    """CNS 03h says nothing else of it, so it is an Invalid Field, as everywhere."""
    page = driver.alloc(PAGE)
    refused = command(Cns.NAMESPACE_DESCRIPTORS, inactive_nsid(driver), prp1=page)
    fails(driver, driver.admin, refused, Status.INVALID_FIELD)


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.1", kills=("identify-any-nsid",))
@pytest.mark.fact("B6", clause="Base 1.4, 5.15.2.1", kills=("identify-any-nsid",))
def test_no_namespace_is_invented_for_nsid_0_above_nn_or_broadcast(driver: Driver) -> None:
    """bhyve answers CNS 00h with the one namespace it has, whatever NSID is asked for."""
    controller = identify_controller(driver)
    has_management = controller.oacs & 1 << 3
    page = driver.alloc(PAGE)
    for nsid in (0, controller.nn + 1, 0xFFFFFFFE, *(() if has_management else (BROADCAST,))):
        fails(driver, driver.admin, command(Cns.NAMESPACE, nsid, prp1=page), Status.INVALID_NAMESPACE)


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.3", kills=("active-list-includes-given",))
def test_the_active_list_has_the_nsids_greater_than_the_given_one(driver: Driver) -> None:
    everything = active(driver)
    assert everything == sorted(set(everything))
    assert 1 in everything
    for nsid in everything:
        assert active(driver, nsid) == [other for other in everything if other > nsid]
    assert active(driver, 0xFFFFFFFD) == []


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.3", kills=("active-list-after-the-last",))
@pytest.mark.parametrize("nsid", [0xFFFFFFFE, 0xFFFFFFFF])
def test_there_is_no_active_list_after_the_last_nsid(driver: Driver, nsid: int) -> None:
    page = driver.alloc(PAGE)
    fails(driver, driver.admin, command(Cns.ACTIVE_NAMESPACES, nsid, prp1=page), Status.INVALID_NAMESPACE)


def descriptors(driver: Driver, nsid: int) -> dict[int, bytes]:
    page = driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
    found, at = {}, 0
    while page[at + 1]:
        kind, length = page[at], page[at + 1]
        assert kind not in found
        found[kind] = page[at + 4 : at + 4 + length]
        at += 4 + length
    assert not any(page[at:])
    return found


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.4", kills=("descriptors-empty",))
@pytest.mark.fact("B4", clause="Base 1.4, 5.15.2.4", kills=("descriptors-empty",))
def test_a_namespace_has_a_descriptor_that_names_it_for_the_whole_world(driver: Driver) -> None:
    """QEMU's list may be empty: then nothing tells two disks apart for good."""
    found = descriptors(driver, 1)
    sizes = {1: 8, 2: 16, 3: 16}  # EUI-64, NGUID, UUID
    names = {kind: value for kind, value in found.items() if kind in sizes and any(value)}
    assert names
    assert all(len(value) == sizes[kind] for kind, value in names.items())
    if 2 in names:
        assert identify_namespace(driver).nguid == names[2]
    if driver.reg(CAP, 8) >> 43 & 1:  # CAP.CSS bit 6: several I/O command sets
        assert found[4] == b"\0"


@pytest.mark.fact("A21", clause="Base 1.4, 5.15.2.4", kills=("descriptors-of-any-nsid",))
def test_what_is_no_namespace_has_no_descriptors(driver: Driver) -> None:
    nn = identify_controller(driver).nn
    page = driver.alloc(PAGE)
    for nsid in (0, nn + 1, BROADCAST):
        fails(driver, driver.admin, command(Cns.NAMESPACE_DESCRIPTORS, nsid, prp1=page), Status.INVALID_NAMESPACE)


@pytest.mark.fact("A15", clause="Base 1.4, 5.15.1", kills=("unknown-cns-invalid-opcode",))
@pytest.mark.fact("B7", clause="Base 1.4, 5.15.1", kills=("unknown-cns-invalid-opcode",))
@pytest.mark.parametrize("cns", [0x04, 0x0F, 0x17, 0x30, 0x7F, 0xFF])
def test_an_unknown_cns_is_an_invalid_field(driver: Driver, cns: int) -> None:
    """NVMeVirt calls it an invalid opcode, and drivers then believe that there is no Identify."""
    place = guarded(driver, PAGE)
    completion = driver.execute(driver.admin, command(cns, 1, prp1=place))
    if completion.status == Status.SUCCESS:
        pytest.fail(f"CNS {cns:#x} is served: take a reserved one")
    assert (completion.status, completion.dnr) == (Status.INVALID_FIELD, True)
    assert is_untouched(driver, place, PAGE)


@pytest.mark.fact("A21", clause="Base 2.0, 5.17.2.5 to 5.17.2.8", kills=("csi-ignored",))
@pytest.mark.parametrize("cns", OF_COMMAND_SET)
def test_pages_of_a_command_set_exist_for_the_nvm_command_set_only(driver: Driver, cns: int) -> None:
    assert driver.identify(cns, 1 if cns == Cns.CSI_NAMESPACE else 0, csi=0) is not None
    page = driver.alloc(PAGE)
    for csi in (0x01, 0x30, 0xFF):
        fails(driver, driver.admin, command(cns, 1, csi=csi, prp1=page), Status.INVALID_FIELD)


@pytest.mark.fact("A21", clause="Base 2.0, 5.17.2.7", kills=("csi-list-missing",))
def test_the_active_list_of_the_nvm_command_set_is_the_whole_list(driver: Driver) -> None:
    assert active(driver, cns=Cns.CSI_ACTIVE_NAMESPACES) == active(driver)


@pytest.mark.fact("A21", clause="Base 2.0, 5.17.2.8 and 5.17.2.21", kills=("independent-not-ready",))
def test_the_independent_page_says_that_the_namespace_is_ready(driver: Driver) -> None:
    page = IndependentNamespace(driver.identify(Cns.INDEPENDENT_NAMESPACE, 1))
    assert page.nstat & 1  # NRDY
    assert page.nsattr & 1 == identify_namespace(driver).nsattr & 1
    assert struct.unpack("<Q", driver.identify(Cns.COMMAND_SETS)[:8])[0] & 1  # the NVM command set is there


@pytest.mark.fact("A22", clause="Base 1.4, 5.15.2.2 and 1.5", kills=("strings-padded-with-nul",))
@pytest.mark.fact("B5", clause="Base 1.4, 5.15.2.2", kills=("strings-padded-with-nul",))
def test_strings_are_printable_padded_with_spaces_and_not_empty(driver: Driver) -> None:
    """Propolis left MN and FR empty, and nvme-cli crashed (propolis#979)."""
    page = driver.identify(Cns.CONTROLLER)
    for offset, size in ((4, 20), (24, 40), (64, 8)):  # SN, MN, FR
        text = page[offset : offset + size]
        assert all(0x20 <= byte <= 0x7E for byte in text), text
        assert text.strip(b" "), "an empty string"
        assert text.rstrip(b" ") == text.strip(b" "), "a string begins at its first byte"


@pytest.mark.fact("A22", clause="Base 1.4, Figure 247", kills=("cntrltype-zero", "nodmmas-zero", "cqes-wrong"))
def test_the_controller_says_all_that_its_version_demands(driver: Driver) -> None:
    page = identify_controller(driver)
    assert page.ver == driver.reg(VS)
    assert driver.identify(Cns.CONTROLLER)[512:514] == b"\x66\x44"  # SQES, CQES
    assert page.cntlid < 0xFFF0
    if page.ver >= VERSION_1_4:
        assert page.cntrltype == 1  # an I/O controller
        assert page.sanicap >> 30 in (1, 2)  # NODMMAS says something
    assert page.nn >= 1


@pytest.mark.fact("A22", clause="Base 1.4, 7.9", kills=("subnqn-empty",))
def test_the_subsystem_has_a_name(driver: Driver) -> None:
    name, _, rest = identify_controller(driver).subnqn.partition(b"\0")
    assert name.startswith(b"nqn.")
    assert len(name) <= 223
    assert not any(rest)
    name.decode("utf-8")


OPTIONAL_ADMIN = {
    1 << 0: (0x81, 0x82),  # Security Send and Receive
    1 << 1: (0x80,),  # Format NVM
    1 << 2: (0x10, 0x11),  # Firmware Commit and Image Download
    1 << 3: (0x0D, 0x15),  # Namespace Management and Attachment
    1 << 4: (0x14,),  # Device Self-test
    1 << 5: (0x19, 0x1A),  # Directive Send and Receive
    1 << 6: (0x1D, 0x1E),  # NVMe-MI Send and Receive
    1 << 7: (0x1C,),  # Virtualization Management
    1 << 8: (0x7C,),  # Doorbell Buffer Config
    1 << 9: (0x86,),  # Get LBA Status
}
OPTIONAL_NVM = {
    1 << 0: (0x05,),  # Compare
    1 << 1: (0x04,),  # Write Uncorrectable
    1 << 2: (0x09,),  # Dataset Management
    1 << 3: (0x08,),  # Write Zeroes
    1 << 5: (0x0D, 0x0E, 0x11, 0x15),  # Reservations
    1 << 7: (0x0C,),  # Verify
    1 << 8: (0x19,),  # Copy
}
NOBODY = 0xFFFFFF00  # an NSID that no device has: a supported command fails with it, and does no harm


@pytest.mark.fact("A22", clause="Base 1.4, Figure 247, OACS", kills=("oacs-says-ns-management", "oacs-silent"))
@pytest.mark.fact("B4", clause="Base 1.4, Figure 247, OACS", kills=("oacs-says-ns-management",))
def test_oacs_says_exactly_which_admin_commands_work(driver: Driver) -> None:
    """QEMU offers Namespace Management and does not have its commands."""
    oacs = identify_controller(driver).oacs
    for bit, opcodes in OPTIONAL_ADMIN.items():
        for opcode in opcodes:
            is_known = admin(driver, opcode, nsid=NOBODY, prp1=1, prp2=1).status != Status.INVALID_OPCODE
            assert is_known == bool(oacs & bit), f"opcode {opcode:#x}, OACS {oacs:#x}"


@pytest.mark.fact("A22", clause="Base 1.4, Figure 247, ONCS", kills=("oncs-says-reservations", "oncs-hides-verify"))
def test_oncs_says_exactly_which_nvm_commands_and_features_work(driver: Driver) -> None:
    oncs = identify_controller(driver).oncs
    queue = driver.create_queues()
    for bit, opcodes in OPTIONAL_NVM.items():
        for opcode in opcodes:
            nsid = NOBODY if oncs & bit else 1
            completion = driver.execute(queue, Command(opcode=opcode, nsid=nsid))
            assert (completion.status != Status.INVALID_OPCODE) == bool(oncs & bit), f"{opcode:#x}, ONCS {oncs:#x}"
    assert _has_timestamp(driver) == bool(oncs & 1 << 6)


def _has_timestamp(driver: Driver) -> bool:
    page = driver.alloc(PAGE)
    return admin(driver, AdminOpcode.GET_FEATURES, prp1=page, cdw10=0x0E).status == Status.SUCCESS


@pytest.mark.fact("B9", clause="Base 1.4, 4.3", kills=("identify-past-prp1",))
@pytest.mark.parametrize("offset", [4, 512, 2048, PAGE - 4])
def test_data_that_crosses_the_page_of_prp1_goes_on_at_prp2(driver: Driver, offset: int) -> None:
    """Old bhyve copied on past the page of PRP1, into memory of the guest that it was never given."""
    expected = driver.identify(Cns.CONTROLLER)
    first, second = guarded(driver, PAGE), guarded(driver, PAGE)
    driver.succeed(driver.admin, command(Cns.CONTROLLER, prp1=first + offset, prp2=second))
    head = PAGE - offset
    assert driver.bus.read_memory(first + offset, head) == expected[:head]
    assert driver.bus.read_memory(second, offset) == expected[head:]
    assert is_untouched(driver, first - PAGE, PAGE + offset)
    assert is_untouched(driver, first + PAGE, PAGE)
    assert is_untouched(driver, second + offset, 2 * PAGE - offset)


@pytest.mark.fact("A24", clause="Base 1.4, 4.3", kills=("prp1-unaligned", "prp2-offset-ignored"))
def test_bad_prps_of_an_identify_are_refused_and_nothing_is_written(driver: Driver) -> None:
    place, second = guarded(driver, 2 * PAGE), guarded(driver, PAGE)
    refused = Status.INVALID_PRP_OFFSET
    fails(driver, driver.admin, command(Cns.CONTROLLER, prp1=place + 2), refused)
    fails(driver, driver.admin, command(Cns.CONTROLLER, prp1=place + 512, prp2=second + 512), refused)
    assert is_untouched(driver, place, 2 * PAGE)
    assert is_untouched(driver, second, PAGE)


@pytest.mark.fact("A24", clause="Base 1.4, 3.1.5, MPS", kills=("page-size-fixed",))
def test_with_larger_pages_prp1_reaches_further(driver: Driver) -> None:
    if driver.reg(CAP, 8) >> 52 & 0xF == 0:
        pytest.fail("CAP.MPSMAX allows 4 KiB only")
    expected = driver.identify(Cns.CONTROLLER)
    driver.enable(mps=1)
    assert driver.reg(CC) >> 7 & 0xF == 1
    place = guarded(driver, 2 * PAGE, 2 * PAGE)
    driver.succeed(driver.admin, command(Cns.CONTROLLER, prp1=place + PAGE - 512))
    assert driver.bus.read_memory(place + PAGE - 512, PAGE) == expected
    assert is_untouched(driver, place, PAGE - 512)


def broken(driver: Driver) -> list[str]:
    independent = IndependentNamespace(driver.identify(Cns.INDEPENDENT_NAMESPACE, 1))
    return broken_rules(identify_controller(driver), identify_namespace(driver), independent)


@pytest.mark.fact("A22", clause="Base 1.4, Figure 245", kills=("lbads-wrong", "nows-is-one-block"))
@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("blocks", [1, 9, 4096])
def test_what_is_said_of_a_namespace_adds_up(driver_of: DriverOf, block_size: int, blocks: int) -> None:
    driver = driver_of({1: (blocks * block_size, block_size)})
    driver.enable()
    assert identify_namespace(driver).nsze == blocks
    assert broken(driver) == []


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("kind", DISKS)
def test_it_adds_up_on_every_kind_of_disk(new_bench: NewBench, tmp_path: Path, kind: str, block_size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    spec = "mem:1M" if kind == "memory" else str(path)
    with closing(open_backend(spec, block_size=block_size, **DISKS[kind])) as backend:
        bench = new_bench(backend, block_size=block_size)
        bench.driver.enable()
        assert broken(bench.driver) == []
        bench.close()
