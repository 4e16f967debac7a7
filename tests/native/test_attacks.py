"""What a host can do to a controller at any moment, with commands in flight in the native engine: each is completed
once, or never after a reset, and nobody touches memory that is not the guest's any more. ``scripts/sanitize.sh asan
--rounds 10000 tests/native/test_attacks.py`` does so in earnest. NVMEEMU_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from native.arena import DATA, QUEUES, Arena
from nvmeemu.spec import Status
from nvmeemu.testing import CC

ROUNDS = int(os.environ.get("NVMEEMU_ATTACKS", "100"))
REGIONS = (QUEUES, DATA)

pytestmark = pytest.mark.timeout(3600 if ROUNDS > 1000 else 300)


@pytest.fixture(params=["trapped", "mapped"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """With doorbells that are messages, and with doorbells in memory."""
    seed = int(os.environ.get("NVMEEMU_SEED") or random.SystemRandom().getrandbits(32))
    engine = "mapped" if request.param == "mapped" else "native"
    print(f"NVMEEMU_SEED={seed}")
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")
    with memory as folder, closing(Arena(seed, Path(folder, "disk"), engine)) as arena:
        yield arena
        assert arena.completed > ROUNDS


def test_memory_that_goes_away_and_comes_back(arena: Arena) -> None:
    """Or is only about to, and stays: ``quiesce`` alone."""
    for _ in range(ROUNDS):
        arena.submit(1, 2)
        arena.spin()
        gone = arena.chance.sample(REGIONS, arena.chance.randrange(3))
        arena.controller.quiesce()
        for region in gone:
            arena.ram.remove(region)
        arena.controller.memory_changed()
        arena.spin()
        arena.controller.quiesce()
        for region in gone:
            arena.ram.bring_back(region)
        arena.controller.memory_changed()
        arena.finish()


def test_interrupts_that_are_routed_anew(arena: Arena) -> None:
    """The guest looks into a completion queue only after an interrupt, on the way that is valid then."""
    ram, chance = arena.ram, arena.chance

    def take_interrupts() -> None:
        vectors = set(ram.interrupts)
        ram.interrupts.clear()
        for vector, fd in ram.fds.items():
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
                vectors.add(vector)
        for qid in vectors & {1, 2}:
            arena.collect(qid)

    for _ in range(ROUNDS):
        arena.submit(1, 2)
        arena.spin()
        take_interrupts()
        old = ram.fds
        ram.fds = {vector: os.eventfd(0, os.EFD_NONBLOCK) for vector in (1, 2) if chance.random() < 0.8}
        arena.controller.interrupts_changed()
        for fd in old.values():
            os.close(fd)  # what still comes there is lost: nobody reads it, and another file may get the number
        arena.spin()
        take_interrupts()
        arena.bench.settle()
        take_interrupts()
        assert not arena.sent, f"no interrupt, or lost: {arena.sent}"
    ram.fds = {}
    arena.controller.interrupts_changed()


@pytest.mark.parametrize("kind", ["controller", "function"])
def test_resets_with_commands_in_flight(arena: Arena, kind: str) -> None:
    """Afterwards the guest gives its memory to others: it may be unmapped at once."""
    for _ in range(ROUNDS):
        arena.submit(1, 2)
        arena.spin()
        if kind == "function":
            arena.controller.reset()
        else:
            arena.bench.write_bar(CC, bytes(4))
        while arena.controller.status.rdy:
            arena.bench.settle()
        if arena.chance.random() < 0.5:
            arena.stays_untouched()
        else:
            arena.controller.quiesce()
            for region in REGIONS:
                arena.ram.remove(region)
            arena.controller.memory_changed()
            arena.bench.settle()
            arena.controller.quiesce()
            for region in REGIONS:
                arena.ram.bring_back(region)
            arena.controller.memory_changed()
        arena.start()
        arena.submit(1, 2)
        arena.finish()


def test_queues_that_are_deleted_with_commands_in_flight(arena: Arena) -> None:
    """What was fetched completes before the deletion does; the other queue does not notice."""
    for number in range(ROUNDS):
        arena.submit(1, 2)
        arena.spin()
        assert arena.driver.delete_sq(1).status == Status.SUCCESS
        arena.collect(1, deleted=True)
        arena.sent = {cid: sent for cid, sent in arena.sent.items() if sent.qid != 1}
        assert arena.driver.delete_cq(1).status == Status.SUCCESS
        arena.finish(2)
        arena.stays_untouched()
        if number % 8 == 7:
            arena.start()  # Driver gives no memory back
        else:
            arena.restart_queue(1)
        arena.submit(1, 2)
        arena.finish()


def test_a_vmm_that_is_gone(arena: Arena) -> None:
    """It takes its memory along, and the next one brings its own."""
    for _ in range(ROUNDS):
        arena.submit(1, 2)
        arena.spin()
        arena.controller.reset()
        arena.controller.quiesce()
        for region in REGIONS:
            arena.ram.remove(region)
        arena.controller.memory_changed()
        arena.spin()
        arena.bench.settle()
        for region in REGIONS:
            arena.ram.forget(region)
        arena.add_memory()
        arena.start()
        arena.submit(1, 2)
        arena.finish()
