"""scripts/bench.sh calls this, and has the help."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from bench.quick import MARKS, quick
from bench.target import BenchError
from nvmeemu.guest.errors import GuestError
from nvmeemu.testing import Refused


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    found: dict[str, object] = {}
    try:
        if arguments.quick:
            found |= quick()
    except (BenchError, GuestError, Refused, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for name, mark in MARKS.items():
        if name in found:
            value = float(str(found[name]))
            print(f"{name:<28} {value:>10}  {mark!s:<8} {'met' if mark.is_met(value) else 'not met'}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(json.dumps(found, indent=2) + "\n")
    return 0


sys.exit(main())
