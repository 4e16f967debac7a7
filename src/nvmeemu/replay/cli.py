"""``nvmeemu replay``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence

from nvmeemu.app.arguments import BoundedNumber, Parser
from nvmeemu.app.plugins import add_option as add_plugin_option
from nvmeemu.backend import BackendError, BadRequest, is_memory, open_backend
from nvmeemu.replay.player import replay as play
from nvmeemu.text import plain
from nvmeemu.trace.cli import run as run_command
from nvmeemu.trace.extra import check_output
from nvmeemu.trace.file import BadUse, TraceError, open_trace
from nvmeemu.trace.records import Record
from nvmeemu.trace.sink import save
from nvmeemu.trace.terminal import Output, at, heading, tell_if_cut, with_bar

_REPLAY = """\
Does to a controller, in this process and without a guest, what the host of a trace did, and compares the completions
and the registers that were read. Disks are empty unless they are given (never written); what the host wrote is zeros
unless the trace was recorded with --trace-payload. Exit status: 0 all as recorded, 1 something was not.
"""


def replay(words: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    parser = Parser(prog="nvmeemu replay", description=_REPLAY)
    add_plugin_option(parser, parser)
    parser.add_argument("file", metavar="FILE", help="a trace, compressed or not; -: stdin")
    parser.add_argument(
        "--disk", metavar="SPEC", action="append", default=[], help="instead of an empty disk, in order"
    )
    parser.add_argument("--data", action="store_true", help="compare also the data that the host was given")
    parser.add_argument("--output", metavar="FILE", help="the trace of the replay, for nvmeemu trace diff")
    parser.add_argument(
        "--most", metavar="N", type=BoundedNumber(0, 1 << 30), default=20, help="differences to tell (20)"
    )
    parser.set_defaults(run=_run)
    return run_command(parser, words)


def _run(arguments: argparse.Namespace) -> int:
    output = Output()
    if arguments.output is not None:
        check_output(arguments.file, arguments.output)

    def watch(records: list[Record]) -> Iterable[Record]:
        return with_bar(records, plain(arguments.file), len(records), lambda number: number)

    with open_trace(arguments.file) as reader:
        most = max(1, len(reader.description.namespaces))
        if len(arguments.disk) > most:
            raise BadUse(f"--disk: {len(arguments.disk)} of them, and in the trace there are {most}")
        try:
            backends = [open_backend(disk, overlay=not is_memory(disk)) for disk in arguments.disk]
        except BackendError as error:
            kind = BadUse if isinstance(error, BadRequest) else TraceError
            raise kind(f"--disk: {error}") from None
        began = time.process_time()
        result = play(reader, backends, data=arguments.data, watch=watch)
        seconds = time.process_time() - began
        tell_if_cut(reader)
        output.line(f"# {heading(reader)}")
    for difference in result.differences[: arguments.most]:
        output.line(output.styled("bad", f"{at(difference.time)}  {difference.what}"))
    if arguments.output is not None:
        save(arguments.output, result.trace)
    number = len(result.differences)
    verdict = "all as recorded" if not number else f"{number} difference{'s' * (number != 1)}"
    output.line(f"{result.commands} commands in {seconds:.2f} s: {verdict}")
    return 1 if number else 0
