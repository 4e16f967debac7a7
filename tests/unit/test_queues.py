"""Queues that Python and the engine serve: asking one for its state changes nothing, and a queue that moves from one to
the other keeps its head and tail."""

from __future__ import annotations

from inspect import getmembers

import pytest

from nvmeemu.controller.doorbells import Slot
from nvmeemu.controller.owners import Owners
from nvmeemu.engine.queues import EngineCq, EngineSq
from nvmeemu.queues import CompletionQueue, PythonCq, PythonSq, SubmissionQueue
from nvmeemu.testing.ports import Ram

ENTRIES = 4
SQ, CQ, SHADOW, EVENT = 0x1000, 0x2000, 0x3000, 0x4000


class Handle:
    """A queue of an engine that only remembers what it is asked to do."""

    has_memory = True

    def __init__(self, head: int = 0, tail: int = 0) -> None:
        self.head = head
        self.tail = tail
        self.done: list[object] = []

    def ring(self, value: int) -> bool:
        self.done.append(value)
        return True

    def use_shadow(self, shadow: int, event: int) -> None:
        self.done.append((shadow, event))

    def find_room(self) -> bool:
        self.done.append("room")
        return True

    def look(self) -> None:
        self.done.append("look")

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool) -> bool:
        self.done.append((sqid, sqhd, cid, dw0, field, wrong_phase))
        return True

    def drop_waiting(self, sqid: int) -> None:
        self.done.append(sqid)

    def remove(self) -> None:
        self.done.append("remove")

    def hold(self, held: bool) -> None:
        self.done.append(held)

    def stop(self) -> None:
        self.done.append("stop")


class Watched(Ram):
    """Guest memory that counts how often it is looked at."""

    looks = 0

    def view(self, iova: int, size: int) -> memoryview:
        self.looks += 1
        return super().view(iova, size)


@pytest.fixture
def ram() -> Watched:
    return Watched(1 << 20)


def properties(of: object) -> list[str]:
    return [name for name, _ in getmembers(type(of), lambda member: isinstance(member, property))]


@pytest.mark.parametrize("is_full", [False, True])
def test_no_property_of_a_queue_touches_guest_memory(ram: Watched, is_full: bool) -> None:
    """A full queue and an empty one have something to ask their shadow doorbells: only methods do that."""
    slot = Slot(ram, SHADOW, EVENT)
    cq = PythonCq(ram, CQ, ENTRIES, tail=ENTRIES - 1 if is_full else 0, shadow=slot)
    sq = PythonSq(ram, SQ, ENTRIES, tail=ENTRIES - 1 if is_full else 0, shadow=slot)
    queue = CompletionQueue(ram, 1, CQ, ENTRIES, 0, True)
    for one in (cq, sq, queue, SubmissionQueue(ram, 1, SQ, ENTRIES, queue)):
        for name in properties(one):
            getattr(one, name)
    assert "wants_turn" in properties(sq)
    assert ram.looks == 0
    cq.find_room()
    assert ram.looks == (3 if is_full else 0)  # the method may: the head, the question, and the head again


def test_no_property_of_the_engines_queues_does_anything() -> None:
    handle = Handle(1, 2)
    for one in (EngineCq(handle), EngineSq(handle)):
        assert {"head", "tail"} <= set(properties(one))
        for name in properties(one):
            getattr(one, name)
    assert handle.done == []


class Engine:
    """Takes queues, and lets go of them with other heads and tails."""

    def __init__(self) -> None:
        self.added: list[tuple[object, ...]] = []
        self.handles: list[Handle] = []

    def add(self, *what: object, head: int, tail: int) -> Handle:
        self.added.append(what)
        self.handles.append(Handle(head, tail))
        return self.handles[-1]

    def add_cq(self, qid: int, iova: int, entries: int, vector: int, ien: bool) -> Handle:
        return self.add(qid, iova, entries, vector, ien, head=0, tail=0)

    def add_sq(self, qid: int, iova: int, entries: int, cq: Handle, head: int, tail: int) -> Handle:
        return self.add(qid, iova, entries, cq, head, tail, head=head, tail=tail)

    def drop(self) -> dict[Handle, tuple[int, int]]:
        return {handle: (handle.head, handle.tail) for handle in self.handles}


class Rig:
    def __init__(self, ram: Ram) -> None:
        self.engine = Engine()
        self.owners = Owners(self.engine)  # type: ignore[arg-type]  # an engine does more
        self.cq = CompletionQueue(ram, 2, CQ, ENTRIES, 3, True)
        self.owners.take_cq(self.cq)
        self.sq = SubmissionQueue(ram, 1, SQ, ENTRIES, self.cq)


@pytest.fixture
def rig(ram: Watched) -> Rig:
    return Rig(ram)


def test_the_engine_gets_plain_values(ram: Watched, rig: Rig) -> None:
    rig.sq.use_shadow(Slot(ram, SHADOW, EVENT))
    assert rig.sq.server.ring(2)  # in vain: the shadow doorbell counts
    assert rig.owners.take_sq(rig.sq)
    cq, sq = rig.engine.handles
    assert rig.engine.added == [(2, CQ, ENTRIES, 3, True), (1, SQ, ENTRIES, cq, 0, 0)]
    assert sq.done == [(SHADOW, EVENT)]


def test_a_queue_goes_on_in_python_where_the_engine_has_left_it(rig: Rig) -> None:
    assert rig.owners.take_sq(rig.sq)
    assert not rig.owners.take_sq(rig.sq)  # it is there already
    handle = rig.engine.handles[-1]
    rig.owners.give_back(rig.sq)
    assert handle.done == ["stop"]
    assert rig.owners.stopped(handle, 2, 3) is rig.sq
    assert (rig.sq.server.head, rig.sq.server.tail) == (2, 3)
    assert rig.sq.server.wants_turn
    assert handle not in rig.owners.sqs


def test_a_closing_queue_fetches_nothing_more_in_python(rig: Rig) -> None:
    closed: list[bool] = []
    rig.owners.take_sq(rig.sq)
    rig.sq.close(lambda: closed.append(True))
    assert not closed
    rig.owners.stopped(rig.engine.handles[-1], 1, 3).check_idle()
    assert closed
    assert rig.sq.server.fetch() is None
    assert not rig.sq.server.wants_turn


def test_after_a_reset_python_judges_the_hosts_values_by_what_was_posted(rig: Rig) -> None:
    rig.owners.take_sq(rig.sq)
    cq, sq = rig.engine.handles
    cq.tail, sq.head, sq.tail = 2, 1, 1
    rig.owners.drop()
    assert not rig.cq.server.is_engine
    assert not rig.cq.server.ring(3)
    assert rig.cq.server.ring(2)
    assert not rig.sq.server.ring(1)
    assert rig.sq.server.ring(2)
    assert not rig.owners.take_sq(rig.sq)  # its completion queue is Python's now


def test_without_an_engine_python_serves_all(ram: Watched) -> None:
    owners = Owners(None)
    cq = CompletionQueue(ram, 1, CQ, ENTRIES, 0, True)
    sq = SubmissionQueue(ram, 1, SQ, ENTRIES, cq)
    owners.take_cq(cq)
    assert not owners.take_sq(sq)
    owners.drop()
    owners.drop_cq(cq)
    assert isinstance(cq.server, PythonCq)
    assert isinstance(sq.server, PythonSq)
