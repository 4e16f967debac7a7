"""The conformance tests are themselves judged: by QEMU's own controller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAST = 300  # tests that QEMU's controller passes


@pytest.mark.guest
@pytest.mark.timeout(1200)
def test_qemus_own_controller_passes_but_for_the_differences_that_are_listed() -> None:
    command = (sys.executable, "-m", "pytest", "tests/conformance", "--judge", "-q", "-m", "not mutants", "-n", "2")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(result.stdout[-4000:])
    assert result.returncode == 0
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST


def test_the_page_of_differences_is_up_to_date() -> None:
    subprocess.run((sys.executable, ROOT / "scripts" / "judge_doc.py", "--check"), check=True)
