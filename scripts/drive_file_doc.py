"""Make the tables of keys in docs/drive-file.md.

.venv/bin/python scripts/drive_file_doc.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from nvmeemu.app.drive.keys import ABOUT, LISTS, TABLES, TOP

TARGET = Path(__file__).parents[1] / "docs" / "drive-file.md"
BEGIN, END = "<!-- made by scripts/drive_file_doc.py: -->", "<!-- until here -->"


def tables() -> str:
    """All of them."""
    return "\n\n".join(_table(name) for name in TABLES)


def _table(name: str) -> str:
    title = "Above all tables" if name == TOP else f"`[[{name}]]`" if name in LISTS else f"`[{name}]`"
    return "\n".join(
        [f"### {title}\n\n{ABOUT[name]}\n", "| key | value | | without it |", "|---|---|---|---|", *_rows(name)]
    )


def _rows(name: str) -> Iterator[str]:
    for key in TABLES[name].values():
        yield f"| `{key.name}` | {key.kind.words} | {key.about} | {key.otherwise or '-'} |"


def page(before: str) -> str:
    """The page with the tables made anew."""
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    before = TARGET.read_text()
    after = page(before)
    if parser.parse_args().check:
        if after != before:
            print("docs/drive-file.md is out of date: run scripts/drive_file_doc.py", file=sys.stderr)
        return int(after != before)
    TARGET.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
