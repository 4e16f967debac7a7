"""A namespace with metadata, its driver and its faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from conformance.metadata_rig import FORMATS, Rig, make
from nvmeemu.faults import Faults
from nvmeemu.testing import Bench

SLBA, BLOCKS = 8, 4
STC = 1 << 24
"""The storage tag is checked, in CDW12."""


@contextmanager
def protected(name: str, engine: str = "python") -> Iterator[tuple[Rig, Faults]]:
    """Of the format ``name``; BLOCKS blocks from SLBA on are written, with tags that are right."""
    rig = make(partial(Bench, engine=engine), FORMATS[name])
    with rig.bench:
        rig.put(SLBA, *rig.blocks(SLBA, BLOCKS))
        yield rig, Faults(rig.bench.controller)
