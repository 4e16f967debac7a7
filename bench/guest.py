"""fio in one Linux guest under TCG, on our drives and on those that QEMU has itself, in turns.

What counts is IOPS: the guest's clock runs on while the host does something else, so its latencies say little. A round
in which others took much of the machine is dropped. Images are raw files in the page cache for all. In a second boot
QEMU counts the accesses to each device's registers: without ioeventfds, which would hide them.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import cpu
from bench.marks import Mark
from bench.rounds import Chosen
from bench.target import MIB, has_mapped
from nvmeemu.guest import cache, initramfs
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.drive import GuestDrive, ServedDrive
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from tools.guest.linux import SeveralDrives
from tools.guest.run import Run, Settings

ROUNDS = 10
TRIES = 2  # times the rounds wanted, at the most
MOST_OF_OTHERS = 0.05  # of all CPUs, in a round
SECONDS = 1.5  # of a round
DEPTHS = (1, 32)
LOADS = ("randread", "randwrite")
COUNTED = 2000  # I/Os whose register accesses are counted
IDLE_SECONDS = 10.0
IMAGE = 128 * MIB
DRIVERS = ("virtio_blk", "ahci", "sd_mod")
EVENTS = ("memory_region_ops_read", "memory_region_ops_write")
ACCESS = re.compile(r"memory_region_ops_(?:read|write) .* name '([^']*)'")

Key = tuple[str, int, str]  # rival, depth, load
MARKS = {
    "guest_over_qemu_nvme_qd1_default": Mark(1.1, is_least=True),
    "guest_over_qemu_nvme_qd1_mapped": Mark(1.2, is_least=True),  # or the default, if that is better
    "guest_over_qemu_nvme_qd32_default": Mark(0.8, is_least=True),
    "guest_over_qemu_nvme_qd32_mapped": Mark(1.0, is_least=True),
    "guest_idle_cpu_percent_default": Mark(0.5, is_inclusive=False),
    "guest_idle_cpu_percent_mapped": Mark(1, is_inclusive=False),
}


class QemuDrive:
    """A device of QEMU's own on a raw image."""

    def __init__(self, name: str, image: Path, device: dict[str, object]) -> None:
        self.image = image
        self.serial = name
        self._device = device

    def start(self, folder: Path, deadline: Deadline) -> list[str]:
        node = {"driver": "raw", "node-name": self.serial, "file": {"driver": "file", "filename": str(self.image)}}
        device = {**self._device, "drive": self.serial, "serial": self.serial}
        return ["-blockdev", json.dumps(node), "-device", json.dumps(device)]

    def check(self) -> None:
        """It is part of QEMU, as are its end and its death."""

    def finish(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Rival:
    """One of the drives that are compared."""

    name: str  # and its serial number
    drive: GuestDrive
    device: str  # a glob over /sys/block


def rivals(folder: Path, *, ioeventfd: bool = True) -> list[Rival]:
    """Ours in each mode, and QEMU's."""

    def image(name: str) -> Path:
        path = folder / f"{name}.img"
        if not path.exists():
            path.write_bytes(name.encode().ljust(4096, b"\x5a") * (IMAGE // 4096))
        return path

    def ours(name: str, *arguments: str) -> Rival:
        return Rival(name, ServedDrive(image(name), ["--engine", "native", "--serial", name, *arguments]), "nvme*")

    found = [ours("default")]
    if has_mapped():
        found.append(ours("mapped", "--doorbells", "mapped"))
    theirs: list[tuple[str, dict[str, object], str]] = [
        ("qemu-nvme", {"driver": "nvme", "ioeventfd": ioeventfd}, "nvme*"),
        ("virtio-blk", {"driver": "virtio-blk-pci", "ioeventfd": ioeventfd}, "vd*"),
        ("ahci", {"driver": "ide-hd", "bus": "ide.0"}, "sd*"),
    ]
    return found + [Rival(name, QemuDrive(name, image(name), device), glob) for name, device, glob in theirs]


class FioGuest:
    """A running guest with all rivals."""

    def __init__(self, guest: Guest, all_rivals: Sequence[Rival]) -> None:
        self.guest = guest
        self._paths = {rival.name: self._path(rival) for rival in all_rivals}

    def _path(self, rival: Rival) -> str:
        seen = f"/sys/block/{rival.device}"
        # virtio and NVMe tell the serial number; there is only one SATA drive
        find = f"for i in $(seq 100); do for d in {seen}; do " + (
            f"grep -qs '^{rival.name} *$' $d/serial $d/device/serial $d/../../serial && basename $d && exit; "
            if rival.device != "sd*"
            else "[ -e $d ] && basename $d && exit; "
        )
        result = self.guest.run(find + "done; sleep 0.1; done; exit 1")
        if result.status:
            raise GuestError(f"the guest shows no drive {rival.name}")
        return f"/dev/{result.output.strip()}"

    def fio(self, jobs: Sequence[tuple[str, str, str]], timeout: float) -> dict[str, float]:
        """Jobs (name, rival, options), one after the other; IOPS by name."""
        text = "[global]\nioengine=libaio\ndirect=1\nbs=4k\nnorandommap\nrandrepeat=0\ngroup_reporting=0\n"
        for name, rival, options in jobs:
            text += f"[{name}]\nstonewall\nfilename={self._paths[rival]}\n{options}\n"
        for start in range(0, len(text), 1000):  # what a command has room for
            how = ">>" if start else ">"
            self.guest.check(f"printf '%s' '{text[start : start + 1000]}' {how}/tmp/jobs")
        fields = "3,5,8,49"  # of fio's terse format: name, error, IOPS of reads and of writes
        output = self.guest.check(f"fio --minimal /tmp/jobs >/tmp/out && cut -d';' -f{fields} /tmp/out", timeout)
        found = {}
        for line in output.splitlines():
            name, error, reads, writes = line.split(";")
            if error != "0":
                raise GuestError(f"fio's job {name} ended with error {error}")
            found[name] = float(reads) + float(writes)
        if len(found) != len(jobs):
            raise GuestError(f"fio reported {len(found)} of {len(jobs)} jobs: {output[-200:]}")
        return found


def marks(found: Mapping[str, object]) -> dict[str, Mark]:
    """Those of what has been measured."""
    return {name: mark for name, mark in MARKS.items() if name in found}


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, object]:
    """All of it; prints tables. Raises GuestError, OSError."""
    with tempfile.TemporaryDirectory(prefix="bench-guest-") as name:
        run = Run(Settings(job="bench", accel="tcg", mem="1G", timeout=5400), Path(name))
        found: dict[str, object] = {}
        all_rivals = rivals(run.folder)
        with _boot(run, all_rivals) as guest:
            fio = FioGuest(guest, all_rivals)
            idle = _idle(all_rivals)
            before, begin = cpu.threads(guest.qemu.pid), time.monotonic_ns()
            chosen = _race(run, fio, all_rivals, rounds, seconds)
            waited = max(one.waited for one in cpu.spent(before, cpu.threads(guest.qemu.pid)).values())
            disturbed = round(waited / (time.monotonic_ns() - begin) * 100, 1)
            guest.power_off()
        iops = {key: [one[key] for one in chosen.kept] for key in chosen.kept[0]}
        found |= _ratios(iops)
        found |= {f"guest_idle_cpu_percent_{name}": percent for name, percent in idle.items()}
        found["guest_disturbed_percent"] = disturbed
        found["guest_rounds"] = chosen.counts()
        found["guest_iops"] = {
            f"{rival} {load} qd{depth}": round(median(v)) for (rival, depth, load), v in iops.items()
        }
        all_rivals = rivals(run.folder, ioeventfd=False)
        with _boot(run, all_rivals) as guest:
            found["guest_register_accesses"] = _accesses(run, FioGuest(guest, all_rivals), all_rivals)
            guest.power_off()
    return found


def _boot(run: Run, all_rivals: Sequence[Rival]) -> Guest:
    arch = run.settings.arch
    kernel = cache.kernel(arch.debian)
    initrd = run.folder / "initrd-fio"
    if not initrd.exists():
        programs = {"fio": cache.present(cache.root() / "tools-fio" / arch.debian)}
        tools, modules = cache.tools(arch.debian), cache.modules_of(kernel)
        initrd.write_bytes(initramfs.build(tools, arch.triplet, modules, programs=programs, drivers=DRIVERS))
    return run.boot(run.custom(kernel, initrd), drive=SeveralDrives([rival.drive for rival in all_rivals]))


def _idle(all_rivals: Sequence[Rival]) -> dict[str, float]:
    """Per cent of a CPU that our servers take while the guest does nothing."""
    time.sleep(IDLE_SECONDS / 5)
    pids = _pids(all_rivals)
    return dict(zip(pids, cpu.percents(list(pids.values()), IDLE_SECONDS), strict=True))


def _pids(all_rivals: Sequence[Rival]) -> dict[str, int]:
    """Of our servers, by their names."""
    return {one.name: one.drive.server.pid for one in all_rivals if isinstance(one.drive, ServedDrive)}


def _race(
    run: Run, fio: FioGuest, all_rivals: Sequence[Rival], rounds: int, seconds: float
) -> Chosen[dict[Key, float]]:
    """IOPS of the rounds."""
    keys = [(one.name, depth, load) for depth in DEPTHS for load in LOADS for one in all_rivals]
    run.say(f"{len(all_rivals)} drives, {rounds} rounds of {len(keys)} jobs of {seconds:g} s")
    chosen: Chosen[dict[Key, float]] = Chosen(rounds, MOST_OF_OTHERS)
    others = cpu.Others([os.getpid(), fio.guest.qemu.pid, *_pids(all_rivals).values()])
    for number in range(rounds * TRIES):
        jobs = [
            (f"j{index}", name, f"rw={load}\niodepth={depth}\ntime_based\nruntime={int(seconds * 1000)}ms")
            for index, (name, depth, load) in enumerate(keys)
        ]
        by_job = fio.fio(jobs, 60 + 3 * len(jobs) * seconds)
        found = {key: by_job[f"j{index}"] for index, key in enumerate(keys)}
        share = others.share()
        chosen.add(share, found)
        run.say(f"round {number + 1}: {_some(found)}; others took {share:.1%} of the CPUs")
        if chosen.is_done:
            break
    run.say("rounds: " + ", ".join(f"{count} {what}" for what, count in chosen.counts().items()))
    return chosen


def _some(found: Mapping[Key, float]) -> str:
    """Of one load."""
    return ", ".join(
        f"{name} {iops:.0f}" for (name, depth, load), iops in found.items() if (depth, load) == (1, LOADS[0])
    )


def _ratios(iops: dict[Key, list[float]]) -> dict[str, object]:
    """Ours over each of QEMU's: the geometric mean over the loads of the median over the rounds."""
    found: dict[str, object] = {}
    names = list(dict.fromkeys(name for name, _, _ in iops))
    for mode in (name for name in names if name in ("default", "mapped")):
        for rival in (name for name in names if name not in ("default", "mapped")):
            for depth in DEPTHS:
                logs = []
                for load in LOADS:
                    pairs = zip(iops[mode, depth, load], iops[rival, depth, load], strict=True)
                    logs.append(math.log(median(ours / theirs for ours, theirs in pairs)))
                ratio = math.exp(sum(logs) / len(logs))
                found[f"guest_over_{rival.replace('-', '_')}_qd{depth}_{mode}"] = round(ratio, 3)
    return found


def _accesses(run: Run, fio: FioGuest, all_rivals: Sequence[Rival]) -> dict[str, float]:
    """Accesses to each drive's registers per I/O, as QEMU sees them; what all devices have in common is left out."""
    found = {}
    for depth in DEPTHS:
        for rival in all_rivals:
            options = f"rw=randread\niodepth={depth}\nnumber_ios={COUNTED}"
            counts = _counted(fio, [("count", rival.name, options)])
            own = {name: number for name, number in counts.items() if _is_drive(name)}
            found[f"{rival.name} qd{depth}"] = round(sum(own.values()) / COUNTED, 3)
            run.say(f"{rival.name} qd{depth}: {found[f'{rival.name} qd{depth}']} accesses per I/O ({own})")
    return found


def _is_drive(region: str) -> bool:
    return any(word in region for word in ("nvme", "ahci", "virtio", "BAR"))


def _counted(fio: FioGuest, jobs: Sequence[tuple[str, str, str]]) -> Counter[str]:
    """Accesses while these jobs run, by the name of the memory region."""
    log = fio.guest.folder / "qemu.log"
    start = log.stat().st_size
    for enable in (True, False):
        for event in EVENTS:
            fio.guest.monitor.execute("trace-event-set-state", {"name": event, "enable": enable}, fio.guest.deadline)
        if enable:
            fio.fio(jobs, 300)
    with log.open("rb") as file:
        file.seek(start)
        return Counter(ACCESS.findall(file.read().decode(errors="replace")))
