"""What metadata and protection information cost: CPU time of the native engine, and speed beside Python's.

    .venv/bin/python -m bench.metadata [--rounds 15] [--before REVISION] [--json FILE]

Servers with a `mem:` disk of blocks of 4096 bytes: never formatted ("plain", and once more as "again", A/A), formatted
without metadata, with 8 bytes of separate metadata, and with protection information of type 1 in them. All take turns:
random reads and writes of a block at depth 32. A write of protected blocks has its protection information made (PRACT),
a read has guard and tags checked and gets the metadata. With `--before`, a plain disk of that revision's own build
stands beside. Exit status 1 if a mark is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.marks import Mark
from bench.polled import PAGE, Load
from bench.rounds import Case, Summary, measure
from bench.target import MIB, ServedTarget
from nvmeemu.guest import cache
from nvmeemu.spec import FormatNvm, NvmOpcode, ReadWrite

ROOT = Path(__file__).resolve().parents[1]
DISK = 64 * MIB
DEPTH = 32
PRACT = ReadWrite(pract=True).cdw12
CHECKS = ReadWrite(check_guard=True, check_application=True, check_reference=True).cdw12
WITHOUT, SEPARATE = 4, 5  # formats: 4096 bytes, 4096 + 8
FORMATS = {
    "formatted": FormatNvm(opcode=FormatNvm.OPCODE, nsid=1, lbafl=WITHOUT),
    "separate": FormatNvm(opcode=FormatNvm.OPCODE, nsid=1, lbafl=SEPARATE),
    "protected": FormatNvm(opcode=FormatNvm.OPCODE, nsid=1, lbafl=SEPARATE, pi=1),
}
MARKS = {
    "read_protected_over_separate_cpu": Mark(1.6),
    "write_protected_over_separate_cpu": Mark(1.6),
    "read_separate_native_over_python": Mark(5, is_least=True),
    "write_separate_native_over_python": Mark(5, is_least=True),
}
MARKS_BEFORE = {"read_plain_over_before_cpu": Mark(1.02), "write_plain_over_before_cpu": Mark(1.02)}


def build(revision: str, folder: Path) -> dict[str, str]:
    """The package of a revision, with its own compiled modules: the environment that a server of it has."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, stdout=subprocess.PIPE)
    tree = folder / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(folder / "lib")]
    environment = {"LIBVFIO_USER_SRC": str(cache.root() / "libvfio-user"), **os.environ}
    subprocess.run(command, cwd=tree, check=True, env=environment, stdout=subprocess.DEVNULL)
    return {**os.environ, "PYTHONPATH": str(folder / "lib")}


def open_targets(stack: ExitStack, folder: Path, before: str | None) -> dict[str, ServedTarget]:
    """The servers by their names."""

    def server(
        name: str, engine: str, format: FormatNvm | None, environment: Mapping[str, str] | None = None
    ) -> ServedTarget:
        words = ["--engine", engine, "--block-size", str(PAGE)]
        target = ServedTarget(
            name, folder, f"mem:{DISK}", words, doorbells="shadow", format=format, environment=environment
        )
        return stack.enter_context(target)

    found = {name: server(name, "native", None) for name in ("plain", "again")}
    if before is not None:
        found["before"] = server("before", "native", None, build(before, folder))
    found |= {name: server(name, "native", format) for name, format in FORMATS.items()}
    found["python"] = server("python", "python", FORMATS["separate"])
    return found


def fill(target: ServedTarget, bits: int, has_metadata: bool) -> None:
    """Write all blocks."""
    pages = DISK // PAGE
    load = Load(disk_pages=pages, opcode=NvmOpcode.WRITE, pages=1, depth=8, commands=pages, block=PAGE)
    load.cdw12, load.has_metadata = bits, has_metadata
    target.run(load)


def cases_of(targets: Mapping[str, ServedTarget]) -> dict[str, Case]:
    """Reads and writes of each, by their names. What has metadata has SGLs, too."""
    cases = {}
    for name, target in targets.items():
        is_protected, has_metadata = name == "protected", name in ("separate", "protected", "python")
        fill(target, PRACT if is_protected else 0, has_metadata and not is_protected)
        for opcode, bits in ((NvmOpcode.READ, CHECKS), (NvmOpcode.WRITE, PRACT)):
            cases[f"{opcode.name.lower()} {name}"] = Case(
                target,
                DEPTH,
                opcode,
                cdw12=bits if is_protected else 0,
                block=PAGE,
                has_metadata=has_metadata,
                has_sgl=has_metadata,
            )
    return cases


def ratios_of(found: Mapping[str, Summary], has_before: bool) -> dict[str, float]:
    """Of CPU time (``_cpu``), or of commands in a second."""
    ratios = {}
    for what in ("read", "write"):
        cpu = {name.partition(" ")[2]: one.engine_ns for name, one in found.items() if name.startswith(what)}
        pairs = [("again", "plain"), ("formatted", "plain"), ("separate", "plain"), ("protected", "separate")]
        for one, other in [*pairs, *([("plain", "before")] if has_before else [])]:
            ratios[f"{what}_{one}_over_{other}_cpu"] = round(cpu[one] / cpu[other], 3)
        speed = found[f"{what} separate"].iops / found[f"{what} python"].iops
        ratios[f"{what}_separate_native_over_python"] = round(speed, 2)
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.metadata", description="CPU time of metadata in the native engine.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--before", metavar="REVISION")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds takes a number of at least 1")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        cases = cases_of(open_targets(stack, Path(name), arguments.before))
        found = dict(zip(cases, measure(list(cases.values()), DISK // PAGE, rounds=arguments.rounds), strict=True))
    for name, summary in found.items():
        print(f"{name:<18} {summary}")
    ratios = ratios_of(found, arguments.before is not None)
    marks = {**MARKS, **(MARKS_BEFORE if arguments.before is not None else {})}
    for name, value in ratios.items():
        mark = marks.get(name)
        told = "" if mark is None else f"  {mark!s:<8} {'met' if mark.is_met(value) else 'not met'}"
        print(f"{name:<36} {value:>8}{told}")
    if arguments.json:
        arguments.json.write_text(json.dumps(ratios, indent=1) + "\n")
    return 0 if all(mark.is_met(ratios[name]) for name, mark in marks.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
