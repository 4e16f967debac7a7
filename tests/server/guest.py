"""The guest of a server process: a ``Driver`` over ``VfioBus``. It can shut down and disconnect."""

from __future__ import annotations

from nvmeemu.spec import Completion
from nvmeemu.testing import CC, Driver, VfioBus

SHST_COMPLETE = 2
NORMAL, ABRUPT = 1, 2  # CC.SHN


class Guest(Driver):
    """A driver that has connected, enabled the controller and made one I/O queue pair."""

    bus: VfioBus
    patience = 12_000  # two minutes: others may use the disk too

    def __init__(self, path: str, *, entries: int = 64, ram: int = 64 << 20, vectors: int = 4) -> None:
        super().__init__(VfioBus(path, ram=ram, vectors=vectors))
        self._has_left = False
        self.enable()
        self.create_queues(1, entries)

    def begin_shutdown(self, shn: int = NORMAL) -> None:
        self.set_reg(CC, self.reg(CC) & ~(3 << 14) | shn << 14)

    def shut_down(self, shn: int = NORMAL) -> None:
        self.begin_shutdown(shn)
        self._wait(lambda: self.status.shst == SHST_COMPLETE, "end of the shutdown")

    def collect(self, number: int, qid: int = 1) -> list[Completion]:
        """Wait for so many completions of a queue; all that there are then, in order."""
        found: list[Completion] = []

        def is_enough() -> bool:
            found.extend(self.drain(self.queues[qid]))
            return len(found) >= number

        self._wait(is_enough, f"{number} completions")
        return found

    def leave(self) -> None:
        """As a killed VMM does: without a word."""
        if not self._has_left:
            self._has_left = True
            self.bus.close()
