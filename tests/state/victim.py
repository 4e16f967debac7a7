"""Drives by the hundred, each to be killed: ``python victim.py ENGINE STATE DISK ACKNOWLEDGED``, with kill.c preloaded.

For each line ``CALL HALF VERSION`` on standard input it forks a drive that writes and saves versions, from this one on,
and is killed at this call. It answers with the number of calls, or with 0 if the drive was killed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

from nvmeemu.backend import open_backend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import BROADCAST, FeatureId, SetFeatures
from nvmeemu.state.file import StateFile
from nvmeemu.testing import Bench

STEPS = 10


class Job:
    def cancel(self) -> bool:
        return False


class Inline:
    """A worker that does it at once, so that the calls come in one order."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], at: object) -> Job:
        done(work(), None)
        return Job()


def live(engine: str, state_path: str, disk: str, acknowledged: int, version: int) -> None:
    """Write each version to the disk, then save it for both namespaces, in one change."""
    state = StateFile.open(state_path, Inline())
    with Bench(open_backend(disk), engine=engine, state=state) as bench:
        bench.subsystem.add(bench.namespace(2, MemoryBackend(1 << 20), identity="disk 2"))
        driver = bench.driver
        driver.enable()
        driver.create_queues(1)
        for number in range(version, version + STEPS):
            driver.write(0, number.to_bytes(512, "little"))
            command = SetFeatures(fid=FeatureId.ERROR_RECOVERY, sv=True, cdw11=number, nsid=BROADCAST)
            driver.succeed(driver.admin, command)
            os.write(acknowledged, number.to_bytes(2, "little"))
    state.close()


def main(engine: str, state: str, disk: str, acknowledged: str) -> None:
    library = ctypes.CDLL(None)
    for line in sys.stdin:
        call, half, version = map(int, line.split())
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            fd = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            library.arm(call, half)
            live(engine, state, disk, fd, version)
            os.write(into, str(library.armed_calls()).encode())
            os._exit(0)
        os.close(into)
        os.waitpid(child, 0)
        print(os.read(out, 100).decode() or "0", flush=True)
        os.close(out)


main(*sys.argv[1:])
