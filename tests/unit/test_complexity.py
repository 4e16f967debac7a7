"""No function in C has a cyclomatic complexity over MOST. For Python, ruff (C901) checks the same number."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "fuzz", "bench", "tests")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.[ch]"))
MOST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["mccabe"]["max-complexity"]

NO_CODE = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)
FUNCTION = re.compile(r"^\w[^;{}=#]*?\b(\w+)\([^;{}]*\)\s*\{$(.*?)^\}", re.MULTILINE | re.DOTALL)
BRANCH = re.compile(r"\b(?:if|for|while|case)\b|&&|\|\||\?")


def complexities(source: str) -> Iterator[tuple[str, int]]:
    """Each function, and one more than the branches in it."""
    for name, body in FUNCTION.findall(NO_CODE.sub(" ", source)):
        yield name, 1 + len(BRANCH.findall(body))


def test_branches_are_counted() -> None:
    source = """
static int f(int a) /* if */
{
    for (int i = 0; i < a && a != '?'; i++) // while
        if (a || i ? puts("||") : 0)
            return i;
    return 0;
}

int g(void)
{
    return 0;
}
"""
    assert dict(complexities(source)) == {"f": 6, "g": 1}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_function_is_too_complex(file: Path) -> None:
    too_complex = {name: number for name, number in complexities((ROOT / file).read_text()) if number > MOST}
    assert not too_complex
