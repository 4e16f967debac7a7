"""Make docs/judge.md of tests/conformance/judge.toml: where QEMU's own controller does otherwise, who is right, and
what is not judged, and why.

.venv/bin/python scripts/judge_doc.py [--check]
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from conformance_doc import collect, row

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "conformance" / "judge.toml"
TARGET = ROOT / "docs" / "judge.md"

INTRODUCTION = """\
# The outside judge

`pytest tests/conformance --judge` runs every conformance test that needs no more of its controller than BAR0, guest
memory and disks of some size (and time that passes) against QEMU's own NVMe controller, over qtest (no guest, no KVM;
`tests/conformance/judge.py`). What passes on both was judged by somebody who did not write it. What QEMU does
otherwise is listed here, with who is right by the specification; anything else that fails there fails our CI. So do a
difference that is none any more and a test that is neither judged nor listed below. Made by `scripts/judge_doc.py` from
the tests and `tests/conformance/judge.toml`.

"""


class _Names:
    """A pytest plugin: the tests that are collected, file::test, those of one parametrized test together."""

    def __init__(self, *options: str) -> None:
        self.found: set[str] = set()
        collect(self, *options)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.found = {f"{item.path.name}::{item.name.partition('[')[0]}" for item in session.items}


def page(source: dict[str, Any]) -> str:
    """The page, in Markdown. Raises SystemExit if a test that is not judged has no kind, or two."""
    judged = _Names("--judge").found
    left = sorted(_Names().found - judged)
    return (
        INTRODUCTION
        + "\n".join([*_differences(source["difference"], judged, left), "", *_unjudged(source, left)])
        + "\n"
    )


def _differences(differences: list[dict[str, str]], judged: set[str], left: list[str]) -> list[str]:
    who = Counter(entry["who"] for entry in differences)
    other = {entry["test"].partition("[")[0] for entry in differences}
    return [
        f"{len(judged)} of {len(judged) + len(left)} tests are judged; {len(judged - other)} of them pass on QEMU's "
        f"controller as on ours, {len(other)} do not, or not in every case.",
        "",
        "## Differences",
        "",
        f"{len(differences)} differences: nvmeemu is right in {who['nvmeemu']}, QEMU in {who['QEMU']}; "
        f"the specification allows both in {who['both']}.",
        "",
        "| test | who is right | clause | what differs |",
        "|---|---|---|---|",
        *(
            row(f"`{entry['test']}`", entry["who"], entry["clause"], entry["why"])
            for entry in sorted(differences, key=lambda entry: entry["test"])
        ),
    ]


def _unjudged(source: dict[str, Any], left: list[str]) -> list[str]:
    tests: dict[str, list[str]] = {entry["kind"]: [] for entry in source["unjudged"]}
    for name in left:
        kinds = [
            entry["kind"]
            for entry in source["unjudged"]
            if any(fnmatchcase(name, pattern) for pattern in entry["tests"])
        ]
        if len(kinds) != 1:
            raise SystemExit(f"{SOURCE}: {name} is not judged, and has {len(kinds)} kinds of [[unjudged]], not one")
        tests[kinds[0]].append(name)
    idle = [
        pattern
        for entry in source["unjudged"]
        for pattern in entry["tests"]
        if not any(fnmatchcase(name, pattern) for name in left)
    ]
    if idle:
        raise SystemExit(f"{SOURCE}: nothing that is not judged has these names: {', '.join(idle)}")
    return [
        "## What is not judged",
        "",
        "| what it needs | why that is not judged | number | tests |",
        "|---|---|---|---|",
        *(
            row(entry["kind"], entry["why"], str(len(found)), ", ".join(f"`{name}`" for name in found))
            for entry in source["unjudged"]
            for found in (tests[entry["kind"]],)
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    is_check = parser.parse_args().check
    text = page(tomllib.loads(SOURCE.read_text()))
    if is_check:
        is_current = TARGET.exists() and TARGET.read_text() == text
        print("up to date" if is_current else f"{TARGET} is out of date: run scripts/judge_doc.py", file=sys.stderr)
        return 0 if is_current else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
