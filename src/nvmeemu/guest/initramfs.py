"""The small Linux user space that the guest runs from memory: busybox, the disk tools and a shell agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nvmeemu.guest import elf, modules
from nvmeemu.guest.agent import AGENT
from nvmeemu.guest.cpio import Archive
from nvmeemu.guest.errors import GuestError

PROGRAMS = ("mkfs.ext4", "e2fsck", "sfdisk", "nvme")
SEARCHED = ("usr/sbin", "sbin", "usr/bin", "bin")
LIBRARY_FOLDERS = (
    *("usr/lib/{triplet}", "lib/{triplet}", "usr/lib64", "lib64", "usr/lib", "lib"),
    "usr/lib/{triplet}/ceph",  # fio wants Ceph's
    "usr/lib/{triplet}/systemd",  # and udevadm systemd's
)

INIT = """\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
for module in /modules/*; do # with what the kernel's command line says for it, as modprobe does
    name=${module##*/??-} options=
    for word in $(cat /proc/cmdline); do
        case $word in "${name%.ko}".*) options="$options ${word#*.}" ;; esac
    done
    [ ! -e "$module" ] || insmod "$module" $options
done
sh /agent </dev/console &
wait $!  # for all others, too: nobody else reaps what a killed command leaves
poweroff -f
"""


def build(
    tools: Path,
    triplet: str,
    kernel: Path | None = None,
    *,
    programs: Mapping[str, Path] | None = None,
    drivers: Sequence[str] = (),
    more: Callable[[Archive], None] | None = None,
) -> bytes:
    """The archive, made from an unpacked root of Debian packages. Not compressed: unpacking it costs the guest more.

    `kernel` is the folder of set-up's with its modules, left out if None. `programs` are more programs, by name, from
    roots of their own, `drivers` more kernel modules; `more` adds whatever else is wanted.
    """
    archive = Archive()
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", find(tools, "busybox").read_bytes(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("agent", AGENT.encode())
    for name, root in (dict.fromkeys(PROGRAMS, tools) | dict(programs or {})).items():
        add_program(archive, root, triplet, find(root, name), f"usr/sbin/{name}")
    wanted = (*modules.WANTED, *drivers)
    for number, module in enumerate(modules.load_order(kernel, wanted) if kernel else ()):
        archive.file(f"modules/{number:02}-{module.name.partition('.')[0]}.ko", modules.content(module))
    if more:
        more(archive)
    return archive.finish()


def add_program(archive: Archive, root: Path, triplet: str, program: Path, place: str) -> None:
    """Add a program of an unpacked root at a place in the archive, and the libraries that it needs. Raises
    GuestError."""
    archive.file(place, program.read_bytes(), 0o755)
    _add_libraries(archive, root, triplet, program)


def _add_libraries(archive: Archive, tools: Path, triplet: str, program: Path) -> None:
    needs = elf.needs(program)
    if needs.interpreter and needs.interpreter not in archive:
        archive.file(needs.interpreter, _library(tools, triplet, Path(needs.interpreter).name).read_bytes(), 0o755)
    for name in needs.libraries:
        if f"usr/lib/{name}" not in archive:
            add_program(archive, tools, triplet, _library(tools, triplet, name), f"usr/lib/{name}")


def find(root: Path, name: str) -> Path:
    """The path of a program of an unpacked root. Raises GuestError if it has none."""
    return _first(root, SEARCHED, name)


def _library(tools: Path, triplet: str, name: str) -> Path:
    return _first(tools, [folder.format(triplet=triplet) for folder in LIBRARY_FOLDERS], name)


def _first(tools: Path, folders: Sequence[str], name: str) -> Path:
    for folder in folders:
        path = tools / folder / name
        if path.is_file():
            return path
    raise GuestError(f"{name} is in no folder of {tools}: run scripts/setup.sh")
