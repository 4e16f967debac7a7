"""The taps themselves. A controller whose taps change nothing behaves like one without observers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.rig import NEW, Rig
from nvmeemu.controller.request import Reply, Request
from nvmeemu.controller.taps import Interceptor, Observer
from nvmeemu.queues import CompletionQueue
from nvmeemu.spec import AdminOpcode, Command
from nvmeemu.testing import INTMS

CONFORMANCE = Path(__file__).parents[1] / "conformance"
TAPS_BENCH = Path(__file__).parents[2] / "bench" / "taps.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tapped_controller_conforms() -> None:
    """The whole suite again, with taps that let everything pass. Without the outside judge, which is not tapped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not mutants and not slow"]
    left_out = [f"--ignore={CONFORMANCE / 'test_judge.py'}"]
    done = subprocess.run([*command, "--tapped", *left_out, str(CONFORMANCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.long
def test_the_bench_of_what_they_cost_runs() -> None:
    """Its own checks say that the engine has its queue back when the fault is removed. Two rounds are noise."""
    command = [sys.executable, str(TAPS_BENCH), "--engine", "native", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["us_per_read_now"] > 0
    assert found["set_and_removed_over_now"] > 0


@pytest.mark.kills("an-observer-that-leaves-takes-all")
def test_several_observers_see_the_same_and_one_can_leave(rig: Rig) -> None:
    class Counter(Observer):
        def __init__(self) -> None:
            self.commands = 0

        def fetched(self, request: Request[Any]) -> None:
            self.commands += 1

    controller = rig.bench.controller
    first, second = Counter(), Counter()
    controller.serve_in_python(lambda qid: True)
    controller.observe(first)
    controller.observe(second)
    rig.run(rig.write())
    controller.unobserve(first)
    rig.run(rig.write())
    assert (first.commands, second.commands) == (1, 2)


@pytest.mark.kills("observers-see-reads-before-the-fault")
def test_an_observer_sees_what_the_host_gets_and_an_interceptor_what_it_says(rig: Rig) -> None:
    seen: list[object] = []

    class Telling(Observer):
        def completed(self, reply: Reply) -> None:
            seen.append(reply.dw0)

        def register_read(self, offset: int, data: bytes) -> None:
            seen.append(data)

    class Changing(Interceptor):
        def register_read(self, offset: int, data: bytes) -> bytes:
            return b"\x07\0\0\0"

    rig.bench.controller.observe(Telling())
    rig.bench.controller.intercept(Changing())
    assert rig.driver.reg(0x1C) == 7
    assert seen == [b"\x07\0\0\0"]
    rig.bench.controller.intercept(None)
    assert rig.driver.reg(0x1C) == 1


def test_an_observer_is_told_before_the_host_can_answer(rig: Rig) -> None:
    """Of a completion, a message and the pin: else an answer could stand before what it answers in a trace."""
    bench = rig.bench
    seen: list[tuple[object, ...]] = []
    entries: list[tuple[int, bytes]] = []

    class Early(Observer):
        def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
            place = rig.driver.admin.cq + 16 * slot
            seen.append(("completion", bench.read_memory(place, 16) == entry))
            entries.append((place, entry))

        def interrupt(self, vector: int) -> None:
            seen.append(("message", len(bench.ram.interrupts)))

        def pin(self, asserted: bool) -> None:
            seen.append(("pin", asserted, bench.ram.pin_level))

    bench.controller.observe(Early())
    sent = len(bench.ram.interrupts)
    rig.driver.submit(rig.driver.admin, Command(opcode=AdminOpcode.GET_FEATURES))
    assert seen == [("completion", False), ("message", sent)]
    assert [(place, bench.read_memory(place, 16)) for place, _ in entries] == entries
    bench.ram.msix_enabled = False
    bench.settle()
    rig.driver.drain(rig.driver.admin)
    assert seen[2:] == [("pin", True, False), ("pin", False, True)]


@pytest.mark.kills("a-late-observer-knows-no-memory")
def test_an_observer_that_comes_late_is_told_of_the_memory(rig: Rig) -> None:
    maps: list[tuple[int, int, bool]] = []

    class Mapper(Observer):
        def mapped(self, iova: int, size: int, writable: bool) -> None:
            maps.append((iova, size, writable))

        def unmapped(self, iova: int) -> None:
            maps.append((iova, 0, False))

    rig.bench.controller.observe(Mapper())
    assert maps == [(0, 16 << 20, True)]
    rig.bench.map(1 << 32, bytearray(4096), writable=False)
    rig.bench.unmap(1 << 32)
    assert maps[1:] == [(1 << 32, 4096, False), (1 << 32, 0, False)]


@pytest.mark.kills("observers-see-what-never-came")
def test_what_a_fault_keeps_from_the_host_no_observer_sees(rig: Rig) -> None:
    seen: list[str] = []

    class All(Observer):
        def completed(self, reply: Reply) -> None:
            seen.append("completion")

        def interrupt(self, vector: int) -> None:
            seen.append("interrupt")

        def event(self, event: object) -> None:
            seen.append("event")

    rig.await_events()
    rig.bench.controller.observe(All())
    rig.add("drop", "completion", {"opcode": "write"})
    rig.add("drop", "interrupt")
    rig.add("drop", "event")
    rig.submit(rig.write())
    rig.bench.controller.state.interrupts.send(1)
    rig.heat()
    assert seen == []
    rig.faults.clear()
    rig.bench.controller.state.interrupts.send(1)
    assert seen == ["interrupt"]


@pytest.mark.kills("data-that-does-not-arrive-is-told")
def test_data_is_told_when_it_has_moved(rig: Rig) -> None:
    """Not when it should have: here the device hangs before it."""
    moved: list[int] = []

    class Mover(Observer):
        def transferred(self, request: Request[Any], views: list[memoryview], to_host: bool) -> None:
            moved.append(sum(map(len, views)))

    rig.bench.controller.observe(Mover())
    rig.add({"hang": True, "seconds": 5}, "dma", {"opcode": "read"})
    rig.submit(rig.read())
    assert rig.later(4) == []
    assert moved == []
    assert len(rig.later(1)) == 1
    assert moved == [512]


@pytest.mark.kills("more-is-kept-back-than-there-is-room-for")
def test_what_a_fault_keeps_back_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may ring without end: what comes beyond that is not delayed."""
    monkeypatch.setattr("nvmeemu.faults.kept.MOST_PENDING", 3)
    fault = rig.add({"delay": 1}, "register", {"register": "intms"})
    for number in range(8):
        rig.driver.set_reg(INTMS, 1 << number)
    assert rig.driver.reg(INTMS) == 0b11111000
    assert fault.hits == 8
    rig.later()
    assert rig.driver.reg(INTMS) == 0xFF
    rig.driver.set_reg(INTMS, 1 << 8)
    assert rig.driver.reg(INTMS) == 0xFF, "there is room again"


@pytest.mark.kills("a-delayed-disk-has-nothing-yet")
def test_a_disk_that_takes_its_time_has_the_data_already(rig: Rig) -> None:
    rig.add({"delay": 1}, "backend", {"opcode": "write"})
    rig.submit(rig.write())
    rig.driver.bus.write_memory(rig.place, b"x" * 512)
    assert len(rig.later()) == 1
    assert rig.disk() == NEW * 512
