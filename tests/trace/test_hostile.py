"""A trace may come from a stranger. Whatever it holds, it is shown, compared and replayed, or refused in one line."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeemu import trace
from nvmeemu.replay import replay
from nvmeemu.spec import Command, Completion
from nvmeemu.trace import words
from nvmeemu.trace.coverage import coverage
from nvmeemu.trace.difference import Comparison
from nvmeemu.trace.filters import CommandFilter
from nvmeemu.trace.host_steps import steps
from nvmeemu.trace.records import KINDS
from nvmeemu.trace.stats import statistics

NUMBER = st.one_of(st.integers(0, 4), st.sampled_from((0x14, 0x24, 0x28, 0x30, 0x1000)), st.integers(0, 255))
ADDRESS = st.one_of(st.sampled_from((0, 0x1000, 0x2000, 1 << 20, 1 << 63, (1 << 64) - 1)), st.integers(0, 1 << 40))
ENTRY = st.builds(
    lambda opcode, cid, nsid, prp1, prp2, cdw10, cdw11, cdw12: bytes(
        Command(opcode=opcode, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2, cdw10=cdw10, cdw11=cdw11, cdw12=cdw12)
    ),
    *(st.integers(0, 15), st.integers(0, 3), st.integers(0, 2), ADDRESS, ADDRESS),
    *(st.sampled_from((0, 1, 0x10001, 0xFFFFFFFF)), st.sampled_from((0, 1, 3, 0x10001)), st.integers(0, 0xFFFF)),
)
ANSWER = st.builds(
    lambda cid, sqid, status: bytes(Completion(cid=cid, sqid=sqid, status=status)),
    *(st.integers(0, 3), st.integers(0, 2), st.integers(0, 0x7FF)),
)
# A controller that is enabled, with memory below its queues: what follows then means something.
ENABLE: list[trace.Record] = [
    trace.DmaMap(0, 0, 0, 1 << 21, True),
    trace.RegisterWrite(0, 0, 0x24, b"\x07\x00\x07\x00"),
    trace.RegisterWrite(0, 0, 0x28, b"\0\x10\0\0\0\0\0\0"),
    trace.RegisterWrite(0, 0, 0x30, b"\0\x20\0\0\0\0\0\0"),
    trace.RegisterWrite(0, 0, 0x14, b"\x01\0\x46\0"),
]


def fields(kind: Any) -> st.SearchStrategy[trace.Record]:
    """Records of a kind, with values that are likely to mean something."""
    special: dict[str, st.SearchStrategy[Any]] = {
        "sqe": ENTRY,
        "cqe": ANSWER,
        "iova": ADDRESS,
        "size": st.sampled_from((0, 1, 4096, 1 << 21, 1 << 62)),
        "runs": st.lists(st.tuples(ADDRESS, st.sampled_from((0, 512, 4096, 1 << 31))), max_size=5).map(tuple),
        "time": st.one_of(st.integers(0, 1 << 33), st.just((1 << 64) - 1)),
    }
    special |= {name: st.integers(0, 255) for name in ("lane", "signal", "type", "info", "log", "power_state")}
    by_type: dict[str, st.SearchStrategy[Any]] = {
        "bool": st.booleans(),
        "bytes": st.binary(max_size=20),
        "str": st.text(max_size=5),
        "int": NUMBER,
        "tuple[str, ...]": st.lists(st.text(max_size=5), min_size=4, max_size=4).map(tuple),
    }
    hints = kind.__annotations__
    return st.builds(
        kind,
        **{name: special[name] if name in special else by_type[hints[name].__forward_arg__] for name in kind._fields},
    )


RECORD = st.one_of([fields(kind) for kind in KINDS.values()])


def read(records: list[trace.Record]) -> trace.Reader:
    file = io.BytesIO()
    writer = trace.Writer(file, trace.Description())
    for record in records:
        writer.write(record)
    return trace.Reader(io.BytesIO(file.getvalue()))


@settings(max_examples=60)
@given(st.lists(RECORD, max_size=25))
def test_whatever_is_in_a_trace(records: list[trace.Record]) -> None:
    records = [*ENABLE, *records]
    for record in records:
        where, what = words.describe(record)
        assert (where + what).isprintable()
    statistics(read(records))
    coverage(read(records))
    both = [steps("A", read(part), CommandFilter()) for part in (records, records[::2])]
    list(Comparison.between(both[0].parts, both[1].parts).lines(1))
    with suppress(trace.TraceError):
        replay(read(records), data=True)


@pytest.mark.parametrize("kind", [trace.RegisterRead, trace.RegisterWrite])
def test_registers_where_the_device_has_none(kind: Any) -> None:
    with pytest.raises(trace.TraceError, match="the device has no registers there"):
        replay(read([kind(0, 0, 1 << 31, bytes(4))]))
