"""The small Linux user space that the guest runs from memory: busybox, the disk tools and a shell agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvmeemu.guest import elf
from nvmeemu.guest.cpio import Archive
from nvmeemu.guest.errors import GuestError

PROGRAMS = ("mkfs.ext4", "e2fsck", "sfdisk", "nvme")
SEARCHED = ("usr/sbin", "sbin", "usr/bin", "bin")
LIBRARY_FOLDERS = ("usr/lib/{triplet}", "lib/{triplet}", "usr/lib64", "lib64", "usr/lib", "lib")

# Reads commands from the console, runs each in a shell of its own, and says how it ended. A command comes as an id, its
# text in base64 and a line with a dot. -onlcr: see console.py.
AGENT = """\
stty -echo -onlcr
echo "@@ready $(uname -r)"
while read -r id; do
    text=
    while read -r line && [ "$line" != . ]; do text="$text$line"; done
    echo "$text" | base64 -d >/tmp/command
    sed "s/^/@@> /" /tmp/command
    echo "@@begin $id"
    sh /tmp/command </dev/null 2>&1
    echo "@@end $id $?"
done
"""

INIT = """\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
{agent}
poweroff -f
"""


def build(tools: Path, triplet: str) -> bytes:
    """The archive, made from an unpacked root of Debian packages. Not compressed: unpacking it costs the guest more."""
    archive = Archive()
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", _find(tools, "busybox").read_bytes(), 0o755)
    archive.file("init", INIT.format(agent=AGENT).encode(), 0o755)
    for name in PROGRAMS:
        program = _find(tools, name)
        archive.file(f"usr/sbin/{name}", program.read_bytes(), 0o755)
        _add_libraries(archive, tools, triplet, program)
    return archive.finish()


def _add_libraries(archive: Archive, tools: Path, triplet: str, program: Path) -> None:
    needs = elf.needs(program)
    if needs.interpreter and needs.interpreter not in archive:
        archive.file(needs.interpreter, _library(tools, triplet, Path(needs.interpreter).name).read_bytes(), 0o755)
    for name in needs.libraries:
        if f"usr/lib/{name}" not in archive:
            library = _library(tools, triplet, name)
            archive.file(f"usr/lib/{name}", library.read_bytes(), 0o755)
            _add_libraries(archive, tools, triplet, library)


def _find(tools: Path, name: str) -> Path:
    return _first(tools, SEARCHED, name)


def _library(tools: Path, triplet: str, name: str) -> Path:
    return _first(tools, [folder.format(triplet=triplet) for folder in LIBRARY_FOLDERS], name)


def _first(tools: Path, folders: Sequence[str], name: str) -> Path:
    for folder in folders:
        path = tools / folder / name
        if path.is_file():
            return path
    raise GuestError(f"{name} is in no folder of {tools}: run scripts/setup.sh")
