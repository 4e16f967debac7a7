"""A guest without a VM: memory, time, workers and a small host driver, for tests, benchmarks and examples.

    bench = Bench()                      # a controller with a 16 MiB memory disk, in this process
    nvme = bench.driver
    nvme.enable(); nvme.create_queues(1)
    nvme.write(slba=0, data=b"x" * 512); assert nvme.read(slba=0, blocks=1) == b"x" * 512

``Driver`` needs only BAR0 accesses and guest memory (a ``Bus``), so that the same tests can judge any controller.
A controller in a process of its own is driven through a ``VfioBus`` to its socket, still without a VM:

    with VfioBus("/tmp/nvme.sock") as bus:  # nvmeemu serve --socket /tmp/nvme.sock --disk mem:1G
        nvme = Driver(bus)

and ``VfioClient`` does to it all that a VMM can do. No part of libvfio-user is needed for that.
"""

from nvmeemu.controller.limits import Limits
from nvmeemu.testing.bench import Bench
from nvmeemu.testing.bus import VfioBus
from nvmeemu.testing.client import Refused, SharedMemory, VfioClient
from nvmeemu.testing.driver import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CSTS,
    INTMC,
    INTMS,
    PAGE,
    VS,
    Bus,
    CommandError,
    Driver,
    QueuePair,
)
from nvmeemu.testing.ports import ManualWorker, Ram, Task, VirtualClock

__all__ = [
    "ACQ",
    "AQA",
    "ASQ",
    "CAP",
    "CC",
    "CSTS",
    "INTMC",
    "INTMS",
    "PAGE",
    "VS",
    "Bench",
    "Bus",
    "CommandError",
    "Driver",
    "Limits",
    "ManualWorker",
    "QueuePair",
    "Ram",
    "Refused",
    "SharedMemory",
    "Task",
    "VfioBus",
    "VfioClient",
    "VirtualClock",
]
