"""``nvmeemu trace show`` and ``grep``: records and commands in words, a line each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from nvmeemu.spec import Status
from nvmeemu.trace import words
from nvmeemu.trace.commands import Matcher, TracedCommand, commands
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.filters import Filter, add_options
from nvmeemu.trace.records import Completion, Injection, Record
from nvmeemu.trace.terminal import Output, at, heading, with_progress

_SHOW = """\
Everything in a trace, a line for each record, in order of time (seconds since the trace began). With a filter by
queue, opcode, NSID or status: only the records of the commands that match, those of one command together.
"""
_GREP = """\
The commands of a trace, a line for each, with status and latency, in the order in which they ended. PATTERN is a
regular expression that the line has to contain, without regard to case.
"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The two parsers."""
    show = parsers.add_parser("show", help="every record in words", description=_SHOW)
    show.add_argument("file", metavar="FILE", help="a trace, compressed or not")
    add_options(show)
    show.set_defaults(run=run_show)
    grep = parsers.add_parser("grep", help="every command in a line", description=_GREP)
    grep.add_argument("file", metavar="FILE", help="a trace, compressed or not")
    grep.add_argument("pattern", metavar="PATTERN", nargs="?", type=_pattern, help="what the line has to contain")
    add_options(grep)
    grep.set_defaults(run=run_grep)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def run_show(arguments: argparse.Namespace) -> int:
    output = Output()
    wanted = Filter.of(arguments)
    with open_trace(arguments.file) as reader:
        output.line(output.styled("dim", f"# {heading(reader)}"))
        records = with_progress(reader)
        if wanted.tests:
            for command in commands(records):
                if wanted.matches(command):
                    for line in _story(output, command):
                        output.line(line)
        else:
            _show_all(output, records, wanted)
    return 0


def _show_all(output: Output, records: Iterator[Record], wanted: Filter) -> None:
    matcher = Matcher()
    for record in records:
        ended = matcher.feed(record)
        if wanted.is_in_time(record.time):
            command = ended[0] if isinstance(record, Completion) and ended else None
            output.line(_line(output, record, command))


def _story(output: Output, command: TracedCommand) -> Iterator[str]:
    """All of a command, from fetch to completion."""
    parts = (command.fetch, *command.injections, command.prp, *command.digests, *command.data, command.completion)
    for record in sorted((part for part in parts if part is not None), key=lambda part: part.time):
        yield _line(output, record, command)


def _line(output: Output, record: Record, command: TracedCommand | None) -> str:
    where, what = words.describe(record)
    style = where.split()[0]
    if isinstance(record, Injection):
        what = output.styled("bad", what)
    elif isinstance(record, Completion):
        if command is not None:
            fetch = command.fetch
            name = words.opcode(fetch.sqid, fetch.opcode)
            what = f"#{record.cid:04x} {name}: {what.partition(' ')[2]}, {words.duration(record.time - fetch.time)}"
        if record.status != Status.SUCCESS:
            what = output.styled("bad", what)
    return f"{at(record.time)}  {output.styled(style, f'{where:<6}')} {what}"


def run_grep(arguments: argparse.Namespace) -> int:
    """1 if nothing was found, as with grep(1)."""
    output = Output()
    wanted = Filter.of(arguments)
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
