"""``nvme``: a controller and its driver in this process."""

from __future__ import annotations

from pathlib import Path

from nvmeemu.backend import parse_size
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.faults import Faults
from nvmeemu.plugins import INSTALLED
from nvmeemu.ports import Clock
from nvmeemu.pytest_plugin.commands import Trace
from nvmeemu.pytest_plugin.options import DriveOptions
from nvmeemu.testing import Bench
from nvmeemu.trace.file import Writer
from nvmeemu.trace.recorder import Recorder, describe


class NvmeBench(Bench):
    """A ``nvmeemu.testing.Bench`` whose driver is ready, with ``faults`` and ``trace``."""

    def __init__(self, folder: Path, options: DriveOptions) -> None:
        backend = MemoryBackend(parse_size(options.size))
        super().__init__(backend, block_size=options.block_size, limits=options.limits)
        self.options = options
        self.faults = Faults(self.controller)
        for plugin in INSTALLED:
            plugin.begin(self.controller.state, self.faults)
        self.records = Records(self.clock)
        self._file = folder / "nvme.trace"
        self.trace = Trace(self.records, patience=0)  # nobody sends anything while a test waits

    def start(self) -> None:
        """Enable the controller, make a pair of I/O queues."""
        self.controller.observe(Recorder(self.records, self.controller.state))
        for fault in self.options.new_faults():
            self.faults.add(fault)
        self.driver.enable()
        self.driver.create_queues()

    def sections(self) -> dict[str, str]:
        """What to know about it when a test has failed."""
        with self._file.open("wb") as file:
            Writer(file, describe(self.controller)).put(bytes(self.records.data))
        return {}

    def __repr__(self) -> str:
        return f"<NvmeBench: {self.options.size} in blocks of {self.options.block_size}>"


class Records:
    """All records, in memory. It is the recorder's sink and the trace's source."""

    def __init__(self, clock: Clock) -> None:
        self.data = bytearray()
        self._clock = clock
        self._taken = 0

    def now(self) -> int:
        return round(self._clock.now() * 1e9)

    def put(self, data: bytes) -> None:
        self.data += data

    def mark(self) -> None:
        return None

    def more(self) -> bytes:
        start, self._taken = self._taken, len(self.data)
        return bytes(self.data[start:])
