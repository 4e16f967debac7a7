"""A guest behind an IOMMU that has as many pages mapped as it can: a DMA region each."""

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.conftest import CHECKOUT
from nvmeemu.guest.device import NAMESPACE
from nvmeemu.guest.drive import ServedDrive
from nvmeemu.guest.guest import Guest
from nvmeemu.vfio.memory import most_regions
from server.shim import Op, Shim, compile_shim
from tools.guest import cli
from tools.guest.identify import identify
from tools.guest.main_job import quiet_end
from tools.guest.run import Run

pytestmark = pytest.mark.slow

REGIONS = 32768
PIECE = 2 << 20
LOW_LIMIT = 6000
# nvme_core: requests are held for as long as the guest needs to map so much.
OPTIONS = ["--job", "io", "--iommu", "--mem", "2G", "--smp", "2", "--timeout", "1500"]
OPTIONS += ["--append", "nvme_core.io_timeout=600"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    settings = cli.parse(OPTIONS)
    subprocess.run([CHECKOUT / "scripts" / "setup.sh", *cli.components(settings)], check=True)
    return Run(settings, tmp_path)


@pytest.fixture
def shim(run: Run, tmp_path: Path) -> Iterator[Shim]:
    """Between the server and the run's image."""
    shim = Shim(compile_shim(tmp_path), tmp_path, run.image)
    yield shim
    shim.release()
    shim.close()


def regions(drive: ServedDrive) -> int:
    """How many the server has mapped."""
    return Path(f"/proc/{drive.server.pid}/maps").read_text().count("memfd:memory-backend-memfd")


def read_all_at_once(guest: Guest, count: int) -> None:
    """Start `count` reads of 2 MiB; their data goes to files."""
    guest.check("echo 2048 >/sys/block/nvme0n1/queue/max_sectors_kb; mkdir /tmp/read")
    read = f"dd if={NAMESPACE} of=/tmp/read/$i bs={PIECE} skip=$i count=1 iflag=direct 2>/tmp/read/$i.log"
    guest.check(f"for i in $(seq 0 {count - 1}); do ({read}; echo $? >/tmp/read/$i.status) & done")


def test_a_guest_uses_thirty_two_thousand_regions(run: Run, shim: Shim) -> None:
    count = 72
    content = os.urandom(count * PIECE)
    with run.image.open("r+b") as disk:
        disk.write(content)
    drive = ServedDrive(run.image, shim.engine, environment=shim.environment)
    with run.boot(run.linux(), drive=drive) as guest:
        identify(guest)
        shim.hold(Op.READ)
        read_all_at_once(guest, count)
        most = wait_for_regions(guest, drive, REGIONS)
        print(f"{most} regions")
        shim.release()
        guest.check(f"while [ $(ls /tmp/read/*.status | wc -l) != {count} ]; do sleep 0.2; done")
        digest = guest.check(f"for i in $(seq 0 {count - 1}); do cat /tmp/read/$i; done | sha256sum").split()[0]
        assert digest == hashlib.sha256(content).hexdigest()
        assert regions(drive) < 4096
        quiet_end(guest)
    assert most >= REGIONS


@pytest.mark.parametrize("limit", [LOW_LIMIT, most_regions()])
def test_beyond_the_limit_one_message_and_a_clean_failure(run: Run, shim: Shim, tmp_path: Path, limit: int) -> None:
    """A read either fails and says so, or is right; when the guest has taken pages back, all is well again.

    None need fail: Linux tries five times more, and meanwhile other reads end and give pages back.
    A lower limit is set in the server by a module that Python loads at its start.
    """
    (tmp_path / "sitecustomize.py").write_text(f"import nvmeemu.vfio.memory as m\nm.LIBRARY_REGIONS = {limit}\n")
    count = 5 * limit * 4096 // PIECE // 4
    content = os.urandom(count * PIECE)
    run.image.write_bytes(content)
    drive = ServedDrive(run.image, shim.engine, environment={**shim.environment, "PYTHONPATH": str(tmp_path)})
    with run.boot(run.linux(), drive=drive, complaints="") as guest:
        identify(guest)
        shim.hold(Op.READ)
        read_all_at_once(guest, count)
        most = wait_for_regions(guest, drive, 2 * limit, 10)
        shim.release()
        guest.check(f"while [ $(ls /tmp/read/*.status | wc -l) != {count} ]; do sleep 0.2; done", 300)
        good = [number for number in range(count) if guest.check(f"cat /tmp/read/{number}.status") == "0\n"]
        print(f"{most} regions, {count - len(good)} of {count} reads failed; {regions(drive)} regions after the reads")
        for number in good:
            digest = guest.check(f"sha256sum </tmp/read/{number}").split()[0]
            assert digest == hashlib.sha256(content[number * PIECE : (number + 1) * PIECE]).hexdigest()
        digest = guest.check(f"dd if={NAMESPACE} bs={PIECE} count=4 iflag=direct 2>/dev/null | sha256sum").split()[0]
        assert digest == hashlib.sha256(content[: 4 * PIECE]).hexdigest()
        assert "controller is down" not in guest.check("dmesg")
        guest.power_off()
    log = (guest.folder / "server.log").read_text()
    assert log.count("the most there can be") == 1, log
    assert good
    assert most > 0.95 * limit  # neighbours in the file are one mapping


def wait_for_regions(guest: Guest, drive: ServedDrive, wanted: int, patience: float = 20) -> int:
    """The number that it has come to; gives up when it does not grow any more."""
    most, since = 0, time.monotonic()
    while most < wanted and time.monotonic() < since + patience:
        guest.check("sleep 0.5")
        now = regions(drive)
        if now > most:
            most, since = now, time.monotonic()
    return most
