"""The fuzzer of the native engine's C: it reaches the code that reads what the guest wrote, finds a planted read out of
bounds and a doorbell that is lost, and, for a minute, nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "src/nvmeemu/engine/native"
FAULTS = {
    "past-the-end-of-a-region": ("memory.c", "    if (*size > there)\n", "    if (*size > there && size == NULL)\n"),
    "lba-overflow": (
        "command.c",
        "return blocks <= disk->blocks && slba <= disk->blocks - blocks;",
        "return slba + blocks <= disk->blocks;",
    ),
    "a-doorbell-behind-the-page": (
        "doorbells.c",
        "engine->takes_doorbells && number < MAX_DOORBELLS ?",
        "engine->takes_doorbells ?",
    ),
}

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def fuzz(*options: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/fuzz_engine.sh"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done


def fuzz_planted(name: str, old: str, new: str, tmp_path: Path) -> str:
    """For five minutes; what the fuzzer has to say of the fault that it has found."""
    shutil.copytree(ENGINE, tmp_path / "native")
    file = tmp_path / "native" / name
    text = file.read_text()
    assert text.count(old) == 1, f"{name} has changed: choose another fault"
    file.write_text(text.replace(old, new))
    done = fuzz("--seconds", 300, "--source", tmp_path / "native", "--", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_access_out_of_bounds_is_found_within_five_minutes(fault: str, tmp_path: Path) -> None:
    assert "Sanitizer" in fuzz_planted(*FAULTS[fault], tmp_path)  # Address or UndefinedBehavior


def test_the_books_show_that_main_is_not_told_of_a_doorbell(tmp_path: Path) -> None:
    found = "doorbells_are_rung(lane->engine, MAX_DOORBELLS)"
    said = fuzz_planted("lane.c", found, found.replace("MAX_DOORBELLS", "lane->engine->watched"), tmp_path)
    assert "FAULT: a doorbell that main was not told of" in said


def test_the_corpus_reaches_the_parsing() -> None:
    assert fuzz("--coverage").returncode == 0


def test_a_minute_of_fuzzing_the_engine_finds_nothing() -> None:
    assert fuzz("--seconds", 60).returncode == 0
