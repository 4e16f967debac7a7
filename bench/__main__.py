"""What scripts/bench.sh calls; the help is there."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from bench import document, durable, guest, quick, tables, trace
from bench.target import BenchError
from nvmeemu.engine.native.engine import EngineMissing
from nvmeemu.guest.errors import GuestError
from nvmeemu.testing import CommandError, Refused

FAILURES = (BenchError, GuestError, EngineMissing, Refused, CommandError, OSError, EOFError, ValueError)
UNITS = {"": 1, "k": 1000, "M": 1_000_000}


class _Parser(argparse.ArgumentParser):
    """Its errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message} (see --help)\n")


def _number(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,11})([kM]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of commands such as 5M")
    return int(match[1]) * UNITS[match[2]]


def main() -> int:
    parser = _Parser(prog="scripts/bench.sh", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--guest", action="store_true")
    parser.add_argument("--soak", type=_number, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--document", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    try:
        if arguments.document:
            document.update(arguments.document)
        else:
            _measure(arguments)
    except subprocess.CalledProcessError as error:
        print(f"bench: {error.cmd[0]} ended with status {error.returncode}", file=sys.stderr)
        return 1
    except FAILURES as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    found: dict[str, object] = {}
    found |= quick.quick()
    if not arguments.quick:
        found |= tables.tables()
        found |= trace.measure()
        found |= durable.measure()
    if arguments.soak:
        found |= tables.soak(arguments.soak)
    if arguments.guest:
        found |= guest.measure()
    print()
    marks = {**quick.MARKS, **({} if arguments.quick else {**trace.MARKS, **durable.MARKS}), **guest.marks(found)}
    for name, mark in marks.items():
        value = found[name]
        assert isinstance(value, float)
        print(f"{name:<34} {value:>8}  {mark!s:<8} {'met' if mark.is_met(value) else 'not met'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
