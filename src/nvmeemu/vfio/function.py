"""The PCI function as the bus sees it. It hands the client's accesses to a ``Function``, and provides its ``Host``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol

from nvmeemu.ports import PciState
from nvmeemu.vfio.binding import LOG_ERR, Context, DmaRegion, ResetCause, barrier
from nvmeemu.vfio.memory import GuestMemory
from nvmeemu.vfio.messages import INTX, Message, Refusal, judge
from nvmeemu.vfio.pci import ConfigSpace, PciIdentity
from nvmeemu.vfio.sharing import Sharing

log = logging.getLogger(__name__)
library_log = logging.getLogger("nvmeemu.vfio.library")

# The library logs these as errors, and they are normal. A VMM unmaps ranges that were never mapped (IOMMU). A device
# interrupts before the guest listens. A client that only looks whether a server is there leaves at once; we log that.
HARMLESS = (
    *("no fd for interrupt", "failed to remove DMA region", "cmd 3 failed"),
    *("failed to receive version", "failed to recv version"),
)

NOT_SHARED = (
    "no memory of the guest is shared with this process, so no command can work; for QEMU: "
    "-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram"
)
NOT_MAPPED = (
    "the client has mapped its memory and left without a look at any register: if it wants doorbells that it can map "
    '(SPDK: "Error to get device BAR0"), serve with --doorbells mapped'
)


NOT_ALONE = "what the guest writes there is not seen here: give each of its memory backends share=on"


class Function(Protocol):
    """The device behind the registers. Every call is made on the loop's thread."""

    @property
    def bar0_size(self) -> int:
        """Bytes of BAR0; a power of two."""
        ...

    @property
    def bar0_shared(self) -> tuple[int, int, int] | None:
        """The part of BAR0 that the client may map instead of sending messages: a file that is like BAR0, and the
        part's offset and size in bytes. Its writes come to ``write`` all the same when the client likes."""
        ...

    @property
    def direct_doorbells(self) -> tuple[int, int] | None:
        """The addresses of a C function and of its first argument, or None. Each write of a doorbell goes to it first.
        Its other arguments are the doorbell's number, counted from offset 1000h, and the value. Where it returns
        false, ``write`` gets the access."""
        ...

    @property
    def vectors(self) -> int:
        """How many MSI-X vectors there are. 0: no MSI-X capability, and INTA# is the only interrupt."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of BAR0 at ``offset``. Any size and alignment; never beyond its end."""
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

    def interrupts_changed(self) -> None:
        """The VMM has changed the way of MSI-X messages, or the guest has enabled or disabled them."""
        ...

    def pci_changed(self, state: PciState) -> None:
        """The host has written the configuration space, or it was reset: what is set there now. Told before anything
        that follows from it."""
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
        self.reset_interrupts()

    def connect(self, context: Context, config: ConfigSpace) -> None:
        self._context, self._config = context, config

    def reset_interrupts(self) -> None:
        self._pending: set[int] = set()  # MSI-X messages that found no route; PCI calls them pending bits
        self._is_pin_masked = False

    def barrier(self) -> None:
        barrier()

    @property
    def obstacle(self) -> str:
        state = self._config.state if self._config is not None else PciState(bus_master=True)
        if not state.bus_master:
            return "has not set Bus Master Enable (bit 2 of the PCI Command register)"
        return "" if state.reaches_memory else f"has put it into power state D{state.power_state}"

    # --- MSI-X

    @property
    def msix_enabled(self) -> bool:
        return self._config is not None and self._config.msix_enabled

    def interrupt(self, vector: int) -> None:
        # Without MSI-X, vector 0 would be INTx: the library keeps both in one table.
        if self._context is not None and self.msix_enabled and not (self._can_send and self._context.trigger(vector)):
            self._pending.add(vector)

    def interrupt_fd(self, vector: int) -> int:
        return self._context.interrupt_fd(vector) if self._context is not None and self._can_send else -1

    @property
    def _can_send(self) -> bool:
        """A message is a write to memory, so that it takes a bus master (PCI Local Bus 3.0, 6.8.3.3)."""
        return self._config is not None and self._config.msix_enabled and self._config.is_master

    def send_pending(self) -> None:
        """The VMM has changed its routes: between taking old ones away and giving new ones nothing may get lost."""
        pending, self._pending = self._pending, set()
        for vector in pending:
            self.interrupt(vector)

    # --- INTx

    @property
    def pin_enabled(self) -> bool:
        return self._config is not None and not (self._config.msix_enabled or self._config.pin_disabled)

    def pin(self, asserted: bool) -> None:
        """An event for an assertion, and then none until the VMM unmasks the pin: it keeps the level, ends it when
        the guest touches the device, and asks with its UNMASK for another event if the pin is still asserted."""
        if asserted and self.pin_enabled and not self._is_pin_masked:
            self._is_pin_masked = self._context is not None and self._context.trigger(0)

    def mask_pin(self, masked: bool) -> None:
        self._is_pin_masked = masked


class PciFunction:
    """A ``binding.Device``: what arrives in one message goes to the config space, the memory map or the Function."""

    def __init__(
        self, function: Function, identity: PciIdentity, host: PciHost, most_regions: Callable[[], int]
    ) -> None:
        self.function = function
        self.host = host
        self.config = ConfigSpace(identity, function.bar0_size, function.vectors, self._function_level_reset)
        self.sharing = Sharing()  # the client's
        self.lost = False  # the library has dropped the client; set back by whoever acts on it
        self._told_state = self.config.state
        self._map_changed = False
        self._memory_checked = False
        self._most_regions = most_regions  # that this client may map
        host.set_reachable(self.config.is_master)
        self._told: set[tuple[int, str]] = set()  # what was answered to this client, and has been logged
        self._has_mapped = self._has_looked = False  # this client: memory; at a register or the configuration space

    def settle(self) -> None:
        """After each message, outside of the library: tell the function what has changed before it is asked again."""
        if self._map_changed:
            self._map_changed = False
            self.function.memory_changed()

    # --- called by the library

    def bar0_read(self, offset: int, size: int) -> bytes:
        self._has_looked = True
        return self.function.read(offset, size)

    def bar0_write(self, offset: int, data: bytes) -> None:
        if not self._memory_checked:
            self._check_memory()
        self.function.write(offset, data)

    def config_read(self, offset: int, size: int) -> bytes:
        self._has_looked = True
        return self.config.read(offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        config = self.config
        msix_enabled, pin_disabled, is_master = config.msix_enabled, config.pin_disabled, config.is_master
        config.write(offset, data)
        self.tell_state()
        if (msix_enabled, pin_disabled) != (config.msix_enabled, config.pin_disabled):
            self.pin_masked(False)
        if is_master != config.is_master:
            self._change_reach()
            self.host.send_pending()
        if (msix_enabled, is_master) != (config.msix_enabled, config.is_master):
            self.function.interrupts_changed()

    def tell_state(self, *, always: bool = False) -> None:
        """What the configuration space says now, if it is not what was told last."""
        if always or self.config.state != self._told_state:
            self._told_state = self.config.state
            self.function.pci_changed(self.config.state)

    def _change_reach(self) -> None:
        """As if all memory was mapped, or unmapped (PCI Local Bus 3.0, 6.2.2, Bus Master; PCI Power Management 1.2,
        5.4.1, D3hot). Linux relies on it: at kexec nothing of the old kernel's may write into the new one's memory."""
        self.quiesce()
        self.host.set_reachable(self.config.is_master)

    def quiesce(self) -> None:
        self._map_changed = True  # perhaps; in any case the function waits to hear that it may go on
        self.function.quiesce()

    def reset(self, kind: ResetCause) -> None:
        if kind is ResetCause.LOST_CONNECTION:
            self._tell_why_it_left()
            self.lost = True
            self._memory_checked = self._has_mapped = self._has_looked = False
            self._told.clear()
        else:
            log.info("reset by the VMM")
            self._check_memory()
        self.host.reset_interrupts()
        self.config.reset()
        self.tell_state()
        self._change_reach()
        self.function.reset()
        self.function.interrupts_changed()

    def _function_level_reset(self) -> None:
        log.info("function level reset")
        self._told_state = self.config.state
        self.function.pci_changed(self.config.state._replace(function_level_reset=True))
        self.host.reset_interrupts()
        self.function.reset()
        self.function.interrupts_changed()

    def _check_memory(self) -> None:
        """By its first reset or register write the VMM has mapped all the memory it has."""
        if not self._memory_checked:
            self._memory_checked = True
            if self.host.all_private:
                log.warning(NOT_SHARED)

    def _tell_why_it_left(self) -> None:
        """SPDK's host driver maps its memory, then looks whether it can map the doorbells, before all else."""
        is_over = self._has_looked or self._memory_checked or bool(self._told)
        if self._has_mapped and not is_over and self.function.bar0_shared is None:
            log.warning(NOT_MAPPED)

    def dma_added(self, region: DmaRegion) -> None:
        self._has_mapped = True
        log.debug("memory %#x, %#x bytes%s", region.iova, region.size, "" if region.memory else ": not shared")
        self.host.add(region)
        self._map_changed = True

    def dma_removed(self, iova: int) -> None:
        log.debug("memory %#x unmapped", iova)
        self.host.remove(iova)
        self._map_changed = True

    def routes_changed(self, index: int) -> None:
        if index == INTX:
            self.pin_masked(False)
        else:
            self.host.send_pending()
            self.function.interrupts_changed()

    def pin_masked(self, masked: bool) -> None:
        self.host.mask_pin(masked)
        if not masked:
            self.function.pin_unmasked()

    def refuses(self, message: Message) -> Refusal | None:
        refusal = judge(message) or self._has_no_place(message) or self._is_not_shared(message)
        if refusal is not None and (kind := (refusal.error, refusal.cure)) not in self._told:
            self._told.add(kind)
            cure = f"; {refusal.cure}" if refusal.cure else ""
            log.warning(
                "refused what the VMM asked for: %s (%s)%s", refusal.reason, errno.errorcode[refusal.error], cure
            )
        return refusal

    def _is_not_shared(self, message: Message) -> Refusal | None:
        if message.mapping is None or message.file_size < 0 or not message.is_writable:
            return None
        address, size, offset = message.mapping
        if not self.sharing.is_refused(message.file, offset, offset + size):
            return None
        where = f"memory at {address:#x}, {size:#x} bytes"
        return Refusal(errno.EINVAL, f"{where}: it has mapped its file for itself alone (MAP_PRIVATE)", NOT_ALONE)

    def _has_no_place(self, message: Message) -> Refusal | None:
        if message.mapping is None:
            return None
        address, size, _ = message.mapping
        where = f"memory at {address:#x}, {size:#x} bytes"
        if address in self.host:
            return Refusal(errno.EEXIST, f"{where}: mapped already")
        if len(self.host) >= self._most_regions():
            return Refusal(errno.ENOSPC, f"{where}: it has {len(self.host)} regions already, the most there can be")
        return None

    def log(self, level: int, message: str) -> None:
        harmless = level > LOG_ERR or any(text in message for text in HARMLESS)
        library_log.log(logging.DEBUG if harmless else logging.WARNING, "libvfio-user: %s", message)
