"""The tests of traces can fail: each mutant of mutants.toml makes the tests that name it fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNNER = HERE.parent / "conformance" / "mutants.py"


@pytest.mark.mutants
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed_by_every_test_that_names_it() -> None:
    command = (sys.executable, RUNNER, "--of", HERE.relative_to(HERE.parents[1]))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
