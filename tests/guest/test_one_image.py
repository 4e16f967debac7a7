"""What one Linux makes of several drives of the same image, of what is changed below it while it runs, and of memory
that only it sees. All tests share one guest; the last one leaves it with memory that no drive reaches."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvmeemu.app.control import Control, ControlError
from nvmeemu.guest.device import wait_for_device
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.guest import Guest
from tools.guest.linux import SeveralDrives
from tools.guest.run import Run, Settings

MIB = 1 << 20
SIZE, CONTENT = 64 * MIB, os.urandom(MIB)
OVERLAYS, READERS = (("--overlay",), ("--overlay", "--engine", "python")), (("--read-only",), ("--read-only",))
DIMM = 256 * MIB
ROOM = ("-m", "slots=1,maxmem=4G")  # for it
READ = "dd if=/dev/{}n1 of=/read bs=1M count=1 iflag=direct 2>/dev/null && sha256sum </read"
PATIENCE = 120.0


@dataclass(frozen=True)
class Linux:
    """A running guest with four drives, and the control socket of the first."""

    guest: Guest
    drives: list[ServedDrive]
    control: Control
    base: Path

    def device(self, drive: int) -> str:
        """The kernel's name of a drive (it probes them in any order): nvme0, ..."""
        address = self.drives[drive].device["addr"]
        return self.guest.check(f"basename /sys/bus/pci/devices/0000:00:{address}.0/nvme/nvme*").strip()

    def first_mib(self, device: str) -> str:
        """Its digest."""
        return self.guest.check(READ.format(device), PATIENCE).split()[0]

    def add(self, disk: Path, nsid: int) -> None:
        """To the first drive, as soon as the server has closed the disk if it was there before."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.control.call("namespace.add", disk=str(disk), nsid=nsid)
                return
            except ControlError as error:
                assert "was removed just now" in str(error)  # noqa: PT017
                assert time.monotonic() < end
                time.sleep(0.1)

    def wait_until(self, condition: str) -> None:
        """A condition of the guest's shell."""
        self.guest.check(f"for i in $(seq 100); do {condition} && exit; sleep 0.2; done; exit 1", PATIENCE)


class Slot(ServedDrive):
    """A drive at a place of its own on the bus."""

    def __init__(self, image: Path, arguments: tuple[str, ...], slot: int) -> None:
        super().__init__(image, arguments, serial="")
        self._boot = {"addr": f"{slot:02x}"}


@pytest.fixture(scope="module")
def linux() -> Iterator[Linux]:
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        folder = Path(name)
        base, shared, control = folder / "base.img", folder / "shared.img", folder / "c"
        for image in (base, shared):
            image.write_bytes(CONTENT)
            os.truncate(image, SIZE)
        options = [(base, one) for one in OVERLAYS] + [(shared, one) for one in READERS]
        options[0] = (base, (*OVERLAYS[0], "--control", str(control)))
        drives = [Slot(image, one, 0x10 + number) for number, (image, one) in enumerate(options)]
        run = Run(Settings(timeout=1800, qemu_args=ROOM), folder)
        with run.boot(run.linux(), complaints="", drive=SeveralDrives(drives)) as guest, Control(control) as client:
            for number in range(len(drives)):
                wait_for_device(guest, f"/dev/nvme{number}n1")
            yield Linux(guest, list(drives), client, base)


def test_drives_of_one_image_are_all_there_and_each_is_one_of_its_own(linux: Linux) -> None:
    """Linux refuses a second controller with the number and NQN of the first, and a second namespace of one name."""
    for name in ("serial", "subsysnqn"):
        assert len(set(linux.guest.check(f"cat /sys/class/nvme/nvme*/{name}").split())) == len(linux.drives)
    assert len(set(linux.guest.check("cat /sys/block/nvme*n1/wwid").split())) == len(linux.drives)
    assert "uplicate" not in linux.guest.check("dmesg")
    found = {linux.first_mib(linux.device(number)) for number in range(len(linux.drives))}
    assert found == {hashlib.sha256(CONTENT).hexdigest()}
    assert linux.guest.check("cat /sys/block/nvme*n1/ro").split().count("1") == len(READERS)


def test_what_is_written_to_one_overlay_is_in_no_other(linux: Linux) -> None:
    before = linux.first_mib(linux.device(2))
    for number in range(len(OVERLAYS)):
        device = linux.device(number)
        script = f"mkfs.ext4 -q /dev/{device}n1 && mkdir -p /{number} && mount /dev/{device}n1 /{number}"
        linux.guest.check(f"{script} && echo this is {number} >/{number}/text && sync")
    for number in range(len(OVERLAYS)):
        device = linux.device(number)
        linux.guest.check(f"umount /{number} && mount /dev/{device}n1 /{number}")
        assert linux.guest.check(f"cat /{number}/text") == f"this is {number}\n"
    assert len({linux.first_mib(linux.device(number)) for number in range(3)}) == 3
    assert linux.first_mib(linux.device(3)) == before
    assert linux.base.read_bytes()[:MIB] == CONTENT


def test_a_mounted_disk_grows(linux: Linux) -> None:
    device = linux.device(0)
    os.truncate(linux.base, 2 * SIZE)
    linux.control.call("namespace.resize", nsid=1)
    linux.wait_until(f"[ $(cat /sys/block/{device}n1/size) = {2 * SIZE // 512} ]")
    assert "detected capacity change" in linux.guest.check("dmesg")
    last = f"bs=1M seek={2 * SIZE // MIB - 1} count=1 oflag=direct"
    linux.guest.check(f"dd if=/dev/urandom of=/dev/{device}n1 {last} && cat /0/text && echo more >/0/more && sync")


def test_an_overlay_that_comes_back_is_another_disk(linux: Linux) -> None:
    """It has lost what was written to it."""
    later = linux.base.with_name("later.img")
    later.write_bytes(bytes(8 * MIB))
    block = f"/sys/block/{linux.device(0)}n2"
    seen = set()
    for _ in range(2):
        linux.add(later, 2)
        linux.wait_until(f"[ -e {block}/wwid ]")
        seen.add(linux.guest.check(f"cat {block}/wwid"))
        linux.control.call("namespace.remove", nsid=2)
        linux.wait_until(f"[ ! -e {block} ]")
    assert len(seen) == 2


def test_memory_that_is_added_and_not_shared_is_named_with_its_cure(linux: Linux) -> None:
    """QEMU 11.1.3 says that the map was refused, and goes on: commands to that memory are errors, no rubbish."""
    guest = linux.guest
    before = {device: linux.first_mib(device) for device in map(linux.device, range(len(linux.drives)))}
    backend = {"qom-type": "memory-backend-file", "id": "private", "size": DIMM, "share": False}
    guest.monitor.execute("object-add", {**backend, "mem-path": str(linux.base.parent / "dimm")}, guest.deadline)
    guest.monitor.execute("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "private"}, guest.deadline)
    end = time.monotonic() + PATIENCE
    for drive in linux.drives:
        while "MAP_PRIVATE" not in drive.log:
            assert time.monotonic() < end, f"the server says nothing of it:\n{drive.log}"
            time.sleep(0.1)
        assert "give each of its memory backends share=on" in drive.log
    for device, digest in before.items():
        done = guest.run(READ.format(device), PATIENCE)
        assert done.status or done.output.split()[0] == digest
