"""docs/conformance.md is what the conformance tests say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "conformance_doc.py"


def test_the_committed_page_is_up_to_date() -> None:
    result = subprocess.run((sys.executable, SCRIPT, "--check"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
