"""Quick, so that whoever changes the code sees at once which mutants have to follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance import mutants

ROOT = Path(__file__).parents[2]
FOLDERS = sorted({path.parent for path in (ROOT / "tests").glob("*/mutants*.toml")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_mutant_fits_the_code(folder: Path) -> None:
    found = mutants.load(ROOT, folder.relative_to(ROOT))
    assert found
    for mutant in found.values():
        assert mutant.source(ROOT) != (ROOT / mutant.file).read_text()
