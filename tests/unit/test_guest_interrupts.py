"""What the guest jobs know of the drive's interrupts and queues, without a guest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nvmeemu.guest import guest as guests
from nvmeemu.guest.agent import CommandResult
from nvmeemu.guest.errors import GuestError
from tools.guest import interrupts, lifecycle
from tools.guest.identify import Identity
from tools.guest.run import Settings

PIN = """\
           CPU0       CPU1
  4:        812          0   IO-APIC   4-edge      ttyS0
 21:          7       3286   IO-APIC  21-fasteoi   nvme0q0, nvme0q1
MIS:          0
"""
MESSAGES = """\
           CPU0       CPU1
 24:         15          0  PCI-MSIX-0000:00:03.0   0-edge      nvme0q0
 25:        100          2  PCI-MSIX-0000:00:03.0   1-edge      nvme0q1
"""


@dataclass
class FakeGuest:
    """Answers with what its files hold."""

    files: dict[str, str] = field(default_factory=dict)
    smp: int = 2

    @property
    def machine(self) -> Any:
        return self

    def run(self, command: str) -> CommandResult:
        return CommandResult(command, 0 if command[5:-2] in self.files else 1, "")

    def check(self, command: str) -> str:
        return self.files[command.removeprefix("cat ")]


def check_queues(queues: int, *, msix: bool, smp: int = 2, polled: int = 0, append: str = "", args: str = "") -> None:
    parameters = {f"{interrupts.PARAMETERS}/poll_queues": str(polled), f"{interrupts.PARAMETERS}/write_queues": "0\n"}
    guest = FakeGuest(parameters | ({"/sys/class/nvme/nvme0/device/msi_irqs": ""} if msix else {}))
    settings = Settings(smp=smp, append=append, nvme_args=tuple(args.split()))
    interrupts.check_io_queues(cast(Any, guest), Identity("m", "s", "f", queues, 0), settings)


@pytest.mark.parametrize(
    ("queues", "how"),
    [
        (2, {"msix": True}),
        (3, {"msix": True, "polled": 1, "append": "nvme.poll_queues=1"}),
        (1, {"msix": False, "args": "--no-msix"}),
        (1, {"msix": False, "append": "quiet pci=noaer,nomsi"}),
        (2, {"msix": False, "args": "--no-msix", "polled": 1}),
    ],
)
def test_the_queues_that_there_must_be(queues: int, how: dict[str, Any]) -> None:
    check_queues(queues, **how)
    with pytest.raises(GuestError, match=f"but {queues + 1} I/O queue pair"):
        check_queues(queues + 1, **how)


def test_the_pin_is_not_taken_for_messages_nor_the_other_way_round() -> None:
    with pytest.raises(GuestError, match="uses the interrupt pin"):
        check_queues(1, msix=False)
    with pytest.raises(GuestError, match="uses MSI-X"):
        check_queues(2, msix=True, args="--no-msix")


def test_interrupts_are_counted_on_all_cpus() -> None:
    assert interrupts.count(PIN, 2) == {"nvme0q0, nvme0q1": 3293}
    assert interrupts.count(MESSAGES, 2) == {"nvme0q0": 15, "nvme0q1": 102}


@pytest.mark.parametrize(("commands", "is_storm"), [(20, False), (19, True)])
def test_a_storm_fails(commands: int, is_storm: bool) -> None:
    stat = f"{commands - 15} 0 0 0 5 0 0 0 0 0 0 0 0 0 0 10 0\n"
    guest = cast(Any, FakeGuest({"/proc/interrupts": PIN.replace(" 3286 ", "20032 "), "/sys/block/nvme0n1/stat": stat}))
    if is_storm:
        with pytest.raises(GuestError, match="an interrupt storm: 20039 interrupts for 19 commands"):
            interrupts.check_no_storm(guest)
    else:
        assert interrupts.check_no_storm(guest) == f"20039 interrupts for {commands} commands"


@pytest.mark.parametrize("complaints", [guests.COMPLAINTS, lifecycle.COMPLAINTS])
@pytest.mark.parametrize(
    "message",
    [
        'irq 21: nobody cared (try booting with the "irqpoll" option)',
        "nvme nvme0: I/O tag 3 (1003) opcode 0x2 (I/O Cmd) QID 1 timeout, aborting req_op:READ(0) size:4096",
        "Kernel panic - not syncing: Attempted to kill init!",
        "INFO: task dd:77 blocked for more than 120 seconds.",
    ],
)
def test_the_kernels_complaints_are_heard_in_all_jobs(complaints: str, message: str) -> None:
    assert re.search(complaints, message)
