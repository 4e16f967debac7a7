"""Quick, so that whoever changes the code sees at once which mutants have to follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance import mutants
from fuzz.test_engine_fuzzer import ENGINE, FAULTS
from native.test_sanitized import PLANTED

ROOT = Path(__file__).parents[2]
FOLDERS = sorted({path.parent for path in (ROOT / "tests").glob("*/mutants*.toml")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_mutant_fits_the_code(folder: Path) -> None:
    found = mutants.load(ROOT, folder.relative_to(ROOT))
    assert found
    for mutant in found.values():
        assert mutant.source(ROOT) != (ROOT / mutant.file).read_text()


def test_every_planted_fault_fits_the_code() -> None:
    """Those that a sanitizer or a fuzzer has to find, which takes too long to be seen soon."""
    for planted in PLANTED:
        assert planted.source(ROOT) != (ROOT / planted.file).read_text()
    for name, old, _ in FAULTS.values():
        assert (ENGINE / name).read_text().count(old) == 1, old
