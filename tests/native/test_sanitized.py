"""AddressSanitizer and UndefinedBehaviorSanitizer watch our C code during a few rounds of each attack."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SANITIZE = Path(__file__).parents[2] / "scripts/sanitize.sh"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_attacks_are_clean_under_asan_and_ubsan() -> None:
    tests = ("tests/native/test_attacks.py", "tests/native/test_engine.py")
    result = subprocess.run(
        (SANITIZE, "asan", "--rounds", "40", "-q", *tests), capture_output=True, text=True, check=False
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0
