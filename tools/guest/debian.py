"""A whole Debian system on the drive: firmware, GRUB, systemd, a login; what it wrote survives its power-off."""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from nvmeemu.guest import cache
from nvmeemu.guest.agent import AGENT
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest import image
from tools.guest.errors import UsageError
from tools.guest.run import Run

PASSWORD = "nvmeemu"  # as in scripts/lib/systems.sh
WRITTEN = 4 << 20
FILE = "/var/lib/written-at-the-first-boot"
IDENTIFY_FILE = f"sha256sum <{FILE}"


def debian_job(run: Run) -> str:
    """Boot twice to a login, on a copy of the image. The first boot writes a file; the second boot and the host must
    find it."""
    if run.settings.disk:
        raise UsageError("--job debian brings its own disk: no --disk")
    run.image.unlink()
    copy(cache.present(cache.root() / "debian" / "disk.img"), run.image)
    machine = replace(run.machine, firmware=run.settings.firmware)
    with run.boot(machine) as guest:
        release = log_in(run, guest)
        guest.check(f"head -c {WRITTEN} /dev/urandom >{FILE} && sync {FILE}")
        written = guest.check(IDENTIFY_FILE)
        guest.power_off("systemctl poweroff")
    with run.boot(machine) as guest:
        log_in(run, guest)
        if guest.check(IDENTIFY_FILE) != written:
            raise GuestError("at the second boot the file holds something else")
        guest.power_off("systemctl poweroff")
    on_host = image.read_file(run.image, image.partition(run.image, 3), FILE)
    if image.sha256(on_host) != written.split()[0]:
        raise GuestError("host: the file in the raw image holds something else")
    run.found.verified, run.found.resets = True, 1
    run.found.guest = f"{release}, systemd"
    return f"{release} booted twice to a login, found {WRITTEN >> 20} MiB from the first boot; so did the host"


def log_in(run: Run, guest: Guest) -> str:
    """Wait for the login, log in as root, see that the system is well. Returns the system's name."""
    guest.expect(r"login: ")
    run.say(f"boot {run.boots}: a login prompt")
    guest.send("root\n")
    guest.expect("Password: ")
    guest.send(f"{PASSWORD}\n")
    guest.expect(r"root@\S+# ")
    agent = base64.b64encode(AGENT.encode()).decode()
    guest.send(f"echo {agent} | base64 -d >/tmp/agent; exec sh /tmp/agent\n")
    guest.check("systemctl is-system-running --wait")  # fails when a unit has failed, a mount among them
    if guest.check("findmnt -n -o SOURCE /").strip() != "/dev/nvme0n1p3":
        raise GuestError("the root file system is not on the drive")
    guest.examine(guest.check("dmesg").splitlines())
    return guest.check(". /etc/os-release && echo $NAME $VERSION_ID").strip() + f", Linux {guest.kernel_release}"


def copy(source: Path, target: Path) -> None:
    """Copy a file without its holes. Where the file system can share blocks, the copy takes no room at all."""
    program = shutil.which("cp") or "cp"
    subprocess.run([program, "--reflink=auto", "--sparse=always", str(source), str(target)], check=True)
