"""``--direct``: the disk without the page cache. The data goes where it should whatever memory the guest uses, and who
cannot be served so is told why."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeemu.spec import Command, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, CommandError
from server.conftest import MIB, PATHS, Attach
from server.guest import Guest
from server.load import BLOCK, run_batch, transfer
from server.process import Serve, Served, run
from server.shim import Medium, Op, Shim
from server.test_bad_use import refused
from server.test_disks import deallocate, write_zeroes

pytestmark = pytest.mark.long

ENGINES = ("native", "python")
DEPTH = 32
SLBA = 77
DATA = b"\x5a" * BLOCK


def flags(served: Served, disk: Path) -> list[int]:
    """Those that the disk's descriptors are open with."""
    found = []
    for entry in Path(f"/proc/{served.pid}/fd").iterdir():
        if entry.exists() and entry.samefile(disk):
            lines = Path(f"/proc/{served.pid}/fdinfo/{entry.name}").read_text().splitlines()
            found += [int(line.split()[1], 8) for line in lines if line.startswith("flags:")]
    return found


def uncached(disk: Path, offset: int, size: int) -> bytes:
    """What the device has, in whole pages."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, size) as buffer:
        os.preadv(fd, [buffer], offset)
        os.close(fd)
        return buffer[:]


@pytest.mark.parametrize("engine", ENGINES)
def test_only_direct_opens_the_disk_with_o_direct(disk: Path, serve: Serve, engine: str) -> None:
    for options, is_direct in (((), False), (("--direct",), True), (("--direct", "--read-only"), True)):
        served = serve("--disk", disk, "--engine", engine, *options)
        assert [bool(found & os.O_DIRECT) for found in flags(served, disk)] == [is_direct]
        assert (", direct)" in served.announced) is is_direct
        assert served.stop() == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_any_memory_of_the_guests_will_do(
    disk: Path, serve: Serve, attach: Attach, engine: str, block_size: int
) -> None:
    """PRPs that begin anywhere in a page, and any number of blocks anywhere; on holes and on what was written."""
    served = serve("--disk", disk, "--direct", "--engine", engine, "--block-size", str(block_size))
    guest = attach()
    dice = random.Random(5)
    model = bytearray(MIB)
    buffer = guest.alloc(256 * 1024)
    for _ in range(100):
        blocks = dice.randint(1, 64 * 1024 // block_size)
        size = blocks * block_size
        slba = dice.randrange(len(model) // block_size - blocks)
        start = buffer + dice.choice((0, 4, 12, 508, 512, 2048, 4092))
        is_write = dice.random() < 0.5
        at = slice(slba * block_size, slba * block_size + size)
        if is_write:
            model[at] = dice.randbytes(size)
            guest.bus.write_memory(start, bytes(model[at]))
        else:
            guest.bus.write_memory(start, b"\xee" * size)
        guest.bus.write_memory(start + size, b"\xdd" * 16)
        with guest.scratch():
            prp1, prp2 = guest.prps(start, size)
            opcode = NvmOpcode.WRITE if is_write else NvmOpcode.READ
            fua = dice.random() < 0.2
            command = ReadWrite(opcode=opcode, nsid=1, prp1=prp1, prp2=prp2, slba=slba, nlb=blocks, fua=fua)
            guest.succeed(guest.queues[1], command)
        assert guest.bus.read_memory(start, size) == model[at]
        assert guest.bus.read_memory(start + size, 16) == b"\xdd" * 16
    assert uncached(disk, 0, MIB) == model  # the cache of the page has no part in it: nobody has flushed it
    guest.shut_down()
    assert served.stop() == 0
    assert disk.read_bytes()[:MIB] == model


@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_transfers(disk: Path, serve: Serve, attach: Attach, engine: str) -> None:
    serve("--disk", disk, "--direct", "--engine", engine)
    guest = attach()
    data = random.Random(1).randbytes(2 * MIB)
    guest.write(3, data)
    assert guest.read(3, len(data) // BLOCK) == data


@pytest.mark.parametrize("engine", ENGINES)
def test_the_other_commands(disk: Path, serve: Serve, attach: Attach, engine: str) -> None:
    serve("--disk", disk, "--direct", "--engine", engine)
    guest = attach()
    model = bytearray(random.Random(2).randbytes(MIB))
    guest.write(0, bytes(model))
    for slba, blocks, deac in ((3, 5, False), (203, 100, True), (8, 8, True), (17, 1, False)):
        write_zeroes(guest, slba, blocks, deac=deac)
        model[slba * BLOCK : (slba + blocks) * BLOCK] = bytes(blocks * BLOCK)
    deallocate(guest, 1001, 500)
    model[1001 * BLOCK : 1501 * BLOCK] = bytes(500 * BLOCK)
    guest.flush()
    assert guest.read(0, MIB // BLOCK) == model
    place = guest.alloc(PAGE)
    guest.bus.write_memory(place + 4, bytes(model[SLBA * BLOCK :][:BLOCK]))
    same = ReadWrite(opcode=NvmOpcode.COMPARE, nsid=1, prp1=place + 4, slba=SLBA, nlb=1)
    guest.succeed(guest.queues[1], same)
    with pytest.raises(CommandError) as caught:
        guest.succeed(guest.queues[1], ReadWrite(opcode=NvmOpcode.COMPARE, nsid=1, prp1=place + 4, slba=0, nlb=1))
    assert caught.value.completion.status == Status.COMPARE_FAILURE
    for fua in (False, True):
        verify = ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, slba=1, nlb=4096, fua=fua)
        guest.succeed(guest.queues[1], verify)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_commands_at_once(disk: Path, serve: Serve, attach: Attach, engine: str) -> None:
    """Each with its own data, some of them into holes."""
    serve("--disk", disk, "--direct", "--engine", engine)
    guest = attach()
    places = [guest.alloc(2 * PAGE) for _ in range(DEPTH)]
    for turn in range(4):
        slbas = [(turn * DEPTH + index) * 16 for index in range(DEPTH)]
        for place, slba in zip(places, slbas, strict=True):
            guest.bus.write_memory(place, slba.to_bytes(4, "little") * (2 * PAGE // 4))
        for opcode in (NvmOpcode.WRITE, NvmOpcode.READ):
            commands = [transfer(opcode, *where, size=2 * PAGE) for where in zip(places, slbas, strict=True)]
            assert {done.status for done in run_batch(guest, commands)} == {Status.SUCCESS}
            for place, slba in zip(places, slbas, strict=True):
                assert guest.bus.read_memory(place, 2 * PAGE) == slba.to_bytes(4, "little") * (2 * PAGE // 4)
                guest.bus.write_memory(place, bytes(2 * PAGE))
            places.reverse()  # what was written is read into other memory


def test_the_write_cache_of_the_device_is_reported(disk: Path, serve: Serve, attach: Attach) -> None:
    """O_DIRECT does not make a write durable."""
    for options, expected in (((), True), (("--read-only",), False)):
        served = serve("--disk", disk, "--direct", *options)
        guest = attach()
        assert bool(guest.identify(1)[525] & 1) is expected
        guest.leave()
        assert served.stop() == 0


@pytest.mark.parametrize("shim", PATHS, indirect=True)
def test_flush_and_fua_are_durable(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    serve("--disk", disk, "--direct", *shim.engine, environment=shim.environment)
    guest = attach()
    medium = Medium(16 * MIB)

    def durable(slba: int) -> bytes:
        medium.take(shim.records())
        return bytes(medium.durable[slba * BLOCK :][:BLOCK])

    guest.write(SLBA, DATA)
    assert durable(SLBA) == bytes(BLOCK)
    guest.write(SLBA + 1, DATA, fua=True)
    assert (durable(SLBA), durable(SLBA + 1)) == (bytes(BLOCK), DATA)
    assert shim.calls(Op.SYNC) == 0
    guest.succeed(guest.queues[1], Command(opcode=NvmOpcode.FLUSH, nsid=1))
    assert durable(SLBA) == DATA
    assert shim.calls(Op.SYNC) == 1


def test_a_read_only_disk_is_not_written(disk: Path, serve: Serve, attach: Attach) -> None:
    disk.write_bytes(DATA * 32768)
    serve("--disk", disk, "--direct", "--read-only")
    guest = attach()
    assert guest.read(SLBA, 1) == DATA
    with pytest.raises(CommandError) as caught:
        guest.write(SLBA, bytes(BLOCK))
    assert caught.value.completion.status == Status.NAMESPACE_WRITE_PROTECTED


# --- what is refused


def test_what_has_no_disk_below_it_is_refused(path: str, disk: Path) -> None:
    refused(run("--socket", path, "--direct", "--disk", "mem:1M"), 2, "mem:1M", "leave out --direct")
    refused(run("--socket", path, "--direct", "--disk", disk, "--overlay"), 2, "--overlay", "leave out --direct")


def test_other_formats_are_still_refused(path: str, disk: Path) -> None:
    for content in (b"QFI\xfb".ljust(BLOCK, b"\0"), b"QFI\xfb"):  # the latter is smaller than what can be read
        disk.write_bytes(content)
        refused(run("--socket", path, "--direct", "--disk", disk), 1, "is a qcow2 image", "qemu-img convert")
    os.truncate(disk, 0)
    refused(run("--socket", path, "--direct", "--disk", disk), 1, "is empty")


@pytest.fixture
def large_blocks(folder: Path) -> Iterator[Path]:
    """4 MiB, on a loop device with blocks of 4096 bytes."""
    image = folder / "image"
    image.write_bytes(bytes(4 * MIB))
    command = ["losetup", "--find", "--show", "--sector-size", "4096", str(image)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device to be had here: {error}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_of_large_blocks_needs_a_namespace_of_large_blocks(
    path: str, large_blocks: Path, serve: Serve, attach: Attach, engine: str
) -> None:
    result = run("--socket", path, "--direct", "--disk", large_blocks)
    refused(result, 1, f"{large_blocks} has blocks of 4096 bytes", "--block-size 4096")
    serve("--direct", "--disk", large_blocks, "--block-size", "4096", "--engine", engine)
    guest: Guest = attach()
    guest.write(1023, b"\x77" * 4096, fua=True)
    assert guest.read(1022, 2) == bytes(4096) + b"\x77" * 4096
    assert uncached(large_blocks, 1023 * 4096, 4096) == b"\x77" * 4096


NO_O_DIRECT = """
import errno, os, sys
from nvmeemu.app.cli import main
def refuse(path, flags, *rest, system=os.open):
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")
    return system(path, flags, *rest)
os.open = refuse
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def test_a_file_system_without_o_direct(path: str, disk: Path) -> None:
    """As tmpfs before Linux 6.6, which open(2) answers with EINVAL; there is none on this machine to be had."""
    result = run("--socket", path, "--direct", "--disk", disk, command=(sys.executable, "-c", NO_O_DIRECT))
    refused(result, 1, f"{disk} cannot be opened with --direct", "no O_DIRECT", "leave out --direct")


@pytest.fixture
def journalled(folder: Path) -> Iterator[Path]:
    """A file whose data ext4 writes through its journal, and so through the page cache, whatever O_DIRECT says."""
    image, place = folder / "image", folder / "ext4"
    image.touch()
    os.truncate(image, 64 * MIB)
    place.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", image], capture_output=True, check=True)
        subprocess.run(["mount", "-o", "loop,data=journal", image, place], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    disk = place / "disk"
    disk.touch()
    os.truncate(disk, MIB)
    yield disk
    subprocess.run(["umount", place], check=True)


def test_a_file_system_that_takes_no_notice_of_o_direct(path: str, journalled: Path) -> None:
    """Linux says so from 6.1 on."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 1):
        pytest.skip("the kernel does not tell")
    refused(run("--socket", path, "--direct", "--disk", journalled), 1, "into the page cache", "leave out --direct")
