"""A ``Bus`` over vfio-user: ``Driver`` drives a controller in another process, as a guest in a VM would.

# nvmeemu serve --socket /tmp/nvme.sock --disk mem:1G
with VfioBus("/tmp/nvme.sock") as bus:
    nvme = Driver(bus)
    nvme.enable(); nvme.create_queues(1)
    nvme.write(slba=0, data=b"x" * 512)
    assert nvme.read(slba=0, blocks=1) == b"x" * 512
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from nvmeemu.ports import HostMemoryError
from nvmeemu.testing.client import BAR0, CONFIG, INTX, MSIX, SharedMemory, VfioClient
from nvmeemu.testing.driver import CSTS

EXPRESS_CAPABILITY, MSIX_CAPABILITY = 0x10, 0x11
MSIX_ENABLE = 0x8000  # of Message Control
INITIATE_FLR = 0x8000  # of Device Control
_EAGER = 3  # looks at the device that are worth their price before waiting for an interrupt
_MOMENT = 10  # milliseconds to wait for one


class VfioBus:
    """A connection as a VMM makes it: guest RAM from address 0 on, an eventfd for each vector, posted writes, and
    doorbells in memory where the server shares them. ``vectors=0`` uses the interrupt pin. Use ``client`` and
    ``memory`` for what else a VMM can do. Memory outside of the RAM is a HostMemoryError."""

    def __init__(self, path: str, *, ram: int = 64 << 20, vectors: int = 4) -> None:
        self.memory = SharedMemory(ram)
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(max(vectors, 1))]
        self.has_msix = vectors > 0
        self._interrupts = select.poll()
        for fd in self.eventfds:
            self._interrupts.register(fd, select.POLLIN)
        self._looks = 0
        self._shared: tuple[int, mmap.mmap] | None = None
        try:
            self.client = VfioClient(path)
            self._shared = self.client.map_region(BAR0)
            self.client.map(0, ram, self.memory.fd)
            self.connect_interrupts()
        except BaseException:
            self._give_up()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave as a killed VMM does: without a message."""
        self.client.close()
        self._give_up()

    def _give_up(self) -> None:
        self.memory.close()
        if self._shared is not None:
            self._shared[1].close()
        for fd in self.eventfds:
            os.close(fd)

    # --- what a VMM does

    def connect_interrupts(self) -> None:
        """Route the interrupts to ``eventfds``, enable MSI-X and make the function a bus master: every reset of the
        function undoes the latter two."""
        self.client.set_interrupts(MSIX if self.has_msix else INTX, 0, self.eventfds)
        if self.has_msix:
            self._set_control(MSIX_CAPABILITY, 2, MSIX_ENABLE)
        self.client.enable_bus_master()

    def reset(self) -> None:
        """Reset the device, as when the machine is reset."""
        self.client.reset()

    def function_level_reset(self) -> None:
        """What a guest's driver can do through the configuration space (PCI Express Base, 6.6.2)."""
        self._set_control(EXPRESS_CAPABILITY, 8, INITIATE_FLR)

    def _set_control(self, capability: int, register: int, bits: int) -> None:
        offset = self.client.capability(capability)
        if not offset:
            raise LookupError(f"the device has no PCI capability {capability:#x}")
        old = int.from_bytes(self.client.read(CONFIG, offset + register, 2), "little")
        self.client.write(CONFIG, offset + register, (old | bits).to_bytes(2, "little"))

    def remap(self, cuts: Iterable[int] = ()) -> None:
        """Take all RAM away and map it again, in pieces that end at ``cuts`` (multiples of 4 KiB, ascending)."""
        self.client.unmap_all()
        start = 0
        for cut in (*cuts, self.memory.size):
            self.client.map(start, cut - start, self.memory.fd, offset=start)
            start = cut

    # --- Bus

    def read_bar(self, offset: int, size: int) -> bytes:
        """Read BAR0: registers."""
        return self.client.read(BAR0, offset, size)

    def write_bar(self, offset: int, data: bytes) -> None:
        """Write BAR0: registers and doorbells."""
        self._looks = 0
        if self._shared is not None and self._shared[0] <= offset < self._shared[0] + len(self._shared[1]):
            memoryview(self._shared[1]).cast("I")[(offset - self._shared[0]) // 4] = int.from_bytes(data, "little")
        else:
            self.client.post(BAR0, offset, data)

    def read_memory(self, iova: int, size: int) -> bytes:
        """Guest memory, as the host sees it."""
        self._check(iova, size)
        return self.memory.data[iova : iova + size]

    def write_memory(self, iova: int, data: bytes) -> None:
        """Change guest memory."""
        self._check(iova, len(data))
        self.memory.data[iova : iova + len(data)] = data

    def _check(self, iova: int, size: int) -> None:
        if not 0 <= iova <= self.memory.size - size:
            raise HostMemoryError(iova, size)

    def settle(self) -> None:
        """Make a round trip, after which the server has taken everything that was posted. If that was not enough, wait
        for an interrupt."""
        self._looks += 1
        if self._looks > _EAGER and self.wait_for_interrupt(_MOMENT) and not self.has_msix:
            self.client.unmask_pin()
        self.client.read(BAR0, CSTS, 4)

    def wait_for_interrupt(self, milliseconds: int) -> list[int]:
        """The vectors that have fired since the last call, or else the first that fire in this time."""
        fired = [fd for fd, _ in self._interrupts.poll(milliseconds)]
        for fd in fired:
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
        return sorted(self.eventfds.index(fd) for fd in fired)
