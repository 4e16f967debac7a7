"""Blocks with metadata and protection information: where they lie, what is made and checked. NVM 1.0, 5.2 and 5.3."""

from __future__ import annotations

import pytest

from conformance.metadata_rig import BIT, FORMATS, PROTECTED, Rig, make
from conformance.tools import (
    NewBench,
    dsm_command,
    fails,
    identify_controller,
    identify_namespace,
)
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import Cns, Command, FeatureId, NvmNamespace, NvmOpcode, ReadWrite, Status
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.protection import Tags
from nvmeemu.testing import PAGE


@pytest.fixture
def rig(new_bench: NewBench, request: pytest.FixtureRequest) -> Rig:
    return make(new_bench, FORMATS[request.param])


every_format = pytest.mark.parametrize("rig", FORMATS, indirect=True)
every_protected_format = pytest.mark.parametrize("rig", PROTECTED, indirect=True)


@pytest.mark.fact("F202", clause="NVM 1.0, 5.2.2", kills=("metadata-are-not-written", "extended-like-separate"))
@every_format
def test_data_and_metadata_come_back(rig: Rig) -> None:
    """Over several pages, from any block on; what lies beside them stays."""
    for slba, number in ((0, 1), (5, 3), (100, 16)):
        data, metadata = rig.blocks(slba, number, slba)
        assert rig.put(slba, data, metadata).status == Status.SUCCESS
        completion, found, beside = rig.get(slba, number)
        assert (completion.status, found, beside) == (Status.SUCCESS, data, metadata)
    first, rest = rig.get(100, 1), rig.get(101, 15)
    assert (first[1] + rest[1], first[2] + rest[2]) == (data, metadata)


@pytest.mark.fact("F202", clause="NVM 1.0, 5.2.2; Base 1.4, MDTS", kills=("mdts-of-data-alone",))
@pytest.mark.parametrize("rig", ["512+64 extended"], indirect=True)
def test_mdts_counts_the_whole_buffer(rig: Rig) -> None:
    """Of an extended format it has the metadata, too."""
    most = rig.bench.controller.state.limits.transfer // rig.format.block_size
    pages = rig.driver.prp_list([rig.driver.alloc(PAGE) for _ in range(512)])
    for blocks, status in ((most, Status.SUCCESS), (most + 1, Status.INVALID_FIELD)):
        command = rig.command(NvmOpcode.READ, 0, blocks)
        command.prp1, command.prp2 = rig.driver.alloc(PAGE), pages
        assert rig.driver.execute(rig.queue, command).status == status


@pytest.mark.fact("F211", clause="NVM 1.0, 5.3.2, Figure 136", kills=("pract-writes-no-guard", "pract-keeps-metadata"))
@every_protected_format
def test_the_controller_makes_and_takes_away_protection_information(rig: Rig) -> None:
    """With PRACT. Metadata beside it stay the host's."""
    tags = rig.tags(7)
    data, right = rig.blocks(7, 4)
    wrong = bytearray(right)
    start = rig.format.protection_offset
    size = rig.format.metadata_size
    for at in range(start, len(wrong), size):
        wrong[at : at + 2] = b"\xab\xcd"
    assert rig.put(7, data, bytes(wrong), BIT["pract"], tags).status == Status.SUCCESS
    completion, found, metadata = rig.get(7, 4, rig.checks, tags)
    assert (completion.status, found) == (Status.SUCCESS, data)
    wanted = bytearray(right) if rig.sizes(1, BIT["pract"]) != (rig.format.data_size, 0) else bytearray(len(right))
    protection.generate(rig.format, data, wanted, tags)
    assert metadata == wanted
    completion, found, metadata = rig.get(7, 4, rig.checks | BIT["pract"], tags)
    assert (completion.status, found) == (Status.SUCCESS, data)
    of = rig.format.protection
    assert of is not None
    assert metadata == (b"" if size == of.size else wanted)


FAULTS = {
    "guard": (Status.GUARD_CHECK_ERROR, 0),
    "application": (Status.APPLICATION_TAG_CHECK_ERROR, None),
    "reference": (Status.REFERENCE_TAG_CHECK_ERROR, -1),
}


def spoiled(rig: Rig, metadata: bytes, what: str, block: int) -> bytes:
    """The metadata with one bit of a field changed."""
    of = rig.format.protection
    assert of is not None
    at = {"guard": 0, "application": of.size - of.guard.tag_bits // 8 - 1, "reference": of.size - 1}[what]
    found = bytearray(metadata)
    found[block * rig.format.metadata_size + rig.format.protection_offset + at] ^= 1
    return bytes(found)


@pytest.mark.fact("F208", clause="NVM 1.0, 5.2.1", kills=("checks-never", "writes-what-fails"))
@pytest.mark.fact("F210", clause="NVM 1.0, 5.3", kills=("checks-never", "protection-errors-are-retried"))
@pytest.mark.parametrize(
    ("rig", "what"),
    [
        (name, what)
        for name in PROTECTED
        for what in FAULTS
        if what != "reference" or "type 3" not in name  # which has no reference tag to check
    ],
    indirect=["rig"],
)
def test_a_wrong_field_is_found_if_it_is_checked(rig: Rig, what: str) -> None:
    """On writes, of which nothing is stored, and on reads; the error log names the block."""
    bit = BIT[what]
    tags, (status, _) = rig.tags(20), FAULTS[what]
    data, metadata = rig.blocks(20, 5)
    wrong = spoiled(rig, metadata, what, 3)
    completion = rig.put(20, data, wrong, bit, tags)
    assert (completion.status, completion.dnr) == (status, True)
    assert rig.get(20, 5)[1] == bytes(len(data)), "nothing was stored"
    assert rig.put(20, data, wrong, rig.checks & ~bit, tags).status == Status.SUCCESS
    assert rig.get(20, 5, rig.checks & ~bit, tags)[0].status == Status.SUCCESS
    completion, _, _ = rig.get(20, 5, rig.checks, tags)
    assert (completion.status, completion.dnr) == (status, True)
    assert int.from_bytes(rig.driver.get_log(1, 64)[16:24], "little") == 23
    verify = rig.command(NvmOpcode.VERIFY, 20, 5, rig.checks, tags)
    assert rig.driver.execute(rig.queue, verify).status == status
    assert rig.driver.execute(rig.queue, rig.command(NvmOpcode.VERIFY, 20, 5)).status == Status.SUCCESS
    assert rig.give(NvmOpcode.COMPARE, 20, data, metadata, bit, tags).status == status


@pytest.mark.fact("F208", clause="NVM 1.0, 5.3.3, ILBRT", kills=("any-initial-tag",))
@pytest.mark.parametrize("opcode", [NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.VERIFY, NvmOpcode.COMPARE])
@pytest.mark.parametrize("rig", ["4096+8 type 1", "4096+16 type 1 64 bits"], indirect=True)
def test_type_1_wants_the_address_as_the_initial_tag(rig: Rig, opcode: int) -> None:
    command = rig.command(opcode, 8, 1, BIT["reference"], Tags(9))
    command.prp1, command.mptr = rig.driver.alloc(PAGE), rig.driver.alloc(PAGE)
    fails(rig.driver, rig.queue, command, Status.INVALID_PROTECTION_INFORMATION)
    command = rig.command(opcode, 8, 1, BIT["guard"], Tags(9))
    command.prp1, command.mptr = rig.driver.alloc(PAGE), rig.driver.alloc(PAGE)
    assert rig.driver.execute(rig.queue, command).status != Status.INVALID_PROTECTION_INFORMATION


@pytest.mark.fact("F208", clause="NVM 1.0, 5.2.1, Type 3", kills=("any-initial-tag",))
@pytest.mark.parametrize("rig", ["4096+64 type 3 first"], indirect=True)
def test_type_3_has_no_reference_tag_to_check(rig: Rig) -> None:
    command = rig.command(NvmOpcode.VERIFY, 8, 1, BIT["reference"], Tags(8))
    fails(rig.driver, rig.queue, command, Status.INVALID_PROTECTION_INFORMATION)


@pytest.mark.fact("F209", clause="NVM 1.0, 5.2.1", kills=("escape-only-if-deallocated",))
@pytest.mark.fact("F212", clause="NVM 1.0, 3.2.3.2.1", kills=("the-guard-of-no-block",))
@every_protected_format
def test_blocks_that_are_not_there_pass_every_check(rig: Rig) -> None:
    """Never written, or deallocated: zeros, and protection information of all ones."""
    size, start = rig.format.metadata_size, rig.format.protection_offset
    of = rig.format.protection
    assert of is not None
    one = (bytes(start) + b"\xff" * of.size).ljust(size, b"\0")
    for slba in (0, 40):
        if slba:
            assert rig.put(slba, *rig.blocks(slba, 2)).status == Status.SUCCESS
            rig.driver.succeed(rig.queue, dsm_command(rig.driver, [(slba, 2)]))
        completion, data, metadata = rig.get(slba, 2, rig.checks, rig.tags(slba))
        assert (completion.status, data, metadata) == (Status.SUCCESS, bytes(2 * rig.format.data_size), one * 2)
    data, metadata = rig.blocks(60, 1)
    escaped = bytearray(metadata)
    escaped[start : start + of.size] = b"\xff" * of.size
    assert rig.put(60, data, bytes(escaped), rig.checks, rig.tags(60)).status == Status.SUCCESS
    assert rig.get(60, 1, rig.checks, rig.tags(60))[0].status == Status.SUCCESS


@pytest.mark.fact("F213", clause="NVM 1.0, 3.2.8", kills=("zeroes-without-tags", "zeroes-with-checks"))
@every_protected_format
def test_zeroed_blocks_have_the_protection_information_of_zeros(rig: Rig) -> None:
    """With PRACT, and the tags of the command; without it their metadata is zeros."""
    slba, tags = 30, rig.tags(30)
    assert rig.put(slba, *rig.blocks(slba, 4)).status == Status.SUCCESS
    zeroes = rig.command(NvmOpcode.WRITE_ZEROES, slba, 3, BIT["pract"], tags)
    rig.driver.succeed(rig.queue, zeroes)
    completion, data, metadata = rig.get(slba, 3, rig.checks, tags)
    wanted = bytearray(len(metadata))
    protection.generate(rig.format, data, wanted, tags)
    assert (completion.status, data, metadata) == (Status.SUCCESS, bytes(len(data)), bytes(wanted))
    plain = rig.command(NvmOpcode.WRITE_ZEROES, slba, 3)
    rig.driver.succeed(rig.queue, plain)
    assert rig.get(slba, 3)[1:] == (bytes(len(data)), bytes(len(metadata)))
    checked = rig.command(NvmOpcode.WRITE_ZEROES, slba, 1, BIT["guard"] | BIT["pract"], tags)
    fails(rig.driver, rig.queue, checked, Status.INVALID_PROTECTION_INFORMATION)


@pytest.mark.fact("F214", clause="NVM 1.0, 3.2.1", kills=("compare-without-metadata", "compare-with-protection"))
@every_format
def test_compare_looks_at_data_and_at_metadata(rig: Rig) -> None:
    """But not at protection information, which is checked instead. QEMU's looks at nothing else."""
    data, metadata = rig.blocks(50, 3)
    assert rig.put(50, data, metadata).status == Status.SUCCESS
    compare = NvmOpcode.COMPARE
    assert rig.give(compare, 50, data, metadata).status == Status.SUCCESS
    other = bytearray(data)
    other[-1] ^= 1
    assert rig.give(compare, 50, bytes(other), metadata).status == Status.COMPARE_FAILURE
    of, size = rig.format.protection, rig.format.metadata_size
    if of is None or size > of.size:
        at = 2 * size + (of.size if of is not None and of.is_first else 0)
        other = bytearray(metadata)
        other[at] ^= 1
        assert rig.give(compare, 50, data, bytes(other)).status == Status.COMPARE_FAILURE
    if of is not None:
        assert rig.give(compare, 50, data, spoiled(rig, metadata, "application", 1)).status == Status.SUCCESS
        command = rig.command(compare, 50, 1, BIT["pract"], rig.tags(50))
        fails(rig.driver, rig.queue, command, Status.INVALID_PROTECTION_INFORMATION)


@pytest.mark.fact("F214", clause="NVM 1.0, 3.2.5", kills=("verify-acts",))
@every_protected_format
def test_verify_takes_no_protection_information_away(rig: Rig) -> None:
    command = rig.command(NvmOpcode.VERIFY, 0, 1, BIT["pract"])
    fails(rig.driver, rig.queue, command, Status.INVALID_PROTECTION_INFORMATION)


@pytest.mark.fact("F208", clause="NVM 1.0, 5.2.1", kills=("type-0-is-checked",))
@pytest.mark.parametrize("rig", ["512+8", "512+64 extended"], indirect=True)
def test_without_protection_its_fields_count_for_nothing(rig: Rig) -> None:
    every = BIT["guard"] | BIT["application"] | BIT["reference"] | BIT["pract"]
    data, metadata = rig.blocks(9, 2)
    assert rig.put(9, data, metadata, every, Tags(77, 99)).status == Status.SUCCESS
    completion, found, beside = rig.get(9, 2, every, Tags(77, 99))
    assert (completion.status, found, beside) == (Status.SUCCESS, data, metadata)
    verify = rig.command(NvmOpcode.VERIFY, 9, 2, every, Tags(77, 99))
    assert rig.driver.execute(rig.queue, verify).status == Status.SUCCESS


@pytest.mark.fact("F217", clause="NVM 1.0, 5.4; Base 2.0, 5.27.1.18, LBAFEE", kills=("extended-formats-for-all",))
def test_extended_formats_are_for_hosts_that_know_them(new_bench: NewBench) -> None:
    """And forgotten by a reset. Identify goes on."""
    rig = make(new_bench, FORMATS["4096+16 type 1 64 bits"])
    assert rig.get(0, 1)[0].status == Status.SUCCESS
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    for opcode in (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.VERIFY, NvmOpcode.WRITE_ZEROES, NvmOpcode.COMPARE):
        command = rig.command(opcode, 0, 1)
        command.prp1, command.mptr = rig.driver.alloc(PAGE), rig.driver.alloc(PAGE)
        fails(rig.driver, rig.queue, command, Status.INVALID_NAMESPACE)
    assert identify_namespace(rig.driver).nsze == 1024


@pytest.mark.fact("F201", clause="NVM 1.0, Figures 97 and 98", kills=("flbas-wrong", "dps-wrong"))
@every_format
def test_identify_tells_the_format(rig: Rig) -> None:
    format, page = rig.format, identify_namespace(rig.driver)
    index = page.flbas & 0xF | page.flbas >> 5 << 4
    row = page.lbaf[index]
    assert (row.ms, 1 << row.lbads) == (format.metadata_size, format.data_size)
    assert bool(page.flbas & 1 << 4) == format.is_extended
    of = format.protection
    assert page.dps == (0 if of is None else of.type | of.is_first << 3)
    assert page.mc == 0b11
    assert bool(page.dpc) == bool(format.metadata_size)
    csi = NvmNamespace(rig.driver.identify(Cns.CSI_NAMESPACE, 1))
    assert (csi.elbaf[index].pif, csi.elbaf[index].sts) == (format.offered.guard, format.offered.storage_tag_size)


@pytest.mark.fact("F217", clause="Base 2.0, 5.17.2.1, CTRATT, ELBAS", kills=("extended-formats-are-not-told",))
@pytest.mark.parametrize("can_be_formatted", [False, True])
@pytest.mark.parametrize("name", ["4096+8 type 1", "4096+16 type 1 64 bits"])
def test_a_host_is_told_of_extended_formats(new_bench: NewBench, name: str, can_be_formatted: bool) -> None:
    """Linux sets LBAFEE only then, also where a namespace can have no other format."""
    bench = new_bench(MemoryBackend(1 << 20), format=FORMATS[name], can_be_formatted=can_be_formatted)
    bench.driver.enable()
    told = bool(identify_controller(bench.driver).ctratt & 1 << 15)
    assert told == (can_be_formatted or "64 bits" in name)


@pytest.mark.fact("F322", clause="NVM 1.0, 3.2.3.2.1; Base 1.4, 5.21.1.5", kills=("dulbe-ignored", "dulbe-for-all"))
def test_deallocated_blocks_are_an_error_if_the_host_wants_that(new_bench: NewBench) -> None:
    bench = new_bench(MemoryBackend(1 << 20), has_block_map=True)
    driver = bench.driver
    driver.enable()
    queue = driver.create_queues(1)
    assert identify_namespace(driver).nsfeat & 1 << 2
    driver.write(0, b"x" * 1024)
    assert driver.read(0, 4) == b"x" * 1024 + bytes(1024)
    driver.set_feature(FeatureId.ERROR_RECOVERY, 1 << 16, nsid=1)
    page = driver.alloc(PAGE)
    assert driver.read(0, 2) == b"x" * 1024
    for opcode in (NvmOpcode.READ, NvmOpcode.VERIFY, NvmOpcode.COMPARE):
        command = ReadWrite(opcode=opcode, nsid=1, slba=1, nlb=3, prp1=page)
        fails(driver, queue, command, Status.DEALLOCATED_BLOCK)
    for deac, status in ((False, Status.SUCCESS), (True, Status.DEALLOCATED_BLOCK)):
        driver.succeed(queue, ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=0, nlb=1, deac=deac))
        command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=0, nlb=1, prp1=page)
        assert driver.execute(queue, command).status == status
    driver.enable()
    driver.create_queues(1)
    assert driver.read(0, 4) == bytes(512) + b"x" * 512 + bytes(1024)
    bench.subsystem.add(bench.namespace(2, MemoryBackend(1 << 20), identity="another"))
    without = Command(opcode=0x09, nsid=2, cdw10=FeatureId.ERROR_RECOVERY, cdw11=1 << 16)
    fails(driver, driver.admin, without, Status.INVALID_FIELD)
