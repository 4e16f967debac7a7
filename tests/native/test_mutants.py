"""The tests of the native engine can fail: each known fault in its C is found out by them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("mutants.py")


@pytest.mark.mutants
@pytest.mark.timeout(3600)
def test_every_mutant_of_the_engine_is_killed() -> None:
    result = subprocess.run((sys.executable, RUNNER), capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
