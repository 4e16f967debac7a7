"""The configuration space as a driver or lspci reads it."""

from __future__ import annotations

import pytest

from nvmeemu.ports import PciState
from nvmeemu.vfio.pci import EXPRESS, MSIX, PM, ConfigSpace, PciIdentity, msix_bar_size

IDENTITY = PciIdentity(0x1111, 0x2222, 0x3333, 0x4444, revision=5)


@pytest.fixture
def resets() -> list[str]:
    return []


@pytest.fixture
def space(resets: list[str]) -> ConfigSpace:
    return ConfigSpace(IDENTITY, 0x4000, 65, lambda: resets.append("FLR"))


def word(space: ConfigSpace, offset: int, size: int = 4) -> int:
    return int.from_bytes(space.read(offset, size), "little")


def put(space: ConfigSpace, offset: int, value: int, size: int = 4) -> None:
    space.write(offset, value.to_bytes(size, "little"))


def capabilities(space: ConfigSpace) -> dict[int, int]:
    """Identifier -> offset, found as a driver finds them."""
    assert word(space, 0x06, 2) & 0x10
    found: dict[int, int] = {}
    offset = word(space, 0x34, 1)
    while offset:
        assert offset not in found.values()
        found[word(space, offset, 1)] = offset
        offset = word(space, offset + 1, 1)
    return found


def test_the_header_is_an_nvm_controllers(space: ConfigSpace) -> None:
    assert space.read(0, 4) == b"\x11\x11\x22\x22"
    assert word(space, 0x08) == 0x010802 << 8 | 5
    assert space.read(0x2C, 4) == b"\x33\x33\x44\x44"
    assert word(space, 0x3D, 1) == 1
    assert word(space, 0x0E, 1) == 0


def test_the_capabilities_are_power_management_express_and_msix(space: ConfigSpace) -> None:
    assert capabilities(space) == {0x01: PM, 0x10: EXPRESS, 0x11: MSIX}
    assert word(space, EXPRESS + 2, 2) == 0x0002  # version 2, endpoint
    assert word(space, EXPRESS + 4) & 1 << 28  # Function Level Reset
    assert word(space, MSIX + 2, 2) == 64  # 65 vectors, 0's based
    assert word(space, MSIX + 4) == 0x0004  # the table: BAR4, at 0
    assert word(space, MSIX + 8) == 0x1004  # the pending bits: BAR4, on the next page
    assert word(space, 0x100) == 0  # no extended capability


def test_without_vectors_there_is_no_msix() -> None:
    space = ConfigSpace(IDENTITY, 0x4000, 0, lambda: None)
    assert capabilities(space) == {0x01: PM, 0x10: EXPRESS}
    assert word(space, 0x20) == 0
    put(space, MSIX + 2, 0x8000, 2)
    assert not space.msix_enabled
    assert space.read(MSIX, 12) == bytes(12)


@pytest.mark.parametrize(("vectors", "size"), [(0, 0), (1, 0x2000), (256, 0x2000), (257, 0x4000), (2048, 0x10000)])
def test_the_msix_bar_holds_table_and_pending_bits_on_their_own_pages(vectors: int, size: int) -> None:
    assert msix_bar_size(vectors) == size


@pytest.mark.kills("a-bar-has-no-size")
def test_bars_are_sized_by_writing_ones(space: ConfigSpace) -> None:
    assert word(space, 0x10) == 0x4  # 64 bits, memory, not prefetchable
    put(space, 0x10, 0xFFFFFFFF)
    put(space, 0x14, 0xFFFFFFFF)
    assert word(space, 0x10, 8) == 0xFFFFFFFF_FFFFC004
    put(space, 0x10, 0x80001234)
    assert word(space, 0x10) == 0x80000004
    put(space, 0x20, 0xFFFFFFFF)
    assert word(space, 0x20) == 0xFFFFE004
    for absent in (0x18, 0x1C, 0x30):
        put(space, absent, 0xFFFFFFFF)
        assert word(space, absent) == 0


@pytest.mark.kills("read-only-bits-change")
def test_only_writable_bits_change(space: ConfigSpace) -> None:
    before = bytearray(space.read(0, 4096))
    space.write(0, bytes(4096))
    before[EXPRESS + 48] = 0  # Target Link Speed
    assert space.read(0, 4096) == before
    put(space, 0x04, 0xFFFFFFFF)
    assert word(space, 0x04) == 0x00100546
    put(space, PM + 4, 0xFFFFFFFF)
    assert word(space, PM + 4) == 0x000B
    put(space, 0x3C, 0xFFFF, 2)
    assert word(space, 0x3C, 2) == 0x01FF


def test_a_bus_master_is_one_by_its_command_register_and_in_d0(space: ConfigSpace) -> None:
    assert not space.is_master
    put(space, 0x04, 0x0004, 1)
    assert space.is_master
    for state in (1, 2, 3):
        put(space, PM + 4, state, 2)
        assert not space.is_master
        put(space, PM + 4, 0, 1)
        assert space.is_master
    put(space, 0x04, 0x0543, 2)
    assert not space.is_master
    put(space, 0x04, 0xFFFF, 4)
    assert space.is_master
    space.reset()
    assert not space.is_master


def test_its_state_is_what_the_host_has_set(space: ConfigSpace) -> None:
    assert space.state == PciState()
    for offset, value, expected in (
        (0x04, 0x0002, PciState(memory_space=True)),
        (0x04, 0x0406, PciState(bus_master=True, memory_space=True, interrupt_disable=True)),
        (PM + 4, 0x0003, PciState(True, True, True, power_state=3)),
        (MSIX + 2, 0x4000, PciState(True, True, True, function_mask=True, power_state=3)),
    ):
        put(space, offset, value, 2)
        assert space.state == expected
    assert not space.state.reaches_memory
    put(space, EXPRESS + 8, 0x8000, 2)
    assert space.state == PciState()


def test_msix_enable_is_known_at_any_width(space: ConfigSpace) -> None:
    put(space, MSIX + 2, 0xC000, 2)
    assert space.msix_enabled
    assert word(space, MSIX + 2, 2) == 0xC040
    put(space, MSIX + 3, 0x00, 1)
    assert not space.msix_enabled
    put(space, MSIX, 0x80000000)
    assert space.msix_enabled
    assert word(space, MSIX, 1) == 0x11


@pytest.mark.kills("the-reset-bit-acts-in-a-write-of-two-bytes-only")
@pytest.mark.parametrize(
    ("offset", "value", "size"), [(8, 0x8000, 2), (8, 0x8000, 4), (9, 0x80, 1), (6, 0x8000_0000, 4)]
)
def test_function_level_reset_at_any_width(
    space: ConfigSpace, resets: list[str], offset: int, value: int, size: int
) -> None:
    new = space.read(0, 4096)
    put(space, 0x04, 0x0006, 2)
    put(space, MSIX + 2, 0x8000, 2)
    put(space, EXPRESS + 8, 0x2810, 2)
    assert resets == []
    put(space, EXPRESS + offset, value, size)
    assert resets == ["FLR"]
    assert space.read(0, 4096) == new
    assert not space.msix_enabled
