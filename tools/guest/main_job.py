"""The main job: Linux partitions and formats the drive and writes files; after a power-off they must all be there.

The checksums come from the files' originals in the guest's memory, by way of the console: not from the drive.
"""

from __future__ import annotations

from nvmeemu.guest.device import NAMESPACE, wait_for_device
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest import image
from tools.guest.errors import UsageError
from tools.guest.identify import identify
from tools.guest.run import Run

PARTITION = NAMESPACE + "p1"
TOTAL = 16 << 20
# Around the sizes of blocks and pages, one that needs a long PRP list, and many small ones.
SIZES = (1, 511, 512, 513, 4095, 4096, 4097, 65537, 131072, 1000003, 4 << 20, *range(1000, 33000, 1000))

MAKE_FILES = """
mkdir -p /original/folder/deeper
cd /original
n=0
for size in {sizes}; do
    n=$((n + 1))
    case $((n % 3)) in 0) folder=. ;; 1) folder=folder ;; 2) folder=folder/deeper ;; esac
    head -c $size /dev/urandom >$folder/file-$n || exit 1
done
"""
WRITE_FILES = """
cd /original
find . -type d | while read -r folder; do mkdir -p "/mnt/$folder" || exit 1; done || exit 1
find . -type f | while read -r file; do dd if="$file" of="/mnt/$file" bs=1M conv=fsync 2>&1 || exit 1; done || exit 1
sync
"""
CHECKSUMS = "cd {folder} && find . -name lost+found -prune -o -type f -print | sort | xargs sha256sum"


def main_job(run: Run) -> str:
    """Run the main job. Returns its summary."""
    if run.settings.disk and not image.is_empty(run.image):
        raise UsageError(f"{run.image} is not empty: the main job would format it")
    expected = first_boot(run)
    release = second_boot(run, expected)
    on_host(run, expected)
    run.found.verified, run.found.resets = True, 1
    return (
        f"{run.boots} boots of Linux {release}, {TOTAL >> 20} MiB in {len(expected)} files "
        f"verified in the guest and on the host"
    )


def first_boot(run: Run) -> dict[str, str]:
    """Partition, format, write. Returns the checksums of what was written."""
    with run.boot(run.linux()) as guest:
        run.say("boot 1: waiting for Linux")
        run.say(f"boot 1: {identify(guest)}")
        guest.check(MAKE_FILES.format(sizes=" ".join(str(size) for size in (*SIZES, TOTAL - sum(SIZES)))))
        expected = checksums(guest, "/original")
        guest.check(f"echo 'label: gpt\n,,L' | sfdisk --quiet {NAMESPACE}")
        wait_for_device(guest, PARTITION)
        guest.check(f"mkfs.ext4 -q {PARTITION}")
        guest.check(f"mount -t ext4 {PARTITION} /mnt")
        guest.check(WRITE_FILES)
        guest.check("umount /mnt")
        run.say(f"boot 1: partitioned, formatted, {len(expected)} files written and synced")
        quiet_end(guest)
    return expected


def second_boot(run: Run, expected: dict[str, str]) -> str:
    """Verify every file after a power-off. Returns the kernel's release."""
    with run.boot(run.linux()) as guest:
        run.say("boot 2: waiting for Linux")
        wait_for_device(guest, NAMESPACE)
        wait_for_device(guest, PARTITION, 5)  # made together with the drive
        guest.check(f"e2fsck -f -n {PARTITION}")
        guest.check(f"mount -t ext4 {PARTITION} /mnt")
        image.compare(expected, checksums(guest, "/mnt"), "guest, after the power-off")
        guest.check("umount /mnt")
        run.say(f"boot 2: file system clean, {len(expected)} files verified")
        quiet_end(guest)
        return guest.kernel_release


def on_host(run: Run, expected: dict[str, str]) -> None:
    """Verify every file in the raw image."""
    folder = run.folder / "extracted"
    image.extract(run.image, image.partition(run.image), folder)
    image.compare(expected, image.checksums(folder), "host, in the raw image")
    run.say(f"host: {len(expected)} files verified in {run.image}")


def checksums(guest: Guest, folder: str) -> dict[str, str]:
    """SHA-256 of each file below a folder in the guest, by its path there."""
    found = {}
    for line in guest.check(CHECKSUMS.format(folder=folder)).splitlines():
        checksum, _, name = line.partition("  ./")
        if len(checksum) != 64 or not name:
            raise GuestError(f"sha256sum in the guest printed {line!r}")
        found[name] = checksum
    return found


def quiet_end(guest: Guest) -> None:
    """See that the kernel complained of nothing, in messages the console does not show either; power off."""
    guest.examine(guest.check("dmesg").splitlines())
    guest.power_off()
