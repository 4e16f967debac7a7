"""One word for one thing: no public class of ours has the name of another one. docs/glossary.md has the words."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import nvmeemu

SOURCE = Path(nvmeemu.__file__).parent
GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"

ALLOWED = {  # names that stand twice, and why
    "Completion": "the specification's entry (spec), and the record of a trace that has one: docs/trace-format.md",
}


def classes() -> dict[str, list[str]]:
    """The public ones, with the modules that have one of that name."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                homes[statement.name].append(str(path.relative_to(SOURCE)))
    return homes


def test_no_public_class_name_stands_twice() -> None:
    homes = classes()
    assert len(homes) > 200
    twice = {name: paths for name, paths in homes.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in ALLOWED} == {}
    assert twice.keys() >= ALLOWED.keys(), "an allowed name stands once now"


def test_the_glossary_tells_classes_apart_that_are_there() -> None:
    table = GLOSSARY.read_text().partition("## Names that look alike")[2]
    named = re.findall(r"`(?:\w+\.)?([A-Z]\w+)`", table)
    assert len(named) > 10
    assert set(named) <= classes().keys()
