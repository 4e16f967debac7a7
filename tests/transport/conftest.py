"""Fixtures of the transport's tests: a device made for tests, served by a process, and clients for it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.testing.client import SharedMemory, VfioClient

FAKE = Path(__file__).with_name("fake.py")
PATIENCE = 120.0  # seconds; a test that has to wait so long has failed


class ServedFake:
    """The process of ``fake.py``, and what it reports. ``path`` is the first socket of those in ``options``, if there
    are several."""

    def __init__(self, path: str, *options: str) -> None:
        self.path = path
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in stop()
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), path, *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            bufsize=0,
        )
        self._text = b""

    def next_event(self) -> list[Any]:
        """The next line of its report."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            assert ready, f"no report from the server; its log: {self.read_log()}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"the server has ended; its log: {self.read_log()}"
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        event: list[Any] = json.loads(line)
        return event

    def wait_for(self, *event: Any) -> list[Any]:
        """Skip to the next report that begins so."""
        while True:
            report = self.next_event()
            if report[: len(event)] == [*event]:
                return report

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def path() -> Iterator[str]:
    """A short path for a socket: pytest's own folders are too long for some."""
    with tempfile.TemporaryDirectory(prefix="nvmeemu-") as folder:
        yield f"{folder}/s"


@pytest.fixture
def serve(path: str) -> Iterator[Callable[..., ServedFake]]:
    """Start a server on ``path`` and wait until it listens."""
    started: list[ServedFake] = []

    def start(*options: str) -> ServedFake:
        served = ServedFake(path, *options)
        started.append(served)
        assert served.next_event() == ["listening"]
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def fake(serve: Callable[..., ServedFake]) -> ServedFake:
    return serve()


@pytest.fixture
def client(fake: ServedFake) -> Iterator[VfioClient]:
    with VfioClient(fake.path) as client:
        client.enable_bus_master()
        assert fake.wait_for("memory") == ["memory", 0]
        yield client


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(1 << 20)
    yield memory
    memory.close()
