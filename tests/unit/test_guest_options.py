"""The options for users' own images: what they set, and what is refused in one line."""

import re
import shlex
from pathlib import Path

import pytest

from tools.guest import cli
from tools.guest.arches import ARCHES
from tools.guest.errors import UsageError

CHECKOUT = Path(__file__).parents[2]
COMMAND = re.compile(r"^\s*scripts/run_qemu_guest\.sh ?(.*?)(?:#.*)?$", re.MULTILINE)
COMMANDS = [
    pytest.param(match[1], id=f"{document.name}: {match[1]}")
    for document in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md")))
    for match in COMMAND.finditer(document.read_text())
]

CD = bytes(16 * 2048) + b"\x01CD001\x01"


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    return str(path)


def test_windows_gets_its_machine(disk: str) -> None:
    settings = cli.parse(["--os", "windows", "--boot-disk", disk])
    assert (settings.job, settings.firmware, settings.mem, settings.smp) == ("boot", "ovmf", "4G", 2)
    assert (settings.display, settings.expect, settings.write) == ("vnc", (), False)
    assert settings.drive_args == ("--max-namespaces", "1")


def test_what_was_asked_for_goes_before_the_systems_own(disk: str) -> None:
    words = ["--os", "windows", "--boot-disk", disk, "--firmware", "seabios", "--mem", "8G", "--display", "none"]
    settings = cli.parse(words)
    assert (settings.firmware, settings.mem, settings.display, settings.smp) == ("seabios", "8G", "none", 2)
    settings = cli.parse([*words, "--nvme-arg=--max-namespaces", "--nvme-arg=4"])
    assert settings.drive_args == ("--max-namespaces", "1", "--max-namespaces", "4")  # the last one counts


def test_a_login_is_expected_of_freebsd_unless_it_is_attended(disk: str) -> None:
    assert cli.parse(["--os", "freebsd", "--boot-disk", disk]).expect == ("login: ",)
    assert cli.parse(["--os", "freebsd", "--boot-disk", disk, "--display", "vnc"]).expect == ()
    assert cli.parse(["--os", "freebsd", "--boot-disk", disk, "--power-button", "9"]).expect == ()


def test_a_system_on_a_disk_needs_no_linux_of_ours(disk: str) -> None:
    assert cli.components(cli.parse(["--os", "freebsd", "--boot-disk", disk])) == ["base", "qemu:x86", "ovmf"]


def test_with_kvm_there_is_a_linux_to_try_it_with(disk: str) -> None:
    words = ["--os", "freebsd", "--boot-disk", disk, "--accel", "kvm"]
    assert cli.components(cli.parse(words)) == ["base", "qemu:x86", "linux:trixie:amd64", "ovmf"]
    assert cli.components(cli.parse(["--accel", "kvm"])).count("linux:trixie:amd64") == 1


@pytest.mark.parametrize(
    "descriptors",
    [(b"\x01CD001", b"\xffCD001"), (b"\0BEA01", b"\0NSR03", b"\0TEA01"), (b"\0BEA01", b"\0NSR02")],
    ids=["ISO 9660", "UDF", "old UDF"],
)
def test_images_of_cds_are_taken(descriptors: tuple[bytes, ...], tmp_path: Path) -> None:
    """UDF has no ISO 9660 beside it in newer ones."""
    path = tmp_path / "cd.iso"
    path.write_bytes(bytes(16 * 2048) + b"".join(one.ljust(2048, b"\0") for one in descriptors))
    assert cli.parse(["--iso", str(path)]).iso == path


@pytest.mark.parametrize(
    "content", [b"", bytes(40 * 2048), bytes(16 * 2048) + b"CD001", CD[:-3], b"QFI\xfb" + bytes(40 * 2048)]
)
def test_images_of_no_cd_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cd.iso"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no image of a CD or DVD"):
        cli.parse(["--os", "windows", "--iso", str(path)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--os windows", "--os needs --boot-disk, --sata-disk or --iso"),
        ("--os solaris --boot-disk DISK", "invalid choice: 'solaris'"),
        ("--boot-disk DISK --sata-disk DISK", "--boot-disk is the only drive"),
        ("--boot-disk DISK --append x", "brings its own kernel"),
        ("--boot-disk DISK --screenshot x.png", "--screenshot needs a screen"),
        ("--boot-disk DISK --display vnc --arch arm64", "no --display for arm64"),
        ("--boot-disk DISK --firmware edk2", "no firmware 'edk2' for x86_64"),
        ("--write", "--write needs --boot-disk or --sata-disk"),
        ("--iso /no/such.iso", "--iso /no/such.iso: no such file"),
        ("--os windows --iso DISK", "is no image of a CD or DVD: disk images are for --boot-disk"),
        ("--job debian --arch arm64", "--job debian is for --arch x86_64, not for arm64"),
        ("--job uefi-shell --arch riscv64", "--job uefi-shell is for --arch x86_64, arm64, not for riscv64"),
        ("--job grub --boot-disk DISK", "--job grub takes no --boot-disk"),
        ("--job uefi-shell --firmware seabios", "--job uefi-shell needs another firmware"),
        ("--boot-disk DISK --power-button 0", "--power-button: '0' is no number of seconds"),
        ("--smp 65", "--smp: '65' is no number from 1 to 64"),
        ("--result-json /", "--result-json / is a folder"),
        ("--serial-log /tmp", "--serial-log /tmp is a folder"),
        ("--kernel /", "--kernel / is a folder"),
    ],
)
def test_bad_use_is_one_line(words: str, told: str, disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.replace("DISK", disk).split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert told in printed.err


@pytest.mark.parametrize(("name", "place", "magic"), [(arch.name, *arch.kernel_magic) for arch in ARCHES.values()])
def test_a_kernel_of_another_architecture_is_refused(
    name: str, place: int, magic: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(place) + magic + bytes(100))
    assert cli.parse(["--arch", name, "--kernel", str(kernel)]).kernel == kernel
    other = next(other for other in ARCHES if other != name)
    assert cli.main(["--arch", other, "--kernel", str(kernel)]) == 2
    assert capsys.readouterr().err.startswith(f"run_qemu_guest.sh: --kernel {kernel} is for --arch {name} (")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_documents_tell_users_to_type_is_good_use(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in shlex.split(command):
        if word.endswith((".img", ".qcow2", ".iso")):
            Path(word).write_bytes(CD if word.endswith(".iso") else bytes(1024))
    cli.parse(shlex.split(command))


def test_the_documents_have_such_commands() -> None:
    assert len(COMMANDS) > 6
