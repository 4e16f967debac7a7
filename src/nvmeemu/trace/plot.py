"""``nvmeemu trace plot``: a picture of a trace, for a bug report."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from nvmeemu import spec
from nvmeemu.app.arguments import BoundedNumber
from nvmeemu.trace.activity import activity
from nvmeemu.trace.extra import check_output, require, writing
from nvmeemu.trace.file import Description, open_trace
from nvmeemu.trace.filters import SECOND, add_times, check_times
from nvmeemu.trace.terminal import heading, with_progress

_PLOT = """\
Draw a trace: when each queue was busy, with the phases of the boot, interrupts, register accesses and resets; which
blocks were read and written when; how long commands took, over the time and in all.
"""
_FORMATS = (".png", ".svg")


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser."""
    parser = parsers.add_parser("plot", help="a picture, PNG or SVG", description=_PLOT)
    parser.add_argument("file", metavar="FILE", help="a trace, compressed or not; -: stdin")
    parser.add_argument("-o", "--output", metavar="OUT", type=_output, required=True, help="a name in .png or .svg")
    parser.add_argument(
        "--nsid",
        metavar="N",
        type=BoundedNumber(1, spec.BROADCAST),
        help="the namespace of the LBA map (default: the busiest)",
    )
    add_times(parser)
    parser.set_defaults(run=run)


def _output(text: str) -> str:
    if Path(text).suffix.lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(_FORMATS)}")
    return text


def _block_sizes(description: Description) -> dict[int, int]:
    """By NSID; what makes no sense is left out."""
    pairs = ((one.get("nsid"), one.get("block_size")) for one in description.namespaces)
    return {
        nsid: size for nsid, size in pairs if isinstance(nsid, int) and isinstance(size, int) and 0 < size <= 1 << 20
    }


def run(arguments: argparse.Namespace) -> int:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot keep a cache (CI without a home)
    require("matplotlib", "plot")
    from nvmeemu.trace import picture  # it imports matplotlib, which takes a second

    check_output(arguments.file, arguments.output)
    start, end = arguments.start, arguments.end
    with open_trace(arguments.file) as reader:
        found = activity(with_progress(reader, prints=False), start, end)
        title, sizes = heading(reader), _block_sizes(reader.description)
    check_times(arguments.file, start, end, found.last)
    last = found.last if end is None else min(found.last, end)
    if not start and found.first is not None:
        start = found.first  # before it there is nothing to be seen
    with writing(arguments.output):
        picture.draw(found, title, (start / SECOND, last / SECOND), sizes, arguments.nsid, arguments.output)
    return 0
