"""The configuration space of the PCI function: identity, BARs, capabilities (PCI Local Bus 3.0, 6; PCI Express Base).

It is ours, not libvfio-user's, so that every write is handled as the specification says, at any width. A byte of it
is what it was after reset, with those bits changed that are writable; Function Level Reset, MSI-X Enable, Interrupt
Disable, Bus Master Enable and the power state are all that act. The VMM emulates BAR addresses, interrupt routing and
the MSI-X table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeemu.ports import PciState
from nvmeemu.spec.layout import Record, bit, bits, count, uint

SIZE = 4096
PAGE = 4096
NVM_CLASS = 0x010802  # mass storage, non-volatile memory, NVM Express
PM, EXPRESS, MSIX = 0x40, 0x50, 0x90  # where the capabilities are, in the order of their list


@dataclass(frozen=True)
class PciIdentity:
    """The IDs that a driver is chosen by."""

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    revision: int = 0


class Header(Record, size=64):
    """Type 0 header (PCI Local Bus 3.0, 6.1)."""

    vendor_id = uint(0x00, 2)
    device_id = uint(0x02, 2)
    memory_space = bit(0x04, 1, size=2)
    bus_master = bit(0x04, 2, size=2)
    parity_error_response = bit(0x04, 6, size=2)
    serr_enable = bit(0x04, 8, size=2)
    interrupt_disable = bit(0x04, 10, size=2)
    capabilities_list = bit(0x06, 4, size=2)
    revision = uint(0x08, 1)
    class_code = bits(0x08, 31, 8)
    cache_line_size = uint(0x0C, 1)
    bar0 = uint(0x10, 8)
    bar4 = uint(0x20, 8)
    subsystem_vendor_id = uint(0x2C, 2)
    subsystem_id = uint(0x2E, 2)
    capabilities = uint(0x34, 1)
    interrupt_line = uint(0x3C, 1)
    interrupt_pin = uint(0x3D, 1)


class PowerManagementCapability(Record, size=8):
    """PCI Power Management capability (PCI Express Base 4.0, 7.5.2)."""

    id = uint(0, 1)
    next = uint(1, 1)
    version = bits(2, 2, 0, size=2)
    power_state = bits(4, 1, 0, size=2)
    no_soft_reset = bit(4, 3, size=2)


class Express(Record, size=60):
    """PCI Express capability, version 2 (PCI Express Base 4.0, 7.5.3)."""

    id = uint(0, 1)
    next = uint(1, 1)
    version = bits(2, 3, 0, size=2)
    role_based_errors = bit(4, 15)
    function_level_reset = bit(4, 28)
    device_control = uint(8, 2)
    link_speed_max = bits(12, 3, 0)
    link_width_max = bits(12, 9, 4)
    link_control = uint(16, 2)
    link_speed = bits(18, 3, 0, size=2)
    link_width = bits(18, 9, 4, size=2)
    completion_timeout_disable = bit(36, 4)
    device_control_2 = uint(40, 2)
    link_speeds = bits(44, 7, 1)
    link_control_2 = uint(48, 2)
    link_target_speed = bits(48, 3, 0, size=2)


class MsixCapability(Record, size=12):
    """MSI-X capability (PCI Express Base 4.0, 7.7.2)."""

    id = uint(0, 1)
    next = uint(1, 1)
    vectors = count(2, 10, 0, size=2)
    function_mask = bit(2, 14, size=2)
    enable = bit(2, 15, size=2)
    table = uint(4, 4)  # offset; bits 2:0 are the BAR
    pending = uint(8, 4)


INITIATE_FLR = 1 << 15  # of Device Control
GEN3, LANES = 3, 4  # 8 GT/s, x4: what a common drive shows

WRITABLE_CAPABILITIES = {
    PM: PowerManagementCapability(power_state=3),
    EXPRESS: Express(device_control=0x7FFF, link_control=0x0FFB, device_control_2=0x001F, link_control_2=0xFFFF),
    MSIX: MsixCapability(function_mask=True, enable=True),
}


def msix_bar_size(vectors: int) -> int:
    """The table and, on a page of its own, the pending bits, in a power of two; 0 without MSI-X."""
    return 2 * _table_size(vectors) if vectors else 0


def _table_size(vectors: int) -> int:
    pages = (16 * vectors + PAGE - 1) // PAGE
    return PAGE << (pages - 1).bit_length()


class ConfigSpace:
    """4 KiB of registers. ``on_reset`` is called for a Function Level Reset, after the registers were reset."""

    def __init__(self, identity: PciIdentity, bar0_size: int, vectors: int, on_reset: Callable[[], None]) -> None:
        if bar0_size & (bar0_size - 1) or bar0_size < 16:
            raise ValueError(f"a BAR of {bar0_size} bytes")
        if not 0 <= vectors <= 2048:
            raise ValueError(f"{vectors} MSI-X vectors")
        self._on_reset = on_reset
        self._initial = self._fill(identity, vectors)
        self._writable = self._masks(bar0_size, vectors)
        self.reset()

    def reset(self) -> None:
        """Set every register to its value after power-on."""
        self._data = bytearray(self._initial)
        self.msix_enabled = False
        self.state = PciState()

    @property
    def pin_disabled(self) -> bool:
        """Whether Interrupt Disable is set in the Command register."""
        return self.state.interrupt_disable

    @property
    def is_master(self) -> bool:
        """Whether the function may access memory, and so send MSI-X messages: Bus Master Enable is set, in power state
        D0."""
        return self.state.reaches_memory

    @staticmethod
    def _fill(identity: PciIdentity, vectors: int) -> bytes:
        header = Header(
            vendor_id=identity.vendor_id,
            device_id=identity.device_id,
            subsystem_vendor_id=identity.subsystem_vendor_id,
            subsystem_id=identity.subsystem_id,
            revision=identity.revision,
            class_code=NVM_CLASS,
            capabilities_list=True,
            capabilities=PM,
            bar0=0b0100,  # memory, 64 bits
            bar4=0b0100 if vectors else 0,
            interrupt_pin=1,
        )
        express = Express(
            id=0x10,
            next=MSIX if vectors else 0,
            version=2,
            role_based_errors=True,
            function_level_reset=True,
            link_speed_max=GEN3,
            link_width_max=LANES,
            link_speed=GEN3,
            link_width=LANES,
            completion_timeout_disable=True,
            link_speeds=0b111,
            link_target_speed=GEN3,
        )
        data = bytearray(SIZE)
        _place(data, 0, header)
        _place(data, PM, PowerManagementCapability(id=0x01, next=EXPRESS, version=3, no_soft_reset=True))
        _place(data, EXPRESS, express)
        if vectors:
            _place(data, MSIX, MsixCapability(id=0x11, vectors=vectors, table=4, pending=_table_size(vectors) | 4))
        return bytes(data)

    @staticmethod
    def _masks(bar0_size: int, vectors: int) -> bytes:
        # The writable bits of a BAR are those above its size: a driver that writes all ones reads the size back.
        header = Header(
            memory_space=True,
            bus_master=True,
            parity_error_response=True,
            serr_enable=True,
            interrupt_disable=True,
            cache_line_size=0xFF,
            interrupt_line=0xFF,
            bar0=(1 << 64) - bar0_size,
            bar4=(1 << 64) - msix_bar_size(vectors) if vectors else 0,
        )
        masks = bytearray(SIZE)
        _place(masks, 0, header)
        for offset, record in WRITABLE_CAPABILITIES.items():
            if offset != MSIX or vectors:
                masks[offset : offset + record.SIZE] = bytes(record)
        return bytes(masks)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Change the writable bits, and do what the bits with an effect ask for."""
        for position, new in enumerate(data, offset):
            mask = self._writable[position]
            self._data[position] = self._data[position] & ~mask | new & mask
        msix = MsixCapability(bytes(self._data[MSIX : MSIX + MsixCapability.SIZE]))
        self.msix_enabled = msix.id != 0 and msix.enable
        header = Header(bytes(self._data[: Header.SIZE]))
        power = PowerManagementCapability(bytes(self._data[PM : PM + PowerManagementCapability.SIZE]))
        self.state = PciState(
            header.bus_master,
            header.memory_space,
            header.interrupt_disable,
            msix.id != 0 and msix.function_mask,
            power.power_state,
        )
        flr = EXPRESS + 9 - offset  # the byte of Device Control that holds Initiate Function Level Reset
        if 0 <= flr < len(data) and data[flr] & INITIATE_FLR >> 8:
            self.reset()
            self._on_reset()


def _place(space: bytearray, offset: int, record: Record) -> None:
    space[offset : offset + record.SIZE] = bytes(record)
