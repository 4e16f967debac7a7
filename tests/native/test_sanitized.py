"""Sanitizers watch our C code during a few rounds of each attack; planted faults prove that they would tell."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.mutants import Mutant, MutantOfC

ROOT = Path(__file__).parents[2]
SANITIZE = ROOT / "scripts/sanitize.sh"
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src")  # of the package
ATTACKS = "tests/native/test_attacks.py::"


@dataclass(frozen=True)
class Planted:
    """A fault that ``sanitizer`` reports as ``report`` in ``function`` while ``test`` runs."""

    mutant: Mutant
    sanitizer: str
    test: str
    report: str
    function: str


PLANTED = (
    Planted(
        MutantOfC(
            name="read-out-of-bounds",
            within="deliver",
            old="transfer_scatter(&lane->transfer, op->buffer);",
            new="transfer_scatter(&lane->transfer, op->buffer + 1);",
            why="what the disk has given is delivered with a byte from behind it",
        ),
        sanitizer="asan",
        test="tests/native/test_engine.py::test_a_file_without_the_page_cache_is_the_engines_too",
        report="AddressSanitizer: heap-buffer-overflow",
        function="transfer_scatter",
    ),
    Planted(
        MutantOfC(
            name="queue-freed-too-early",
            within="free_dropped",
            old="if (sq->dropped && atomic_load(&sq->under_way) == 0) {",
            new="if (sq->dropped) {",
            why="a reset frees a queue whose commands still wait for a disk",
        ),
        sanitizer="asan",
        test=ATTACKS + "test_resets_with_commands_in_flight",
        report="AddressSanitizer: heap-use-after-free",
        function="op_finish",
    ),
    Planted(
        MutantOfC(
            name="shift-too-far",
            within="plain_run",
            old="offset = command->slba << disk->block_shift",
            new="offset = command->slba << (1u << disk->block_shift)",
            why="a block's size is taken for the number of its bits",
        ),
        sanitizer="asan",
        test="tests/native/test_engine.py::test_ordinary_reads_and_writes_are_the_engines",
        report="runtime error: shift exponent 512 is too large for 64-bit type",
        function="command_run",
    ),
    Planted(
        MutantOfC(
            name="protection-behind-the-metadata",
            within="place",
            old="format->is_first ? 0 : format->metadata_size - guard->total",
            new="format->is_first ? guard->total : format->metadata_size",
            why="the module of protection information is watched as well",
        ),
        sanitizer="asan",
        test="tests/native/test_protection.py::test_c_and_the_reference_agree",
        report="AddressSanitizer: heap-buffer-overflow",
        function="pi_generate",
    ),
    Planted(
        Mutant(
            name="short-message-in-the-library",
            within="_least_body",
            old="if message.command == DMA_MAP:\n    return MAP.size",
            new="if message.command == DMA_MAP:\n    return 0",
            why="a server's process, and libvfio-user in it, are watched as well",
        ),
        sanitizer="asan",
        test="tests/transport/test_messages.py::test_memory_that_is_not_wholly_said",
        report="AddressSanitizer: heap-buffer-overflow",
        function="handle_dma_map",
    ),
    Planted(
        MutantOfC(
            name="data-race",
            within="engine_in_flight",
            old="lane_enter(lane); number += only_writes ? atomic_load(&lane->writing) : lane->ops; lane_leave(lane);",
            new="(void)only_writes; number += lane->ops;",
            why="a reset counts what waits for a disk while the lane does so, too",
        ),
        sanitizer="tsan",
        test=ATTACKS + "test_resets_with_commands_in_flight",
        report="ThreadSanitizer: data race",
        function="engine_in_flight",
    ),
)
CHEAPEST = "read-out-of-bounds"


def sanitize(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run((SANITIZE, *arguments), capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    return result


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_the_attacks_are_clean(kind: str) -> None:
    """Those commands have PRPs and SGLs, and disks with protection information."""
    tests = [f"tests/native/test_{name}.py" for name in ("attacks", "engine", "paired", "protection")]
    assert sanitize(kind, "--rounds", "30", "-q", *tests, "tests/conformance/test_sgl.py").returncode == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=pytest.mark.long if name == CHEAPEST else pytest.mark.slow)
        for fault in PLANTED
        for name in [fault.mutant.name]
    ],
)
def test_a_planted_fault_is_reported(fault: Planted, tmp_path: Path) -> None:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    change = fault.mutant.change(ROOT)
    (tmp_path / change.file).write_text(change.text)
    result = sanitize(fault.sanitizer, "--source", tmp_path, "-q", fault.test)
    assert result.returncode == 1
    # At least one: a race need not be met in each process of the test.
    assert re.search(rf"{fault.sanitizer}: [1-9]\d* processes had something to report", result.stderr)
    assert fault.report in result.stderr
    assert f" {fault.function} " in result.stderr  # in a stack
