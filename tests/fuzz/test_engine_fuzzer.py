"""The fuzzer of the native engine's C: it reaches the code that reads what the guest wrote, finds a planted read out of
bounds and a doorbell that is lost, and, for a minute, nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conformance.mutants import Mutant, MutantOfC

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "src/nvmeemu/engine/native"
FAULTS = (  # accesses out of bounds
    MutantOfC(
        name="past-the-end-of-a-region",
        within="guest_at",
        old="if (*size > there)",
        new="if (*size > there && size == NULL)",
        why="memory that is not the guest's",
    ),
    MutantOfC(
        name="lba-overflow",
        within="disk_has",
        old="return blocks <= disk->blocks && slba <= disk->blocks - blocks;",
        new="return slba + blocks <= disk->blocks;",
        why="a range that begins behind the disk's end",
    ),
    MutantOfC(
        name="a-doorbell-behind-the-page",
        within="engine_ring",
        old="engine->takes_doorbells && number < MAX_DOORBELLS ?",
        new="engine->takes_doorbells ?",
        why="a queue whose doorbell is on no page of ours",
    ),
)
LOST = MutantOfC(
    name="a-lost-doorbell",
    within="look_at_all_doorbells",
    old="doorbells_are_rung(lane->engine, MAX_DOORBELLS)",
    new="doorbells_are_rung(lane->engine, lane->engine->watched)",
    why="main is not told of a doorbell",
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def fuzz(*options: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/fuzz_engine.sh"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done


def fuzz_planted(fault: Mutant, tmp_path: Path) -> str:
    """For five minutes; what the fuzzer has to say of the fault that it has found."""
    change = fault.change(ROOT)
    source = tmp_path / "native"
    shutil.copytree(ENGINE, source)
    (source / (ROOT / change.file).relative_to(ENGINE)).write_text(change.text)
    done = fuzz("--seconds", 300, "--source", source, "--", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_access_out_of_bounds_is_found_within_five_minutes(fault: Mutant, tmp_path: Path) -> None:
    assert "Sanitizer" in fuzz_planted(fault, tmp_path)  # Address or UndefinedBehavior


def test_the_books_show_that_main_is_not_told_of_a_doorbell(tmp_path: Path) -> None:
    assert "FAULT: a doorbell that main was not told of" in fuzz_planted(LOST, tmp_path)


def test_the_corpus_reaches_the_parsing() -> None:
    assert fuzz("--coverage").returncode == 0


def test_a_minute_of_fuzzing_the_engine_finds_nothing() -> None:
    assert fuzz("--seconds", 60).returncode == 0
