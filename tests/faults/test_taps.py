"""The taps themselves: what passes them without being touched is the same controller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faults.rig import Rig
from nvmeemu.queues import CompletionQueue
from nvmeemu.spec import AdminOpcode, Command
from nvmeemu.taps import Interceptor, Observer

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


def test_several_observers_see_the_same_and_one_can_leave(rig: Rig) -> None:
    class Counter(Observer):
        def __init__(self) -> None:
            self.commands = 0

        def fetched(self, sq: object, entry: bytes) -> None:
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


def test_an_observer_sees_what_the_host_gets_and_an_interceptor_what_it_says(rig: Rig) -> None:
    seen: list[object] = []

    class Telling(Observer):
        def completed(self, sq: object, cid: int, dw0: int, field: int) -> None:
            seen.append(dw0)

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
