"""A ``Bus`` for ``nvmeemu.testing.Driver`` over vfio-user: the driver drives a server process as a guest would."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from types import TracebackType
from typing import Self

from transport.client import BAR0, CONFIG, MSIX, Client, SharedMemory

CSTS = 0x1C
_CAPABILITIES, _MSIX_CAPABILITY, _MSIX_ENABLE = 0x34, 0x11, 0x8000
_EAGER = 3  # looks at the device that are worth their price before waiting for an interrupt
_MOMENT = 10  # milliseconds to wait for one


class VfioBus:
    """A connection as a VMM makes it: guest RAM at address 0, an eventfd for each vector, posted register writes."""

    def __init__(self, path: str, *, ram: int = 64 << 20, vectors: int = 4) -> None:
        self.memory = SharedMemory(ram)
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(vectors)]
        self._interrupts = select.poll()
        for fd in self.eventfds:
            self._interrupts.register(fd, select.POLLIN)
        self._looks = 0
        try:
            self.client = Client(path)
            self.client.map(0, ram, self.memory.fd)
            if vectors:
                self._enable_msix()
        except BaseException:
            self._give_up()
            raise

    def _enable_msix(self) -> None:
        self.client.set_interrupts(MSIX, 0, self.eventfds)
        offset = self.client.read(CONFIG, _CAPABILITIES, 1)[0]
        while offset and self.client.read(CONFIG, offset, 1)[0] != _MSIX_CAPABILITY:
            offset = self.client.read(CONFIG, offset + 1, 1)[0]
        assert offset, "the device has no MSI-X capability"
        control = int.from_bytes(self.client.read(CONFIG, offset + 2, 2), "little")
        self.client.write(CONFIG, offset + 2, (control | _MSIX_ENABLE).to_bytes(2, "little"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave as a killed VMM does: without a word."""
        self.client.close()
        self._give_up()

    def _give_up(self) -> None:
        self.memory.close()
        for fd in self.eventfds:
            os.close(fd)

    # --- Bus

    def read_bar(self, offset: int, size: int) -> bytes:
        return self.client.read(BAR0, offset, size)

    def write_bar(self, offset: int, data: bytes) -> None:
        self.client.post(BAR0, offset, data)
        self._looks = 0

    def read_memory(self, iova: int, size: int) -> bytes:
        return self.memory.data[iova : iova + size]

    def write_memory(self, iova: int, data: bytes) -> None:
        self.memory.data[iova : iova + len(data)] = data

    def settle(self) -> None:
        """A round trip, behind which everything posted has been taken; when that was not enough, an interrupt."""
        self._looks += 1
        if self._looks > _EAGER:
            self.wait_for_interrupt(_MOMENT)
        self.client.read(BAR0, CSTS, 4)

    def wait_for_interrupt(self, milliseconds: int) -> bool:
        """Whether one has come since the last call, or comes in this time."""
        found = self._interrupts.poll(milliseconds)
        for fd, _ in found:
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
        return bool(found)
