"""``nvme_guest``: Linux under QEMU with an nvmeemu drive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nvmeemu.app import process
from nvmeemu.app.control import Control
from nvmeemu.faults import Fault
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.device import NAMESPACE, wait_for_device
from nvmeemu.guest.drive import SERIAL, ServedDrive
from nvmeemu.guest.guest import Guest
from nvmeemu.guest.machine import Machine
from nvmeemu.pytest_plugin.armed import ServedFaults
from nvmeemu.pytest_plugin.commands import Trace
from nvmeemu.pytest_plugin.options import GuestOptions
from nvmeemu.pytest_plugin.servers import Observed, make_disk

KERNEL_ARGUMENTS = "loglevel=7 panic=-1"  # informational messages and worse; a panic ends QEMU
CRASHES = r"Kernel panic|Oops|BUG: "
CONSOLE_LINES, LOG_LINES = 60, 10


class _ArmedDrive(ServedDrive):
    """One whose faults are there before the guest is."""

    def __init__(
        self, disk: Path, options: GuestOptions, arguments: Sequence[str], observed: Observed, faults: Iterable[Fault]
    ) -> None:
        super().__init__(disk, arguments, serial=SERIAL if options.drive is None else "")
        self._options = options
        self._observed, self._faults = observed, faults

    def disk_words(self) -> list[str]:
        return self._options.disk_words(self.image)

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        arguments = super().start(folder, deadline)
        self._observed.arm(self._faults)
        return arguments


class NvmeGuest(Guest):
    """A Linux guest in which a shell agent runs what ``run`` is given. The drive is ``/dev/nvme0n1``. A crash of its
    kernel fails everything that waits for the guest. Raises GuestError, GuestTimeout, GuestEnded."""

    def __init__(self, machine: Machine, folder: Path, options: GuestOptions) -> None:
        append = " ".join(filter(None, (f"console={machine.arch.console}", KERNEL_ARGUMENTS, options.append)))
        machine = replace(
            machine, smp=options.smp, mem=options.mem, append=append, reboots=options.reboots, extra=tuple(options.qemu)
        )
        self.options = options
        self.is_shared = True  # by tests; otherwise its boot belongs to the one that it is for
        self.disk = make_disk(folder, options)
        self._observed = Observed(folder)
        arguments = [*options.limit_words, *options.plugin_words]
        arguments += [*self._observed.arguments, *options.serve]
        drive = _ArmedDrive(self.disk, options, arguments, self._observed, options.new_faults())
        super().__init__(machine, drive, folder, Deadline(options.patience), complaints=CRASHES)

    def start(self) -> None:
        """Boot, up to the shell agent and the drive."""
        self.__enter__()
        self.run("true")
        if self.options.wait:
            wait_for_device(self, NAMESPACE)

    def _within(self, timeout: float | None = None) -> Deadline:
        """Each step of a test has a deadline of its own. The base class has one for the guest's whole life."""
        return Deadline(self.options.patience if timeout is None else timeout)

    @property
    def console(self) -> str:
        """All that the console has printed until now."""
        return "" if self._console is None else self._console.transcript.text

    @property
    def kernel_messages(self) -> list[str]:
        """The kernel's messages on the console (informational and worse), without their time stamps."""
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
            "guest's console, the last lines": "\n".join(self.console.splitlines()[-CONSOLE_LINES:]),
            **{f"{name}, the last lines": "\n".join(lines) for name, lines in logs.items()},
        }

    def __repr__(self) -> str:
        kernel = f"Linux {self.kernel_release}" if self.kernel_release else "no shell yet"
        state = "not running" if self._qemu is None or self._qemu.poll() is not None else kernel
        return f"<NvmeGuest: {state}, drive {self.disk}>"
