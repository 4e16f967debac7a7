#!/usr/bin/env python3
"""Writes what the commands in docs/trace.md print, and the page's pictures: .venv/bin/python scripts/trace_doc.py"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs/trace.md"
PICTURE = re.compile(r"nvmeemu trace plot .* -o docs/images/.*")  # the commands that make the page's pictures


def output(command: str) -> str:
    """What it prints. CPU seconds, which differ, are those of a quick machine."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, check=False
    )
    lines = [line.rstrip() for line in (result.stdout + result.stderr).splitlines()]
    text = "\n".join(line for line in lines if line)
    return re.sub(r"commands in [\d.]+ s", "commands in 0.1 s", text)


def render(text: str) -> str:
    """The page with the output of its commands as it is now."""
    return re.sub(
        r"(```console\n\$ (.*)\n)(?:.*\n)*?(```\n)", lambda block: f"{block[1]}{output(block[2])}\n{block[3]}", text
    )


if __name__ == "__main__":
    DOC.write_text(render(DOC.read_text()))
    for command in PICTURE.findall(DOC.read_text()):
        sys.stderr.write(output(command))
