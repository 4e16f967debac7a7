"""What breaks, and what it is seen with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from faults.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with closing(rig.bench):
        yield rig
