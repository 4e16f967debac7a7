"""Makes the matrix in docs/guests.md from the records of runs; called by scripts/guest_matrix.sh."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tools.guest.record import Record, load

OURS = "nvmeemu"
BEGIN, END = "<!-- made by scripts/guest_matrix.sh: begin -->", "<!-- made by scripts/guest_matrix.sh: end -->"
FIRMWARE = {"seabios": "SeaBIOS", "ovmf": "OVMF", "edk2": "EDK2", "none": "none"}
HEAD = (
    "| guest | architecture | firmware | vCPUs | run_qemu_guest.sh | boots | I/O verified | resets survived"
    " | CPU seconds | QEMU's own nvme |\n"
    "| --- | --- | --- | ---: | --- | ---: | --- | ---: | ---: | --- |\n"
)


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """The newest record of each run, in a fixed order, so that the file changes only where results do."""
    newest = {(record.options, record.drive): record for record in (*old, *new)}
    return sorted(
        newest.values(), key=lambda record: (record.arch != "x86_64", record.arch, record.options, record.drive)
    )


def table(records: Iterable[Record]) -> str:
    """The matrix: a row for each run with our drive, and how the same run went with QEMU's."""
    rows: dict[str, dict[str, Record]] = {}
    for record in records:
        rows.setdefault(record.options, {})[record.drive] = record
    return HEAD + "".join(_row(row[OURS], row.get("qemu-nvme")) for row in rows.values() if OURS in row)


def _row(ours: Record, peer: Record | None) -> str:
    guest = ours.guest or (peer.guest if peer else "") or ours.job
    firmware = "is one" if guest.startswith("U-Boot") else FIRMWARE[ours.firmware]
    cells = [guest, ours.arch, firmware, str(ours.smp), f"`{ours.options or '(no option)'}`"]
    if ours.passed:
        verified = "yes" if ours.verified else "not asked"
        cells += [str(ours.boots), verified, str(ours.resets), f"{ours.cpu_seconds:.0f}"]
    else:
        cells += [f"**fails**: {_reason(ours)}", "", "", ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, _peer(peer))) + " |\n"


def _peer(peer: Record | None) -> str:
    if peer is None:
        return "not run"
    return f"passes, {peer.cpu_seconds:.0f} CPU s" if peer.passed else f"fails: {_reason(peer)}"


def _reason(record: Record) -> str:
    return record.verdict.removeprefix("guest: FAIL (").removesuffix(")")


def insert(document: str, text: str) -> str:
    """The document with the text between the two marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge new records into the kept ones, and write the matrix."""
    parser = argparse.ArgumentParser(prog="python -m tools.guest.matrix", description=main.__doc__)
    parser.add_argument("new", type=Path, help="what --result-json wrote")
    parser.add_argument("kept", type=Path, help="all newest records, JSON lines")
    parser.add_argument("document", type=Path, help="Markdown with the two marks")
    options = parser.parse_args(arguments)
    records = merge(load(options.kept) if options.kept.exists() else [], load(options.new))
    options.kept.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    named = [record for record in records if record.guest or not record.passed]  # boot sectors tell nothing
    options.document.write_text(insert(options.document.read_text(), table(named)))


if __name__ == "__main__":
    main()
