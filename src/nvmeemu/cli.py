"""The command line: builds the objects and connects them; no NVMe in it.

Exit status: 0, 1 for what failed, 2 for bad use; either is one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from nvmeemu import __version__

_SERVE = """\
Be an NVMe drive on a vfio-user socket, for one client (QEMU, ...) after another.

A disk is a raw file, a block device, or mem:SIZE (memory, gone at exit).
QEMU needs shared guest memory and the device; `serve` prints the exact arguments when it listens.
"""


_FEATURES = [
    *("create", "read-only", "overlay", "block-size", "once", "pid-file", "ready-fd", "no-msix"),
    *("engine", "io-threads"),
]


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options have one name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    if argv is None:  # until somebody can end in order, Ctrl-C ends at once and without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        (arguments.parser if arguments.command else parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.print_capabilities:
        print(json.dumps(capabilities(), indent=2))
        return 0
    if arguments.command is None:
        parser.error("give a command: serve")
    if arguments.command == "serve" and not (arguments.socket and arguments.disk):
        missing = "--socket PATH" if not arguments.socket else "--disk SPEC"
        arguments.parser.error(f"{missing} is missing")
    from nvmeemu.serve import serve  # start-up: --help needs none of it

    return serve(arguments)


def capabilities() -> dict[str, object]:
    """What this build can do, for managers of VMs (the convention of QEMU's vhost-user back-ends)."""
    from nvmeemu.namespace import Namespaces
    from nvmeemu.native.engine import EngineMissing
    from nvmeemu.native.engine import require as require_engine
    from nvmeemu.vfio import BindingMissing
    from nvmeemu.vfio.binding import require

    try:
        require()
        is_built = True
    except BindingMissing:
        is_built = False
    try:
        require_engine()
        engines = ["native", "python"]
    except EngineMissing:
        engines = ["python"]
    return {
        "type": "nvme",
        "version": __version__,
        "protocol": "vfio-user",
        "binding": is_built,
        "engines": engines,
        "backends": ["raw", "mem"],
        "features": _FEATURES,
        "nvme": {"version": "1.4", "max_io_queues": 64, "max_namespaces": Namespaces.nn},
    }


def _parser() -> _Parser:
    parser = _Parser(prog="nvmeemu", description="An NVMe controller in a process of its own, for VMs.")
    parser.add_argument("--version", action="version", version=f"nvmeemu {__version__}")
    parser.add_argument("--print-capabilities", action="store_true", help="print what this build can do, as JSON")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="be an NVMe drive on a vfio-user socket",
        description=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.set_defaults(parser=serve)
    serve.add_argument("--print-capabilities", action="store_true", help="print what this build can do, as JSON")
    serve.add_argument("--socket", metavar="PATH", help="where to listen; made with mode 0600")
    _add_disk(serve.add_argument_group("disk"))
    _add_device(serve.add_argument_group("device"))
    _add_process(serve.add_argument_group("process"))
    return parser


def _add_disk(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--disk", metavar="SPEC", action="append", help="a raw file, a block device, or mem:SIZE; each is a namespace"
    )
    group.add_argument("--size", metavar="SIZE", help="with --create: size of the disk, for example 10G")
    group.add_argument("--create", action="store_true", help="make the file if it does not exist")
    group.add_argument("--read-only", action="store_true", help="never write; others may read the disk too")
    group.add_argument("--overlay", action="store_true", help="throw away at exit what is written; never copies")
    group.add_argument("--block-size", type=int, choices=(512, 4096), default=512, help="of the namespace (512)")


def _add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--serial", metavar="S", help="serial number (made from the disk's path)")
    group.add_argument("--model", metavar="M", default="nvmeemu NVMe Controller", help="model number (%(default)s)")
    group.add_argument("--queues", metavar="N", type=_number(1, 64), default=64, help="I/O queue pairs (64)")
    group.add_argument("--no-msix", action="store_true", help="no MSI-X capability: the interrupt pin only")
    group.add_argument("--vendor-id", metavar="ID", type=_number(0, 0xFFFF), help="PCI vendor id, for example 0x1234")
    group.add_argument("--device-id", metavar="ID", type=_number(0, 0xFFFF), help="PCI device id")


def _add_process(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        choices=("auto", "native", "python"),
        default="python",
        help="who serves reads and writes: python (default), native (C, fast, new), auto: native if built",
    )
    group.add_argument("--io-threads", metavar="N", type=_number(1, 16), help="of the native engine (half the CPUs)")
    group.add_argument("--once", action="store_true", help="exit when the first client has left")
    group.add_argument("--pid-file", metavar="F", help="written when it listens, removed at exit")
    group.add_argument("--ready-fd", metavar="N", type=_number(0, 1 << 20), help="gets a line when it listens")
    levels = ("debug", "info", "warning", "error")
    group.add_argument("--log-level", metavar="L", choices=levels, default="info", help=", ".join(levels))


class _number:
    """An argparse type: a decimal or 0x number within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = -1
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {self.least} to {self.most}")
        return value
