"""Linux does I/O that is verified in the guest and on the host: on any of its versions and architectures."""

from __future__ import annotations

from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.identify import identify
from nvmeemu.guest.load import Load
from nvmeemu.guest.main_job import quiet_end
from nvmeemu.guest.run import Run

ROUNDS = 40  # of each worker


def io_job(run: Run) -> str:
    """Several workers at once write, read back and compare, on every CPU's queue; then the host compares."""
    cpus = run.settings.smp
    load = Load()
    with run.boot(run.linux(python=True)) as guest:
        seen = identify(guest)
        run.say(f"Linux {guest.kernel_release}: {seen}")
        if seen.io_queues != cpus:
            raise GuestError(f"{cpus} CPU(s), but {seen.io_queues} I/O queue pair(s)")
        load.start(guest)
        load.progress(guest, ROUNDS)
        load.stop(guest)
        if load.errors:
            raise GuestError(f"{load.errors} I/O error(s) in the guest")
        run.say(f"guest: {load}")
        load.check(guest)
        quiet_end(guest)
    load.check_on_host(run.image)
    run.say("host: the same data is in the raw image")
    return f"Linux {guest.kernel_release}, {run.settings.arch.name}, {cpus} CPU(s): {load} in the guest and on the host"
