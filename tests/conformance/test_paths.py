"""Each conformance test runs on both data paths, Python and the engine. The exceptions are listed (``ONE_PATH`` in
conftest.py)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conformance.conftest import ONE_PATH

TESTS = Path(__file__).parents[1]


def test_what_is_listed_and_what_stands_for_it_is_there() -> None:
    for name, (why, instead) in ONE_PATH.items():
        assert why
        for test in (f"conformance/{name}", *([instead] if instead else [])):
            file, _, function = test.partition("::")
            assert f"\ndef {function}(" in (TESTS / file).read_text(), test


def test_no_test_makes_its_controller_itself() -> None:
    """It would have the Python path whatever the parameter says."""
    own = [path.name for path in (TESTS / "conformance").glob("test_*.py") if re.search(r"\bBench\(", path.read_text())]
    assert own == []


def test_a_test_for_one_path_cannot_be_collected_unless_it_is_listed(tmp_path: Path) -> None:
    only = "import pytest\n\n@pytest.mark.parametrize('engine', ['python'], indirect=True)\n"
    for name, test in (
        ("none", "def test_it(): ..."),
        ("one", f"{only}def test_it(new_bench): ..."),
        ("both", "def test_it(new_bench): ..."),
    ):
        (tmp_path / f"test_{name}.py").write_text(f"{test}\n")
    options = ("-q", "-n0", "--collect-only", "-p", "no:cacheprovider", "-p", "conformance.conftest", "-c", "/dev/null")
    command = (sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path)
    environment = {"PYTHONPATH": str(TESTS)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    refused = re.findall(r"^test_(\w+)\.py::test_it runs on one path", result.stdout, re.MULTILINE)
    assert sorted(refused) == ["none", "one"], result.stdout + result.stderr
