"""The command line of scripts/run_qemu_guest.sh: `python -m tools.guest`."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nvmeemu.app import process
from nvmeemu.guest import cache
from nvmeemu.guest.console import Transcript
from nvmeemu.guest.errors import GuestError
from tools.guest import arches, image, record, user_image
from tools.guest.errors import UsageError
from tools.guest.jobs import JOBS
from tools.guest.run import Run, Settings
from tools.guest.systems import SYSTEMS, System

PROGRAM = "run_qemu_guest.sh"
SUITES = ("bullseye", "bookworm", "trixie", "trixie-backports", "forky")
# Options that are for the job "boot", and choose it.
OF_BOOT = ("os", "boot_disk", "sata_disk", "iso", "initrd", "expect", "power_button", "screenshot")
MOST_CPUS = 64
CONSOLE_LINES = 30
LOG_LINES = 10
PER_ARCH = ("linux", "tools", "tools-python", "grub")  # components that set-up makes for one architecture
FIRMWARE_COMPONENTS = {"ovmf": "ovmf", "edk2": "aavmf"}
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit status: 0 passed, 1 failed, 2 bad use."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        settings = parse(words)
        if words[:1] == ["--print-components"]:
            print(" ".join(components(settings)))
            return 0
    except UsageError as error:
        return _bad_use(error)
    before = {number: signal.signal(number, _interrupt) for number in ENDING_SIGNALS}
    try:
        return run(settings)
    except UsageError as error:
        return _bad_use(error)
    except OSError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    except KeyboardInterrupt:  # before or after the job itself
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
    finally:  # whoever calls us in a process of its own keeps its signals
        for number, handler in before.items():
            signal.signal(number, handler)
    return 1


def run(settings: Settings) -> int:
    """Run the job in a folder of its own, and say how it ended; the folder stays if it failed by itself."""
    folder = Path(tempfile.mkdtemp(prefix="nvmeemu-guest-"))
    keep = settings.keep
    this = None
    try:
        this = Run(settings, folder)
        summary = JOBS[settings.job].run(this)
        verdict = f"guest: PASS ({settings.job}: {summary}, {this.seconds():.0f} s, {this.machine.accel})"
        status = 0
    except UsageError:
        keep = False
        raise
    except (GuestError, OSError) as error:
        keep = True
        _show_failure(folder, settings)
        verdict = f"guest: FAIL ({' '.join(str(error).split())})"
        status = 1
    except KeyboardInterrupt:
        _show_failure(folder, settings)
        verdict = "guest: FAIL (interrupted)"
        status = 1
    finally:
        _ignore_signals()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if this and settings.result_json:
        this.record(status == 0, verdict).append(settings.result_json)
    if keep:
        print(f"the files are kept in {folder}")
    print(verdict, flush=True)
    return status


def parse(words: Sequence[str]) -> Settings:
    """The settings that the command line asks for; raises UsageError."""
    options = _parser().parse_args(_joined(words))
    values = {name: value for name, value in vars(options).items() if name != "print_components"}
    for name in ("expect", "nvme_args", "qemu_args"):
        values[name] = tuple(values[name])
    values["arch"] = arches.find(options.arch)
    custom = any(getattr(options, name) for name in OF_BOOT)
    values["job"] = options.job or ("boot" if custom else "main")
    if options.os:
        _apply_system(SYSTEMS[options.os], values)
    values["mem"] = values["mem"] or JOBS[values["job"]].mem
    values["display"] = values["display"] or "none"
    usable = [name for name in values["arch"].firmware if name in JOBS[values["job"]].firmware]
    values["firmware"] = values["firmware"] or next(iter(usable), "none")
    values["timeout"] = values["timeout"] or JOBS[values["job"]].timeout
    values["smp"] = values["smp"] or JOBS[values["job"]].smp
    values["options"] = record.identity(_joined(words))
    settings = Settings(**values)
    _check(settings)
    return settings


def _apply_system(system: System, values: dict[str, Any]) -> None:
    """Its defaults, where nothing else was asked for."""
    for name in ("firmware", "mem", "smp", "display", "timeout"):
        values[name] = values[name] or getattr(system, name)
    attended = values["iso"] or values["power_button"] is not None or values["display"] != "none"
    if not values["expect"] and not attended:
        values["expect"] = system.expect


def components(settings: Settings) -> list[str]:
    """The components that scripts/setup.sh must make for this run."""
    guest = settings.arch
    names = ["base"]
    if settings.qemu is None:
        names.append(f"qemu:{guest.qemu_package}")
    own = settings.boot_disk or settings.sata_disk or settings.iso
    for kind in () if own else JOBS[settings.job].components:
        suite = f":{settings.linux}" if kind == "linux" else ""
        names.append(f"{kind}{suite}:{guest.debian}" if kind in PER_ARCH else kind)
    probe = f"linux:{cache.DEFAULT_SUITE}:{guest.debian}"
    if settings.accel == "kvm" and probe not in names:  # to see whether guests run under it
        names.append(probe)
    if settings.firmware in FIRMWARE_COMPONENTS:
        names.append(FIRMWARE_COMPONENTS[settings.firmware])
    return names


def _check(settings: Settings) -> None:
    _check_inputs(settings)
    _check_job(settings)
    _check_disks(settings)
    _check_screen(settings)
    _check_images(settings)
    _check_outputs(settings)
    _check_firmware(settings)
    _check_machine(settings)


def _check_inputs(settings: Settings) -> None:
    for name in ("disk", "kernel", "initrd", "boot_disk", "sata_disk", "iso", "qemu"):
        path: Path | None = getattr(settings, name)
        if path and not path.exists():
            raise UsageError(f"--{name.replace('_', '-')} {path}: no such file")
        _check_no_folder(name, path)


def _check_job(settings: Settings) -> None:
    asked = [name for name in OF_BOOT if getattr(settings, name)]
    if settings.job == "boot" and not (asked or settings.kernel):
        raise UsageError("--job boot needs --kernel, --initrd, --boot-disk, --sata-disk, --iso or --expect")
    if settings.job != "boot" and asked:
        raise UsageError(f"--job {settings.job} takes no --{asked[0].replace('_', '-')}")
    if settings.peer and settings.nvme_args:
        raise UsageError("--nvme-arg is for nvmeemu serve, which --peer does not run")


def _check_outputs(settings: Settings) -> None:
    for name in ("serial_log", "result_json", "screenshot"):
        output: Path | None = getattr(settings, name)
        if output and not output.parent.is_dir():
            raise UsageError(f"--{name.replace('_', '-')} {output}: no such folder")
        _check_no_folder(name, output)


def _check_firmware(settings: Settings) -> None:
    if settings.firmware not in settings.arch.firmware:
        raise UsageError(f"no firmware {settings.firmware!r} for {settings.arch.name}")
    usable = JOBS[settings.job].firmware
    if not set(usable) & set(settings.arch.firmware):
        names = ", ".join(one.name for one in arches.ARCHES.values() if set(usable) & set(one.firmware))
        raise UsageError(f"--job {settings.job} is for --arch {names}, not for {settings.arch.name}")
    if settings.firmware not in usable:
        raise UsageError(f"--job {settings.job} needs another firmware: {', '.join(usable)}")


def _check_machine(settings: Settings) -> None:
    if settings.iommu and not settings.arch.iommu:
        raise UsageError(f"no --iommu for {settings.arch.name}")
    if settings.kernel and settings.linux != cache.DEFAULT_SUITE:
        raise UsageError("--kernel and --linux exclude each other")
    if settings.kernel and arches.of_kernel(settings.kernel) not in ("", settings.arch.name):
        raise UsageError(f"--kernel {settings.kernel} is for --arch {arches.of_kernel(settings.kernel)}")
    for pattern in settings.expect:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--expect {pattern!r}: {error}") from None


def _check_no_folder(name: str, path: Path | None) -> None:
    if path and path.is_dir():
        raise UsageError(f"--{name.replace('_', '-')} {path} is a folder")


def _check_disks(settings: Settings) -> None:
    own = settings.boot_disk or settings.sata_disk or settings.iso
    if own and (settings.kernel or settings.initrd or settings.append):
        raise UsageError("what boots from a disk brings its own kernel: no --kernel, --initrd, --append")
    if settings.boot_disk and (settings.disk or settings.sata_disk):
        raise UsageError("--boot-disk is the only drive: no --disk, --sata-disk")
    if settings.os and not own:
        raise UsageError("--os needs --boot-disk, --sata-disk or --iso")
    if settings.write and not (settings.boot_disk or settings.sata_disk):
        raise UsageError("--write needs --boot-disk or --sata-disk")


def _check_screen(settings: Settings) -> None:
    if settings.screenshot and settings.display == "none":
        raise UsageError("--screenshot needs a screen: --display vnc")
    if settings.display != "none" and settings.arch.name != "x86_64":
        raise UsageError(f"no --display for {settings.arch.name}")


def _check_images(settings: Settings) -> None:
    if settings.disk:
        image.require_raw(settings.disk)
    if settings.iso:
        user_image.require_cd(settings.iso)
    if settings.boot_disk:
        form = user_image.format_of(settings.boot_disk)
        if settings.write and form != "raw":
            raise UsageError(f"--write wants a raw image: qemu-img convert -O raw makes one of {form}")


def _parser() -> Parser:
    jobs = "\n".join(f"  {name:12}{job.about}" for name, job in JOBS.items())
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Boots a guest under QEMU with nvmeemu as its NVMe drive, and says whether it worked:\n"
        "one last line, `guest: PASS (...)` or `guest: FAIL (...)`; exit status 0, 1, or 2 for bad use.",
        epilog=f"jobs:\n{jobs}",
    )
    _add_what_to_do(parser.add_argument)
    _add_machine(parser.add_argument)
    _add_run(parser.add_argument)
    return parser


def _add_what_to_do(add: Callable[..., object]) -> None:
    add("--job", choices=JOBS, metavar="NAME", help="what to do, see below")
    add("--disk", type=Path, metavar="FILE", help="the drive's raw image, kept (default: a throw-away one of 256 MiB);"
        " the main job wants an empty one")  # fmt: skip
    add("--linux", default=cache.DEFAULT_SUITE, choices=SUITES, metavar="SUITE",
        help=f"Debian's kernel of {', '.join(SUITES)} (default: {cache.DEFAULT_SUITE})")  # fmt: skip
    add("--kernel", type=Path, metavar="FILE", help="Linux image, NVMe and ext4 built in (default: Debian's)")
    add("--initrd", type=Path, metavar="FILE", help="boot this instead of doing the main job")
    add("--append", default="", metavar="TEXT", help="added to the kernel's command line")
    add("--boot-disk", type=Path, metavar="IMAGE", help="boot from this image on the NVMe drive; raw, qcow2, vhdx, ...;"
        " it is not changed (--write: a raw one is)")  # fmt: skip
    add("--sata-disk", type=Path, metavar="IMAGE", help="boot from this image on a SATA disk of QEMU's, the NVMe drive"
        " is the second disk; not changed (--write: it is)")  # fmt: skip
    add("--write", action="store_true", help="keep what is written to --boot-disk or --sata-disk")
    add("--os", choices=SYSTEMS, default="", help="what is on the image: sets firmware, memory, CPUs, screen and what"
        " to expect; see docs/guests/")  # fmt: skip
    add(
        "--iso",
        type=Path,
        metavar="FILE",
        help="a CD, booted from if the disk does not boot; windows: a key is pressed",
    )
    add("--display", choices=("none", "vnc"), help="a screen: VNC on a UNIX socket (default: none)")
    add("--screenshot", type=Path, metavar="FILE", help="at the end, a PNG of the screen")
    add("--power-button", type=_seconds, metavar="SECONDS", help="press it after that time: the system shuts down")
    add("--firmware", choices=("seabios", "ovmf", "edk2", "none"), help="x86_64: seabios (default) or ovmf;"
        " arm64: none (default) or edk2")  # fmt: skip
    add("--expect", action="append", default=[], metavar="REGEX",
        help="succeed once the console has printed this; several: in this order."
        " Without it, success is a guest that powers itself off")  # fmt: skip


def _add_machine(add: Callable[..., object]) -> None:
    add("--arch", default="x86_64", metavar="NAME", help=f"the guest's: {', '.join(arches.ARCHES)} (default: x86_64)")
    add("--smp", type=_count, metavar="N", help="number of CPUs (default: 1, for some jobs and --os 2)")
    add("--mem", type=_memory, metavar="SIZE", help="memory (default: 512M; more where the job or --os needs it)")
    add("--hugepages", action="store_true", help="memory in huge pages (the host must have set some apart)")
    add("--iommu", action="store_true", help="the guest has an IOMMU, and uses it for every transfer; x86_64 only")
    add("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="auto: KVM if guests really run under it")
    add(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="for the whole run (default: 600; more where the job or --os needs it)",
    )


def _add_run(add: Callable[..., object]) -> None:
    add("--keep", action="store_true", help="keep the run's files also when it passes")
    add("--serial-log", type=Path, metavar="FILE", help="write what the console prints there")
    add("--result-json", type=Path, metavar="FILE", help="add a line of JSON there that tells how it ended")
    add("--nvme-arg", action="append", default=[], dest="nvme_args", metavar="ARG",
        help="pass to nvmeemu serve (one word; several times for several)")  # fmt: skip
    add("--peer", choices=("qemu-nvme",), default="", help="QEMU's own controller instead of nvmeemu's")
    add("--qemu-arg", action="append", default=[], dest="qemu_args", metavar="ARG", help="pass to QEMU")
    add("--qemu", type=Path, metavar="FILE", help="this QEMU instead of set-up's")
    add("--print-components", action="store_true", help=argparse.SUPPRESS)


def _joined(words: Sequence[str]) -> list[str]:
    """argparse takes no value that looks like an option, and these mostly do: `--nvme-arg --overlay`."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in ("--nvme-arg", "--qemu-arg", "--append"):
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_CPUS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_CPUS}")
    return int(text)


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[MG]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512M or 2G")
    return text


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")


def _interrupt(number: int, frame: object) -> NoReturn:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """They shall not disturb the cleaning up."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _bad_use(error: UsageError) -> int:
    print(f"{PROGRAM}: {error} (--help lists the options)", file=sys.stderr)
    return 2


def _show_failure(folder: Path, settings: Settings) -> None:
    """The ends of the console and of the logs."""
    transcript = Transcript()
    console = settings.serial_log or folder / "console.log"
    if console.exists():
        transcript.feed(console.read_bytes())
    _show("the console's last lines", transcript.text.splitlines()[-CONSOLE_LINES:])
    for name in ("qemu.log", "server.log"):
        logs = sorted(folder.glob(f"boot-*/{name}"))
        if logs:
            _show(f"{logs[-1].parent.name}/{name}", process.tail(logs[-1], LOG_LINES))


def _show(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"--- {title}", *lines, "---", sep="\n")
