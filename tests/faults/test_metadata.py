"""Faults of metadata: checks of protection information fail on purpose, and who does not check gets the wrong bytes."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.metadata_rig import BIT, Rig
from faults.protected import BLOCKS, SLBA, STC, protected
from nvmeemu.faults import Fault, FaultError
from nvmeemu.spec import NvmOpcode, Status
from nvmeemu.subsystem import protection

BAD = SLBA + 2
STATUS = {
    "guard_error": Status.GUARD_CHECK_ERROR,
    "application_tag_error": Status.APPLICATION_TAG_CHECK_ERROR,
    "reference_tag_error": Status.REFERENCE_TAG_CHECK_ERROR,
    "storage_tag_error": Status.STORAGE_TAG_CHECK_ERROR,
}
TWO = ["4096+8 type 1", "4096+16 type 2 32 bits"]  # separate without a storage tag, extended with one
CASES = [(name, do) for name in TWO for do in STATUS if do != "storage_tag_error" or "32 bits" in name]


def told(rig: Rig, opcode: int) -> tuple[int, int]:
    """The status of a command with every check, and the block that the error log names."""
    bits, tags = rig.checks | (STC if rig.format.storage_tag_size else 0), rig.tags(SLBA)
    if opcode == NvmOpcode.READ:
        status = rig.get(SLBA, BLOCKS, bits, tags)[0].status
    elif opcode == NvmOpcode.VERIFY:
        status = rig.driver.execute(rig.queue, rig.command(opcode, SLBA, BLOCKS, bits, tags)).status
    else:
        status = rig.give(opcode, SLBA, *rig.blocks(SLBA, BLOCKS), bits, tags).status
    return status, int.from_bytes(rig.driver.get_log(1, 64)[16:24], "little")


def wrong_blocks(rig: Rig) -> tuple[list[int], list[int]]:
    """The blocks whose data are wrong and those whose metadata are, as a host reads them that does not check."""
    right = rig.blocks(SLBA, BLOCKS)
    completion, *found = rig.get(SLBA, BLOCKS)
    assert completion.status == Status.SUCCESS
    sizes = rig.format.data_size, rig.format.metadata_size
    data, metadata = (
        [SLBA + i for i in range(BLOCKS) if got[i * size : (i + 1) * size] != old[i * size : (i + 1) * size]]
        for got, old, size in zip(found, right, sizes, strict=True)
    )
    return data, metadata


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize(("name", "do"), CASES)
@pytest.mark.kills("a-storage-tag-error-is-a-reference-tag-error", "every-block-of-the-command-is-wrong")
@pytest.mark.kills("what-is-verified-is-not-spoiled", "an-application-tag-is-everywhere-the-same")
def test_each_check_fails_on_purpose(name: str, do: str, engine: str) -> None:
    """In the block that the user names, of a Read, a Verify and a Compare; afterwards nothing is wrong. The engine in
    C hands these queues over, and takes them back."""
    with protected(name, engine) as (rig, faults):
        fault = faults.add(Fault({"lba": BAD}, do=do))
        for opcode in (NvmOpcode.READ, NvmOpcode.VERIFY, NvmOpcode.COMPARE):
            assert told(rig, opcode) == (STATUS[do], BAD)
        assert wrong_blocks(rig) == (([BAD], []) if do == "guard_error" else ([], [BAD]))
        assert fault.hits == 4
        faults.clear()
        assert [told(rig, opcode)[0] for opcode in (NvmOpcode.READ, NvmOpcode.VERIFY)] == [0, 0]
        assert wrong_blocks(rig) == ([], [])


@pytest.mark.parametrize("do", ["guard_error", "wrong_metadata"])
@pytest.mark.kills("what-is-written-is-not-spoiled")
def test_what_is_written_stays_wrong(do: str) -> None:
    with protected(TWO[0]) as (rig, faults):
        fault = faults.add({"match": {"opcode": "write"}, "do": {do: True, "lba": BAD}})
        assert rig.put(SLBA, *rig.blocks(SLBA, BLOCKS), rig.checks, rig.tags(SLBA)).status == Status.SUCCESS
        faults.remove(fault)
        assert wrong_blocks(rig) == (([BAD], []) if do == "guard_error" else ([], [BAD]))
        assert told(rig, NvmOpcode.READ)[1] == BAD


@pytest.mark.parametrize(("do", "is_right"), [("zeros", bytes), ("ones", lambda size: b"\xff" * size)])
def test_metadata_without_protection_are_wrong_as_asked(do: str, is_right: Any) -> None:
    with protected("512+8") as (rig, faults):
        data, metadata = rig.blocks(SLBA, BLOCKS)
        fault = faults.add(Fault({"opcode": "read"}, do={"Wrong Metadata": do}, when={"nth": 1}))
        assert rig.get(SLBA, BLOCKS)[1:] == (data, is_right(len(metadata)))
        assert rig.get(SLBA, BLOCKS)[1:] == (data, metadata)
        faults.remove(fault)
        faults.add(Fault({"opcode": "read"}, do={"wrong_metadata": "flip", "bits": 3}))
        found = rig.get(SLBA, BLOCKS)[2]
        flipped = [int.from_bytes(found[i : i + 8]) ^ int.from_bytes(metadata[i : i + 8]) for i in range(0, 32, 8)]
        assert [one.bit_count() for one in flipped] == [3] * BLOCKS


@pytest.mark.kills("an-application-tag-of-zero-turns-checks-off", "what-is-not-checked-gets-tags")
def test_an_application_tag_never_turns_checks_on_or_off() -> None:
    """FFFFh says that a block is not checked: no tag becomes that, and no block that has it gets another one."""
    with protected(TWO[0]) as (rig, faults):
        data, metadata = rig.blocks(SLBA, BLOCKS)
        format, zero = rig.format, bytearray(metadata)
        protection.generate(format, data, zero, rig.tags(SLBA, 0))
        rig.put(SLBA, data, bytes(zero))
        faults.add(Fault(do="application_tag_error"))
        completion, _, _ = rig.get(SLBA, BLOCKS, BIT["application"], rig.tags(SLBA, 0))
        assert completion.status == Status.APPLICATION_TAG_CHECK_ERROR
        untouched = rig.get(100, 2, rig.checks, rig.tags(100))
        assert (untouched[0].status, untouched[2]) == (Status.SUCCESS, b"\xff" * 2 * format.metadata_size)


@pytest.mark.parametrize(
    ("name", "do", "opcode"),
    [
        ("512+8", "guard_error", NvmOpcode.READ),
        ("4096+64 type 3 first", "reference_tag_error", NvmOpcode.READ),
        ("4096+8 type 1", "storage_tag_error", NvmOpcode.READ),
        ("4096+8 type 1", "wrong_metadata", NvmOpcode.VERIFY),  # which checks nothing
        ("4096+8 type 1", {"guard_error": True, "lba": 100}, NvmOpcode.READ),
    ],
)
@pytest.mark.kills("hits-where-there-is-no-such-tag", "hits-at-a-verify-that-looks-at-nothing")
def test_it_is_about_no_command_that_it_leaves_as_it_is(name: str, do: Any, opcode: int) -> None:
    with protected(name) as (rig, faults):
        fault = faults.add(Fault(do=do))
        if opcode == NvmOpcode.READ:
            assert wrong_blocks(rig) == ([], [])
        else:
            assert rig.driver.execute(rig.queue, rig.command(opcode, SLBA, BLOCKS)).status == Status.SUCCESS
        assert (fault.seen, fault.hits) == (0, 0)


@pytest.mark.parametrize(
    ("match", "do", "reason"),
    [
        ({"opcode": "flush"}, "guard error", "guard_error at backend: no command that match asks for reads, writes or"),
        ({}, {"guard_error": 3}, "do.guard_error: takes no argument, but has 3"),
        ({}, {"wrong_metadata": "stale"}, "do.wrong_metadata: 'stale' is none of flip, zeros, ones"),
        ({}, {"wrong_metadata": "zeros", "bits": 3}, "do.bits: how many to flip: leave it out with zeros"),
        ({}, {"guard_error": True, "bits": 3}, "do.bits: no option of guard_error: it has lba"),
        ({}, {"guard_error": True, "lba": "x"}, "do.lba: 'x' is no whole number"),
    ],
)
def test_what_cannot_be_is_refused(match: Any, do: Any, reason: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault(match, do=do)
    assert str(refused.value).startswith(reason)


def test_two_of_them_come_together() -> None:
    """Data of one block and metadata of another; bits of the data twice."""
    with protected(TWO[0]) as (rig, faults):
        faults.add(
            Fault({"opcode": "read"}, do=[{"guard_error": True, "lba": SLBA}, {"wrong_metadata": True, "lba": 9}])
        )
        faults.add(Fault({"opcode": "read"}, "backend", {"corrupt": "flip"}))
        data, metadata = wrong_blocks(rig)
        assert SLBA in data
        assert metadata == [9]
