"""docs/pytest.md is what the plugin's docstrings and signatures say, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "scripts" / "pytest_doc.py"
PAGE = (CHECKOUT / "docs" / "pytest.md").read_text()
# For the plugin itself, or of a base class that is for other users.
NOT_FOR_TESTS = {
    *("start", "close", "kill", "sections", "records", "examine", "transcript", "deadline", "engine", "worker"),
    *(
        "allow_format",
        "is_manual",
        "namespace",
        "namespaces",
        "allow_pairing",
        "backend",
        "read_bar",
        "write_bar",
        "read_memory",
        "write_memory",
    ),
}


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pytest_doc", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_up_to_date() -> None:
    result = subprocess.run((sys.executable, SCRIPT, "--check"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_public_is_left_out() -> None:
    for kind, documented in script().CLASSES.items():
        public = {name for name in dir(kind) if not name.startswith("_")} - NOT_FOR_TESTS
        assert public <= set(documented), kind


def test_every_member_is_explained_and_so_are_the_driver_and_the_bus() -> None:
    members = [line for line in PAGE.splitlines() if line.startswith("- `")]
    assert [line for line in members if not re.match(r"- `\w+(\(.*\).*)?`: \S", line)] == []
    for kind in script().PARTS:
        section = PAGE.partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
        public = {
            name for name, one in vars(kind).items() if name[0] != "_" and (callable(one) or hasattr(one, "fget"))
        }
        assert public == set(re.findall(r"^- `(\w+)", section, re.MULTILINE))


@pytest.mark.parametrize("kind", ["fixtures", "options"])
def test_what_pytest_lists_is_on_the_page(kind: str) -> None:
    arguments = ["--fixtures", "-q", "--co"] if kind == "fixtures" else ["--help"]
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *arguments, SCRIPT],
        capture_output=True,
        text=True,
    ).stdout
    if kind == "fixtures":
        section = listed.partition("fixtures defined from nvmeemu.pytest_plugin")[2].partition("fixtures defined")[0]
        names = {line.split()[0] for line in section.splitlines() if line and line[0].isalpha()}
        assert names == set(script().FIXTURES)
    else:
        names = set(re.findall("--nvmeemu-[a-z-]+", listed))
        assert len(names) == 5
        assert all(name in PAGE for name in names)
