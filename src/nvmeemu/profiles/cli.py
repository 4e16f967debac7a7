"""``nvmeemu profile``."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from nvmeemu.app.arguments import Parser
from nvmeemu.app.plugins import add_option as add_plugin_option
from nvmeemu.profiles.from_trace import profile_text
from nvmeemu.profiles.host import run as play
from nvmeemu.profiles.items import Outcome, breaks
from nvmeemu.profiles.profile import NEVER, Profile, ProfileError, built_in, load, parse
from nvmeemu.spec.names import choice
from nvmeemu.text import plain
from nvmeemu.trace.cli import run as run_command
from nvmeemu.trace.file import BadUse, TraceError, open_trace
from nvmeemu.trace.sink import save
from nvmeemu.trace.terminal import Output, tell_if_cut

_PROFILE = """\
Drivers that cannot run here: what they do, played to a controller in this process, without a guest and on a virtual
clock; what they must see, and what must never happen to them. A profile is one that comes with the program, by its
name, or a file that ends in .toml.
"""

_RUN = """\
Play profiles (all that come with the program, if none is named). Exit status: 0 if all is as the drivers need it, 1 if
something is not. --break ITEM plays it to a device that is broken in that way, --breaks to each of them in turn, and
tells whether it is found out: the exit status is 0 then if all are.
"""

_ADD = """\
Make a profile of a trace: the steps of its host, with the answers that it got as what it must see. Add what must never
happen to it: a [[never]] with a fault that makes it happen.
"""


def profile(words: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    parser = Parser(prog="nvmeemu profile", description=_PROFILE)
    add_plugin_option(parser, parser)
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    parser.set_defaults(run=lambda _: parser.error("give a command: list, show, run, add"))
    parsers.add_parser("list", help="which profiles there are").set_defaults(run=_list)
    show = parsers.add_parser("show", help="what is known of a driver, where from, and what is checked")
    show.add_argument("profile", metavar="PROFILE", help="a name from the list, or a file that ends in .toml")
    show.set_defaults(run=_show)
    run = parsers.add_parser("run", help="play profiles", description=_RUN)
    run.add_argument("profiles", metavar="PROFILE", nargs="*", help="names, or files that end in .toml (all)")
    broken = run.add_mutually_exclusive_group()
    broken.add_argument("--break", dest="item", metavar="ITEM", help="break the device so (show lists the items)")
    broken.add_argument("--breaks", action="store_true", help="break the device in every way, one after another")
    run.add_argument("--output", metavar="FILE", help="the trace of the run (of one profile)")
    run.set_defaults(run=_run)
    add = parsers.add_parser("add", help="make a profile of a trace", description=_ADD)
    add.add_argument("trace", metavar="TRACE", help="a trace, compressed or not; -: stdin")
    add.add_argument("--output", metavar="FILE", help="where to (stdout); ends in .toml, and must not exist")
    add.add_argument("--title", metavar="TEXT", default="", help="how it is called")
    add.set_defaults(run=_add)
    return run_command(parser, words)


def _load(name: str) -> Profile:
    try:
        return load(name)
    except ProfileError as error:
        raise TraceError(str(error)) from None
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror}") from None


def _list(arguments: argparse.Namespace) -> int:
    output = Output()
    for name in built_in():
        one = load(name)
        output.line(f"{name:<17}{one.standing:<16}{one.title}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    one, output = _load(arguments.profile), Output()
    output.line(output.styled("title", plain(one.title)))
    output.line(f"{one.standing}: {plain(one.about)}")
    for fact in one.facts:
        output.line(f"  - {plain(fact.text)}")
        output.line(output.styled("dim", f"    {plain(fact.at)}"))
    output.line(output.styled("title", "Must never happen"))
    for never in one.nevers:
        output.line(f"  {never.item}: {NEVER[never.item]}")
        output.line(f"    {plain(never.why)} ({plain(never.at)})")
    output.line(output.styled("title", "Does, and must see"))
    for step in one.steps:
        output.line(f"  {step.line:4d}  {plain(step.text)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    names = arguments.profiles or built_in()
    if arguments.output is not None and (len(names) != 1 or arguments.breaks):
        raise BadUse("--output: the trace of one run only: name one profile, without --breaks")
    output = Output()
    profiles = [_load(name) for name in names]
    try:
        if arguments.breaks:
            return max(_breaks(one, output) for one in profiles)
        return max(_play(one, arguments, output) for one in profiles)
    except ProfileError as error:
        raise TraceError(str(error)) from None


def _play(one: Profile, arguments: argparse.Namespace, output: Output) -> int:
    broken = None
    if arguments.item is not None:
        known = {str(each.item): each for each in reversed(breaks(one))}
        item = choice(known, arguments.item)
        if item is None:
            raise BadUse(f"--break {arguments.item}: {one.name} has {', '.join(reversed(known))}")
        broken = known[item]
    began = time.process_time()
    outcome = play(one, broken)
    seconds = time.process_time() - began
    if arguments.output is not None:
        save(arguments.output, outcome.trace)
    _tell(outcome, output)
    verdict = "as it must be" if not outcome.findings else "not as it must be"
    output.line(f"{one.name}: {outcome.commands} commands in {seconds:.2f} s: {verdict}")
    return 1 if outcome.findings else 0


def _tell(outcome: Outcome, output: Output) -> None:
    for finding in outcome.findings:
        output.line(output.styled("bad", plain(str(finding))))


def _breaks(one: Profile, output: Output) -> int:
    all_found = True
    for broken in breaks(one):
        is_found = broken.found_by(play(one, broken))
        all_found &= is_found
        verdict = "found" if is_found else "NOT FOUND"
        text = f"{one.name}: {verdict}: {broken.item}: {plain(broken.what)}"
        output.line(text if is_found else output.styled("bad", text))
    return 0 if all_found else 1


def _add(arguments: argparse.Namespace) -> int:
    if arguments.output is not None and not arguments.output.endswith(".toml"):
        raise BadUse(f"{arguments.output}: give a name that ends in .toml")
    with open_trace(arguments.trace) as reader:
        text = profile_text(reader, arguments.title)
        tell_if_cut(reader)
    try:
        parse(text, "added", arguments.trace)
    except ProfileError as error:
        raise TraceError(f"no profile can be made from it: {error}") from None
    if arguments.output is None:
        Output().line(text.rstrip())
        return 0
    try:
        fd = os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TraceError(f"{arguments.output}: {error.strerror}") from None
    return 0
