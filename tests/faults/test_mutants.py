"""The tests of faults and taps can fail: each mutant of mutants.toml makes the tests that name it fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conformance import mutants

HERE = Path(__file__).parent
RUNNER = HERE.parent / "conformance" / "mutants.py"


@pytest.mark.mutants
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed_by_every_test_that_names_it() -> None:
    command = (sys.executable, RUNNER, "--of", HERE.relative_to(HERE.parents[1]))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0


def test_every_mutant_fits_the_code() -> None:
    """Quick, so that whoever changes the code sees at once which mutants have to follow."""
    root = HERE.parents[1]
    found = mutants.load(root, HERE.relative_to(root))
    assert found
    for mutant in found.values():
        assert mutant.source(root) != (root / mutant.file).read_text()
