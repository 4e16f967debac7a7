"""The pure parts of the guest runner: archive, ELF reader, image reader, QEMU's command line."""

import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from nvmeemu.guest import cache, elf, machine
from nvmeemu.guest.cpio import Archive
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.errors import GuestError, GuestTimeout
from nvmeemu.guest.guest import COMPLAINTS
from tools.guest import boot, image, main_job
from tools.guest.arches import ARCHES
from tools.guest.errors import UsageError
from tools.guest.peer import PeerDrive


def test_another_program_reads_the_archive(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("a/b/script", b"#!/bin/sh\n", 0o755)
    archive.file("a/odd", b"123")
    archive.folder("/empty/")
    assert "a/b" in archive
    assert "a/c" not in archive
    subprocess.run(["cpio", "-id", "--quiet"], input=archive.finish(), cwd=tmp_path, check=True)
    assert (tmp_path / "a/b/script").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((tmp_path / "a/b/script").stat().st_mode) == 0o755
    assert (tmp_path / "a/odd").read_bytes() == b"123"
    assert (tmp_path / "empty").is_dir()


def test_the_elf_reader_agrees_with_readelf() -> None:
    program = Path(shutil.which("debugfs", path="/usr/sbin:/sbin") or sys.executable).resolve()
    printed = subprocess.run(["readelf", "-dl", program], capture_output=True, text=True, check=True).stdout
    found = elf.needs(program)
    assert found.libraries
    assert found.libraries == tuple(
        line.partition("[")[2].rstrip("]") for line in printed.splitlines() if "(NEEDED)" in line
    )
    assert found.interpreter is not None
    assert f"program interpreter: {found.interpreter}]" in printed


def test_a_script_needs_no_library(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert elf.needs(script) == elf.Needs(None, ())


def write_gpt(path: Path, block_size: int, *starts: int) -> None:
    """A GPT (UEFI 2.10, 5.3) with partitions of 16 blocks; sfdisk and the kernel make none of 4096 bytes in a file."""
    blocks, table = 4096, 128 * 128 // block_size
    entries = b"".join(
        struct.pack("<16s16sQQ80x", b"type", bytes([start % 251]), start, start + 15) for start in starts
    )
    entries = entries.ljust(128 * 128, b"\0")

    def header(here: int, there: int, at: int, checksum: int = 0) -> bytes:
        numbers = (checksum, 0, here, there, 2 + table, blocks - 2 - table)
        rest = (b"disk", at, 128, 128, zlib.crc32(entries))
        packed = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, *numbers, *rest)
        return packed if checksum else header(here, there, at, zlib.crc32(packed))

    content = {
        0: bytes(446) + struct.pack("<4xB3xII48x", 0xEE, 1, blocks - 1) + b"\x55\xaa",
        1: header(1, blocks - 1, 2),
        2: entries,
        blocks - 1 - table: entries,
        blocks - 1: header(blocks - 1, 1, blocks - 1 - table),
    }
    image.create(path, blocks * block_size)
    with path.open("r+b") as file:
        for block, data in content.items():
            file.seek(block * block_size)
            file.write(data)


@pytest.mark.parametrize("block_size", image.BLOCK_SIZES)
def test_the_first_partition_is_found(tmp_path: Path, block_size: int) -> None:
    path = tmp_path / "disk"
    write_gpt(path, block_size, 256, 512)
    assert image.partition(path) == 256 * block_size
    assert image.partition(path, 2) == 512 * block_size
    with pytest.raises(GuestError, match="holds no partition 3"):
        image.partition(path, 3)


def test_an_image_without_partition_table_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    image.create(path, 1 << 20)
    assert image.size(path) == 1 << 20
    assert image.is_empty(path)
    with pytest.raises(GuestError, match="holds no partition 1"):
        image.partition(path)


def test_a_qcow2_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"QFI\xfb" + bytes(508))
    assert not image.is_empty(path)
    with pytest.raises(UsageError, match="qcow2"):
        image.require_raw(path)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"a": "1"}, "b is missing"),
        ({"a": "1", "b": "3"}, "contents of b differ"),
        ({"a": "1", "b": "2", "c": "3"}, "c was never written"),
    ],
)
def test_each_difference_between_checksums_is_told(found: dict[str, str], complaint: str) -> None:
    with pytest.raises(GuestError, match=complaint):
        image.compare({"a": "1", "b": "2"}, found, "here")


def test_the_main_job_writes_what_it_says() -> None:
    assert 0 < main_job.TOTAL - sum(main_job.SIZES) < main_job.TOTAL


def test_a_deadline_never_grows() -> None:
    deadline = Deadline(0.01)
    assert deadline.within(100) is deadline
    assert Deadline(100).within(1).seconds == 1
    with pytest.raises(GuestTimeout):
        Deadline(0).check("anything")


def test_guest_memory_is_shared_and_the_board_can_be_replaced(tmp_path: Path) -> None:
    guest = machine.Machine(Path("qemu"), ARCHES["x86_64"], smp=3, mem="1G", extra=("-extra",))
    words = guest.command(["-device", "drive"], 7, 8, tmp_path)
    line = " ".join(words)
    assert "memory-backend-memfd,id=m,size=1G,share=on" in line
    assert "-machine q35,graphics=off,memory-backend=m" in line
    assert "-smp 3" in line
    assert words[-3:] == ["-device", "drive", "-extra"]
    assert "-machine pc,memory-backend=m" in " ".join(replace(guest, board="pc").command([], 7, 8, tmp_path))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (
            'case $* in --version) echo "QEMU emulator version 10.0.8 (Debian)" ;; *) exit 1 ;; esac',
            "is version 10.0.8",
        ),
        ("exit 1", "does not run as QEMU"),
        ("exit 0", "does not run as QEMU"),
    ],
)
def test_a_qemu_without_the_client_is_refused(tmp_path: Path, script: str, complaint: str) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    with pytest.raises(GuestError, match=complaint):
        machine.require_vfio_user(qemu)


def test_the_drive_knows_the_serial_number_that_the_user_chose() -> None:
    assert ServedDrive(Path("disk"), ["--serial", "A", "--serial=B"]).serial == "B"
    assert ServedDrive(Path("disk")).serial == PeerDrive(Path("disk")).serial


def test_a_path_with_commas_and_quotes_reaches_qemu(tmp_path: Path) -> None:
    disk = tmp_path / 'a,b"c'
    arguments = PeerDrive(disk, bootable=True).start(tmp_path, Deadline(1))
    assert os.fspath(disk).replace('"', '\\"') in arguments[1]
    assert '"bootindex": 0' in arguments[3]


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A host with /dev/kvm: what its next guests do there. Its notes are in the test's own folder."""
    answers: list[bool] = []
    (tmp_path / "vmlinuz").touch()
    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "1", "1", "x86_64")))
    monkeypatch.setattr(machine, "linux_comes_up", lambda *arguments: answers.pop(0))
    return answers


def accel(wanted: str, folder: Path, arch: str = "x86_64") -> str:
    return machine.choose_accel(wanted, ARCHES[arch], Path("qemu"), folder / "vmlinuz")


def test_kvm_is_chosen_where_guests_run_and_asked_once(kvm: list[bool], tmp_path: Path) -> None:
    kvm.append(True)
    assert [accel(wanted, tmp_path) for wanted in ("auto", "kvm", "auto", "tcg")] == ["kvm", "kvm", "kvm", "tcg"]
    assert kvm == []


def test_kvm_that_runs_no_guest_is_refused_where_it_is_wanted(kvm: list[bool], tmp_path: Path) -> None:
    """An old "no" is not believed then: the host may have been busy."""
    kvm += [False, False, True]
    assert accel("auto", tmp_path) == "tcg"
    assert accel("auto", tmp_path) == "tcg"
    with pytest.raises(GuestError, match=r"^KVM does not work here: /dev/kvm is there, but Linux does not come up"):
        accel("kvm", tmp_path)
    assert accel("kvm", tmp_path) == "kvm"
    assert kvm == []


@pytest.mark.usefixtures("kvm")
def test_where_there_can_be_no_kvm_it_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arch, kernel, reason in (
        ("arm64", "vmlinuz", "this host is no arm64"),
        ("x86_64", "none", "there is no Linux to try it with"),
        ("x86_64", "vmlinuz", "there is no /dev/kvm that we may use"),
    ):
        if kernel == "vmlinuz" and arch == "x86_64":
            monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(GuestError, match=reason):
            machine.choose_accel("kvm", ARCHES[arch], Path("qemu"), tmp_path / kernel)
        assert machine.choose_accel("auto", ARCHES[arch], Path("qemu"), tmp_path / kernel) == "tcg"


@pytest.mark.parametrize(
    ("console", "name"),
    [
        ("\r\nDebian GNU/Linux 13 nvmeemu ttyS0\r\n\r\nnvmeemu login: ", "Debian GNU/Linux 13"),
        ("\nFreeBSD/amd64 (freebsd) (ttyu0)\n\nlogin: ", "FreeBSD/amd64"),
        ("[    1.0] a kernel's line\nlogin: ", None),
    ],
)
def test_a_system_is_known_by_what_stands_above_its_login(console: str, name: str | None) -> None:
    found = boot.BANNER.search(console)
    assert (found and found[1]) == name


def test_a_processor_that_stood_still_is_no_complaint() -> None:
    """A busy machine takes the guest's processor away for longer than the kernel's watchdog waits."""
    assert not re.search(COMPLAINTS, "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]")
    assert re.search(COMPLAINTS, "BUG: kernel NULL pointer dereference, address: 0000000000000008")
