"""What may happen to a drive in its life, while it is in use: nothing that was acknowledged may be lost or wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from nvmeemu.app.process import tail
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.device import NAMESPACE, wait_for_device
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import TROUBLE, Guest
from tools.guest.errors import UsageError
from tools.guest.identify import identify
from tools.guest.load import Load
from tools.guest.main_job import quiet_end
from tools.guest.run import Run

# A drive that goes away under load gives I/O errors; nothing may hang, time out or fail to come back.
COMPLAINTS = (
    r"nvme\S*: (?!Shutdown timeout set).*(?:time-?out|controller is down|Device not ready|completion polled"
    rf"|Removing after probe failure|Abort status)|{TROUBLE}"
)
TIMES = 3  # each event
STOPPED_SECONDS = 3.0  # QEMU gives a server up after 5
REBOOTS = 20
KILLS = 3
SHARE = 512  # blocks of a worker, where all are read back again and again
ADDRESS = "$(basename $(readlink -f /sys/class/nvme/nvme*/device))"
PORT = "pcie-root-port,id=slot-1,slot=1,chassis=1"


class LastingDrive(ServedDrive):
    """A server that outlives its guests; as a context manager. With `late`, guests start without it."""

    def __init__(self, run: Run, *arguments: str, late: bool = False) -> None:
        super().__init__(run.image, [*run.settings.drive_args, *arguments], once=False)
        self._late = late
        self._arguments_for_qemu: list[str] = []

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        if not self._arguments_for_qemu:
            self._arguments_for_qemu = super().start(folder, deadline)
        return [] if self._late else self._arguments_for_qemu

    def finish(self) -> None:
        """The guest is gone, the server stays."""
        self.check()
        if self.server.poll() is not None:
            raise GuestError("nvmeemu serve has ended with its guest, though it was not started with --once")

    def kill(self) -> None:
        """The guest is killed, the server stays."""

    def __enter__(self) -> LastingDrive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask the server to end. It must end well, unless the run has failed already."""
        try:
            if error is None:
                self.server.send_signal(signal.SIGTERM)
                super().finish()
        finally:
            super().kill()


@dataclass(frozen=True)
class Event:
    """Something that happens to the drive. `harmless`: the guest's programs must not notice it. `resets`: it resets the
    controller."""

    name: str
    happen: Callable[[Guest], None]
    harmless: bool = True
    resets: bool = True


def _in_guest(command: str) -> Callable[[Guest], None]:
    def happen(guest: Guest) -> None:
        guest.check(f"device={ADDRESS}; {command}")

    return happen


def _stop_server(guest: Guest) -> None:
    assert isinstance(guest.drive, ServedDrive)
    guest.drive.server.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    guest.drive.server.send_signal(signal.SIGCONT)


EVENTS = (
    Event("nvme reset", _in_guest("nvme reset /dev/nvme0")),
    Event("function-level reset", _in_guest("echo 1 >/sys/bus/pci/devices/$device/reset")),
    Event("server stopped for 3 s", _stop_server, resets=False),
    Event(
        "driver unbound and bound",
        _in_guest("cd /sys/bus/pci/drivers/nvme; echo $device >unbind; sleep 1; echo $device >bind"),
        harmless=False,
    ),
    Event(
        "PCI function removed and found again",
        _in_guest("echo 1 >/sys/bus/pci/devices/$device/remove; sleep 1; echo 1 >/sys/bus/pci/rescan"),
        harmless=False,
    ),
)


def resets_job(run: Run) -> str:
    """Everything that a running guest can do to its drive, under load."""
    events = [event for event in EVENTS if not (run.settings.peer and event.happen is _stop_server)]
    load = Load()
    with run.boot(run.linux(python=True), complaints=COMPLAINTS) as guest:
        run.say(f"{identify(guest)}")
        load.start(guest)
        for event in events * TIMES:
            before = load.errors
            event.happen(guest)
            load.progress(guest)
            if event.harmless and load.errors != before:
                raise GuestError(f"{event.name}: {load.errors - before} I/O error(s) in the guest")
            run.found.resets += event.resets
            run.say(f"{event.name}: {load}, {load.errors - before} I/O error(s)")
        load.stop(guest)
        load.check(guest)
        quiet_end(guest)
    load.check_on_host(run.image)
    run.found.verified = True
    return f"Linux {guest.kernel_release}: {len(events)} kinds of events, {TIMES} times each; {load}"


def reboots_job(run: Run) -> str:
    """Many reboots in the middle of I/O, one connection."""
    load = Load(blocks=SHARE)
    with run.boot(replace(run.linux(python=True), reboots=True)) as guest:
        before = identify(guest)
        for number in range(REBOOTS):
            load.start(guest)
            load.progress(guest)
            guest.reboot()
            if identify(guest) != before:
                raise GuestError("after the reboot the drive is another one")
            load.check(guest, exact=False)
            run.found.resets += 1
            run.say(f"reboot {number + 1}: {load}")
        quiet_end(guest)
    load.check_on_host(run.image, exact=False)
    run.found.verified = True
    return f"Linux {guest.kernel_release}: {REBOOTS} reboots in the middle of I/O; {load}"


def restarts_job(run: Run) -> str:
    """QEMU is killed in the middle of I/O; the same server takes the next one."""
    load = Load(blocks=SHARE)
    machine = run.linux(python=True)
    with LastingDrive(run) as drive:
        for number in range(KILLS + 1):
            with run.boot(machine, drive=drive) as guest:
                identify(guest)
                if number:
                    load.check(guest, exact=False)
                    run.found.resets += 1
                    run.say(f"QEMU killed and started again: {load}")
                if number == KILLS:
                    quiet_end(guest)
                else:
                    load.start(guest)
                    load.progress(guest)
                    guest.kill_qemu()
    load.check_on_host(run.image, exact=False)
    run.found.verified = True
    return f"Linux {guest.kernel_release}: QEMU killed {KILLS} times in the middle of I/O, one server; {load}"


def hotplug_job(run: Run) -> str:
    """The drive is plugged into a running guest."""
    return _plug(run, 1, "plugged in while running")


def unplug_job(run: Run) -> str:
    """The drive is plugged in, unplugged, and plugged in again. QEMU 11.1.3 aborts unless the drive has --no-msix."""
    return _plug(run, TIMES, f"plugged in {TIMES} times and unplugged in between")


def _plug(run: Run, times: int, summary: str) -> str:
    if run.settings.peer:
        raise UsageError(f"--job {run.settings.job} is for nvmeemu's drive")
    load = Load()
    machine = run.linux(python=True)
    machine = replace(machine, extra=(*machine.extra, "-device", PORT))
    with LastingDrive(run, late=True) as drive, run.boot(machine, complaints=COMPLAINTS, drive=drive) as guest:
        guest.check("[ ! -e /sys/class/nvme/nvme0 ]")
        for number in range(times):
            if number:
                _unplug(guest)
                run.say("unplugged")
            _plug_in(guest, drive)
            run.say(f"plugged in: {identify(guest)}")
            load.check(guest)
            run.found.resets = number
            load.start(guest)
            load.progress(guest)
            load.stop(guest)
        quiet_end(guest)
    load.check_on_host(run.image)
    run.found.verified = True
    return f"Linux {guest.kernel_release}: {summary}; {load}"


def _plug_in(guest: Guest, drive: ServedDrive) -> None:
    guest.monitor.execute("device_add", {**drive.device, "id": "drive", "bus": "slot-1"}, guest.deadline)
    wait_for_device(guest, NAMESPACE)


def _unplug(guest: Guest) -> None:
    guest.monitor.execute("device_del", {"id": "drive"}, guest.deadline)
    try:
        while guest.monitor.await_event("DEVICE_DELETED", guest.deadline.within(60)).get("device") != "drive":
            pass
    except GuestError as error:
        said = " ".join(line for line in tail(guest.folder / "qemu.log", 3) if "Assertion" in line)
        raise GuestError(f"{error}{': ' + said if said else ''}") from None
    guest.check(f"[ ! -e {NAMESPACE} ]")
