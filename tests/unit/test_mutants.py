"""Each mutant can be made of the code as it is. This is quick: it tells at once which mutants a change has outdated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from conformance import mutants
from conformance.mutants import Mutant, misfits
from fuzz import test_engine_fuzzer, test_fuzzer
from native.test_no_memory import NO_MEMORY
from native.test_protection import FAULTS as PROTECTION
from native.test_sanitized import PLANTED

ROOT = Path(__file__).parents[2]
FOLDERS = sorted({path.parent for path in (ROOT / "tests").glob("*/mutants*.toml")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_mutant_fits_the_code(folder: Path) -> None:
    found = mutants.load(ROOT, folder.relative_to(ROOT))
    assert found
    fit(found.values())


def test_every_planted_fault_fits_the_code() -> None:
    """Those that a sanitizer or a fuzzer has to find, which takes too long to be seen soon."""
    planted = (planted.mutant for planted in PLANTED)
    fuzzed = (*test_engine_fuzzer.FAULTS, test_engine_fuzzer.LOST, *test_fuzzer.FAULTS)
    fit((*planted, *fuzzed, NO_MEMORY, *PROTECTION))


def fit(mutants: Iterable[Mutant]) -> None:
    unfit = misfits(ROOT, mutants)
    print(*unfit, sep="\n")
    assert not unfit
