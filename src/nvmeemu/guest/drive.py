"""The drive under test: `nvmeemu serve` in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nvmeemu.app import process, serving
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestError

SERIAL = "GUEST-0001"
LEAVE_SECONDS = 20.0  # from the guest's end to the server's: it syncs the image


class GuestDrive(Protocol):
    """One drive, for one life of one guest."""

    image: Path
    serial: str

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        """Start the drive. Returns QEMU's arguments for it. Its socket and log go into `folder`."""

    def check(self) -> None:
        """Check it while the guest runs. Raises GuestError if the drive has died."""

    def finish(self) -> None:
        """Wait for its end after that of the guest. Raises GuestError if the drive did not end well."""

    def kill(self) -> None:
        """Stop it, whatever state it is in."""


class ServedDrive:
    """A drive served by `nvmeemu serve`, in a process of its own. Without a `serial` it has that of its disk."""

    def __init__(
        self,
        image: Path,
        arguments: Sequence[str] = (),
        *,
        bootable: bool = False,
        once: bool = True,
        serial: str = SERIAL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.image = image
        self._environment = environment
        self.device: dict[str, object] = {}  # QEMU's, once started
        self.serial = _last_value(arguments, "--serial") or serial
        self._arguments = [*(["--serial", serial] if serial else []), *arguments, *(["--once"] if once else [])]
        self._boot: dict[str, object] = {"bootindex": 0} if bootable else {}
        self._server: subprocess.Popen[bytes] | None = None
        self._log = Path()

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        """Start the server and wait until it listens."""
        folder.mkdir(exist_ok=True)
        socket = folder / "nvme.sock"
        self._log = folder / "server.log"
        arguments = [*self.disk_words(), *self._arguments]
        seconds = deadline.within(serving.START_SECONDS).left()
        try:
            self._server = serving.start(socket, arguments, self._log, seconds=seconds, environment=self._environment)
        except serving.ServerError as error:
            raise GuestError(str(error)) from None
        self.device = {**serving.properties(socket), **self._boot}
        return ["-device", json.dumps(self.device)]

    def disk_words(self) -> list[str]:
        """The options that say which disks it has."""
        return ["--disk", str(self.image)]

    @property
    def log(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Status 0 is no death: the server may see the guest's end before we do."""
        if self._server is not None and self._server.poll():
            raise self._ended(self._server.returncode)

    @property
    def server(self) -> subprocess.Popen[bytes]:
        """Its process."""
        assert self._server is not None
        return self._server

    def finish(self) -> None:
        """The guest is gone. Because of --once the server must end by itself, with status 0 and no traceback in its
        log."""
        assert self._server is not None
        try:
            status = self._server.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            raise GuestError(f"nvmeemu serve --once still runs {LEAVE_SECONDS:g} s after the guest has left") from None
        if status != 0:
            raise self._ended(status)
        if "Traceback" in self.log:
            raise GuestError("there is a traceback in the log of nvmeemu serve")

    def _ended(self, status: int) -> GuestError:
        return GuestError(str(serving.ServerEnded(status, self._log)))

    def kill(self) -> None:
        """Stop the server."""
        if self._server is not None:
            process.end(self._server)


def _last_value(arguments: Sequence[str], option: str) -> str | None:
    value = None
    for index, word in enumerate(arguments):
        if word.startswith(option + "="):
            value = word.partition("=")[2]
        elif word == option and index + 1 < len(arguments):
            value = arguments[index + 1]
    return value
