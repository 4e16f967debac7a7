"""``nvmeemu trace``: its parsers, and the errors of all of its commands in one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from nvmeemu.app.arguments import Parser, complain, output_failed, tell
from nvmeemu.app.plugins import add_option as add_plugin_option
from nvmeemu.trace import coverage, difference, export, plot, show, stats
from nvmeemu.trace.file import BadUse, TraceError

_TRACE = """\
Read traces that `nvmeemu serve --trace FILE` has recorded. Files may be compressed with gzip, bzip2 or xz; one that
was cut, because the server was killed or the disk was full, is good up to there.
"""


def trace(words: Sequence[str]) -> int:
    """Run a command and return its exit status: 0, 2 for bad use, and 1 for what failed. As with grep(1) and diff(1),
    1 also means that nothing was found, or that there is a difference."""
    parser = Parser(prog="nvmeemu trace", description=_TRACE)
    add_plugin_option(parser, parser)
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for part in (show, stats, difference, export, plot):
        part.add(parsers)
    parser.set_defaults(run=lambda _: parser.error("give a command: show, grep, stats, diff, export, plot"))
    return run(parser, words)


def check(words: Sequence[str]) -> int:
    """``nvmeemu check``."""
    parser = Parser(prog="nvmeemu check")
    add_plugin_option(parser, parser)
    coverage.add(parser)
    return run(parser, words)


def run(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Parse, call the arguments' ``run``, and print errors as a user wants them."""
    _fill_standard_streams()
    logging.getLogger("nvmeemu").addHandler(logging.NullHandler())  # what a device logs that is played to: not for here
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except TraceError as error:
        tell(parser.prog, "")  # what was found before
        complain(parser.prog, error)
        return 2 if isinstance(error, BadUse) else 1
    except OSError as error:
        if error.filename is None:  # what is read, and files that are written, say so themselves
            return output_failed(parser.prog, error)
        complain(parser.prog, f"{error.filename}: {error.strerror or error}")
    return 1


def _fill_standard_streams() -> None:
    """Give Python the standard streams that were closed when it started. Nobody reads what goes there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the end
