"""The PCI function as the bus sees it: hands the client's accesses to a ``Function``, and is its ``Host``."""

from __future__ import annotations

import logging
from typing import Protocol

from nvmeemu.vfio.binding import LOG_ERR, Context, DmaRegion, Reset, barrier
from nvmeemu.vfio.memory import GuestMemory
from nvmeemu.vfio.pci import ConfigSpace, PciIdentity

log = logging.getLogger(__name__)
library_log = logging.getLogger("nvmeemu.vfio.library")

# What the library calls errors and is daily business: a VMM unmaps ranges that were never mapped (IOMMU), and a
# device may interrupt before the guest listens.
HARMLESS = ("no fd for interrupt", "failed to remove DMA region", "cmd 3 failed")

NOT_SHARED = (
    "no memory of the guest is shared with this process, so no command can work; for QEMU: "
    "-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram"
)


class Function(Protocol):
    """The device behind the registers. Every call is made on the loop's thread."""

    @property
    def bar0_size(self) -> int:
        """Bytes of BAR0; a power of two."""
        ...

    @property
    def vectors(self) -> int:
        """MSI-X vectors; 0: no MSI-X capability, INTA# only."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of BAR0; any size, any alignment, always inside."""
        ...

    def write(self, offset: int, data: bytes) -> None: ...

    def run(self) -> bool:
        """Do a bounded batch of work. True: more is waiting, call again soon."""
        ...

    def reset(self) -> None:
        """Function Level Reset, device reset, or the client is gone: everything is as after power-on."""
        ...

    def quiesce(self) -> None:
        """Guest memory is about to be mapped or unmapped: let go of every view of it."""
        ...

    def memory_changed(self) -> None:
        """Guest memory was mapped or unmapped; the map is already the new one."""
        ...

    def pin_unmasked(self) -> None:
        """The VMM takes INTx again: drive the pin again if it is still asserted."""
        ...


class PciHost(GuestMemory):
    """The port Host over vfio-user: ``GuestMemory``'s views, and interrupts."""

    def __init__(self) -> None:
        super().__init__()
        self._context: Context | None = None
        self._config: ConfigSpace | None = None
        self.pin_waiting = False  # asserted, but the VMM had no route

    def connect(self, context: Context, config: ConfigSpace) -> None:
        self._context, self._config = context, config

    @property
    def msix_enabled(self) -> bool:
        return self._config is not None and self._config.msix_enabled

    def interrupt(self, vector: int) -> None:
        # Without MSI-X, vector 0 would be INTx: the library keeps both in one table.
        if self._context is not None and self.msix_enabled:
            self._context.trigger(vector)

    def barrier(self) -> None:
        barrier()

    def pin(self, asserted: bool) -> None:
        """An edge for each assertion: the VMM keeps the level, lowers it when the guest touches the device, and then
        unmasks, which calls ``Function.pin_unmasked``."""
        drive = asserted and self._context is not None and not self.msix_enabled
        self.pin_waiting = drive and self._context is not None and not self._context.trigger(0)


class PciFunction:
    """A ``binding.Device``: what arrives in one message goes to the config space, the memory map or the Function."""

    def __init__(self, function: Function, identity: PciIdentity, host: PciHost) -> None:
        self.function = function
        self.host = host
        self.config = ConfigSpace(identity, function.bar0_size, function.vectors, self._function_level_reset)
        self.lost = False  # the library has dropped the client; set back by whoever acts on it
        self._map_changed = False
        self._memory_checked = False

    def settle(self) -> None:
        """After each message, outside of the library: tell the function what has changed before it is asked again."""
        if self._map_changed:
            self._map_changed = False
            self.function.memory_changed()
        if self.host.pin_waiting:
            self.host.pin(True)

    # --- called by the library

    def bar0_read(self, offset: int, size: int) -> bytes:
        return self.function.read(offset, size)

    def bar0_write(self, offset: int, data: bytes) -> None:
        if not self._memory_checked:
            self._check_memory()
        self.function.write(offset, data)

    def config_read(self, offset: int, size: int) -> bytes:
        return self.config.read(offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        self.config.write(offset, data)

    def quiesce(self) -> None:
        self.function.quiesce()

    def reset(self, kind: Reset) -> None:
        if kind is Reset.LOST_CONNECTION:
            self.lost = True
            self._memory_checked = False
        else:
            log.info("reset by the VMM")
            self._check_memory()
        self.host.pin_waiting = False
        self.config.reset()
        self.function.reset()

    def _function_level_reset(self) -> None:
        log.info("function level reset")
        self.host.pin_waiting = False
        self.function.reset()

    def _check_memory(self) -> None:
        """By its first reset or register write the VMM has mapped all the memory it has."""
        if not self._memory_checked:
            self._memory_checked = True
            if self.host.all_private:
                log.warning(NOT_SHARED)

    def dma_added(self, region: DmaRegion) -> None:
        log.debug("memory %#x, %#x bytes%s", region.iova, region.size, "" if region.memory else ": not shared")
        self.host.add(region)
        self._map_changed = True

    def dma_removed(self, iova: int) -> None:
        log.debug("memory %#x unmapped", iova)
        self.host.remove(iova)
        self._map_changed = True

    def pin_unmasked(self) -> None:
        self.function.pin_unmasked()

    def log(self, level: int, message: str) -> None:
        harmless = level > LOG_ERR or any(text in message for text in HARMLESS)
        library_log.log(logging.DEBUG if harmless else logging.WARNING, "libvfio-user: %s", message)
