"""Linux uses SGLs for large transfers and for every passthrough command: what its driver writes that way is what it
reads, with both engines, and the native one serves it itself. Both drives are one guest's."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvmeemu.guest import cache, initramfs
from nvmeemu.guest.device import wait_for_device
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.guest import Guest
from nvmeemu.spec import NvmOpcode, Psdt
from nvmeemu.trace import Digest, Fetch, Sgl, open_trace
from nvmeemu.trace.commands import TracedCommand, commands
from tools.guest.linux import SeveralDrives
from tools.guest.run import Run, Settings

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
MIB = 1 << 20
ENGINES = ("native", "python", "native")
NO_SGLS = 2  # the drive that offers none
KIB = 64  # of a passthrough command
PATIENCE = 300.0
VERIFY = (
    "fio --name=v --filename=/dev/{}n1 --rw=randwrite --bs=32k-128k --size=8M --offset=16M --direct=1 --ioengine=sync"
    " --verify=crc32c --do_verify=1 --verify_fatal=1 --output-format=terse >/tmp/fio && cut -d';' -f5 </tmp/fio"
)


class Drive(ServedDrive):
    """A drive at a place of its own on the bus."""

    def __init__(self, image: Path, arguments: tuple[str, ...], slot: int) -> None:
        super().__init__(image, arguments, serial="")
        self._boot = {"addr": f"{slot:02x}"}


@dataclass(frozen=True)
class Linux:
    guest: Guest
    drives: list[Drive]

    def device(self, drive: int) -> str:
        address = self.drives[drive].device["addr"]
        return self.guest.check(f"basename /sys/bus/pci/devices/0000:00:{address}.0/nvme/nvme*").strip()


@pytest.fixture(scope="module")
def traces() -> Iterator[list[list[TracedCommand]]]:
    """What each drive was asked by a guest that has done all of it."""
    subprocess.run([SETUP, "qemu:x86", "linux:trixie:amd64", "tools:amd64", "tools-fio:amd64"], check=True)
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        folder = Path(name)
        drives = []
        for number, engine in enumerate(ENGINES):
            image = folder / f"{number}.img"
            with image.open("wb") as file:
                file.truncate(64 * MIB)
            options: tuple[str, ...] = ("--engine", engine, "--trace", str(folder / f"{number}.trace"))
            options += ("--sgls", "off") if number == NO_SGLS else ()
            drives.append(Drive(image, options, 0x10 + number))
        run = Run(Settings(timeout=1500), folder)
        arch, kernel = run.settings.arch, cache.kernel(run.settings.arch.debian, run.settings.linux)
        initrd = folder / "initrd-fio"
        fio = {"fio": cache.present(cache.root() / "tools-fio" / arch.debian)}
        tools, modules = cache.tools(arch.debian), cache.modules_of(kernel)
        initrd.write_bytes(initramfs.build(tools, arch.triplet, modules, programs=fio))
        with run.boot(run.custom(kernel, initrd), drive=SeveralDrives(drives)) as guest:
            linux = Linux(guest, drives)
            for number in range(len(drives)):
                wait_for_device(guest, f"/dev/nvme{number}n1")
            for number in range(len(drives)):
                _use(linux, linux.device(number))
            guest.power_off()
        yield [_trace(folder / f"{number}.trace") for number in range(len(drives))]


def _use(linux: Linux, device: str) -> None:
    """Write and read through the block layer and by passthrough; all must be the same."""
    check = linux.guest.check
    check("head -c 1048576 /dev/urandom >/data")
    check(f"dd if=/data of=/dev/{device}n1 bs=256k oflag=direct 2>&1", PATIENCE)
    check(f"dd if=/dev/{device}n1 of=/read bs=256k count=4 iflag=direct 2>&1 && cmp /data /read", PATIENCE)
    blocks = KIB * 2
    io = f"/dev/{device}n1 --start-block=4096 --block-count={blocks - 1} --data-size={KIB << 10}"
    check(f"head -c {KIB << 10} /data >/part && nvme write {io} --data=/part && nvme read {io} --data=/back", PATIENCE)
    check("cmp /part /back")
    assert check(VERIFY.format(device), PATIENCE).strip() == "0"


def _trace(path: Path) -> list[TracedCommand]:
    with open_trace(str(path)) as reader:
        return [one for one in commands(reader) if one.fetch.sqid]


def test_linux_uses_sgls_and_reads_what_it_wrote(traces: list[list[TracedCommand]]) -> None:
    for number, found in enumerate(traces):
        by_sgl = [one for one in found if one.fetch.command.psdt == Psdt.SGL]
        opcodes = {one.fetch.opcode for one in by_sgl}
        if number == NO_SGLS:
            assert not by_sgl
            continue
        assert {NvmOpcode.READ, NvmOpcode.WRITE} <= opcodes
        assert any(one.sgls for one in by_sgl), "no list, only lone data blocks"
        assert all(one.completion is None or one.completion.completion.status == 0 for one in found)


def test_the_native_engine_serves_them_itself(traces: list[list[TracedCommand]]) -> None:
    moved: list[Digest | Sgl] = []
    for one in traces[0]:
        if one.fetch.command.psdt == Psdt.SGL and one.fetch.opcode in (NvmOpcode.READ, NvmOpcode.WRITE):
            assert isinstance(one.fetch, Fetch)
            moved += [record for record in (*one.digests, *one.sgls) if isinstance(record, Digest | Sgl)]
    assert moved
    assert not [record for record in moved if record.lane == 0], "Python has moved this data"
