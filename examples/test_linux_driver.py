"""Five tests of an NVMe driver, here Linux's: what it does when its drive misbehaves. Copy what you need.

Each breaks the drive while the guest runs, and asserts what the driver says, what it sends to the drive, and that no
data is lost that the drive had acknowledged.
"""

from nvmeemu.faults import Fault
from nvmeemu.pytest_plugin import Expect, NvmeFaults, NvmeGuest, Trace
from nvmeemu.spec import FeatureId, Status

WRITE = "dd if=/tmp/data of=/dev/nvme0n1 bs=64k count=1 oflag=direct conv=fsync"
READ = "dd if=/dev/nvme0n1 bs=64k count=1 iflag=direct 2>/dev/null | cmp - /tmp/data"
NEW_DATA = "head -c 65536 /dev/urandom >/tmp/data"


def test_a_command_times_out(nvme_guest: NvmeGuest, faults: NvmeFaults, expect: Expect) -> None:
    """The driver aborts a command that is never completed, and sends it again."""
    nvme_guest.check(f"{NEW_DATA}; {WRITE}")
    fault = faults.add(Fault(match={"opcode": "read"}, do="drop", when={"times": 1}))
    assert nvme_guest.run(READ).status == 0
    assert fault.hits == 1
    nvme_guest.expect(r"nvme nvme0: I/O tag \d+ .*timeout, aborting")
    lost = expect(op="read")
    assert expect(op="abort").sqid == 0
    again = expect(op="read")
    assert (again.slba, again.nlb) == (lost.slba, lost.nlb)


def test_a_drive_vanishes_under_load(nvme_guest: NvmeGuest, faults: NvmeFaults) -> None:
    """All registers read ones, as if it had been pulled: the driver gives it up, and no program hangs."""
    nvme_guest.check(f"{NEW_DATA}; {WRITE}")
    write = "dd if=/dev/zero of=/dev/nvme0n1 seek=1 bs=64k count=900 oflag=direct 2>/tmp/load"
    nvme_guest.check(f"while {write}; do :; done & sleep 0.5")
    faults.add(Fault(do="remove"))
    nvme_guest.expect("nvme nvme0: controller is down; will reset: CSTS=0xffffffff")
    nvme_guest.expect("nvme nvme0: Disabling device after reset failure: -19")
    nvme_guest.check("until grep 'Input/output error' /tmp/load; do sleep 0.1; done")
    nvme_guest.check("grep dead /sys/class/nvme/nvme0/state")

    faults.clear()  # it is plugged in again
    nvme_guest.check("echo 1 >/sys/class/nvme/nvme0/device/remove; echo 1 >/sys/bus/pci/rescan")
    nvme_guest.check("until [ -b /dev/nvme0n1 ]; do sleep 0.1; done", timeout=60)
    nvme_guest.check(READ)


def test_a_write_fails_once(nvme_guest: NvmeGuest, faults: NvmeFaults, trace: Trace) -> None:
    """A status without Do Not Retry is tried again, with it the program hears of it."""
    nvme_guest.check(NEW_DATA)
    faults.add(Fault(match={"opcode": "write"}, do={"status": "internal_error", "dnr": False}, when={"times": 1}))
    assert nvme_guest.run(WRITE).status == 0
    assert [command.status for command in trace.commands("write")] == [Status.INTERNAL_ERROR, Status.SUCCESS]

    faults.add(Fault(match={"opcode": "write"}, do={"status": "write_fault", "dnr": True}, when={"times": 1}))
    assert nvme_guest.run(WRITE).status != 0
    nvme_guest.expect(r"critical medium error, dev nvme0n1, sector 0 op 0x1:\(WRITE\)")
    nvme_guest.check(READ)  # what the first one wrote


def test_a_reset_storm(nvme_guest: NvmeGuest, faults: NvmeFaults, trace: Trace) -> None:
    """Resets one after the other, while programs write: each of them gets its data to the drive."""
    faults.add(Fault(do={"slow_rdy": 0.2}))
    nvme_guest.check("head -c 8388608 /dev/urandom >/tmp/big; sync")
    write = "for i in $(seq 20); do dd if=/tmp/big of=/dev/nvme0n1 bs=16k oflag=direct || exit; done"
    nvme_guest.check(f"{{ ({write}); echo $? >/tmp/ended; }} >/tmp/load 2>&1 &")
    nvme_guest.check("for i in 1 2 3 4 5; do echo 1 >/sys/class/nvme/nvme0/reset_controller || exit; done")
    nvme_guest.check("while [ ! -e /tmp/ended ]; do sleep 0.1; done; cat /tmp/load; exit $(cat /tmp/ended)")
    assert len(trace.commands("set_features", fid=FeatureId.NUMBER_OF_QUEUES)) == 5  # each start sends it
    nvme_guest.check("dd if=/dev/nvme0n1 bs=16k count=512 iflag=direct 2>/dev/null | cmp - /tmp/big")


def test_a_slow_drive_and_its_timeout(nvme_guest: NvmeGuest, faults: NvmeFaults, trace: Trace) -> None:
    """Slow is no failure, as long as it is within the driver's patience."""
    nvme_guest.check(f"{NEW_DATA}; {WRITE}")
    slow = faults.add(Fault(match={"opcode": "read"}, do={"delay": "1s"}, when={"times": 1}))
    nvme_guest.check(READ)
    assert slow.hits == 1
    assert trace.commands("abort") == []

    too_slow = faults.add(Fault(match={"opcode": "read"}, do={"delay": "8s"}, when={"times": 1}))
    nvme_guest.check(READ)
    assert too_slow.hits == 1
    assert len(trace.commands("abort")) == 1
