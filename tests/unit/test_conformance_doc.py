"""docs/conformance.md is what the conformance tests say of themselves."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "conformance_doc.py"


def test_the_committed_page_is_up_to_date() -> None:
    result = subprocess.run((sys.executable, SCRIPT, "--check"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("stated", "named", "said"),
    [(["A1"], ["A1", "A99"], "does not state: A99"), (["A1", "A2"], ["A1"], "no test names: A2")],
)
def test_a_fact_without_a_test_and_a_test_without_a_fact_are_told(
    monkeypatch: pytest.MonkeyPatch, stated: list[str], named: list[str], said: str
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    check_facts = importlib.import_module("conformance_doc").check_facts
    with pytest.raises(SystemExit, match=said):
        check_facts(stated, named)
    check_facts(stated, stated)
