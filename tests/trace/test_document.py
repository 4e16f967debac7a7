"""The output in docs/trace.md is what its commands print; scripts/trace_doc.py writes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/trace_doc.py"


def test_the_page_shows_what_its_commands_print() -> None:
    spec = importlib.util.spec_from_file_location("trace_doc", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.DOC.read_text()
    assert text.count("```console\n$ nvmeemu ") >= 7
    assert module.render(text) == text, "run .venv/bin/python scripts/trace_doc.py"
