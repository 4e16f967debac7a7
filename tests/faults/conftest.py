"""Fixtures of the tests of faults: a controller that is broken on purpose, and its driver (``rig``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from faults.rig import Rig


@pytest.fixture(params=["python", "native"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With the native engine, faults take from it what they need."""
    rig = Rig(engine=str(request.param))
    with closing(rig.bench):
        yield rig
