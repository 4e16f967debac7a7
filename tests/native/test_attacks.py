"""What a host can do to a controller at any moment, with commands in flight in the native engine: each is completed
once, or never after a reset, and nobody touches memory that is not the guest's any more.

On a bench in this process, and on a server through its socket. NVMEEMU_ATTACKS: how many rounds each; in earnest,
``scripts/sanitize.sh asan --rounds 10000 tests/native/test_attacks.py``. NVMEEMU_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from native.arena import REGIONS, Arena
from native.bench_arena import BenchArena
from native.server_arena import ServerArena
from nvmeemu.spec import Status
from nvmeemu.testing import CC

ROUNDS = int(os.environ.get("NVMEEMU_ATTACKS", "0"))  # 0: few

pytestmark = pytest.mark.timeout(7200 if ROUNDS > 1000 else 300)


@pytest.fixture(params=["trapped", "mapped", "shadow"])
def doorbells(request: pytest.FixtureRequest) -> str:
    """Messages; in memory; in memory, and messages where they are asked for."""
    return str(request.param)


@pytest.fixture(params=["bench", pytest.param("server", marks=pytest.mark.long)])
def arena(request: pytest.FixtureRequest, doorbells: str, tmp_path: Path) -> Iterator[Arena]:
    seed = int(os.environ.get("NVMEEMU_SEED") or random.SystemRandom().getrandbits(32))
    print(f"NVMEEMU_SEED={seed}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made: Arena
        if request.param == "bench":
            made = BenchArena(seed, Path(folder), doorbells)
        else:
            made = ServerArena(seed, (Path(folder), tmp_path), doorbells)
        with closing(made):
            yield made
            assert made.completed > len(rounds(made))


def rounds(arena: Arena) -> range:
    return range(ROUNDS or arena.rounds)


def test_memory_that_goes_away_and_comes_back(arena: Arena) -> None:
    """Or the map only changes elsewhere."""
    for _ in rounds(arena):
        arena.submit(1, 2)
        arena.spin()
        gone = arena.chance.sample(REGIONS, arena.chance.randrange(3))
        arena.take_memory(gone)
        arena.spin()
        arena.bring_memory(gone)
        arena.finish()


def test_interrupts_that_are_routed_anew(arena: Arena) -> None:
    """The guest looks into a completion queue only after an interrupt, on the way that is valid then."""
    for _ in rounds(arena):
        arena.submit(1, 2)
        arena.spin()
        arena.take_interrupts()
        arena.reroute()
        arena.spin()
        arena.take_interrupts()
        arena.wait_for_interrupts()
        arena.take_interrupts()
        assert not arena.sent, f"no interrupt, or lost: {arena.sent}"


@pytest.mark.parametrize("kind", ["controller", "function"])
def test_resets_with_commands_in_flight(arena: Arena, kind: str) -> None:
    """Afterwards the guest gives its memory to others: it may be unmapped at once."""
    for _ in rounds(arena):
        arena.submit(1, 2)
        arena.spin()
        if kind == "function":
            arena.reset_function()
        else:
            arena.bus.write_bar(CC, bytes(4))
        while arena.is_ready():
            arena.settle()
        if arena.chance.random() < 0.5:
            arena.stays_untouched(disks=kind == "controller")
        else:
            arena.take_memory(REGIONS)
            arena.settle()
            arena.bring_memory(REGIONS)
        arena.start()
        arena.stays_untouched(1, 2)  # RDY does not rise as long as something of before may still be written
        arena.submit(1, 2)
        arena.finish()


def test_queues_that_are_deleted_with_commands_in_flight(arena: Arena) -> None:
    """What was fetched completes before the deletion does; the other queue does not notice."""
    for number in rounds(arena):
        arena.submit(1, 2)
        arena.spin()
        assert arena.driver.delete_sq(1).status == Status.SUCCESS
        arena.collect(1, deleted=True)
        arena.sent = {cid: sent for cid, sent in arena.sent.items() if sent.qid != 1}
        assert arena.driver.delete_cq(1).status == Status.SUCCESS
        arena.finish(2)
        arena.stays_untouched(2)
        if number % 8 == 7:
            arena.start()
        else:
            arena.create(1)
        arena.submit(1, 2)
        arena.finish()


def test_a_vmm_that_is_gone(arena: Arena) -> None:
    """It takes its memory along, and the next one brings its own."""
    for _ in rounds(arena):
        arena.submit(1, 2)
        arena.spin()
        arena.replace_host()
        arena.start()
        arena.submit(1, 2)
        arena.finish()
