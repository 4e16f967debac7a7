"""docs/conformance.md is what the conformance tests say of themselves, and their mutants fit the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conformance import mutants

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "conformance_doc.py"


def test_the_committed_page_is_up_to_date() -> None:
    result = subprocess.run((sys.executable, SCRIPT, "--check"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_mutant_fits_the_code() -> None:
    """Whether they are killed takes minutes (scripts/test.sh); that a change of the code has lost one, a moment."""
    found = mutants.load(ROOT)
    assert len(found) > 300
    for mutant in found.values():
        mutant.source(ROOT)  # raises BadMutant
