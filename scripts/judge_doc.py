"""Make docs/judge.md of tests/conformance/judge.toml: where QEMU's own controller does otherwise, and who is right.

.venv/bin/python scripts/judge_doc.py [--check]
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "conformance" / "judge.toml"
TARGET = ROOT / "docs" / "judge.md"

INTRODUCTION = """\
# The outside judge

`pytest tests/conformance --judge` runs every conformance test that needs only BAR0 and guest memory against QEMU's
own NVMe controller, over qtest (no guest, no KVM; `tests/conformance/judge.py`). What passes on both was judged by
somebody who did not write it. What QEMU does otherwise is listed here, with who is right by the specification;
anything else that fails there fails our CI. Made by `scripts/judge_doc.py` from `tests/conformance/judge.toml`.

"""


def page(differences: list[dict[str, str]]) -> str:
    """The page, in Markdown."""
    who = Counter(entry["who"] for entry in differences)
    lines = [
        f"{len(differences)} differences: nvmeemu is right in {who['nvmeemu']}, QEMU in {who['QEMU']}; "
        f"the specification allows both in {who['both']}.",
        "",
        "| test | who is right | clause | what differs |",
        "|---|---|---|---|",
    ]
    for entry in sorted(differences, key=lambda entry: entry["test"]):
        what = entry["why"].replace("|", "\\|")
        lines.append(f"| `{entry['test']}` | {entry['who']} | {entry['clause']} | {what} |")
    return INTRODUCTION + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    text = page(tomllib.loads(SOURCE.read_text())["difference"])
    if parser.parse_args().check:
        is_current = TARGET.exists() and TARGET.read_text() == text
        print("up to date" if is_current else f"{TARGET} is out of date: run scripts/judge_doc.py", file=sys.stderr)
        return 0 if is_current else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
