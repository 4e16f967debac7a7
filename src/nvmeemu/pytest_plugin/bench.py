"""``nvme``: a controller and its driver in this process."""

from __future__ import annotations

from nvmeemu.backend import parse_size
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.pytest_plugin.options import DriveOptions
from nvmeemu.testing import Bench


class NvmeBench(Bench):
    """A ``nvmeemu.testing.Bench`` whose driver is ready."""

    def __init__(self, options: DriveOptions) -> None:
        super().__init__(MemoryBackend(parse_size(options.size)), block_size=options.block_size)

    def start(self) -> None:
        """Enable the controller, make a pair of I/O queues."""
        self.driver.enable()
        self.driver.create_queues()

    def sections(self) -> dict[str, str]:
        """What to know about it when a test has failed."""
        return {}
