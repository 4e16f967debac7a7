"""Every bad use is one line on stderr that says what to do, never a traceback; exit 2 for bad use, 1 for bad luck."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import nvmeemu
from nvmeemu.testing import VfioClient
from nvmeemu.testing.client import BAR0
from server.guest import Guest
from server.process import NVMEEMU, Serve, run

pytestmark = pytest.mark.long

MIB = 1 << 20
SOURCE = Path(nvmeemu.__file__).parent
# Root may everything; root without its capabilities is a user like any other.
PLAIN_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", NVMEEMU, "serve")


def refused(result: subprocess.CompletedProcess[str], status: int, *words: str) -> str:
    """Check the one line, and that nothing pretended to work."""
    assert result.returncode == status, result.stderr
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("nvmeemu")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert "QEMU:" not in (result.stdout or "")
    return result.stderr


# --- disks


def test_a_missing_disk(path: str, folder: Path) -> None:
    refused(run("--socket", path, "--disk", folder / "none"), 1, f"{folder}/none does not exist", "--create --size")
    assert not os.path.exists(path)


def test_a_directory_and_a_device_that_is_no_disk(path: str, folder: Path) -> None:
    refused(run("--socket", path, "--disk", folder), 1, "is a directory", "raw image file")
    refused(run("--socket", path, "--disk", folder, "--create", "--size", "1M"), 1, "is a directory")
    refused(run("--socket", path, "--disk", "/dev/null"), 1, "neither a file nor a block device")
    os.mkfifo(folder / "fifo")
    refused(run("--socket", path, "--disk", folder / "fifo"), 1, "neither a file nor a block device")
    for nothing in ("", "raw:"):
        refused(run("--socket", path, "--disk", nothing), 2, "a disk without a name", "mem:1G")


def test_a_disk_that_this_user_may_not_use(path: str, folder: Path, disk: Path) -> None:
    for mode in (0o444, 0o000):
        disk.chmod(mode)
        result = run("--socket", path, "--disk", disk, command=PLAIN_USER)
        refused(result, 1, f"{disk} cannot be opened: permission denied", "--read-only or --overlay")
    for option in ("--read-only", "--overlay"):
        result = run("--socket", path, "--disk", disk, option, command=PLAIN_USER)
        refused(result, 1, "permission denied: check its permissions\n")
    hidden = folder / "hidden"
    hidden.mkdir()
    shutil.copy(disk, hidden / "disk")
    hidden.chmod(0)
    refused(run("--socket", path, "--disk", hidden / "disk", command=PLAIN_USER), 1, "permission denied")
    result = run("--socket", path, "--disk", hidden / "new", "--create", "--size", "1M", command=PLAIN_USER)
    refused(result, 1, "cannot create disk", "Permission denied")


def test_a_size_that_is_no_number_of_blocks(path: str, disk: Path) -> None:
    os.truncate(disk, 0)
    refused(run("--socket", path, "--disk", disk), 1, "is empty")
    refused(run("--socket", path, "--disk", disk, "--overlay"), 1, "is empty")
    os.truncate(disk, MIB + 1)
    refused(run("--socket", path, "--disk", disk), 1, f"has {MIB + 1} bytes, not a multiple of 512")
    os.truncate(disk, MIB + 512)
    refused(run("--socket", path, "--disk", disk, "--block-size", 4096), 1, "not a multiple of 4096")
    result = run("--socket", path, "--disk", "mem:1000")
    refused(result, 1, "mem:1000 has 1000 bytes, not a multiple of 512: give another size\n")


def test_urls_are_no_disks(path: str, folder: Path) -> None:
    """A file of such a name can be given as raw:PATH or ./PATH."""
    for url in ("nbd://x", "https://x/y", "nbd+unix:///x?socket=y", "file:///disk.img"):
        for options in ([], ["--read-only"], ["--create", "--size", "1M"]):
            result = run("--socket", path, "--disk", url, *options, cwd=folder)
            refused(result, 2, f"disk {url} is a URL: give a raw file, a block device, or memory, for example mem:1G\n")
    result = run("--socket", path, "--disk", "raw:nbd://x", cwd=folder)
    refused(result, 1, "disk nbd://x does not exist")


def test_images_of_other_formats_are_not_served_as_raw_ones(path: str, disk: Path, serve: Serve) -> None:
    """The first write would destroy them. raw:PATH says that it is meant."""
    disks = {"qcow2": b"QFI\xfb", "vmdk": b"KDMV", "vhdx": b"vhdxfile", "vhd": b"conectix"}
    disks["vdi"] = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + (0xBEDA107F).to_bytes(4, "little")
    for name, magic in disks.items():
        disk.write_bytes(magic.ljust(MIB, b"\0"))
        message = refused(run("--socket", path, "--disk", disk), 1, f"is a {name} image", "qemu-img convert")
        assert f"raw:{disk}" in message
    serve("--disk", f"raw:{disk}")


def test_compressed_images_are_not_served(path: str, disk: Path, serve: Serve) -> None:
    for compress, program in ((gzip.compress, "gunzip"), (lzma.compress, "unxz"), (bz2.compress, "bunzip2")):
        disk.write_bytes(compress(bytes(MIB)).ljust(MIB, b"\0"))
        for options in ([], ["--direct"]):
            message = refused(run("--socket", path, "--disk", disk, *options), 1, "is compressed with", program)
            assert f"raw:{disk}" in message
    serve("--disk", f"raw:{disk}")


@pytest.mark.parametrize("size", ["", "-1", "-5G", "10X", "9" * 5000])
def test_bad_sizes(path: str, folder: Path, size: str) -> None:
    """tests/unit/test_backend.py knows more of them."""
    disk = folder / "new"
    refused(run("--socket", path, "--disk", disk, "--create", "--size", size), 2, "--size: bad size", "10G")
    refused(run("--socket", path, "--disk", f"mem:{size}"), 2, "bad size")
    assert not disk.exists()


def test_create_and_size_go_together_and_make_only_what_can_be_served(path: str, folder: Path, disk: Path) -> None:
    new = folder / "new"
    refused(run("--socket", path, "--disk", new, "--create"), 2, "--create and --size go together")
    refused(run("--socket", path, "--disk", new, "--size", "1M"), 2, "--create and --size go together")
    refused(run("--socket", path, "--disk", new, "--create", "--size", "1000"), 2, "1000 bytes", "512")
    for option in ("--read-only", "--overlay"):
        refused(run("--socket", path, "--disk", new, "--create", "--size", "1M", option), 2, "leave out")
    refused(run("--socket", path, "--disk", new, "--create", "--size", "8191P"), 1, "cannot make disk")
    assert not new.exists()
    refused(
        run("--socket", path, "--disk", disk, "--create", "--size", "1M"), 1, "exists and has", "leave out --create"
    )
    assert disk.stat().st_size == 16 * MIB
    refused(
        run("--socket", path, "--disk", folder / "none/new", "--create", "--size", "1M"),
        1,
        "cannot create disk",
        "no folder",
    )


def test_memory_disks_take_no_other_option(path: str) -> None:
    for options in (["--create", "--size", "1M"], ["--size", "1M"]):
        refused(run("--socket", path, "--disk", "mem:1M", *options), 2, "mem:1M has its size in its name", "leave out")
    for option in ("--read-only", "--overlay"):
        refused(run("--socket", path, "--disk", "mem:1M", option), 2, "mem:1M begins empty", "leave out --read-only")
    refused(run("--socket", path, "--disk", "mem:8191P"), 1, "no room for a memory disk")


def test_a_disk_has_one_writer_or_many_readers(folder: Path, disk: Path, serve: Serve) -> None:
    writer = serve("--disk", disk, at=f"{folder}/1")
    for options in ([], ["--read-only"], ["--overlay"]):
        refused(run("--socket", f"{folder}/2", "--disk", disk, *options), 1, "is in use by another process")
        assert not os.path.exists(f"{folder}/2")
    link = folder / "link"
    link.symlink_to(disk)
    refused(run("--socket", f"{folder}/2", "--disk", link), 1, "is in use by another process")
    assert writer.stop() == 0
    serve("--disk", disk, "--read-only", at=f"{folder}/3")
    serve("--disk", disk, "--read-only", at=f"{folder}/4")
    serve("--disk", disk, "--overlay", at=f"{folder}/5")
    refused(run("--socket", f"{folder}/6", "--disk", disk), 1, "is in use by another process", "--read-only")


def test_disks_are_given_once_and_not_too_many(path: str, disk: Path) -> None:
    again = disk.parent / "." / ".." / disk.parent.name / disk.name
    link = disk.parent / "link"
    link.symlink_to(disk)
    for other in (disk, again, link, f"raw:{disk}"):
        for options in ([], ["--read-only"]):
            result = run("--socket", path, "--disk", disk, "--disk", other, *options)
            refused(result, 2, f"disk {other} is {disk}, which is a namespace already: give each disk once")
    new = disk.parent / "new"
    result = run("--socket", path, "--disk", new, "--disk", f"raw:{new}", "--create", "--size", "1M")
    refused(result, 2, "give each disk once")
    disks = [word for number in range(17) for word in ("--disk", f"mem:{number + 1}M")]
    refused(run("--socket", path, *disks), 2, "at most 16 disks, as --max-namespaces says")
    refused(run("--socket", path, *disks[:4], "--max-namespaces", 1), 2, "at most 1 disk, as --max-namespaces says")


def test_what_is_made_and_written_has_a_path_of_its_own(path: str, disk: Path, folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(folder)
    again = f"{link}/./s"
    for option in ("--control", "--trace", "--pid-file"):
        for one in (path, again):
            result = run("--socket", path, "--disk", "mem:1M", option, one)
            refused(result, 2, f"--socket and {option} are both {path}: give each a path of its own")
    result = run("--socket", path, "--disk", "mem:1M", "--control", folder / "c", "--trace", folder / "c")
    refused(result, 2, f"--control and --trace are both {folder}/c")
    before = disk.read_bytes()
    for option in ("--socket", "--control", "--trace", "--pid-file"):
        options = ["--disk", f"raw:{disk}", *(() if option == "--socket" else ("--socket", path)), option, disk]
        refused(run(*options), 2, f"{option} and --disk are both {disk}")
    assert disk.read_bytes() == before
    pool, name = folder / "pool", "6d0c1a5e-8f04-4e0b-9b4c-0a4f5a4b7c11.raw"
    for option, file in (("--disk", name), ("--trace", f"{name}.nvme"), ("--state", "lock"), ("--pid-file", name)):
        given = ["--socket", path, "--pool", pool, "--capacity", "1M"]
        refused(
            run(*given, option, link / "pool" / file), 2, f"{option} {link}/pool/{file} is a file of the pool {pool}"
        )
    assert not pool.exists()
    assert not os.path.exists(path)


def test_a_path_of_two_lines_is_told_in_one(path: str, folder: Path) -> None:
    two = f"{folder}/a\nb\x1b[2J"
    for words in (("--socket", path, "--disk", two), ("--drive", two), ("--socket", path, f"--no\n{two}")):
        assert "a\\nb\\x1b[2J" in refused(run(*words), 2 if "--disk" not in words else 1)


# --- sockets


def test_a_socket_path_that_cannot_be(folder: Path) -> None:
    long = str(folder / ("s" * 108))
    refused(run("--socket", long, "--disk", "mem:1M"), 1, "too long", "at most 107")
    refused(run("--socket", folder / "none/s", "--disk", "mem:1M"), 1, f"there is no folder {folder}/none")
    (folder / "file").touch()
    refused(run("--socket", folder / "file", "--disk", "mem:1M"), 1, "exists and is not a socket")
    assert (folder / "file").exists()
    folder.chmod(0o555)
    refused(run("--socket", folder / "s", "--disk", "mem:1M", command=PLAIN_USER), 1, "no permission")
    folder.chmod(0o755)


def test_the_longest_socket_path_works(folder: Path, serve: Serve) -> None:
    path = f"{folder}/" + "s" * (107 - len(f"{folder}/"))
    with VfioClient(serve("--disk", "mem:1M", at=path).path):
        pass


def test_a_live_servers_socket_is_left_alone_and_a_stale_one_replaced(path: str, serve: Serve) -> None:
    served = serve("--disk", "mem:1M")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for client in (None, VfioClient(path)):
        refused(run("--socket", path, "--disk", "mem:1M"), 1, "another server is listening")
        if client:
            assert len(client.read(BAR0, 0, 8)) == 8
            client.close()
    served.process.kill()
    served.wait()
    assert os.path.exists(path)
    again = serve("--disk", "mem:1M")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    VfioClient(path).close()
    assert again.stop() == 0
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    VfioClient(serve("--disk", "mem:1M").path).close()


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--socket PATH is missing"),
        (["--socket", "s"], "--disk SPEC is missing"),
        (["--disk", "mem:1M"], "--socket PATH is missing"),
        (["--sokcet", "s"], "unrecognized arguments"),
        (["--read"], "unrecognized arguments"),  # an abbreviation today is two options tomorrow
        (["--queues", "65"], "not a number from 1 to 64"),
        (["--queues", "many"], "'many' is not a number"),
        (["--mqes", "1"], "'1' is not a number from 2 to 65536"),
        (["--max-namespaces", "256"], "'256' is not a number from 1 to 255"),
        (["--dstrd", "16"], "'16' is not a number from 0 to 15"),
        (["--block-size", "513"], "invalid choice"),
        (["--vendor-id", "0x10000"], "not a number from 0 to 65535"),
        (["--log-level", "loud"], "invalid choice"),
        (["--ready-fd", "-3"], "not a number"),
        (["--size"], "expected one argument"),
        (["--nguid", "12"], "'12' is not 32 hexadecimal digits"),
        (["--uuid", "z" * 32], "is not 32 hexadecimal digits"),
        (["--eui64", "0" * 16], "and not all 0"),
        (["--cntlid", "0xffff"], "not a number from 0 to 65519"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str], words: str) -> None:
    assert "--help" in refused(run(*arguments), 2, words)


def test_without_a_command_it_says_which_there_are() -> None:
    result = run(command=(NVMEEMU,))
    assert result.returncode == 2
    commands = "serve, run, ctl, schema, trace, replay, check, profile, image"
    assert result.stderr == f"nvmeemu: give a command: {commands} (see nvmeemu --help)\n"


def test_bad_identifiers(path: str) -> None:
    disk = ("--socket", path, "--disk", "mem:1M")
    refused(run(*disk, "--eui64", "1" * 16, "--eui64", "2" * 16), 2, "--eui64: 2 are given, for 1 disk")
    twice = ("--disk", "mem:1M", "--nguid", "1" * 32, "--nguid", "1" * 32)
    refused(run(*disk, *twice), 2, "--nguid: give each namespace one of its own")
    for nqn in ("", "qn.x", "nqn.\n", "nqn." + "x" * 220):
        refused(run(*disk, f"--subnqn={nqn}"), 2, "bad NQN")
    refused(run(*disk, "--firmware", "123456789"), 2, "bad firmware", "1 to 8 printable")


@pytest.mark.parametrize(
    ("option", "text"), [("serial", ""), ("serial", "s" * 21), ("serial", "two\nlines"), ("model", "\udcff")]
)
def test_bad_names(path: str, option: str, text: str) -> None:
    refused(run("--socket", path, "--disk", "mem:1M", f"--{option}={text}"), 2, f"bad {option}", "printable ASCII")


def test_a_ready_fd_that_nobody_gave_us_is_not_ours(path: str, disk: Path) -> None:
    """Its number may be the one that our own disk gets: the line must not be written to it."""
    before = disk.read_bytes()
    for fd in range(3, 10):
        refused(run("--socket", path, "--disk", disk, "--ready-fd", fd), 2, f"--ready-fd {fd}: Bad file descriptor")
        assert not os.path.exists(path)
    assert disk.read_bytes() == before
    reading, writing = os.pipe()
    result = run("--socket", path, "--disk", disk, "--ready-fd", reading, pass_fds=[reading])
    refused(result, 2, "not open for writing")
    os.close(reading)
    result = run("--socket", path, "--disk", disk, "--ready-fd", writing, pass_fds=[writing])
    assert os.strerror(errno.EPIPE) in refused_late(result, path)
    os.close(writing)


def refused_late(result: subprocess.CompletedProcess[str], path: str) -> str:
    """It had announced itself already; nothing may stay."""
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert not os.path.exists(path)
    return result.stderr


def test_a_pid_file_that_cannot_be_written(path: str, folder: Path) -> None:
    refused(
        run("--socket", path, "--disk", "mem:1M", "--pid-file", folder / "none/pid"),
        1,
        f"--pid-file {folder}/none/pid: there is no folder {folder}/none",
    )
    refused(run("--socket", path, "--disk", "mem:1M", "--pid-file", folder), 1, "--pid-file", "Is a directory")
    assert not os.path.exists(path)


def test_a_pid_file_that_is_none(path: str, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    refused(run("--socket", path, "--disk", "mem:1M", "--pid-file", folder / "fifo"), 1, "--pid-file", "No such device")
    (folder / "notes").write_text("mine")
    refused(run("--socket", path, "--disk", "mem:1M", "--pid-file", folder / "notes"), 2, "no pid file: give another")
    assert (folder / "notes").read_text() == "mine"


def test_a_working_folder_that_is_gone(folder: Path) -> None:
    command = ("sh", "-c", f'mkdir {folder}/gone; cd {folder}/gone; rmdir {folder}/gone; exec "$0" serve "$@"', NVMEEMU)
    refused(run("--socket", "s", "--disk", "mem:1M", command=command), 1, "No such file or directory")


@pytest.mark.parametrize(
    "words",
    [
        ["nvmeemu", "--help"],
        ["nvmeemu", "--version"],
        ["nvmeemu", "--print-capabilities"],
        ["nvmeemu serve", "--help"],
        ["nvmeemu serve", "--version"],
        ["nvmeemu trace show", "--help"],
    ],
    ids=" ".join,
)
def test_help_that_cannot_be_written(words: list[str]) -> None:
    def result(stdout: int) -> tuple[int, str]:
        command = (NVMEEMU, *" ".join(words).split()[1:])
        environment = {"PYTHONUNBUFFERED": ""}  # argparse does not mind that nothing can be written
        streams = {"stdout": stdout, "stderr": subprocess.PIPE, "capture_output": False}
        ended = run(command=command, environment=environment, **streams)
        return ended.returncode, ended.stderr

    with open("/dev/full", "w") as full:
        assert result(full.fileno()) == (1, f"{words[0]}: standard output: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    assert result(writing) == (0, "")
    os.close(writing)


def test_an_output_that_takes_nothing(path: str) -> None:
    with open("/dev/full", "w") as full:
        result = run("--socket", path, "--disk", "mem:1M", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert "cannot write to the standard output: No space left" in refused_late(result, path)
    reading, writing = os.pipe()
    os.close(reading)
    result = run("--socket", path, "--disk", "mem:1M", stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    os.close(writing)
    assert "Broken pipe" in refused_late(result, path)


def test_started_with_closed_descriptors_it_writes_no_message_into_the_disk(path: str, disk: Path) -> None:
    """A file takes the lowest number that is free: stdout's or stderr's, if they are closed."""
    before = disk.read_bytes()
    command = ("sh", "-c", 'exec "$0" serve "$@" <&- >&- 2>&- 3>&-', NVMEEMU)
    process = subprocess.Popen([*command, "--socket", path, "--disk", disk, "--log-level", "debug"])
    try:
        while not os.path.exists(path):
            assert process.poll() is None
        Guest(path).leave()
    finally:
        process.terminate()
        assert process.wait() == 0
    assert disk.read_bytes() == before


# --- the installation, the guest


def test_a_package_without_the_binding_says_what_is_missing(path: str, folder: Path) -> None:
    shutil.copytree(SOURCE, folder / "nvmeemu", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = (sys.executable, "-m", "nvmeemu")
    environment = {"PYTHONPATH": str(folder)}
    result = run("--socket", path, "--disk", "mem:1M", command=(*command, "serve"), environment=environment)
    refused(result, 1, "libvfio-user binding is not built", "scripts/setup.sh", "LIBVFIO_USER_SRC")
    result = run("--print-capabilities", command=command, environment=environment)
    assert result.returncode == 0
    assert '"binding": false' in result.stdout


def test_guest_memory_that_is_not_shared_is_named_with_its_cure(path: str, serve: Serve) -> None:
    served = serve("--disk", "mem:1M")
    with VfioClient(path) as client:
        client.map(0, 512 * MIB)  # a region without a file: what QEMU sends without share=on
        client.write(BAR0, 0x14, bytes(4))
        served.expect("no memory of the guest is shared")
        assert "WARNING" in served.log
        assert "share=on" in served.log
        assert len(client.read(BAR0, 0, 8)) == 8
    served.expect("detached")
    assert served.stop() == 0
