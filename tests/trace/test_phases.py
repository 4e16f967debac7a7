"""The phases of recorded boots, and of hosts that do what firmware and kernels do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from nvmeemu import regs, trace
from nvmeemu.trace.phases import Name, phases

CORPUS = Path(__file__).parent / "corpus"
SHUTDOWN, ENABLE, DISABLE = 0x464001, 0x460001, 0x460000
WITH_KERNEL = (Name.FIRMWARE, Name.LOADER, Name.KERNEL, Name.SHUTDOWN)


def cc(time: int, value: int) -> trace.RegisterWrite:
    return trace.RegisterWrite(time, 0, regs.CC.offset, value.to_bytes(4, "little"))


def aqa(time: int, value: int) -> trace.RegisterWrite:
    return trace.RegisterWrite(time, 0, regs.AQA.offset, value.to_bytes(4, "little"))


def fetch(time: int, sqid: int) -> trace.Fetch:
    return trace.Fetch(time, 0, sqid, 0, bytes(64))


def named(*records: trace.Record) -> list[tuple[str, int, int]]:
    return [(one.name.value, one.start, one.end) for one in phases(records)]


@pytest.mark.parametrize(
    ("boot", "expected"),
    [
        ("edk2", (Name.FIRMWARE, Name.LOADER, Name.SHUTDOWN)),  # no kernel follows its shell
        ("u-boot", (Name.FIRMWARE, Name.LOADER)),
        ("seabios", WITH_KERNEL * 2),  # every recorded Linux restarts the machine once
        ("linux-5.10", WITH_KERNEL * 2),
        ("linux-7.3", WITH_KERNEL * 2),
    ],
)
def test_recorded_boots(boot: str, expected: tuple[Name, ...]) -> None:
    with trace.open_trace(CORPUS / f"{boot}.trace.xz") as reader:
        found = phases(reader)
    assert tuple(one.name for one in found) == expected
    assert all(one.start < one.end for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


def test_a_kernel_is_who_enables_the_controller_with_other_queues() -> None:
    """Without MSI-X, as nvme2k; the kernel's time begins when the firmware's driver has said its last."""
    boot = (trace.Reset(0, 0), cc(10, ENABLE), fetch(20, 0), fetch(30, 1), fetch(40, 1), cc(90, DISABLE))
    assert named(*boot, aqa(94, 0x3F003F), cc(95, ENABLE), fetch(99, 1)) == [
        ("firmware", 0, 30),
        ("loader", 30, 40),
        ("kernel", 40, 99),
    ]


@pytest.mark.kills("a-reset-is-a-kernel")
def test_a_driver_that_resets_the_controller_is_the_same_one() -> None:
    boot = (trace.Reset(0, 0), aqa(5, 0x3F003F), cc(10, ENABLE), fetch(20, 0), fetch(30, 1), cc(40, DISABLE))
    again = (aqa(50, 0), aqa(60, 0x3F003F), cc(70, ENABLE), fetch(80, 1))
    assert named(*boot, *again) == [("firmware", 0, 30), ("loader", 30, 80)]


def test_a_kernel_is_who_enables_msix() -> None:
    """There was no driver before it: its time begins with the first access."""
    boot = (trace.ClientAttached(0, 0, "x"), trace.RegisterRead(7, 0, 0, bytes(8)), trace.InterruptMode(9, 0, True))
    assert named(*boot, cc(10, ENABLE), fetch(20, 1), cc(30, DISABLE), cc(40, ENABLE), cc(50, SHUTDOWN)) == [
        ("firmware", 0, 7),
        ("kernel", 7, 50),
    ]


def test_firmware_that_shuts_down_before_the_kernel() -> None:
    boot = (trace.Reset(0, 0), cc(10, ENABLE), fetch(20, 1), cc(30, SHUTDOWN), cc(40, DISABLE), aqa(45, 7))
    assert named(*boot, cc(50, ENABLE), fetch(60, 1)) == [("firmware", 0, 20), ("loader", 20, 30), ("kernel", 30, 60)]


def test_nothing_is_a_phase_without_a_client() -> None:
    """The resets when a client leaves begin no boot."""
    gone = (trace.Reset(50, 0), trace.ClientLeft(60, 0), trace.Reset(70, 0))
    back = (trace.ClientAttached(80, 0, "x"), trace.Reset(85, 0), cc(90, ENABLE))
    assert named(trace.ClientAttached(0, 0, "x"), cc(10, ENABLE), *gone, *back) == [
        ("firmware", 0, 50),
        ("firmware", 80, 90),
    ]
    assert named() == []


def test_a_write_of_a_byte_of_cc_is_one_of_cc() -> None:
    one = trace.RegisterWrite(10, 0, regs.CC.offset, b"\x01")
    assert named(
        *(trace.Reset(0, 0), one, fetch(20, 1), cc(30, DISABLE), aqa(35, 7), one._replace(time=40), fetch(50, 1))
    ) == [
        ("firmware", 0, 20),
        ("kernel", 20, 50),  # a loader of one moment is none
    ]
