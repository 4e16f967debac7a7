"""Images that users have. Debian stands in for the systems that cannot be had here."""

import hashlib
import struct
import subprocess
from pathlib import Path

import pytest

from guest import boot_sector
from guest.conftest import Script
from nvmeemu.guest import cache
from tools.guest import image, user_image
from tools.guest.errors import UsageError

FORMATS = ["qcow2", "vhdx", "vmdk", "vdi", "vpc"]


@pytest.fixture
def debian() -> Path:
    """The image that set-up builds; `scripts/run_qemu_guest.sh --job debian` builds it too."""
    path = cache.root() / "debian" / "disk.img"
    if not path.exists():
        subprocess.run([Path(__file__).parents[2] / "scripts" / "setup.sh", "debian"], check=True)
    return path


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def converted(source: Path, form: str) -> Path:
    """The image in another format, beside it."""
    target = source.with_suffix(f".{form}")
    subprocess.run([cache.qemu("qemu-img"), "convert", "-O", form, source, target], check=True)
    return target


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_known_and_becomes_the_same_raw_image(form: str, tmp_path: Path) -> None:
    source = boot_sector.write(tmp_path / "disk.img")
    other = converted(source, form)
    assert user_image.format_of(other) == form
    raw = user_image.as_raw(other, tmp_path)
    assert raw.read_bytes()[: source.stat().st_size] == source.read_bytes()
    assert user_image.as_raw(source, tmp_path) == source


@pytest.mark.parametrize("start", user_image.PACKED)
def test_a_packed_image_is_refused(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.xz"
    path.write_bytes(start.ljust(4096, b"\0"))
    with pytest.raises(UsageError, match="is packed: unpack it first"):
        user_image.format_of(path)


def test_a_qcow2_image_boots_and_is_not_changed(script: Script, drive: list[str], tmp_path: Path) -> None:
    disk = converted(boot_sector.write(tmp_path / "disk.img"), "qcow2")
    before = sum_of(disk)
    ended = script(*drive, "--boot-disk", disk, "--expect", boot_sector.GREETING)
    assert ended.status == 0
    assert sum_of(disk) == before
    ended = script(*drive, "--boot-disk", disk, "--write")
    assert ended.status == 2
    assert "--write wants a raw image" in ended.err


def test_a_system_on_a_sata_disk_boots_beside_the_drive(script: Script, drive: list[str], tmp_path: Path) -> None:
    """The NVMe drive is the second disk, empty; the system's own is not changed."""
    disk = boot_sector.write(tmp_path / "disk.img")
    second = tmp_path / "second.img"
    image.create(second, 1 << 20)
    before = sum_of(disk)
    ended = script(*drive, "--sata-disk", disk, "--disk", second, "--expect", boot_sector.GREETING)
    assert ended.status == 0
    assert sum_of(disk) == before


def test_an_installer_boots_where_the_drive_is_empty(script: Script, drive: list[str], tmp_path: Path) -> None:
    """Its question for any key is answered; the drive is empty, and stays so without --write."""
    target = tmp_path / "target.img"
    image.create(target, 1 << 20)
    installer = boot_sector.write_cd(tmp_path / "cd.iso", boot_sector.ANY_KEY)  # powers off at a key
    machine = ("--os", "windows", "--firmware", "seabios", "--mem", "256M", "--display", "none")
    ended = script(*drive, *machine, "--boot-disk", target, "--iso", installer, "--timeout", "120")
    assert ended.status == 0
    assert "the guest has powered itself off" in ended.verdict
    assert image.is_empty(target)


def test_a_screenshot_shows_a_screen(script: Script, tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk.img", boot_sector.STAY)
    picture = tmp_path / "screen.png"
    ended = script("--boot-disk", disk, "--display", "vnc", "--screenshot", picture, "--timeout", "5")
    assert ended.status == 1  # it never ends: the screenshot is to tell why
    assert "the screen: VNC on the UNIX socket /" in ended.out
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 640
    assert height >= 400


@pytest.mark.slow
def test_debian_as_freebsd(script: Script, drive: list[str], debian: Path) -> None:
    """By UEFI to a login on the serial line; the image stays as it is."""
    before = sum_of(debian)
    ended = script(*drive, "--os", "freebsd", "--boot-disk", debian, "--timeout", "1800")
    assert ended.status == 0
    assert "the console printed 'login: '" in ended.out
    assert sum_of(debian) == before


@pytest.mark.slow
def test_debian_as_windows(script: Script, recorded: list[str], debian: Path, tmp_path: Path) -> None:
    """By UEFI, from a qcow2 image, with a screen; a press of the power button shuts it down."""
    disk = tmp_path / "disk.img"
    disk.symlink_to(debian)
    picture = tmp_path / "screen.png"
    ended = script(
        *(*recorded, "--os", "windows", "--boot-disk", converted(disk, "qcow2"), "--mem", "1G", "--expect", "login: "),
        *("--power-button", "20", "--screenshot", picture, "--timeout", "1800"),
    )
    assert ended.status == 0
    assert "the guest has powered itself off" in ended.verdict
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
