"""``nvme_guest``: Linux under QEMU with an nvmeemu drive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from re import Match

from nvmeemu.control import Control
from nvmeemu.guest import process
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.guest import Guest, Result
from nvmeemu.guest.identify import NAMESPACE, wait_for_device
from nvmeemu.guest.machine import Machine
from nvmeemu.pytest_plugin.armed import ServedFaults
from nvmeemu.pytest_plugin.commands import Trace
from nvmeemu.pytest_plugin.options import GuestOptions
from nvmeemu.pytest_plugin.servers import Observed, make_disk

KERNEL_ARGUMENTS = "loglevel=5 panic=-1"  # warnings and worse; a panic ends QEMU
CRASHES = r"Kernel panic|Oops|BUG: "
CONSOLE_LINES, LOG_LINES = 60, 10


class NvmeGuest(Guest):
    """A Linux guest in which a shell agent runs what ``run`` is given; the drive is ``/dev/nvme0n1``.

    A crash of its kernel fails whatever waits for the guest. Raises GuestError, GuestTimeout, GuestEnded.
    """

    def __init__(self, machine: Machine, folder: Path, options: GuestOptions) -> None:
        append = " ".join(filter(None, (f"console={machine.arch.console}", KERNEL_ARGUMENTS, options.append)))
        machine = replace(
            machine, smp=options.smp, mem=options.mem, append=append, reboots=options.reboots, extra=tuple(options.qemu)
        )
        self.options = options
        self.is_shared = True  # by tests; otherwise its boot belongs to the one that it is for
        self.disk = make_disk(folder, options)
        self._observed = Observed(folder)
        arguments = ["--block-size", str(options.block_size), *self._observed.arguments, *options.serve]
        super().__init__(
            machine, ServedDrive(self.disk, arguments), folder, Deadline(options.patience), complaints=CRASHES
        )

    def start(self) -> None:
        """Boot, up to the shell agent and the drive."""
        self.__enter__()
        self.run("true")
        if self.options.wait:
            wait_for_device(self, NAMESPACE)

    def run(self, command: str, timeout: float | None = None) -> Result:
        """Run a shell command in the guest: its ``status`` and ``output`` (standard error is in it).

        Raises GuestTimeout after ``timeout`` seconds.
        """
        self._be_patient(timeout)
        return super().run(command, timeout)

    def expect(self, pattern: str, timeout: float | None = None) -> Match[str]:
        """Wait until the console prints a text that this regular expression matches, the kernel's messages included.

        The search goes on behind the last text found, so that each is found once. Raises GuestTimeout.
        """
        self._be_patient(timeout)
        return super().expect(pattern, timeout)

    def wait_for_end(self) -> None:
        """Wait until the guest has powered itself off."""
        self._be_patient(None)
        super().wait_for_end()

    def _be_patient(self, timeout: float | None) -> None:
        """The base class has one deadline for the life of a guest; a test has one for each step."""
        self.deadline = Deadline(timeout or self.options.patience)

    @property
    def console(self) -> str:
        """All that the console has printed until now."""
        return "" if self._console is None else self._console.transcript.text

    @property
    def kernel_messages(self) -> list[str]:
        """The kernel's messages on the console (warnings and worse), without their time stamps."""
        return [] if self._console is None else self._console.transcript.kernel

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
        """A client of the drive's control socket: ``control.call("namespace.resize", nsid=1, size="32M")``."""
        return self._observed.control

    def close(self) -> None:
        """Pull the plug. Raises GuestError if the server does not end well then."""
        try:
            if self._qemu is not None and self._qemu.poll() is None:
                self.stop()
        finally:
            self._observed.close()
            self.kill()

    def sections(self) -> dict[str, str]:
        """What to know about it when a test has failed."""
        logs = {name: process.tail(self.folder / name, LOG_LINES) for name in ("qemu.log", "server.log")}
        return {
            **self.trace.sections(),
            "guest's console, the last lines": "\n".join(self.console.splitlines()[-CONSOLE_LINES:]),
            **{f"{name}, the last lines": "\n".join(lines) for name, lines in logs.items()},
        }
