"""docs/api.md is what is public: the modules' ``__all__``, the plugin's fixtures, and all that our documents use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeemu import pytest_plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
BY_SPECIFICATION = "nvmeemu.spec"  # public as a whole
SECTIONS = dict(re.findall(r"^## `(\S+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
MODULES = [name for name in SECTIONS if name != BY_SPECIFICATION]
IN_DOCUMENTS = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def listed(module: str, kind: str = "name") -> list[str]:
    """The names in the first column of the section's table with this heading."""
    table = re.search(rf"^\| {kind} \| .*\n\|---.*\n((?:\|.*\n)*)", SECTIONS[module], flags=re.MULTILINE)
    assert table, f"{module} has no table of {kind}s"
    return [name for row in table[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.parametrize("module", MODULES)
def test_the_page_lists_what_the_module_says_is_public(module: str) -> None:
    public = importlib.import_module(module).__all__
    assert sorted(listed(module)) == sorted(public)
    assert len(set(public)) == len(public)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_the_page_lists_the_fixtures() -> None:
    fixtures = [
        name
        for name, value in vars(pytest_plugin).items()
        if not name.startswith("_") and hasattr(value, "_get_wrapped_function")
    ]
    assert len(fixtures) > 5
    assert sorted(listed("nvmeemu.pytest_plugin", "fixture")) == sorted(fixtures)


def programs() -> Iterator[tuple[str, str]]:
    """The Python in our documents and examples, with where it stands."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in IN_DOCUMENTS.findall(path.read_text()):
            yield path.name, textwrap.dedent(block)
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text()


def imports() -> list[tuple[str, str, str]]:
    """What they import of ours: document, module, name."""
    return [
        (where, node.module, alias.name)
        for where, text in programs()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nvmeemu"
        for alias in node.names
    ]


def test_documents_and_examples_use_what_is_public_only() -> None:
    used = imports()
    assert {"README.md", "faults.md", "test_linux_driver.py"} <= {where for where, _, _ in used}
    for where, module, name in used:
        assert module in SECTIONS, f"{where} imports {module}, which is not public"
        if module == BY_SPECIFICATION:
            assert hasattr(importlib.import_module(module), name), where
        else:
            assert name in listed(module), f"{where} imports {module}.{name}, which is not public"


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_says_what_it_is(module: str) -> None:
    """Each class and function has a docstring, and not the one that a data class gets by itself."""
    found = importlib.import_module(module)
    for name in found.__all__:
        one = getattr(found, name)
        if inspect.isclass(one) or inspect.isfunction(one):
            assert not (one.__doc__ or f"{name}(").startswith(f"{name}("), f"{module}.{name}"
