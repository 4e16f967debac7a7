"""The tests can fail: each mutant of a folder's mutants*.toml makes the tests that name it fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conformance import mutants

pytestmark = pytest.mark.mutants

RUNNER = Path(__file__).with_name("mutants.py")
FOLDERS = sorted({path.parent.name for path in RUNNER.parents[1].glob("*/mutants*.toml")} - {mutants.OF_C})
PROJECT = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["src"]\nmarkers = ["fact", "kills"]\n',
    "src/thing.py": "WIDTH = 8\n\n\ndef double(number: int) -> int:\n    return number * 2\n",
}
TEST = """
import pytest, thing

@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.fact("A1", kills=("triples",))
def test_two_threes_are_six(number):
    assert thing.double(number) == 2 * number
"""
CASES = """
import pytest, thing

@pytest.mark.parametrize("number", [pytest.param(number, marks=pytest.mark.kills("triples")) for number in (3, 0)])
def test_double(number):
    assert thing.double(number) == 2 * number
"""


def triples(new: str, within: str = "double", old: str = "number * 2") -> str:
    return f'[[mutant]]\nname = "triples"\nwithin = "{within}"\nold = "{old}"\nnew = "{new}"\nwhy = "a test"\n'


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_mutant_is_killed_by_every_test_that_names_it(folder: str) -> None:
    command = (sys.executable, RUNNER, "--of", f"tests/{folder}")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0


def _run(root: Path, test: str, table: str) -> tuple[int, str]:
    """The runner's answer for a project of one function."""
    for name, text in {
        **PROJECT,
        "tests/conformance/test_thing.py": test,
        "tests/conformance/mutants.toml": table,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    program = f"import sys; sys.path.insert(0, {str(RUNNER.parents[1])!r}); from conformance import mutants; "
    program += f"import pathlib; sys.exit(mutants.run(pathlib.Path({str(root)!r})) > 0)"
    result = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("test", "table", "says"),
    [
        pytest.param(TEST, triples("number * 3"), "mutants: 1 killed", id="killed"),
        pytest.param(TEST, triples("number + number"), "triples survives", id="survives"),
        pytest.param(TEST, triples("number.thrice"), "triples is out of date: AttributeError", id="out-of-date"),
        pytest.param(CASES, triples("number * 3"), "test_thing.py::test_double[0]", id="a-case-survives"),
        pytest.param(TEST, triples("number * 3", old="number * 4"), "does not stand in double", id="not-there"),
        pytest.param(TEST, triples("undefined", within="WIDTH", old="8"), "triples breaks", id="no-import"),
        pytest.param(TEST, "", "no mutant is named triples", id="no-mutant"),
        pytest.param(
            TEST.replace('"triples",', ""), triples("number * 3"), "no test names the mutant triples", id="no-test"
        ),
        pytest.param(TEST.replace("==", "!="), triples("number * 3"), "fails without any mutant", id="fails-anyway"),
    ],
)
def test_the_runner_tells_what_is_wrong(tmp_path: Path, test: str, table: str, says: str) -> None:
    code, text = _run(tmp_path, test, table)
    assert says in text
    assert code == (not says.endswith("1 killed")), text
