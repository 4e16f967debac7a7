"""A host that uses shadow doorbells as Linux does: it rings only where EventIdx asks for it (Base 1.4, B.5)."""

from __future__ import annotations

from nvmeemu.spec import DOORBELLS, AdminOpcode, DoorbellBufferConfig
from nvmeemu.testing import PAGE, Bus, Driver
from nvmeemu.vfio.binding import barrier


class ShadowBus:
    """A ``Bus`` between a driver and ``bus``. It changes nothing before ``configure``."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._shadow = self._event = 0

    def configure(self, driver: Driver) -> None:
        """Doorbell Buffer Config; the driver is on this bus."""
        shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
        command = DoorbellBufferConfig(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)
        driver.succeed(driver.admin, command)
        self._shadow, self._event = shadow, event

    def clear(self, qid: int) -> None:
        """A pair of queues is about to be made."""
        if self._shadow:
            for buffer in (self._shadow, self._event):
                self._bus.write_memory(buffer + 8 * qid, bytes(8))

    def events(self, qid: int) -> int:
        """Where the two EventIdx of this pair of queues are, 8 bytes, which the device writes whenever it likes. 0: it
        has none."""
        return self._event and self._event + 8 * qid

    def write_bar(self, offset: int, data: bytes) -> None:
        if not self._shadow or offset < DOORBELLS + 8 or self._is_asked_for(offset - DOORBELLS, data):
            self._bus.write_bar(offset, data)

    def _is_asked_for(self, place: int, data: bytes) -> bool:
        new, old = int.from_bytes(data, "little"), self._read(self._shadow + place)
        self._bus.write_memory(self._shadow + place, data)
        barrier()
        event = self._read(self._event + place)
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def _read(self, iova: int) -> int:
        return int.from_bytes(self._bus.read_memory(iova, 4), "little")

    def read_bar(self, offset: int, size: int) -> bytes:
        return self._bus.read_bar(offset, size)

    def read_memory(self, iova: int, size: int) -> bytes:
        return self._bus.read_memory(iova, size)

    def write_memory(self, iova: int, data: bytes) -> None:
        self._bus.write_memory(iova, data)

    def settle(self) -> None:
        self._bus.settle()
