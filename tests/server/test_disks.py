"""What serving does to the disk below: holes, untouched bases, thrown away writes; several disks."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmeemu.spec import Command, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, CommandError
from server.conftest import Attach
from server.guest import Guest
from server.load import BLOCK
from server.process import Serve, run

MIB = 1 << 20
PATTERN = bytes(range(256)) * 16
BASE = PATTERN * 512  # 2 MiB


def fingerprint(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest, status.st_mtime_ns, status.st_size, status.st_blocks


def fill(guest: Guest, blocks: int, byte: int) -> None:
    piece = MIB // BLOCK
    for slba in range(0, blocks, piece):
        guest.write(slba, bytes([byte]) * MIB)


def deallocate(guest: Guest, slba: int, blocks: int) -> None:
    page = guest.alloc(PAGE)
    guest.bus.write_memory(page, bytes(DsmRange(slba=slba, length=blocks)))
    command = DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, nr=1, ad=True)
    guest.succeed(guest.queues[1], command)


def write_zeroes(guest: Guest, slba: int, blocks: int, *, deac: bool) -> None:
    command = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=slba, nlb=blocks, deac=deac)
    guest.succeed(guest.queues[1], command)


def test_create_makes_a_sparse_disk_once(folder: Path, serve: Serve, attach: Attach) -> None:
    new = folder / "new"
    served = serve("--disk", new, "--create", "--size", "1G")
    assert new.stat().st_size == 1 << 30
    assert new.stat().st_blocks * 512 < MIB
    attach().write(0, b"kept".ljust(512))
    assert served.stop() == 0
    serve("--disk", new, "--create", "--size", "1G")
    assert attach().read(0, 1)[:4] == b"kept"


def test_deallocating_punches_holes(disk: Path, serve: Serve, attach: Attach) -> None:
    serve("--disk", disk)
    guest = attach()
    fill(guest, 4 * MIB // BLOCK, 0xA5)
    full = disk.stat().st_blocks * 512
    assert full >= 4 * MIB
    deallocate(guest, 0, MIB // BLOCK)
    assert disk.stat().st_blocks * 512 <= full - MIB + 65536
    write_zeroes(guest, MIB // BLOCK, MIB // BLOCK // 2, deac=True)
    assert disk.stat().st_blocks * 512 <= full - MIB * 3 // 2 + 131072
    before = disk.stat().st_blocks
    write_zeroes(guest, 2 * MIB // BLOCK, MIB // BLOCK // 2, deac=False)
    assert disk.stat().st_blocks >= before - 256  # zeros that the file system may keep room for
    content = disk.read_bytes()
    assert content[:MIB] == bytes(MIB)
    assert content[MIB : MIB * 3 // 2] == bytes(MIB // 2)
    assert content[MIB * 3 // 2 : 2 * MIB] == b"\xa5" * (MIB // 2)
    assert content[2 * MIB : MIB * 5 // 2] == bytes(MIB // 2)
    assert content[MIB * 5 // 2 : 4 * MIB] == b"\xa5" * (MIB * 3 // 2)
    assert disk.stat().st_size == 16 * MIB
    assert guest.read(100, 8) == bytes(4096)


def test_blocks_next_to_a_hole_stay(disk: Path, serve: Serve, attach: Attach) -> None:
    """Ranges that are no whole pages of the file system."""
    serve("--disk", disk)
    guest = attach()
    fill(guest, MIB // BLOCK, 0xA5)
    deallocate(guest, 3, 100)
    write_zeroes(guest, 203, 100, deac=True)
    write_zeroes(guest, 403, 1, deac=False)
    content = disk.read_bytes()
    for start, end in ((203, 303), (403, 404)):
        assert content[start * BLOCK : end * BLOCK] == bytes((end - start) * BLOCK)
    zeros = {start // BLOCK for start in range(0, MIB, BLOCK) if not any(content[start : start + BLOCK])}
    assert zeros == set(range(3, 103)) | set(range(203, 303)) | {403}


def test_a_read_only_disk_is_never_written(disk: Path, serve: Serve, attach: Attach) -> None:
    disk.write_bytes(BASE)
    before = fingerprint(disk)
    served = serve("--disk", disk, "--read-only")
    guest = attach()
    assert guest.read(3, 8) == (PATTERN * 2)[3 * BLOCK :][:PAGE]
    attempts: tuple[Callable[[], None], ...] = (
        lambda: guest.write(0, bytes(512)),
        lambda: guest.write(0, bytes(512), fua=True),
        lambda: write_zeroes(guest, 0, 8, deac=False),
        lambda: write_zeroes(guest, 0, 8, deac=True),
        lambda: deallocate(guest, 0, 8),
    )
    for attempt in attempts:
        with pytest.raises(CommandError) as caught:
            attempt()
        assert caught.value.completion.status == Status.NAMESPACE_WRITE_PROTECTED
    guest.succeed(guest.queues[1], Command(opcode=NvmOpcode.FLUSH, nsid=1))
    assert guest.identify(0, 1)[99] & 1  # NSATTR: write protected
    assert not guest.identify(1)[525] & 1  # VWC: nothing to lose
    guest.shut_down()
    assert served.stop() == 0
    assert fingerprint(disk) == before


def test_an_overlay_reads_back_and_leaves_its_base_alone(disk: Path, serve: Serve, attach: Attach) -> None:
    disk.write_bytes(BASE)
    before = fingerprint(disk)
    served = serve("--disk", disk, "--overlay")
    guest = attach()
    guest.write(5, b"\xee" * 1536)
    guest.write(2040, b"\xdd" * (16 * 512))  # across a MiB
    deallocate(guest, 100, 8)
    write_zeroes(guest, 200, 3, deac=False)
    expected = bytearray(BASE)
    for slba, data in ((5, b"\xee" * 1536), (2040, b"\xdd" * 8192), (100, bytes(4096)), (200, bytes(1536))):
        expected[slba * BLOCK : slba * BLOCK + len(data)] = data
    for slba in range(0, len(BASE) // BLOCK, 256):
        assert guest.read(slba, 256) == expected[slba * BLOCK :][: 256 * BLOCK]
    guest.shut_down()
    guest.leave()
    served.expect("detached")
    assert attach().read(5, 3) == b"\xee" * 1536  # thrown away at exit, not with the client
    assert served.stop() == 0
    assert fingerprint(disk) == before
    serve("--disk", disk, "--read-only")
    assert attach().read(5, 3) == (PATTERN * 2)[5 * BLOCK :][:1536]


def test_an_overlay_copies_nothing_and_leaves_no_file(folder: Path, disk: Path, serve: Serve) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    with disk.open("r+b") as file:
        file.truncate(1 << 40)  # a base of 1 TiB is served at once
    served = serve("--disk", disk, "--overlay", environment={"TMPDIR": str(temporary)})
    assert list(temporary.iterdir()) == []
    assert served.stop() == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [("8T", "8 TiB"), ("10G", "10 GiB"), ("1536M", "1.5 GiB"), ("1000M", "1000 MiB"), ("500107862016", "465.8 GiB")],
)
def test_a_size_is_told_in_the_unit_that_fits(folder: Path, serve: Serve, size: str, text: str) -> None:
    served = serve("--disk", folder / "new", "--create", "--size", size)
    assert f"disk {folder}/new ({text}) on" in served.announced


def test_the_write_cache_is_reported_truthfully(disk: Path, serve: Serve, attach: Attach) -> None:
    for arguments, expected in (
        ((disk,), True),
        ((disk, "--overlay"), False),
        ((disk, "--read-only"), False),
        (("mem:1M"), False),
    ):
        served = serve("--disk", *([arguments] if isinstance(arguments, str) else arguments))
        guest = attach()
        assert bool(guest.identify(1)[525] & 1) is expected
        guest.leave()
        assert served.stop() == 0


def test_each_disk_is_a_namespace(folder: Path, disk: Path, serve: Serve, attach: Attach) -> None:
    other = folder / "other"
    other.write_bytes(bytes(MIB))
    serve("--disk", disk, "--disk", "mem:2M", "--disk", other)
    guest = attach()
    for nsid, size in ((1, 16), (2, 2), (3, 1)):
        assert int.from_bytes(guest.identify(0, nsid)[:8], "little") == size * MIB // BLOCK
        guest.write(7, bytes([nsid]) * 512, nsid=nsid)
    assert guest.identify(2)[:16] == b"".join(nsid.to_bytes(4, "little") for nsid in (1, 2, 3, 0))
    assert [guest.read(7, 1, nsid=nsid)[0] for nsid in (1, 2, 3)] == [1, 2, 3]
    assert (disk.read_bytes()[7 * BLOCK], other.read_bytes()[7 * BLOCK]) == (1, 3)


def test_memory_disks_of_one_size_are_several(serve: Serve, attach: Attach) -> None:
    served = serve("--disk", "mem:1M", "--disk", "mem:1M", "--disk", "mem:1M")
    assert "disk mem:1M (1 MiB), mem:1M (2) (1 MiB), mem:1M (3) (1 MiB) on" in served.announced
    guest = attach()
    for nsid in (1, 2, 3):
        guest.write(7, bytes([nsid]) * BLOCK, nsid=nsid)
    assert [guest.read(7, 1, nsid=nsid)[0] for nsid in (1, 2, 3)] == [1, 2, 3]
    assert len({guest.identify(3, nsid) for nsid in (1, 2, 3)}) == 3  # the descriptors, with the UUID
    guest.shut_down()
    assert served.stop() == 0


@pytest.fixture
def block_device(folder: Path) -> Iterator[Path]:
    """4 MiB, on a loop device."""
    image = folder / "image"
    image.write_bytes(bytes(4 * MIB))
    try:
        made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device to be had here: {error}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def claimed(device: Path) -> Iterator[None]:
    """As mount(8) and mkfs(8) have it."""
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        yield
    finally:
        os.close(fd)


def in_use(path: Path, disk: Path, *options: str) -> None:
    result = run("--socket", path, "--disk", disk, *options)
    assert result.returncode == 1
    assert "is in use" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.long
def test_a_block_device_that_somebody_uses_is_refused(folder: Path, block_device: Path, serve: Serve) -> None:
    image, path = folder / "image", folder / "2"
    with claimed(block_device):
        for options in ((), ("--read-only",), ("--overlay",), ("--direct",)):
            in_use(path, block_device, *options)
            in_use(path, image, *options)
    assert serve("--disk", block_device).stop() == 0


@pytest.mark.parametrize("by", ["device", "file"])
def test_nobody_makes_a_file_system_on_a_device_that_is_served(
    folder: Path, block_device: Path, serve: Serve, by: str
) -> None:
    served = serve("--disk", block_device if by == "device" else folder / "image")
    with pytest.raises(OSError, match="busy"), claimed(block_device):
        pass
    assert served.stop() == 0
    with claimed(block_device):
        pass


@pytest.mark.long
def test_a_loop_device_and_its_file_are_one_disk(folder: Path, block_device: Path, serve: Serve) -> None:
    image, path = folder / "image", folder / "2"
    for one, other in ((image, block_device), (block_device, image)):
        result = run("--socket", path, "--disk", one, "--disk", other, "--read-only")
        assert (result.returncode, "give each disk once" in result.stderr) == (2, True)
        served = serve("--disk", one)
        for options in ((), ("--read-only",), ("--overlay",)):
            in_use(path, other, *options)
        assert served.stop() == 0
    readers = [serve("--disk", disk, "--overlay", at=f"{folder}/s-{disk.name}") for disk in (image, block_device)]
    in_use(path, image)
    in_use(path, block_device)
    assert [reader.stop() for reader in readers] == [0, 0]
    served = serve("--disk", block_device)
    assert served.stop() == 0


def test_a_block_device_is_served_and_can_be_trimmed(
    folder: Path, block_device: Path, serve: Serve, attach: Attach
) -> None:
    image = folder / "image"
    served = serve("--disk", block_device)
    assert "(4 MiB)" in served.announced
    guest = attach()
    fill(guest, 4 * MIB // BLOCK, 0xA5)
    deallocate(guest, 0, 2 * MIB // BLOCK)
    write_zeroes(guest, 2 * MIB // BLOCK, 8, deac=False)
    guest.write(8191, b"\x5a" * 512, fua=True)
    assert guest.read(8184, 8) == b"\xa5" * 7 * 512 + b"\x5a" * 512
    guest.shut_down()
    second = run("--socket", folder / "2", "--disk", block_device)
    assert second.returncode == 1
    assert "is in use" in second.stderr
    assert served.stop() == 0
    content = image.read_bytes()
    assert content[: 2 * MIB + 4096] == bytes(2 * MIB + 4096)
    assert content[2 * MIB + 4096 :] == b"\xa5" * (2 * MIB - 4096 - 512) + b"\x5a" * 512
    assert image.stat().st_blocks * 512 <= 2 * MIB + 65536
