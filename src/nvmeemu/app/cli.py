"""The command line: builds the objects and connects them; no NVMe in it.

Exit status: 0, 1 for what failed, 2 for bad use; either is one line on stderr.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import signal
import sys
from collections.abc import Sequence

from nvmeemu import __version__
from nvmeemu.app.arguments import BoundedNumber, Parser, tell
from nvmeemu.app.plugins import add_option as add_plugin_option
from nvmeemu.controller.bounds import MAX_IO_QUEUES, MOST_NAMESPACES

_SERVE = """\
Be an NVMe drive on a vfio-user socket, for one client (QEMU, ...) after another.

A disk is a raw file, a block device, or mem:SIZE (memory, gone at exit). raw:PATH is for a file whose name begins
like mem: or raw:, or whose content like an image of another format, which is refused otherwise.
QEMU needs shared guest memory and the device; `serve` prints the exact arguments when it listens.
A host knows the drive by the same serial number and identifiers at each start with the same disk. Where several servers
can have one disk (mem:, --overlay, --read-only) the socket's path counts, too: one guest may have several of them.
SIGINT, SIGTERM and SIGHUP end it in good order; another one, a second or more later, ends it without syncing the disks.
"""

_RUN = """\
Serve a drive while a command runs, and return the command's exit status (128+n if signal n ended it). In the command

  {nvme}         is QEMU's -device option for the drive; {nvme:2} is that of the second --drive
  {memory:SIZE}  is QEMU's options for SIZE (512M, 1G, ...) of guest memory that the drive can use
  {socket}       is the drive's socket, as is $NVMEEMU_SOCKET in the command's environment; {socket:2} ...

  nvmeemu run --disk disk.img -- qemu-system-x86_64 -M q35 {memory:1G} {nvme} -nographic -kernel bzImage

The options are those of `nvmeemu serve`, whose --help says what a disk can be. Signals are the command's: those that
end (INT, TERM, HUP, QUIT) reach all that it has started. If the drive is lost, the command gets SIGTERM and, ten
seconds later, SIGKILL.
"""

_SCHEMA = "Print a JSON schema of drive files (docs/drive-file.md), with which an editor can check and complete them."

_CTL = """\
Talk to a running `nvmeemu serve --control PATH`.

  nvmeemu ctl --control PATH status
  nvmeemu ctl --control PATH fault add match.opcode=write do.status=write_fault when.nth=3
  nvmeemu ctl --control PATH fault add match.lba=100-107 do=guard-error
  nvmeemu ctl --control PATH fault add scenario:flaky
  nvmeemu ctl --control PATH namespace add disk2.img
  nvmeemu ctl --control PATH namespace add disk=disk3.img nsid=3 block_size=4096 read_only=true
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    if argv is None:
        _prepare()
    words, command = _split(sys.argv[1:] if argv is None else list(argv))
    if words[:1] and words[0] in _APART:
        return _run_apart(words[0], words[1:])
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        (arguments.parser if arguments.command else parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.print_capabilities:
        return tell(parser.prog, json.dumps(capabilities(), indent=2) + "\n")
    if arguments.command is None:
        parser.error(f"give a command: serve, run, ctl, schema, {', '.join(_APART)}")
    if arguments.command == "ctl":
        from nvmeemu.app.control.cli import ctl

        return ctl(arguments)
    if arguments.command == "run":
        return _run(arguments, words[1:], command)
    if arguments.command == "schema":
        from nvmeemu.app.drive.schema import schema

        return tell(f"{parser.prog} schema", json.dumps(schema(), indent=2) + "\n")
    if arguments.command == "serve" and not (
        arguments.drive or (arguments.socket and (arguments.disk or arguments.pool))
    ):
        missing = "--socket PATH" if not arguments.socket else "--disk SPEC"
        arguments.parser.error(f"{missing} is missing")
    gc.disable()  # start-up: nothing that is imported is garbage, and looking for some is a twelfth of the time
    try:
        from nvmeemu.app.serve import serve  # start-up: --help needs none of it
    finally:
        gc.freeze()
        gc.enable()
    return serve(arguments)


_APART = {
    "trace": "show, search, count, compare, draw and export what serve --trace has recorded",
    "replay": "feed a trace to the controller, and compare its completions",
    "check": "what a trace says of its host",
    "profile": "play drivers that cannot run here, and check what they see",
    "image": "tell, check and repair what lies beside an image",
}
"""Commands whose parsers are theirs: start-up."""


def _prepare() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until somebody can end in order: at once, without a traceback
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # µ, and names of files, where the locale does not have them


def _run_apart(command: str, words: list[str]) -> int:
    if command == "image":
        from nvmeemu.app.image import image

        return image(words)
    if command == "replay":
        from nvmeemu.replay.cli import replay

        return replay(words)
    if command == "profile":
        from nvmeemu.profiles.cli import profile

        return profile(words)
    from nvmeemu.trace.cli import check, trace

    return trace(words) if command == "trace" else check(words)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split the command line into our words, and those of the command that ``nvmeemu run`` shall run."""
    if words[:1] == ["run"] and "--" in words:
        cut = words.index("--")
        return words[:cut], words[cut + 1 :]
    return words, []


def _run(arguments: argparse.Namespace, words: list[str], command: list[str]) -> int:
    if not (arguments.disk or arguments.drive or arguments.pool):
        arguments.parser.error("--disk SPEC is missing")
    if not command:
        arguments.parser.error("the command is missing: -- COMMAND ...")
    from nvmeemu.app.run import run

    return run(command, ["--log-level", "warning", *words], arguments.socket, arguments.drive or ())


def capabilities() -> dict[str, object]:
    """What this build can do, for managers of VMs (the convention of QEMU's vhost-user back-ends)."""
    from nvmeemu.app.drive.options import names
    from nvmeemu.engine.native.engine import EngineMissing
    from nvmeemu.engine.native.engine import require as require_engine
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
        "features": ["drive", *names(), "once", "pid-file", "ready-fd"],
        "nvme": {"version": "1.4", "max_io_queues": MAX_IO_QUEUES, "max_namespaces": MOST_NAMESPACES},
    }


def _parser() -> Parser:
    parser = Parser(prog="nvmeemu", description="An NVMe controller in a process of its own, for VMs.")
    parser.add_argument("--version", action="version", version=f"nvmeemu {__version__}")
    parser.add_argument("--print-capabilities", action="store_true", help="print what this build can do, as JSON")
    # start-up: each prog is what argparse would find itself, with a formatter that imports shutil
    commands = parser.add_subparsers(prog="nvmeemu", dest="command", metavar="COMMAND", parser_class=Parser)
    serve = commands.add_parser(
        "serve",
        help="be an NVMe drive on a vfio-user socket",
        description=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.set_defaults(parser=serve)
    serve.add_argument("--version", action="version", version=f"nvmeemu {__version__}")
    serve.add_argument("--print-capabilities", action="store_true", help="print what this build can do, as JSON")
    serve.add_argument("--socket", metavar="PATH", help="where to listen; made with mode 0600")
    _add_process(process := _add_drive(serve), serve)
    process.add_argument("--ready-fd", metavar="N", type=BoundedNumber(0, 1 << 20), help="gets a line when it listens")
    _add_run(commands)
    _add_ctl(commands)
    schema = commands.add_parser("schema", help="print the JSON schema of drive files", description=_SCHEMA)
    schema.set_defaults(parser=schema, print_capabilities=False)
    for name, text in _APART.items():
        commands.add_parser(name, help=text)
    return parser


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="serve a drive while a command runs",
        description=_RUN,
        usage="nvmeemu run [OPTION ...] --disk SPEC -- COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(parser=run, print_capabilities=False)
    run.add_argument("--version", action="version", version=f"nvmeemu {__version__}")
    run.add_argument("--socket", metavar="PATH", help="where the drive listens (in a folder of its own in $TMPDIR)")
    _add_process(_add_drive(run), run, log_level="warning")


def _add_ctl(commands: argparse._SubParsersAction[Parser]) -> None:
    ctl = commands.add_parser(
        "ctl",
        help="talk to a running server: faults, namespaces",
        description=_CTL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ctl.set_defaults(parser=ctl, print_capabilities=False)
    ctl.add_argument("--control", metavar="PATH", required=True, help="the server's --control")
    ctl.add_argument("--drive", metavar="NAME", help="which one, where several drives share the socket")
    ctl.add_argument("--json", action="store_true", help="print the answer as JSON")
    whats = ctl.add_subparsers(prog="nvmeemu ctl", dest="what", metavar="WHAT", parser_class=Parser, required=True)
    whats.add_parser("status", help="the controller, its queues, namespaces and faults")
    faults = whats.add_parser("fault", help="add, list or rm").add_subparsers(
        prog="nvmeemu ctl fault", dest="action", metavar="ACTION", parser_class=Parser, required=True
    )
    add = faults.add_parser("add", help="a fault, a file of them, or scenario:NAME")
    add.add_argument("fault", nargs="+", metavar="KEY=VALUE", help="docs/faults.md; or one FILE or scenario:NAME")
    faults.add_parser("list", help="all, with what they have done")
    remove = faults.add_parser("rm", help="end faults")
    remove.add_argument("id", nargs="+", type=_number_or_all, metavar="ID", help="its number, or all")
    namespaces = whats.add_parser("namespace", help="add, rm or resize").add_subparsers(
        prog="nvmeemu ctl namespace", dest="action", metavar="ACTION", parser_class=Parser, required=True
    )
    add = namespaces.add_parser("add", help="another disk")
    add.add_argument(
        "words",
        nargs="+",
        metavar="SPEC | KEY=VALUE",
        help="a disk as in --disk, and what [[namespace]] has in a drive file (docs/drive-file.md): block_size=4096",
    )
    add.add_argument(
        "--nsid",
        type=BoundedNumber(1, MOST_NAMESPACES),
        metavar="N",
        help="the namespace's number (the first free one)",
    )
    remove = namespaces.add_parser("rm", help="take a namespace away")
    remove.add_argument("nsid", type=BoundedNumber(1, MOST_NAMESPACES), metavar="NSID")
    resize = namespaces.add_parser("resize", help="another size, up to that of its disk, which is looked at anew")
    resize.add_argument("nsid", type=BoundedNumber(1, MOST_NAMESPACES), metavar="NSID")
    resize.add_argument("size", metavar="SIZE", nargs="?", help="for example 10G (all that its disk has now)")


def _number_or_all(text: str) -> str:
    return text if text == "all" else str(BoundedNumber(1, 1 << 30)(text))


def _add_drive(parser: Parser) -> argparse._ArgumentGroup:
    """What describes the drive; the group of what is the process' own."""
    from nvmeemu.app.drive.options import GROUPS, add  # start-up: other commands need none of it

    parser.add_argument(
        "--drive", metavar="FILE", action="append", help="a drive file (docs/drive-file.md); several: several drives"
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    add(groups.values())
    return groups["process"]


def _add_process(group: argparse._ArgumentGroup, owner: Parser, log_level: str = "info") -> None:
    add_plugin_option(group, owner)
    group.add_argument("--once", action="store_true", help="exit when the first client has left")
    group.add_argument("--pid-file", metavar="F", help="written when it listens, removed at exit")
    levels = ("debug", "info", "warning", "error")
    told = ", ".join(f"{level} (default)" if level == log_level else level for level in levels)
    group.add_argument("--log-level", metavar="L", choices=levels, default=log_level, help=told)
