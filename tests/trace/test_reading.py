"""A million records in seconds: CPU time of the commands, against that of a loop that only goes past the records."""

from __future__ import annotations

import pytest

from bench.reading import COMMANDS, measure, table

pytestmark = pytest.mark.long

RECORDS = 60_000
MOST = {  # times what the loop takes; about twice what it is (docs/trace.md)
    "trace show": 80,
    "trace grep": 60,
    "trace stats": 50,
    "trace diff": 150,
    "trace export": 110,
    "trace plot": 60,
    "check --coverage": 50,
}


def test_a_record_costs_no_more_than_so_many_walks_past_it() -> None:
    """Without what a command takes to start. Memory: only diff has to have all of it at once."""
    idle, busy = measure(6), measure(RECORDS)
    walk = busy["walk"].seconds - idle["walk"].seconds
    assert walk > 0
    ratios = {name: (busy[name].seconds - idle[name].seconds) / walk for name in COMMANDS if name != "walk"}
    assert ratios.keys() == MOST.keys()
    assert all(ratio < MOST[name] for name, ratio in ratios.items()), table(busy)
    for name in ("trace show", "trace export"):
        assert busy[name].mebibytes - idle[name].mebibytes < 100
