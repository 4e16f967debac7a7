"""Jobs in which Linux, of any version and architecture, does I/O that is verified in the guest and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.device import wait_for_device
from nvmeemu.guest.drive import GuestDrive
from nvmeemu.guest.errors import GuestError
from tools.guest import image, interrupts
from tools.guest.identify import identify
from tools.guest.load import Load
from tools.guest.main_job import quiet_end
from tools.guest.run import DISK_SIZE, Run

ROUNDS = 40  # of each worker
SECOND_SERIAL = "GUEST-0002"


def io_job(run: Run) -> str:
    """Workers write, read back and compare at the same time, on every CPU's queue. Then the host compares."""
    cpus = run.settings.smp
    load = Load()
    with run.boot(run.linux(python=True)) as guest:
        seen = identify(guest)
        run.say(f"Linux {guest.kernel_release}: {seen}")
        interrupts.check_io_queues(guest, seen, run.settings)
        load.start(guest)
        load.progress(guest, ROUNDS)
        load.stop(guest)
        if load.errors:
            raise GuestError(f"{load.errors} I/O error(s) in the guest")
        run.say(f"guest: {load}")
        load.check(guest)
        run.say(f"guest: {interrupts.check_no_storm(guest)}")
        quiet_end(guest)
    load.check_on_host(run.image)
    run.found.verified = True
    run.say("host: the same data is in the raw image")
    return f"Linux {guest.kernel_release}, {run.settings.arch.name}, {cpus} CPU(s): {load} in the guest and on the host"


class SeveralDrives:
    """Several drives as one; `image` and `serial` are the first one's."""

    def __init__(self, drives: Sequence[GuestDrive]) -> None:
        self.drives = drives
        self.image, self.serial = drives[0].image, drives[0].serial

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        words = []
        for number, drive in enumerate(self.drives):  # short names: a socket's path has 107 bytes
            words += drive.start(folder / str(number), deadline)
        return words

    def check(self) -> None:
        for drive in self.drives:
            drive.check()

    def finish(self) -> None:
        for drive in self.drives:
            drive.finish()

    def kill(self) -> None:
        for drive in self.drives:
            drive.kill()


def two_job(run: Run) -> str:
    """Two servers, each with its own disk, are used at the same time. Neither disk gets the other's data."""
    second = run.folder / "second.img"
    image.create(second, DISK_SIZE)
    drives = [run.drive(), run.drive(second, SECOND_SERIAL)]
    with run.boot(run.linux(python=True), drive=SeveralDrives(drives)) as guest:
        for number in range(2):
            wait_for_device(guest, f"/dev/nvme{number}n1")
        loads = {}
        for number in range(2):  # the kernel probes them in any order
            serial = guest.check(f"cat /sys/class/nvme/nvme{number}/serial").strip()
            loads[serial] = Load(workers=2, device=f"/dev/nvme{number}n1")
        if set(loads) != {drive.serial for drive in drives}:
            raise GuestError(f"the guest sees drives {', '.join(sorted(loads))}")
        for step in (Load.start, Load.progress, Load.stop, Load.check):
            for load in loads.values():
                step(load, guest)
        quiet_end(guest)
    for drive in drives:
        loads[drive.serial].check_on_host(drive.image)
        run.say(f"{drive.serial}: {loads[drive.serial]}")
    run.found.verified = True
    return f"Linux {guest.kernel_release}: each drive holds its own data, written at once"
