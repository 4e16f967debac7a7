"""That the fuzzer can find things: with a fault put into a copy of the controller it finds it; and a minute of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = {
    "completes-twice-after-abort": (
        "requests.py",
        "        was_live, self.live = self.live, False",
        "        was_live = self.live",
    ),
    "one-too-many-in-a-full-queue": (
        "queues.py",
        "        if after == self.head and self.is_full:",
        "        if False:",
    ),
    "prp-list-without-a-chain": (
        "prp.py",
        "        if pages > room:",
        "        if False:",
    ),
    "shadow-doorbells-outlive-a-reset": (
        "device.py",
        "        self.shadow = None\n        self.changed_namespaces",
        "        self.changed_namespaces",
    ),
    "a-range-of-one-block-too-many": (
        "namespace.py",
        "        if slba + blocks > self.blocks:",
        "        if slba + blocks > self.blocks + 1:",
    ),
    "views-outlive-the-map": (
        "controller.py",
        "            cq.ring.forget()",
        "            pass",
    ),
    "a-read-is-finished-after-a-reset": (
        "executor.py",
        "        if request.live:\n            self._proceed",
        "        if True:\n            self._proceed",
    ),
}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_finds_a_planted_fault(fault: str, tmp_path: Path) -> None:
    """Within a number of programs that takes a minute at most."""
    name, old, new = FAULTS[fault]
    shutil.copytree(ROOT / "src/nvmeemu", tmp_path / "nvmeemu", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "nvmeemu" / name
    text = file.read_text()
    assert text.count(old) == 1, f"{name} has changed: choose another fault"
    file.write_text(text.replace(old, new))
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
