"""A running guest with an NVMe drive: start it, watch and use its console, run commands in it, end it."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nvmeemu.app import process
from nvmeemu.guest import libraries
from nvmeemu.guest.agent import NOT_FOUND, Agent, CommandResult, short
from nvmeemu.guest.console import Console, Transcript
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import GuestDrive
from nvmeemu.guest.errors import GuestEnded, GuestError
from nvmeemu.guest.machine import Machine

if TYPE_CHECKING:
    from nvmeemu.guest.monitor import Monitor

# Kernel messages that mean trouble whatever has happened to the drive; "nobody cared": an interrupt storm. A soft
# lockup is none: it says that a processor stood still, and on a busy machine it may have been taken away.
TROUBLE = r"Kernel panic|Oops|BUG: (?!soft lockup)|WARNING: CPU|blocked for more than|hung_task|nobody cared"
# Those that mean that the drive, or what lies on it, has misbehaved.
COMPLAINTS = (
    r"nvme\S*: (?!Shutdown timeout set).*(?:time-?out|I/O [Ee]rror|controller is down|Device not ready"
    r"|reset controller|completion polled|Removing after probe failure|failed|Abort status|invalid)"
    r"|I/O error|(?:critical|protection|medium|target) .*error, dev|lost async page write|EXT4-fs (?:error|warning)"
    rf"|JBD2: .*[Ee]rror|{TROUBLE}"
)
QEMU_ENDS_SECONDS = 30.0
POWER_OFF = "guest-shutdown"  # as QMP's ShutdownCause has it
PROGRAMS_ARE = "docs/pytest.md lists the guest's programs; put() brings more"


class Guest:
    """One life of a guest, as a context manager; leaving it ends QEMU and the drive, whatever happened.

    `folder` gets the logs: console.log (or `console_log`, appended to), qemu.log, server.log. `complaints` is a regular
    expression over the kernel's messages: any match fails the run at once ("" for none, when a test provokes errors).
    """

    def __init__(
        self,
        machine: Machine,
        drive: GuestDrive,
        folder: Path,
        deadline: Deadline,
        *,
        complaints: str = COMPLAINTS,
        console_log: Path | None = None,
    ) -> None:
        self.machine = machine
        self.drive = drive
        self.folder = folder
        self.deadline = deadline
        self.console_log = console_log or folder / "console.log"
        self.kernel_release = ""  # known once the shell agent runs
        self._complaints = re.compile(complaints) if complaints else None
        self._examined = 0  # kernel messages
        self._qemu: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None
        self._monitor: Monitor | None = None

    def __enter__(self) -> Guest:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def transcript(self) -> Transcript:
        """What the console has printed so far."""
        return self._line.transcript

    def expect(self, pattern: str, timeout: float | None = None) -> re.Match[str]:
        """Wait until the console prints a text that this regular expression matches, the kernel's messages included.

        The search goes on behind the last text found, so that each is found once. Raises GuestTimeout.
        """
        return self._expect(pattern, self._within(timeout), "text")

    def send(self, text: str) -> None:
        """Type on the console."""
        self._line.send(text)

    def run(self, command: str, timeout: float | None = None) -> CommandResult:
        """Run a shell command in the guest: its ``status`` and ``output`` (standard error is in it).

        After ``timeout`` seconds it is killed. Raises GuestTimeout then; the guest stays usable.
        """
        return self._agent().run(command, self._within(timeout))

    def check(self, command: str, timeout: float | None = None) -> str:
        """Run a shell command that must succeed; returns its output."""
        result = self.run(command, timeout)
        if result.status != 0:
            hint = f" ({PROGRAMS_ARE})" if result.status == NOT_FOUND else ""
            ended = f"{short(command)} ended with status {result.status}: {result.last_line}{hint}"
            raise GuestError(f"in the guest, {ended}")
        return result.output

    def put(self, source: str | os.PathLike[str] | bytes, target: str, timeout: float | None = None) -> None:
        """Write a file in the guest: a copy of a file here, with its mode, or these bytes."""
        if isinstance(source, bytes):
            self._agent().put(source, target, self._within(timeout))
            return
        path = Path(source)
        self._agent().put(path.read_bytes(), target, self._within(timeout))
        self.check(f"chmod {path.stat().st_mode & 0o777:o} {shlex.quote(target)}", timeout)

    def get(self, source: str, timeout: float | None = None) -> bytes:
        """Read a file of the guest's."""
        return self._agent().get(source, self._within(timeout))

    def examine(self, messages: Iterable[str]) -> None:
        """Raise at the first of these kernel messages that is a complaint."""
        for message in messages:
            if self._complaints and self._complaints.search(message):
                raise GuestError(f"the guest's kernel says: {message}")

    def power_off(self, command: str = "sync; poweroff -f") -> None:
        """Shut the guest down in good order, and see that QEMU and the drive end well."""
        self._agent().type(command)
        self.wait_for_end()

    def wait_for_end(self) -> None:
        """Wait until the guest has powered itself off; see that QEMU and the drive end well."""
        self._line.wait_for_end(self._within())
        self._see_qemu_end()
        assert self._monitor is not None
        reason = self._monitor.shutdown_reason()
        if reason != POWER_OFF:
            raise GuestError(f"the guest did not power itself off: QEMU ended with {reason or 'no reason given'!r}")
        self.drive.finish()

    def stop(self) -> None:
        """Cut the guest's power (QEMU quits), and see that the drive ends well."""
        assert self._qemu is not None
        process.end(self._qemu)
        self.drive.finish()

    def kill_qemu(self) -> None:
        """Kill QEMU, as a crash would. The drive stays as it is."""
        assert self._qemu is not None
        self._qemu.kill()
        self._qemu.wait()

    @property
    def qemu(self) -> subprocess.Popen[bytes]:
        """QEMU's process."""
        assert self._qemu is not None
        return self._qemu

    @property
    def monitor(self) -> Monitor:
        """QEMU's control connection."""
        assert self._monitor is not None
        return self._monitor

    def reboot(self) -> None:
        """Let Linux restart the machine, with the same drive; commands then go to the new Linux."""
        self._agent().type("sync; reboot -f")
        self.kernel_release = ""

    def kill(self) -> None:
        """End QEMU, then the drive, at once."""
        if self._qemu is not None:
            process.end(self._qemu)
        self.drive.kill()
        for end in (self._console, self._monitor):
            if end is not None:
                end.close()

    @property
    def _line(self) -> Console:
        if self._console is None:
            raise GuestError("the guest has not been started")
        return self._console

    def _within(self, timeout: float | None = None) -> Deadline:
        """The deadline of one step: its own limit, or that of the whole run if that is nearer."""
        return self.deadline.within(timeout)

    def _start(self) -> None:
        libraries.require()
        from nvmeemu.guest.monitor import Monitor

        arguments = self.drive.start(self.folder, self.deadline)
        console, its_console = socket.socketpair()
        monitor, its_monitor = socket.socketpair()
        self._console = Console(console, self.console_log)
        self._console.watch = self._watch
        self._monitor = Monitor(monitor)
        with its_console, its_monitor:
            ends = [its_console.fileno(), its_monitor.fileno()]
            command = self.machine.command(arguments, ends[0], ends[1], self.folder)
            (self.folder / "qemu-command").write_text(shlex.join(command) + "\n")
            self._qemu = process.spawn(command, self.folder / "qemu.log", pass_fds=ends)

    def _expect(self, pattern: str, deadline: Deadline, stream: str, name: str = "") -> re.Match[str]:
        try:
            return self._line.expect(pattern, deadline, stream=stream, name=name)
        except GuestEnded:
            self._see_qemu_end()  # if QEMU failed, that is the reason to tell
            raise

    def _see_qemu_end(self) -> None:
        assert self._qemu is not None
        try:
            status = self._qemu.wait(QEMU_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            raise GuestError("QEMU has closed the console but does not end") from None
        if status != 0:
            last = process.tail(self.folder / "qemu.log", 1)
            raise GuestError(f"QEMU ended with status {status}: {last[0] if last else 'its log is empty'}")

    def _watch(self) -> None:
        """Raise if the drive has died or the kernel has complained. Called while we wait for the console."""
        self.drive.check()
        messages = self.transcript.kernel
        new, self._examined = messages[self._examined :], len(messages)
        self.examine(new)

    def _agent(self) -> Agent:
        """Once it runs."""
        if not self.kernel_release:
            name = "the prompt of the shell in our initramfs"
            self.kernel_release = self._expect(r"@@ready (\S+)\n", self._within(), "output", name)[1]
        return Agent(self.send, lambda pattern, deadline, name: self._expect(pattern, deadline, "output", name))
