"""A guest without a VM: memory, time, workers and a small host driver, for tests, benchmarks and examples.

    bench = Bench()                      # a controller with a 16 MiB memory disk, in this process
    nvme = bench.driver
    nvme.enable(); nvme.create_queues(1)
    nvme.write(slba=0, data=b"x" * 512); assert nvme.read(slba=0, blocks=1) == b"x" * 512

``Driver`` needs only BAR0 accesses and guest memory (the ``Bus``), so that the same tests can judge any controller.
"""

from nvmeemu.testing.bench import Bench
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
    "ManualWorker",
    "QueuePair",
    "Ram",
    "Task",
    "VirtualClock",
]
