"""With the native engine, a fault takes from it just the queues that it is about, and gives them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from faults.rig import Rig
from nvmeemu.faults import Fault
from nvmeemu.spec import Command, Status

ALL = {1, 2}
FIRST = {"queue": 1}


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(engine="native")
    with closing(rig.bench):
        yield rig


def owned(rig: Rig) -> set[int]:
    """The submission queues that the engine serves."""
    rig.bench.settle()
    return {qid for qid, sq in rig.bench.controller.state.sqs.items() if sq.server.is_engine}


def works(rig: Rig) -> bool:
    """Whether both queues serve commands."""
    return all(rig.run(rig.write(), queue).status == Status.SUCCESS for queue in (rig.queue, rig.other))


NEVER = {"after": 1_000_000}  # which queues it needs does not depend on whether it fires
OF_COMMANDS = [("fetch", "drop"), ("execute", "drop"), ("dma", "drop"), ("backend", "lose"), ("completion", "drop")]
KEEPS: list[tuple[str | None, Any, dict[str, Any], set[int]]] = [
    *((at, do, FIRST, {2}) for at, do in (*OF_COMMANDS, ("doorbell", "drop"))),
    *((at, do, {"queue": 2}, {1}) for at, do in OF_COMMANDS),
    *((at, do, {"queue": [2, 3]}, {1}) for at, do in OF_COMMANDS),
    *((at, do, {"queue": "2-64"}, {1}) for at, do in OF_COMMANDS),
    *((at, do, {"queue": "io"}, set()) for at, do in OF_COMMANDS),
    *((at, do, {"opcode": "write"}, set()) for at, do in OF_COMMANDS),  # may come on any
    ("doorbell", "drop", {}, set()),
    ("execute", "drop", {"opcode": "identify"}, ALL),
    ("dma", "drop", {"opcode": ["identify", "get_log_page"]}, ALL),
    ("fetch", "drop", {"queue": "admin"}, ALL),
    ("execute", "drop", {"fid": 7}, ALL),  # a field of admin commands only
    ("execute", "drop", {"opcode": 6, "queue": "admin"}, ALL),
    ("execute", "drop", {"opcode": 6}, set()),  # a number may be an I/O command's
    ("execute", "drop", {"queue": 7}, ALL),
    ("register", {"set": {"cfs": 1}}, {"register": "csts", "access": "read"}, ALL),
    ("register", "drop", {}, ALL),
    ("interrupt", "drop", {"vector": 1}, ALL),
    ("event", "drop", {}, ALL),
    ("now", {"smart": {"temperature": 360}}, {}, ALL),
    ("now", {"rdy": 1}, {}, ALL),
]


@pytest.mark.parametrize(("at", "do", "match", "kept"), KEEPS)
def test_the_engine_keeps_the_other_queues(
    rig: Rig, at: str | None, do: Any, match: dict[str, Any], kept: set[int]
) -> None:
    assert owned(rig) == ALL
    fault = rig.add(do, at, match, **({} if at == "now" else NEVER))
    assert owned(rig) == kept
    assert works(rig)
    assert owned(rig) == kept
    rig.faults.remove(fault)
    assert owned(rig) == ALL
    assert works(rig)


def test_several_faults_take_what_any_of_them_needs(rig: Rig) -> None:
    one, other = rig.add("drop", "execute", FIRST, **NEVER), rig.add("drop", "execute", FIRST, **NEVER)
    second = rig.add("drop", "execute", {"queue": 2}, **NEVER)
    assert owned(rig) == set()
    rig.faults.remove(one)
    assert owned(rig) == set()
    rig.faults.remove(second)
    assert owned(rig) == {2}
    rig.faults.remove(other)
    assert owned(rig) == ALL


def test_what_the_engine_keeps_never_passes_the_faults(rig: Rig) -> None:
    fault = rig.add({"status": "write_fault"}, "execute", FIRST)
    assert rig.run(rig.write(), rig.other).status == Status.SUCCESS
    assert (fault.seen, owned(rig)) == (0, {2})
    assert rig.run(rig.write()).status == Status.WRITE_FAULT
    assert fault.seen == 1


@pytest.mark.parametrize("do", ["hang", "remove"])
def test_a_controller_that_does_nothing_needs_all_queues_until_it_is_reset(rig: Rig, do: str) -> None:
    fault = rig.faults.add(Fault(at="now", do=do))
    assert owned(rig) == set()
    rig.faults.remove(fault)
    rig.driver.enable()
    for qid in ALL:
        rig.driver.create_queues(qid)
    assert owned(rig) == ALL


@pytest.mark.parametrize(("do", "then"), [("cfs", 0), ({"hang": True, "seconds": 5}, 3)])
def test_what_the_engine_has_fetched_before_is_served_like_the_rest(rig: Rig, do: Any, then: int) -> None:
    """Three commands are with Python already when the first of them stops the device."""
    assert rig.bench.engine is not None
    for _ in range(3):
        rig.driver.submit(rig.queue, Command(opcode=0x7C, nsid=1), ring=False)
    rig.bench.write_bar(0x1008, rig.queue.sq_tail.to_bytes(4, "little"))  # the driver would have it served, too
    rig.bench.engine.wait_until_idle()
    fault = rig.add(do, "execute", {"opcode": 0x7C}, nth=1)
    rig.bench.settle()
    assert rig.completions() == []
    assert fault.hits == 1
    assert rig.driver.status.cfs == (do == "cfs")
    assert [one.status for one in rig.later(5)] == [Status.INVALID_OPCODE] * then
