"""I/O that goes on in the guest while something happens to it: verify_io.py, started, watched, stopped and checked."""

from __future__ import annotations

import random
import time
from pathlib import Path

from nvmeemu.guest.device import NAMESPACE
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest import verify_io
from tools.guest.python import PYTHON, VERIFY_IO

BLOCKS = 2048  # a worker's share: 8 MiB
WORKERS = 4
PROGRESS_SECONDS = 120.0


class Load:
    """The same workers through all lives of a guest: what they wrote in one must be there in the next."""

    def __init__(self, workers: int = WORKERS, blocks: int = BLOCKS, device: str = NAMESPACE) -> None:
        self.seed = random.SystemRandom().randrange(1 << 32)
        self.blocks = blocks
        self.device = device
        self.rounds = [0] * workers  # acknowledged by the drive, as far as we know
        self.errors = 0  # that the workers met and overcame
        self._folder = f"/tmp/load-{Path(device).name}"

    def start(self, guest: Guest) -> None:
        """Start the workers, or let them go on."""
        guest.check(f"rm -rf {self._folder}; mkdir -p {self._folder}")
        words = f"{PYTHON} {VERIFY_IO} run {self.device} {self.seed} {self.blocks} {self._folder} {self._rounds()}"
        guest.check(f"setsid {words} >{self._folder}/log 2>&1 </dev/null &")
        self.progress(guest, 1)

    def progress(self, guest: Guest, rounds: int = 8) -> None:
        """Wait until each worker has done so many more rounds. Raises if one has found something wrong."""
        start = list(self.rounds)
        end = time.monotonic() + PROGRESS_SECONDS
        while any(now < before + rounds for now, before in zip(self.rounds, start, strict=True)):
            if time.monotonic() > end:
                progress = f"rounds {self.rounds}, {PROGRESS_SECONDS:g} s ago {start}"
                raise GuestError(f"the workers make no progress: {progress}")
            guest.check("sleep 0.2")
            self.look(guest)

    def look(self, guest: Guest) -> None:
        """Ask each worker how many rounds it has done."""
        names = " ".join(map(str, range(len(self.rounds))))
        said = guest.run(f"cd {self._folder}; cat *.failed log 2>/dev/null; echo ==; cat {names} 2>/dev/null").output
        trouble, _, reports = said.partition("==\n")
        if trouble:
            raise GuestError(f"I/O in the guest: {' '.join(trouble.split())} (seed {self.seed})")
        lines = [line.split() for line in reports.splitlines()]
        if len(lines) == len(self.rounds):
            self.rounds = [int(words[0]) for words in lines]
            self.errors = sum(int(words[1]) for words in lines)

    def stop(self, guest: Guest) -> None:
        """Tell the workers to end. Each then reads its whole share back and compares."""
        guest.check(f"touch {self._folder}/stop")
        reports = f"{self._folder}/[0-9] {self._folder}/[0-9].failed"
        many = f"[ $(cat {reports} 2>/dev/null | grep -c -e done -e :) = {len(self.rounds)} ]"
        if guest.run(f"for i in $(seq 1200); do {many} && exit; sleep 0.1; done; exit 1").status:
            raise GuestError("the workers do not end")
        self.look(guest)

    def check(self, guest: Guest, *, exact: bool = True) -> None:
        """Read everything back in the guest. Not exact: after a crash; then we learn what had been done."""
        how = "exact" if exact else "later"
        words = f"{PYTHON} {VERIFY_IO} check {self.device} {self.seed} {self.blocks} {how} {self._rounds()}"
        result = guest.run(words)
        if result.status:
            raise GuestError(f"in the guest: {result.output.strip()} (seed {self.seed})")
        self.rounds = [int(number) for number in result.output.split()[1:]]

    def check_on_host(self, image: Path, *, exact: bool = True) -> None:
        """Read everything back and compare, on the host, in the raw image."""
        try:
            for worker in verify_io.workers(self.seed, self.blocks, self.rounds):
                verify_io.check(verify_io.Device(str(image), direct=False), worker, exact=exact)
        except verify_io.Mismatch as error:
            raise GuestError(f"host: {error} (seed {self.seed})") from None

    def __str__(self) -> str:
        written = 0
        for worker in verify_io.workers(self.seed, self.blocks, [0] * len(self.rounds)):
            written += sum(worker.place(number + 1)[1] for number in range(self.rounds[worker.number]))
        return f"{sum(self.rounds)} rounds, {written * verify_io.BLOCK >> 20} MiB verified"

    def _rounds(self) -> str:
        return " ".join(map(str, self.rounds))
