"""``nvmeemu serve`` as the transport tests use it: its log in a file, and what it holds of the system's resources."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nvmeemu.testing import VfioClient

PATIENCE = 120.0  # seconds; a test that has to wait so long has failed
MOST_THREADS = 11  # the loop, a lane's two, 8 for what blocks (made when needed)
MAPPINGS, MEMORY = 64, 16 << 10  # what those and the interpreter may still take: mappings, KiB
NVMEEMU = Path(sys.executable).with_name("nvmeemu")


class Footprint(NamedTuple):
    """What may not grow."""

    descriptors: tuple[str, ...]
    threads: int
    mappings: int
    memory: int  # KiB


class ServedDisk:
    """A server process. Its footprint is taken while a client is attached that has nothing mapped."""

    def __init__(self, path: str, disk: str, *options: str) -> None:
        self.path = path
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in stop()
        read, write = os.pipe()
        command = [str(NVMEEMU), "serve", "--socket", path, "--disk", disk, "--ready-fd", str(write), *options]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, pass_fds=[write])
        os.close(write)
        ready = os.read(read, 16)
        os.close(read)
        assert ready, f"the server did not start: {self.log}"

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def footprint(self) -> Footprint:
        with VfioClient(self.path, PATIENCE) as client:
            client.device_info()
            process = Path(f"/proc/{self.process.pid}")
            names = []
            for name in os.listdir(process / "fd"):
                names.append(os.readlink(process / "fd" / name).partition(":[")[0])
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            mappings = (process / "maps").read_text().splitlines()
            assert not [line for line in mappings if "memfd:guest" in line]
            memory = int(status["VmRSS"].split()[0])
            return Footprint(tuple(sorted(names)), self._threads(), len(mappings), memory)

    def _threads(self) -> int:
        """Without the kernel's own for io_uring, which it makes and ends as it likes."""
        number = 0
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/comm"):
            with suppress(OSError):  # it has ended
                number += not task.read_text().startswith("iou-")
        return number

    def check(self, before: Footprint) -> None:
        """That nothing has been left behind since then. What is on its way out gets the time that it needs."""
        deadline = time.monotonic() + PATIENCE
        after = self.footprint()
        while after.descriptors != before.descriptors and time.monotonic() < deadline:
            time.sleep(0.01)
            after = self.footprint()
        assert after.descriptors == before.descriptors
        assert after.threads <= MOST_THREADS
        assert after.mappings <= before.mappings + MAPPINGS
        if "NVMEEMU_SANITIZER" not in os.environ:  # it takes memory for its own books
            assert after.memory <= before.memory + MEMORY
        assert self.process.poll() is None
        assert "Traceback" not in self.log, self.log

    def stop(self) -> int:
        self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()
        return status
