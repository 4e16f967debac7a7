"""``nvmeemu trace show`` and ``grep``: records and commands in words, a line each."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable

from nvmeemu.spec import EventType, Status
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand, commands
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.filters import CommandFilter, add_options
from nvmeemu.trace.records import AsyncEvent, Completion, Injection, Record, RegisterRead, RegisterWrite
from nvmeemu.trace.rings import Rings
from nvmeemu.trace.terminal import Output, at, heading, with_progress

_SHOW = """\
Everything in a trace, a line for each record, in order of time (seconds since the trace began); reads of a register
that give the same again and again are told once, with how often it was. With a filter by queue, opcode, NSID or status:
only the records of the commands that match, those of one command together.
"""
_GREP = """\
The commands of a trace, a line for each, with status and latency, in the order in which they ended. PATTERN is a
regular expression that the line has to contain, without regard to case.
"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The two parsers."""
    show = parsers.add_parser("show", help="every record in words", description=_SHOW)
    show.add_argument("file", metavar="FILE", help="a trace, compressed or not; -: stdin")
    show.add_argument(
        "-v", "--verbose", action="store_true", help="PRP lists, fields that are 0, and each read of a register"
    )
    show.add_argument("--no-registers", action="store_true", help="leave out reads and writes of registers")
    show.add_argument("--follow", action="store_true", help="go on until whoever writes the trace ends it, or until ^C")
    add_options(show)
    show.set_defaults(run=run_show)
    grep = parsers.add_parser("grep", help="every command in a line", description=_GREP)
    grep.add_argument("file", metavar="FILE", help="a trace, compressed or not; -: stdin")
    grep.add_argument("pattern", metavar="PATTERN", nargs="?", type=_pattern, help="what the line has to contain")
    add_options(grep)
    grep.set_defaults(run=run_grep)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def run_show(arguments: argparse.Namespace) -> int:
    wanted = CommandFilter.of(arguments)
    with open_trace(arguments.file, follow=arguments.follow) as reader:
        show = _Show(Output(), arguments)
        show.say(show.output.styled("dim", f"# {heading(reader)}"))
        records = with_progress(reader)
        if wanted.tests:
            for command in commands(records):
                if wanted.matches(command):
                    show.story(command)
        else:
            show.everything(records, wanted)
    return 0


class _Show:
    """Prints lines. A line of a followed trace is flushed at once."""

    def __init__(self, output: Output, arguments: argparse.Namespace) -> None:
        self.output = output
        self._is_whole: bool = arguments.verbose
        self._has_registers = not arguments.no_registers
        self._follows: bool = arguments.follow
        self._poll: RegisterRead | None = None  # the last record, if it was one
        self._times = 0  # that it came again, and was not told

    def say(self, line: str) -> None:
        self.output.line(line)
        if self._follows:
            sys.stdout.flush()

    def everything(self, records: Iterable[Record], wanted: CommandFilter) -> None:
        matcher, rings = Matcher(), Rings()
        for record in records:
            ended = matcher.feed(record)
            rings.feed(record)
            why = rings.explain() if isinstance(record, AsyncEvent) and record.type == EventType.ERROR else ""
            is_left_out = not self._has_registers and isinstance(record, (RegisterRead, RegisterWrite))
            if wanted.is_in_time(record.time) and not is_left_out and not self._is_same(record):
                command = ended[0] if isinstance(record, Completion) and ended else None
                self._tell(record, command, why)
        self._end_polls()

    def _is_same(self, record: Record) -> bool:
        """Whether this reads the same as the read before. If not, it prints how often that one was."""
        poll = self._poll
        if self._is_whole or not isinstance(record, RegisterRead):
            if poll is not None:
                self._end_polls()
            return False
        if poll is not None and (record.offset, record.data) == (poll.offset, poll.data):
            self._poll = record
            self._times += 1
            return True
        self._end_polls()
        self._poll = record
        return False

    def _end_polls(self) -> None:
        if self._poll is not None and self._times:
            more = self._times - 1
            again = f", and {more} more time{'s' * (more != 1)} in between" if more else ""
            self._tell(self._poll, None, again)
        self._poll, self._times = None, 0

    def story(self, command: TracedCommand) -> None:
        """All of a command, from fetch to completion."""
        of_data = (command.prp, *command.sgls, *command.digests, *command.data)
        parts = (command.fetch, *command.injections, *of_data, command.completion)
        for record in sorted((part for part in parts if part is not None), key=lambda part: part.time):
            self._tell(record, command)

    def _tell(self, record: Record, command: TracedCommand | None, why: str = "") -> None:
        where, what = words.describe(record, is_whole=self._is_whole)
        style = where.split()[0]
        if isinstance(record, Injection):
            what = self.output.styled("bad", what)
        elif isinstance(record, Completion):
            if command is not None:
                fetch = command.fetch
                name = words.opcode(fetch.sqid, fetch.opcode)
                what = f"#{record.cid:04x} {name}: {what.partition(' ')[2]}, {words.duration(record.time - fetch.time)}"
            if record.status != Status.SUCCESS:
                what = self.output.styled("bad", what)
        elif isinstance(record, AsyncEvent):
            what += f": {why}" * bool(why)
        else:
            what += why
        self.say(f"{at(record.time)}  {self.output.styled(style, f'{where:<6}')} {what}")


def run_grep(arguments: argparse.Namespace) -> int:
    """1 if nothing was found, as with grep(1)."""
    output = Output()
    wanted = CommandFilter.of(arguments)
    pattern = arguments.pattern
    found = False
    with open_trace(arguments.file) as reader:
        for command in commands(with_progress(reader)):
            if wanted.matches(command):
                text, answer = _command(command)
                if pattern is None or pattern.search(f"{text} {answer}"):
                    found = True
                    is_bad = command.completion is None or command.completion.status != Status.SUCCESS
                    output.line(f"{text} {output.styled('bad', answer) if is_bad else answer}")
    return 0 if found else 1


def _command(command: TracedCommand) -> tuple[str, str]:
    """A command and its end in a line of two parts."""
    fetch, done = command.fetch, command.completion
    text = f"{at(fetch.time)}  SQ {fetch.sqid:<3} #{fetch.cid:04x} {words.command(fetch.sqid, fetch.sqe)}"
    injected = words.injections(command.injections)
    if done is None:
        return text, f"-> no completion{injected}"
    return text, f"-> {words.completion(done.completion)}, {words.duration(done.time - fetch.time)}{injected}"
