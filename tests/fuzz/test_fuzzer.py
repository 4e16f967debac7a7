"""The fuzzer finds a fault that was put into a copy of the controller. In a minute it finds none in the real one."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.mutants import Mutant

ROOT = Path(__file__).parents[2]
FAULTS = (
    Mutant(
        name="completes-twice-after-abort",
        within="Request.drop",
        old="was_live, self.live = self.live, False",
        new="was_live = self.live",
        why="a command that was aborted is completed again",
    ),
    Mutant(
        name="one-too-many-in-a-full-queue",
        within="PythonCq._write",
        old="after == self.head and not self._has_room()",
        new="False",
        why="a completion that the host has not seen is overwritten",
    ),
    Mutant(
        name="prp-list-without-a-chain",
        within="_list",
        old="pages > room",
        new="False",
        why="the last entry of a list's page is taken for data",
    ),
    Mutant(
        name="shadow-doorbells-outlive-a-reset",
        within="ControllerState.reset",
        old="self.shadow = None",
        new="",
        why="the host has given their memory to others",
    ),
    Mutant(
        name="a-range-of-one-block-too-many",
        within="Namespace.length",
        old="slba + blocks > self.blocks",
        new="slba + blocks > self.blocks + 1",
        why="a block behind the disk's end",
    ),
    Mutant(
        name="views-outlive-the-map",
        within="Controller.quiesce",
        old="cq.server.forget()",
        new="pass",
        why="a queue in memory that has been taken away",
    ),
    Mutant(
        name="a-read-is-finished-after-a-reset",
        within="Executor._go_on",
        old="request.live",
        new="True",
        why="a command of the time before",
    ),
)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fuzzer_finds_a_planted_fault(fault: Mutant, tmp_path: Path) -> None:
    """Within a number of programs that takes a minute at most."""
    change = fault.change(ROOT)
    shutil.copytree(ROOT / "src/nvmeemu", tmp_path / "nvmeemu", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / change.file.relative_to("src")).write_text(change.text)
    done = subprocess.run(
        (sys.executable, ROOT / "fuzz/hunt.py", "--seed", "1", "--programs", "3000", "--seconds", "500"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    assert "nothing found" not in done.stdout
    assert list(tmp_path.glob("short-*"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_minute_of_fuzzing_finds_nothing() -> None:
    """With new random numbers each time: what it finds is in fuzz/found. By coverage where Atheris has packages."""
    done = subprocess.run((ROOT / "scripts/fuzz.sh", "--seconds", "60"), capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    has_package = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc" and sys.version_info < (3, 15)
    guided, blind = "guided by coverage" in done.stderr, "without coverage" in done.stderr
    assert guided if has_package else guided != blind
