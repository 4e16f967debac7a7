"""Prints llvm-cov's summary of the engine: ``coverage.py SUMMARY.json LEAST FILE...``.

Exit status 1 if less than LEAST percent of the lines of these files were reached.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(summary: str, least: str, *counted: str) -> int:
    reached = lines = 0
    for file in json.loads(Path(summary).read_text())["data"][0]["files"]:
        name, found = Path(file["filename"]).name, file["summary"]["lines"]
        print(f"{name:12} {found['covered']:4} of {found['count']:4} lines")
        if name in counted:
            reached += found["covered"]
            lines += found["count"]
    percent = 100 * reached / lines
    print(f"{', '.join(counted)}: {percent:.1f} % of the lines")
    return 0 if percent >= float(least) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
