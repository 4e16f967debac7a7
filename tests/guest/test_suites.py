"""The tests that nvme-cli and fio have of their own pass on our drive, and none of them is skipped: one guest for all.

They are from Debian's source packages, as are the programs: the newest that have entered testing. See scripts/setup.sh.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmeemu.guest import cache, initramfs
from nvmeemu.guest.arch import Arch
from nvmeemu.guest.cpio import Archive
from nvmeemu.guest.device import wait_for_device
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.guest import Guest
from tools.guest.run import Run, Settings

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
COMPONENTS = ("qemu:x86", "linux:trixie:amd64", "suites:amd64")
PROGRAMS = ("nvme", "fio", "mdadm", "mkfs.xfs", "xfs_repair", "udevadm")
UDEV_RULES = "usr/lib/udev/rules.d"
DRIVERS = ("raid1", "xfs")
SIZE = 64 << 20
PATIENCE = 900.0
SERVE = ("--pool", "mem:128M", "--format", "allow", "--delete", "allow")


def _add_suites(archive: Archive, place: Path, arch: Arch) -> None:
    """Python with all of its library, and the tests."""
    root = place / "root"
    program = initramfs.find(root, "python3").resolve()
    initramfs.add_program(archive, root, arch.triplet, program, "usr/bin/python3")
    library = root / "usr" / "lib" / program.name
    for path in sorted(library.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            archive.file(str(path.relative_to(root)), path.read_bytes())
    for suite in ("nvme-cli", "fio"):
        for path in sorted((place / suite).rglob("*.py")) + sorted((place / suite).rglob("*.json")):
            archive.file(f"suites/{path.relative_to(place)}", _mended(path))
    for path in sorted((root / UDEV_RULES).glob("*-persistent-storage.rules")):
        archive.file(f"{UDEV_RULES}/{path.name}", path.read_bytes())
    archive.file("usr/bin/sudo", b'#!/bin/sh\nexec "$@"\n', 0o755)  # fio's tests ask for it


# What no drive could pass: by file, what stands there and what should, and why.
MENDED = {
    # Linux refuses that a program sets Host Behavior Support, which the formats 2 and 3 need. 1 and 3 are for guards of
    # 32 and 64 bits, and these namespaces have none: Invalid Format, also from QEMU's drive.
    "nvme_copy_test.py": ("self.ocfs = self.get_ocfs()", "self.ocfs = self.get_ocfs() & 1"),
    # It gives a path as a number.
    "nvme_get_lba_status_test.py": ("--namespace-id={str(self.ns1)}", "--namespace-id={self.default_nsid}"),
}


def _mended(path: Path) -> bytes:
    """A file of theirs. A newer one may have been mended."""
    old, new = MENDED.get(path.name, ("", ""))
    return path.read_text().replace(old, new).encode() if old else path.read_bytes()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """With one drive: a namespace of an image that the guest may format and delete, and a pool."""
    subprocess.run([SETUP, *COMPONENTS], check=True)
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        folder = Path(name)
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        run = Run(Settings(timeout=1800, mem="2G"), folder)
        arch = run.settings.arch
        place = cache.present(cache.root() / "suites" / arch.debian)
        kernel, initrd = cache.kernel(arch.debian, run.settings.linux), folder / "initrd"
        initrd.write_bytes(
            initramfs.build(
                place / "root",
                arch.triplet,
                cache.modules_of(kernel),
                programs=dict.fromkeys(PROGRAMS, place / "root"),
                drivers=DRIVERS,
                more=lambda archive: _add_suites(archive, place, arch),
            )
        )
        with run.boot(run.custom(kernel, initrd), drive=ServedDrive(image, SERVE)) as guest:
            wait_for_device(guest, "/dev/nvme0n1")
            yield guest
            guest.power_off()


def _controller(guest: Guest) -> str:
    """Its CNTLID, as nvme-cli wants it."""
    return guest.check("nvme list-ctrl /dev/nvme0 | sed -n 's/.*: *//p'").split()[-1]


def test_nvme_cli(guest: Guest) -> None:
    """They delete all namespaces and make their own, of all that TNVMCAP says."""
    tests = guest.check("cd /suites/nvme-cli/tests && ls nvme_*_test.py").split()
    tests = [name.removesuffix(".py") for name in tests if "template" not in name]
    assert len(tests) >= 20
    guest.check("nvme delete-ns /dev/nvme0 -n 0xffffffff")
    capacity = re.search(r"^tnvmcap *: *(\d+)", guest.check("nvme id-ctrl /dev/nvme0"), re.MULTILINE)
    assert capacity is not None
    blocks = int(capacity[1]) // 512
    guest.check(f"nvme create-ns /dev/nvme0 --nsze={blocks} --ncap={blocks} --flbas=0")
    guest.check(f"nvme attach-ns /dev/nvme0 -n 1 -c {_controller(guest)}")
    wait_for_device(guest, "/dev/nvme0n1")
    bad = {}
    for name in tests:
        done = guest.run(f"cd /suites/nvme-cli && PYTHONPATH=tests python3 -B -m unittest -v {name} 2>&1", PATIENCE)
        if done.status or "skipped" in done.output or "OK" not in done.output:
            bad[name] = done.output
    assert not bad, "\n".join(f"--- {name}\n{output}" for name, output in bad.items())


@pytest.fixture
def two(guest: Guest) -> Callable[..., None]:
    """A function that makes namespaces 1 and 2, of 32 MiB each in an LBA format, the only ones."""

    def make(lbaf: int, size: int, *, pi: int = 0) -> None:
        blocks = (32 << 20) // size
        guest.check("nvme delete-ns /dev/nvme0 -n 0xffffffff")
        for nsid in (1, 2):
            guest.check(f"nvme create-ns /dev/nvme0 --nsze={blocks} --ncap={blocks} --flbas={lbaf} --dps={pi}")
            guest.check(f"nvme attach-ns /dev/nvme0 -n {nsid} -c {_controller(guest)}")
            wait_for_device(guest, f"/dev/nvme0n{nsid}")

    return make


def test_fio_passthrough_with_metadata(guest: Guest, two: Callable[..., None]) -> None:
    """What fio has written with its metadata it reads and verifies, with and without protection information."""
    fio = "fio --name=f --filename=/dev/ng0n1 --ioengine=io_uring_cmd --bs=8k --size=4M --iodepth=8 --rw=randwrite"
    fio += " --verify=crc32c --verify_fatal=1"
    two(7, 4096)
    guest.check(f"{fio} --md_per_io_size=128", PATIENCE)
    for lbaf, metadata in ((5, 0), (7, 64), (8, 0)):
        two(lbaf, 4096, pi=1)
        guest.check(f"{fio} --pi_act=1 --md_per_io_size={2 * metadata}", PATIENCE)
        checked = f"{fio} --pi_act=0 --pi_chk=GUARD,APPTAG,REFTAG --apptag=0x8888 --apptag_mask=0xFFFF"
        guest.check(f"{checked} --md_per_io_size={2 * (metadata or (8 if lbaf == 5 else 16))}", PATIENCE)


def test_fio_trims(guest: Guest, two: Callable[..., None]) -> None:
    two(0, 512)
    guest.check("fio --name=f --filename=/dev/ng0n1 --ioengine=io_uring_cmd --rw=randtrim --bs=4k --size=8M", PATIENCE)
    guest.check(
        "fio --name=f --filename=/dev/nvme0n1 --ioengine=sync --direct=1 --rw=trimwrite --bs=16k --size=8M"
        " --verify=crc32c --verify_fatal=1",
        PATIENCE,
    )


def test_xfs_on_blocks_with_metadata(guest: Guest, two: Callable[..., None]) -> None:
    """Not with 64 bytes of metadata of which 8 are protection information: Linux' driver zeroes blocks there without
    PRACT, so their reference tags are zero (NVM Command Set 1.0, 3.2.8), and then it reads them with a check."""
    guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; mkdir -p /mnt")
    for lbaf, pi in ((7, 0), (5, 1)):
        two(lbaf, 4096, pi=pi)
        guest.check("mkfs.xfs -f --unsupported /dev/nvme0n1 && mount -t xfs /dev/nvme0n1 /mnt", PATIENCE)
        guest.check(
            "cp /tmp/data /mnt/data && umount /mnt && mount -t xfs /dev/nvme0n1 /mnt && cmp /tmp/data /mnt/data"
        )
        guest.check("umount /mnt && xfs_repair -n /dev/nvme0n1", PATIENCE)


def test_two_are_a_mirror(guest: Guest, two: Callable[..., None]) -> None:
    """A block that one of the two cannot read is read from the other."""
    two(5, 4096, pi=1)
    create = "mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/nvme0n1 /dev/nvme0n2"
    guest.check(f"yes | {create}", PATIENCE)
    guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=64 && dd if=/tmp/data of=/dev/md0 bs=64k oflag=direct")
    guest.check(
        "mdadm --wait /dev/md0 || true; echo check >/sys/block/md0/md/sync_action; mdadm --wait /dev/md0 || true"
    )
    assert guest.check("cat /sys/block/md0/md/mismatch_cnt").strip() == "0"
    start = int(guest.check("cat /sys/block/md0/md/rd0/offset").strip()) // 8
    guest.check(f"nvme write-uncor /dev/nvme0n1 --start-block={start} --block-count=63")
    guest.check("dd if=/dev/md0 of=/tmp/back bs=64k count=64 iflag=direct && cmp /tmp/data /tmp/back")
    guest.check("mdadm --stop /dev/md0")


def test_udev_gives_names_that_last(guest: Guest, two: Callable[..., None]) -> None:
    two(0, 512)
    for nsid in (1, 2):
        identifier = guest.check(f"cat /sys/block/nvme0n{nsid}/wwid").strip()
        said = guest.check(f"udevadm test --action=add /sys/class/block/nvme0n{nsid} 2>&1")
        assert f"/dev/disk/by-id/nvme-{identifier}" in said
