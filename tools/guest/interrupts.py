"""The drive's interrupts in a Linux guest, and the I/O queues that their way allows."""

from __future__ import annotations

from nvmeemu.guest.device import NAMESPACE
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest.identify import SYSFS, Identity
from tools.guest.run import Settings

PARAMETERS = "/sys/module/nvme/parameters"
QUEUE = "nvme0q"  # how the kernel calls the drive's interrupts, with the queue's number
MOST_PER_COMMAND = 2  # one is the most that a drive has a reason for
# On a busy machine QEMU's INTx line can stay asserted for a moment. That gives 10,000 interrupts, then 100 a second.
OTHERS = 20_000


def has_msix(settings: Settings) -> bool:
    """Whether MSI-X is there: neither the drive nor the guest's kernel was told to do without it."""
    kernel = [word.removeprefix("pci=") for word in settings.append.split() if word.startswith("pci=")]
    return "--no-msix" not in settings.nvme_args and "nomsi" not in ",".join(kernel).split(",")


def check_io_queues(guest: Guest, seen: Identity, settings: Settings) -> None:
    """Raise GuestError unless the kernel has made the I/O queues that it should: with MSI-X one for each CPU, with the
    interrupt pin one, and others besides if its parameters say so."""
    is_msix = guest.run(f"[ -d {SYSFS}/device/msi_irqs ]").status == 0
    if is_msix != has_msix(settings):
        raise GuestError(f"the guest's kernel uses {'MSI-X' if is_msix else 'the interrupt pin'} for the drive")
    polled, written = (int(guest.check(f"cat {PARAMETERS}/{name}_queues")) for name in ("poll", "write"))
    expected = polled + (settings.smp + written if is_msix else 1)
    if seen.io_queues != expected:
        cause = f"{settings.smp} CPU(s)" + f", {polled} polled" * bool(polled) + ", the interrupt pin" * (not is_msix)
        raise GuestError(f"{cause}, but {seen.io_queues} I/O queue pair(s) instead of {expected}")


def by_queue(guest: Guest) -> dict[str, int]:
    """How often each of the drive's interrupts has come, by its name; the pin has one line for all queues."""
    return count(guest.check("cat /proc/interrupts"), guest.machine.smp)


def count(text: str, cpus: int) -> dict[str, int]:
    """The same from /proc/interrupts: a number, one column for each CPU, the chip's words, the names."""
    found = {}
    for line in text.splitlines():
        if QUEUE in line:
            found[line[line.index(QUEUE) :].strip()] = sum(int(word) for word in line.split()[1 : 1 + cpus])
    return found


def check_no_storm(guest: Guest) -> str:
    """Raise GuestError if the drive has interrupted far more often than it had commands; a line that says so."""
    interrupts = sum(by_queue(guest).values())
    numbers = [int(word) for word in guest.check(f"cat /sys/block/{NAMESPACE.removeprefix('/dev/')}/stat").split()]
    commands = numbers[0] + numbers[4] + sum(numbers[11:12]) + sum(numbers[15:16])  # reads, writes, discards, flushes
    said = f"{interrupts} interrupts for {commands} commands"
    if interrupts > MOST_PER_COMMAND * commands + OTHERS:
        raise GuestError(f"an interrupt storm: {said}")
    return said
