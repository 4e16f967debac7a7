"""CPU time of the Python path for a 4 KiB read of a cached file, over that of a plain ``os.preadv``.

    .venv/bin/python bench/service_time.py [--rounds 15] [--json FILE]

One controller in this process, queue depth 32: from the doorbell write to the completion and its doorbell. Both
numbers come from the same process, in turns, as thread CPU time, so that a busy machine shifts them together; the
result is the median of the rounds' ratios. Aim: 6 or less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable

from nvmeemu.backend import Backend, open_backend
from nvmeemu.spec import DOORBELLS, SQE_SIZE, NvmOpcode, ReadWrite
from nvmeemu.testing import Bench

DISK = 64 << 20
DEPTH = 32
ENTRIES = 2 * DEPTH
COMMANDS = 8192  # in a round


def reader(backend: Backend) -> Callable[[], None]:
    """A function that has the controller serve COMMANDS random reads, DEPTH at a time."""
    bench = Bench(backend)
    driver, controller = bench.driver, bench.controller
    driver.enable()
    queue = driver.create_queues(1, ENTRIES, vector=1)
    for index in range(ENTRIES):
        block = random.randrange(DISK // 4096)
        page = driver.alloc(4096)
        command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, cid=index, prp1=page, slba=block * 8, nlb=8)
        bench.write_memory(queue.sq + index * SQE_SIZE, bytes(command))
    tail = 0

    def serve() -> None:
        nonlocal tail
        for _ in range(COMMANDS // DEPTH):
            tail = (tail + DEPTH) % ENTRIES
            value = tail.to_bytes(4, "little")
            controller.write(DOORBELLS + 8, value)
            while controller.run() or bench.worker.tasks:
                bench.worker.finish_all()  # reads of pages that the kernel has taken back meanwhile
            controller.write(DOORBELLS + 12, value)
            controller.run()
        bench.ram.interrupts.clear()

    return serve


def floor(path: str) -> Callable[[], None]:
    """A function that makes COMMANDS random plain reads."""
    fd = os.open(path, os.O_RDONLY)
    buffers = [bytearray(4096)]

    def read() -> None:
        for _ in range(COMMANDS):
            os.preadv(fd, buffers, random.randrange(DISK // 4096) * 4096)

    return read


def choose_only() -> None:
    """What ``floor`` spends on choosing offsets: not part of a read."""
    for _ in range(COMMANDS):
        random.randrange(DISK // 4096) * 4096


def cost(function: Callable[[], None]) -> float:
    """Microseconds of CPU for one command."""
    start = time.thread_time()
    function()
    return (time.thread_time() - start) / COMMANDS * 1e6


def measure(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "disk")
        backend = open_backend(path, create=True, size=DISK)
        for offset in range(0, DISK, 1 << 20):
            backend.write(offset, [memoryview(random.randbytes(1 << 20))])
        serve, read = reader(backend), floor(path)
        samples = []
        for _ in range(rounds):
            samples.append((cost(serve), cost(read) - cost(choose_only)))
        backend.close()
    return {
        "python_us_per_read": round(statistics.median(ours for ours, _ in samples), 2),
        "preadv_us": round(statistics.median(plain for _, plain in samples), 2),
        "python_over_preadv": round(statistics.median(ours / plain for ours, plain in samples), 2),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the result there, too")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
