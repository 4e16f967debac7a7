"""Commands that are valid, at an edge or spoiled in one field, on both data paths: everything that can be seen is the
same. NVMEEMU_SEED repeats a run; ``run.py`` does it without pytest."""

from __future__ import annotations

import os
import random

import pytest

from differential.run import run
from nvmeemu.spec import NvmOpcode, Status

ENOUGH = 20_000  # cases, for each of these to come; of 2,000 one may be missing by chance
REACHED = {
    NvmOpcode.READ: {
        Status.SUCCESS,
        Status.INVALID_FIELD,
        Status.DATA_TRANSFER_ERROR,
        Status.INVALID_NAMESPACE,
        Status.INVALID_PRP_OFFSET,
        Status.LBA_OUT_OF_RANGE,
    },
    NvmOpcode.WRITE: {Status.SUCCESS, Status.NAMESPACE_WRITE_PROTECTED, Status.INVALID_PRP_OFFSET},
    NvmOpcode.COMPARE: {Status.SUCCESS, Status.COMPARE_FAILURE},
    NvmOpcode.FLUSH: {Status.SUCCESS, Status.INVALID_NAMESPACE},
    NvmOpcode.WRITE_ZEROES: {Status.SUCCESS, Status.NAMESPACE_WRITE_PROTECTED, Status.LBA_OUT_OF_RANGE},
    NvmOpcode.DATASET_MANAGEMENT: {Status.SUCCESS, Status.NAMESPACE_WRITE_PROTECTED, Status.LBA_OUT_OF_RANGE},
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "cases", [2_000, pytest.param(20_000, marks=pytest.mark.long), pytest.param(200_000, marks=pytest.mark.slow)]
)
def test_both_paths_do_the_same(cases: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # the table is for those who read the tests' output
        print()
        reached = run(cases, int(os.environ.get("NVMEEMU_SEED") or random.SystemRandom().getrandbits(32)))
    for opcode, statuses in REACHED.items() if cases >= ENOUGH else ():
        assert statuses <= {status for seen, status in reached if seen == opcode}
