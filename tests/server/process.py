"""``nvmeemu serve`` as a process: started as a user starts it, and watched through its output."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

NVMEEMU = str(Path(sys.executable).with_name("nvmeemu"))
PATIENCE = 120.0  # seconds; whatever takes longer has failed
WAKES = 10  # of a server that sleeps, in a second
ANNOUNCED_LINES = 3


def run(
    *arguments: object,
    command: Sequence[str] = (NVMEEMU, "serve"),
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | dict(environment or {}),
        timeout=PATIENCE,
        **{"capture_output": True, "text": True, "check": False, **options},
    )


class Served:
    """A server that listens: it has said so when this has been made. Of several ``drives`` each says where in its
    file; ``path`` is that of the first one."""

    def __init__(
        self,
        path: str,
        *arguments: object,
        command: Sequence[str] = (NVMEEMU, "serve"),
        environment: Mapping[str, str] | None = None,
        drives: int = 1,
        **options: Any,
    ) -> None:
        self.path = path
        where = ["--socket", path] if drives == 1 else []
        self.process = subprocess.Popen(
            [*command, *where, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | dict(environment or {}),
            bufsize=0,
            **options,
        )
        self._text = b""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        lines = [self.process.stdout.readline().decode() for _ in range(ANNOUNCED_LINES * drives)]
        if not lines[-1]:
            self.wait()
            raise AssertionError(f"the server did not start: {self.log}")
        self.announced = "".join(lines)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def device(self) -> dict[str, Any]:
        """The -device argument that it wants QEMU to have."""
        words = shlex.split(self.announced.replace("\\\n", " ").partition("QEMU:")[2])
        device: dict[str, Any] = json.loads(words[words.index("-device") + 1])
        return device

    @property
    def log(self) -> str:
        """What it has said on stderr so far."""
        while select.select([self._stderr], [], [], 0)[0] and self._read():
            pass
        return self._text.decode()

    def _read(self) -> bool:
        piece = os.read(self._stderr.fileno(), 65536)
        self._text += piece
        return bool(piece)

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until the log has had this ``times`` times."""
        deadline = time.monotonic() + PATIENCE
        while self._text.decode().count(text) < times:
            ready = select.select([self._stderr], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {text!r} in the log: {self._text.decode()}"
            assert self._read(), f"no {text!r} in the log, and the server has ended: {self._text.decode()}"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """A signal, and the exit status; an end that is not orderly shows its log."""
        self.send(number)
        status = self.wait()
        assert "Traceback" not in self.log, self.log
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()

    def status(self, key: str) -> int:
        """A number of /proc/PID/status; sizes in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0])
        raise KeyError(key)

    def wait_until_it_sleeps(self) -> None:
        """Return after a second in which no thread had to do anything, but for at most ``WAKES``. A server that polls
        never has one, and on a busy machine there is one, too, only later."""
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self._switches()
            time.sleep(1)
            wakes = self._switches() - before
            if wakes <= WAKES and set(self._states()) == {"S"}:
                return
            assert time.monotonic() < deadline, f"it does not sleep: {wakes} wakes in a second"

    def _switches(self) -> int:
        """How often its threads have been put on a CPU."""
        return sum(int(text.split()[2]) for text in self._of_threads("schedstat"))

    def _states(self) -> list[str]:
        return [text.rpartition(")")[2].split()[0] for text in self._of_threads("stat")]

    def _of_threads(self, name: str) -> list[str]:
        found = []
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found.append((thread / name).read_text())
        return found

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Serve = Callable[..., Served]
