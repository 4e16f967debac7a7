"""``nvme_server``: ``nvmeemu serve`` on a socket, and what comes with every served drive."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from nvmeemu.app import process, serving
from nvmeemu.app.control import Control, ControlError, Unreachable
from nvmeemu.backend import parse_size
from nvmeemu.faults import Fault
from nvmeemu.pytest_plugin.armed import ServedFaults
from nvmeemu.pytest_plugin.commands import FileSource, Trace
from nvmeemu.pytest_plugin.options import ServerOptions
from nvmeemu.testing import Driver, VfioBus

LOG_LINES = 20
LEAVE_SECONDS = 20.0
EXPECT_SECONDS = 10.0  # that ``expect`` waits, if nothing else is asked for


def make_disk(folder: Path, options: ServerOptions) -> Path:
    """The test's own image, the first one of its drive file (or its pool, if there is none), or a new one."""
    if (file := options.drive_file) is not None:
        if not file.tables.namespaces:
            return Path(str(file.tables.top["pool"]))
        return Path(str(file.tables.namespaces[0]["disk"]).removeprefix("raw:"))
    if options.disk is not None:
        return Path(options.disk)
    disk = folder / "disk.img"
    with disk.open("xb") as image:
        image.truncate(parse_size(options.size))
    return disk


class Observed:
    """What the plugin needs of a served drive: its trace, and its control socket."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "control.sock"
        trace = folder / "nvme.trace"
        self.arguments = ["--trace", str(trace), "--control", str(self._socket)]
        self.trace = Trace(FileSource(trace, self._note), EXPECT_SECONDS)

    @cached_property
    def control(self) -> Control:
        """Connected. Raises Unreachable."""
        return Control(self._socket).open()

    @cached_property
    def faults(self) -> ServedFaults:
        """Its faults."""
        return ServedFaults(self.control)

    def arm(self, faults: Iterable[Fault]) -> None:
        """Add faults before a host comes. Raises FaultError."""
        for fault in faults:
            self.faults.add(fault)

    def _note(self, text: str) -> bool:
        try:
            self.control.call("trace.note", text=text)
        except (Unreachable, ControlError):
            return False
        return True

    def close(self) -> None:
        """Leave the control socket."""
        if "control" in self.__dict__:
            self.control.close()


class NvmeServer:
    """A drive in a process of its own. ``socket`` is for any vfio-user client; ``driver`` needs no VM."""

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self.folder = folder
        self.options = options
        self.socket = folder / "nvme.sock"
        self.disk = make_disk(folder, options)
        self._observed = Observed(folder)
        self._buses: list[VfioBus] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve. Raises ServerError."""
        arguments = self.options.disk_words(self.disk)
        arguments += [
            *self.options.limit_words,
            *self.options.plugin_words,
            *self._observed.arguments,
            *self.options.serve,
        ]
        self._process = serving.start(self.socket, arguments, self.folder / "server.log")
        self._observed.arm(self.options.new_faults())

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's."""
        assert self._process is not None
        return self._process

    @cached_property
    def driver(self) -> Driver:
        """A driver that is connected and enabled, with one pair of I/O queues."""
        driver = Driver(self.connect())
        driver.enable()
        driver.create_queues()
        return driver

    def connect(self, **options: int) -> VfioBus:
        """A connection as a VMM makes it. A server takes one at a time."""
        self._buses.append(VfioBus(str(self.socket), **options))
        return self._buses[-1]

    @property
    def faults(self) -> ServedFaults:
        """As the fixture."""
        return self._observed.faults

    @property
    def trace(self) -> Trace:
        """As the fixture."""
        return self._observed.trace

    @property
    def control(self) -> Control:
        """A client of the control socket, for everything that it can do: ``control.call("namespace.add", ...)``."""
        return self._observed.control

    @property
    def log(self) -> str:
        """What the server has logged until now."""
        return (self.folder / "server.log").read_text(errors="replace")

    def close(self) -> None:
        """Leave, and end the server. Raises ServerError if it does not end well."""
        while self._buses:
            self._buses.pop().close()
        self._observed.close()
        if self._process is None:
            return
        status = process.end(self._process, LEAVE_SECONDS)
        if status != 0:
            raise serving.ServerEnded(status, self.folder / "server.log")
        if "Traceback" in self.log:
            raise serving.ServerError("there is a traceback in the log of nvmeemu serve")

    def sections(self) -> dict[str, str]:
        """What to know about it when a test has failed."""
        log = "\n".join(process.tail(self.folder / "server.log", LOG_LINES))
        return {"nvmeemu serve, the last lines": log}

    def __repr__(self) -> str:
        state = "not running" if self._process is None or self._process.poll() is not None else "running"
        return f"<NvmeServer: {self.disk} on {self.socket}, {state}>"
