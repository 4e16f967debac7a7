#!/usr/bin/env python3
"""Writes the output of the commands in docs/profiles.md behind them: .venv/bin/python scripts/profiles_doc.py"""

from __future__ import annotations

from trace_doc import ROOT, render

DOC = ROOT / "docs/profiles.md"

if __name__ == "__main__":
    DOC.write_text(render(DOC.read_text()))
