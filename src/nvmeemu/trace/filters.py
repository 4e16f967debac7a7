"""Which commands of a trace a user wants to see: by queue, opcode, NSID, status and time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass

from nvmeemu import spec
from nvmeemu.app.arguments import BoundedNumber
from nvmeemu.spec.names import bare, is_number, known, member
from nvmeemu.trace.commands import TracedCommand
from nvmeemu.trace.file import TraceError

SECOND = 1_000_000_000  # ns
_UNITS = {"": SECOND, "s": SECOND, "ms": 1_000_000, "us": 1_000, "µs": 1_000, "ns": 1}

Test = Callable[[TracedCommand], bool]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that may be given several times: one of them has to match."""
    group = add_command_options(parser)
    group.add_argument(
        "--status", metavar="NAME", action="append", type=status, help="ok, error, none, invalid-field, 0x281, ..."
    )


def add_command_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options about what a host has sent, and not about the answer."""
    group = parser.add_argument_group("filters", "Each may be given several times; a command must match one of each.")
    group.add_argument(
        "--queue", metavar="QID", action="append", type=queue, help="of this submission queue, of admin (0), of all io"
    )
    group.add_argument("--opcode", metavar="NAME", action="append", type=opcode, help="read, get-log-page, 0x7c, ...")
    group.add_argument("--nsid", metavar="N", action="append", type=_nsid, help="of this namespace; all: FFFFFFFFh")
    add_times(group)
    return group


def add_times(group: argparse._ActionsContainer) -> None:
    """--from and --to."""
    group.add_argument("--from", metavar="T", dest="start", type=time, default=0, help="seconds, or 20ms, 3us, ...")
    group.add_argument("--to", metavar="T", dest="end", type=time, help="until then")


def check_times(name: str, start: int, end: int | None, last: int) -> None:
    """Raises TraceError if a trace whose last record is at ``last`` has nothing between these times (ns)."""
    if start > (last if end is None else min(last, end)):
        raise TraceError(f"{name}: nothing at that time: it ends at {last / SECOND:.6f} s")


@dataclass(frozen=True)
class CommandFilter:
    """Of each group of ``tests`` one must hold. The fetch must be between ``start`` and ``end``, in nanoseconds."""

    tests: tuple[tuple[Test, ...], ...] = ()
    start: int = 0
    end: int | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> CommandFilter:
        groups = (
            tuple(arguments.queue or ()),
            tuple(arguments.opcode or ()),
            tuple(_is_for(nsid) for nsid in arguments.nsid or ()),
            tuple(getattr(arguments, "status", None) or ()),
        )
        return cls(tuple(group for group in groups if group), arguments.start, arguments.end)

    def is_in_time(self, time: int) -> bool:
        return self.start <= time and (self.end is None or time <= self.end)

    def matches(self, command: TracedCommand) -> bool:
        return self.is_in_time(command.fetch.time) and all(any(test(command) for test in group) for group in self.tests)


def _is_for(nsid: int) -> Test:
    return lambda command: command.fetch.command.nsid == nsid


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _nsid(text: str) -> int:
    return spec.BROADCAST if bare(text) == "all" else BoundedNumber(0, spec.BROADCAST)(text)


def queue(text: str) -> Test:
    """A test of the submission queue: a number, ``admin`` or ``io``. Raises ArgumentTypeError."""
    if bare(text) == "io":
        return lambda command: command.fetch.sqid != 0
    qid = 0 if bare(text) == "admin" else BoundedNumber(0, 0xFFFF)(text)
    return lambda command: command.fetch.sqid == qid


def opcode(text: str) -> Test:
    """A test of a name, or of a number in any queue. Raises ArgumentTypeError."""
    if is_number(text):
        number = _number(text)
        return lambda command: command.fetch.opcode == number
    kinds = (spec.ADMIN_COMMANDS.names, spec.NVM_COMMANDS.names)
    found = [member(kind, text) for kind in kinds]
    if found == [None, None]:
        raise argparse.ArgumentTypeError(f"no opcode {text!r}: give a number or one of {known(*kinds)}")
    return lambda command: command.fetch.opcode == found[bool(command.fetch.sqid)]


def status(text: str) -> Test:
    """A test of the status by name or number, or of ``ok``, ``error``, ``none``. Raises ArgumentTypeError."""
    word = bare(text)
    if word == "none":
        return lambda command: command.completion is None
    if word == "error":
        return lambda command: command.completion is not None and command.completion.status != spec.Status.SUCCESS
    number = spec.Status.SUCCESS if word == "ok" else _number(text) if is_number(text) else member(spec.Status, text)
    if number is None:
        raise argparse.ArgumentTypeError(
            f"no status {text!r}: give ok, error, none, a name as in the trace, or a number"
        )
    return lambda command: command.completion is not None and command.completion.status == number


def time(text: str) -> int:
    """Nanoseconds. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d*)?)\s*(s|ms|us|µs|ns|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds, or a number with ms, us or ns")
    return round(float(match[1]) * _UNITS[match[2]])
