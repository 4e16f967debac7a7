"""Make docs/conformance.md of tests/conformance/facts.toml and the marks of the conformance tests: each fact, what
proves it, by which clause, and which mutants show that the proof can fail.

.venv/bin/python scripts/conformance_doc.py [--check]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "conformance"
TARGET = ROOT / "docs" / "conformance.md"
INTRODUCTION = """\
# Conformance

What the NVMe specification demands and emulators miss, fact by fact, with the tests that prove it here. A1 to A33 are
facts, B1 to B9 faults of other emulators that we must not have; all of these were collected before the controller was
written. A34 and later ones we added. The tests see the controller as a host driver does, through BAR0 and guest memory
(`nvmeemu.testing`), on both data paths (those on one are listed in `tests/conformance/conftest.py`). Many of them also
run against QEMU's own controller (judge.md). A mutant is a fault put into our code on purpose: every test that names it
fails with it (`tests/conformance/mutants.py`; the engine's are in `tests/native/mutants.toml`).

`scripts/conformance_doc.py` makes this page of `tests/conformance/facts.toml` and the tests. Their docstrings say more.
"""


@dataclass
class Proof:
    """A test of a fact: its clauses and mutants, each once, in order."""

    file: str
    test: str
    clauses: dict[str, None] = field(default_factory=dict)
    kills: dict[str, None] = field(default_factory=dict)
    reservation: str = ""  # the docstring of a test that proves less than the fact (its mark: is_less)

    @property
    def sentence(self) -> str:
        words = self.test.removeprefix("test_").replace("_", " ")
        return words[0].upper() + words[1:]


class _Collector:
    """A pytest plugin: the marks of all tests, those of a parametrized test's cases together."""

    def __init__(self) -> None:
        self.proofs: dict[str, dict[str, Proof]] = defaultdict(dict)  # fact -> test -> proof
        self.tests: set[str] = set()
        self.cases = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            marks = list(item.iter_markers("fact"))
            self.cases += bool(marks)
            test = item.name.partition("[")[0]
            for mark in reversed(marks):
                for fact in mark.args:
                    proof = self.proofs[fact].setdefault(f"{item.path}::{test}", Proof(item.path.name, test))
                    proof.clauses[mark.kwargs.get("clause", "")] = None
                    if mark.kwargs.get("is_less") and isinstance(item, pytest.Function):
                        proof.reservation = " ".join((item.function.__doc__ or "").split())
                    proof.kills.update(dict.fromkeys(mark.kwargs.get("kills", ())))
                    self.tests.add(f"{item.path}::{test}")


def collect(plugin: object, *options: str) -> None:
    """Have pytest collect the conformance tests for a plugin. Raises SystemExit if it cannot."""
    said = io.StringIO()
    usual = ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    os.chdir(ROOT)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*usual, *options, str(TESTS)], plugins=[plugin])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the tests cannot be collected:\n{said.getvalue()}")


def mutants() -> dict[str, str]:
    """What each mutant stands for."""
    entries = (
        entry
        for path in sorted(TESTS.glob("mutants*.toml"))
        for entry in tomllib.loads(path.read_text()).get("mutant", ())
    )
    return {entry["name"]: entry["why"] for entry in entries}


def facts() -> dict[str, dict[str, str]]:
    """The facts of each area, by their names."""
    return tomllib.loads((TESTS / "facts.toml").read_text())


def check_facts(stated: Collection[str], named: Collection[str]) -> None:
    """Raise SystemExit unless the tests name exactly the facts that are stated."""
    for names, what in (
        (set(named) - set(stated), "the tests name facts that facts.toml does not state"),
        (set(stated) - set(named), "facts.toml states facts that no test names"),
    ):
        if names:
            raise SystemExit(f"{what}: {', '.join(sorted(names))}")


def page(found: _Collector, why: dict[str, str]) -> str:
    """The page, in Markdown."""
    areas = facts()
    stated = [name for area in areas.values() for name in area]
    check_facts(stated, found.proofs)
    lines = [
        INTRODUCTION,
        f"{len(stated)} facts are proven by {len(found.tests)} tests ({found.cases} cases), "
        f"which kill {len(why)} mutants.",
    ]
    for area, its in areas.items():
        lines += ["", f"## {area}"]
        for name, fact in its.items():
            lines += _fact(name, fact, found.proofs[name].values())
    lines += ["", "## Where a test proves less than its fact says, or otherwise", ""]
    lines += [
        f"- {name}, *{proof.sentence}*: {proof.reservation}"
        for name in stated
        for proof in found.proofs[name].values()
        if proof.reservation
    ]
    lines += ["", "## The mutants", "", "| mutant | what it stands for |", "|---|---|"]
    lines += [row(f"`{name}`", reason) for name, reason in sorted(why.items())]
    return "\n".join(lines) + "\n"


def _fact(name: str, fact: str, proofs: Iterable[Proof]) -> Iterator[str]:
    yield from ("", f"### {name}", "", fact, "")
    yield from ("| test | file | clause | mutants killed |", "|---|---|---|---|")
    for proof in proofs:
        file = f"[{proof.file}](../tests/conformance/{proof.file})"
        kills = ", ".join(f"`{mutant}`" for mutant in proof.kills)
        yield row(proof.sentence, file, "; ".join(proof.clauses), kills)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    is_check = parser.parse_args().check
    found = _Collector()
    collect(found)
    text = page(found, mutants())
    if is_check:
        is_current = TARGET.exists() and TARGET.read_text() == text
        print("up to date" if is_current else f"{TARGET} is out of date: run scripts/conformance_doc.py")
        return 0 if is_current else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
