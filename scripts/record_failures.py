#!/usr/bin/env python3
"""Records anew the trace of a failing drive that docs/trace.md draws: .venv/bin/python scripts/record_failures.py

A server with faults, and a driver that reads and writes along the disk.
"""

from __future__ import annotations

import lzma
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nvmeemu.spec import NvmOpcode, ReadWrite
from nvmeemu.testing import Driver, VfioBus

TRACE = Path(__file__).parents[1] / "tests/trace/failing.trace.xz"
COMMANDS, BLOCKS, QUEUES, DEPTH = 600, 131072, 2, 4
FAULTS = """
seed = 7
[[fault]]
name = "slow blocks"
match = { lba = "30000-60000" }
do = { delay = "15ms" }
[[fault]]
name = "bad blocks"
match = { opcode = "read", lba = "90000-99999" }
do = { status = "unrecovered_read_error" }
when = { probability = 0.3 }
[[fault]]
name = "one write is forgotten"
match = { opcode = "write" }
at = "completion"
do = "drop"
when = { nth = 60 }
"""


def drive(path: str) -> None:
    """Reads and Writes, ``DEPTH`` at once on each queue, at places that wander over the disk."""
    chance = random.Random(7)
    with VfioBus(path) as bus:
        driver = Driver(bus)
        driver.enable()
        pairs = [driver.create_queues(qid) for qid in range(1, QUEUES + 1)]
        place = driver.alloc(4096)
        waiting = dict.fromkeys(range(QUEUES), 0)
        for number in range(COMMANDS):
            index = number % QUEUES
            while waiting[index] >= DEPTH:
                waiting[index] -= len(driver.drain(pairs[index]))
                bus.settle()
            slba = min(BLOCKS - 8, number * BLOCKS // COMMANDS + chance.randrange(4000))
            opcode = NvmOpcode.WRITE if chance.random() < 0.4 else NvmOpcode.READ
            driver.submit(pairs[index], ReadWrite(opcode=opcode, nsid=1, slba=slba, nlb=8, prp1=place))
            waiting[index] += 1
            time.sleep(0.003)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for pair in pairs:
                driver.drain(pair)
            bus.settle()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nvmeemu-") as name:
        folder = Path(name)
        (folder / "faults.toml").write_text(FAULTS)
        options = ("--disk", "mem:64M", "--faults", folder / "faults.toml", "--trace", folder / "t", "--once")
        command = [sys.executable, "-m", "nvmeemu", "serve", "--socket", folder / "s", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()  # it listens
            drive(str(folder / "s"))
        TRACE.write_bytes(lzma.compress((folder / "t").read_bytes(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
