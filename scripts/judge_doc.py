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
difference that is none any more, a test that is neither judged nor listed below, and one that skips itself, because
QEMU's controller lacks what it is about, and is not listed. Made by `scripts/judge_doc.py` from
the tests and `tests/conformance/judge.toml`.

"""


class _Names:
    """A pytest plugin: the tests that are collected, file::test, those of one parametrized test together; and all
    ``cases``."""

    def __init__(self, *options: str) -> None:
        self.cases: set[str] = set()
        collect(self, *options)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.cases = {f"{item.path.name}::{item.name}" for item in session.items}

    @property
    def found(self) -> set[str]:
        return {_test(case) for case in self.cases}


def _test(case: str) -> str:
    return case.partition("[")[0]


def page(source: dict[str, Any]) -> str:
    """The page, in Markdown. Raises SystemExit if a test that is not judged has no kind, or two."""
    taken = _Names("--judge")
    left = sorted(_Names().found - taken.found)
    absent = {case for entry in source["absent"] for case in entry["tests"]}
    judged = {_test(case) for case in taken.cases - absent}
    parts = (
        _differences(source["difference"], judged, {_test(case) for case in absent}, len(taken.found) + len(left)),
        _absent(source["absent"]),
        _unjudged(source, left),
    )
    return INTRODUCTION + "\n\n".join("\n".join(part) for part in parts) + "\n"


def _differences(differences: list[dict[str, str]], judged: set[str], lacking: set[str], tests: int) -> list[str]:
    who = Counter(entry["who"] for entry in differences)
    other = {_test(entry["test"]) for entry in differences}
    passed = judged - other - lacking
    return [
        f"{len(judged)} of {tests} tests are judged; {len(passed)} of them pass on QEMU's controller as on ours, "
        f"{len(judged - passed)} do not, or not in every case.",
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


def _absent(absent: list[dict[str, Any]]) -> list[str]:
    return [
        "## What QEMU's controller does not have",
        "",
        "These cases skip themselves there: they are not judged.",
        "",
        "| what | cases | tests |",
        "|---|---|---|",
        *(
            row(entry["what"], str(len(entry["tests"])), ", ".join(f"`{name}`" for name in entry["tests"]))
            for entry in absent
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
