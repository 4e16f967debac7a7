"""What the engine cannot do, for want of memory or of a doorbell in its page, it reports. The process goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conformance.mutants import MutantOfC
from native.mutants import ROOT, Builder
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.limits import Limits
from nvmeemu.engine.native.engine import NativeEngine
from nvmeemu.spec import DOORBELLS, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE, Bench

NO_MEMORY = MutantOfC(
    name="no-memory",
    within="cq_wait",
    old="struct completion *waiting = malloc(room * sizeof(*waiting));",
    new="struct completion *waiting = room > 16 ? malloc(room * sizeof(*waiting)) : NULL;",
    why="the only way to be without memory for just this",
)
# Two commands that are Python's, and room for one completion: the other one has to wait.
PROGRAM = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
name = "nvmeemu.engine.native._engine"
spec = spec_from_file_location(name, sys.argv[1], loader=ExtensionFileLoader(name, sys.argv[1]))
sys.modules[name] = module = module_from_spec(spec)
spec.loader.exec_module(module)

from nvmeemu.spec import Command
from nvmeemu.testing import Bench, QueuePair

with Bench(engine="native") as bench:
    driver = bench.driver
    driver.enable()
    pair = QueuePair(1, 0, driver.create_cq(1, 2), 8, 2)
    pair.sq = driver.create_sq(1, 8)
    for _ in range(2):
        driver.submit(pair, Command(opcode=0xC1, nsid=1), ring=False)
    driver.ring_sq(pair)
    bench.settle()
    print("fatal", driver.status.cfs)
    driver.enable()
    print("enabled", driver.status.rdy, driver.status.cfs)
"""


@pytest.mark.slow
def test_a_completion_without_memory_to_wait_in_is_a_fatal_status(tmp_path: Path) -> None:
    library = Builder(tmp_path).library(NO_MEMORY)
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM, library), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["fatal True", "enabled True False"]
    assert "no memory for a completion of queue 1" in done.stderr


def test_memory_that_it_cannot_map_is_an_error() -> None:
    engine = NativeEngine()
    try:
        page = memoryview(bytearray(2 * PAGE))
        for iova in (1, 0x1008):
            with pytest.raises(OSError, match="Invalid argument"):
                engine.add_region(iova, page)
        with pytest.raises(OSError, match="Invalid argument"):
            engine.add_region((1 << 64) - PAGE, page)
        engine.remove_region(1)
        engine.add_region(0, page)
        engine.remove_region(0)
    finally:
        engine.close()


def test_a_queue_beyond_the_page_of_doorbells_rings_by_messages() -> None:
    """Its doorbell is not in the memory that is mapped, neither the client's nor ours."""
    with Bench(MemoryBackend(1 << 20), limits=Limits(io_queues=600, vectors=2), engine="mapped") as bench:
        driver = bench.driver
        driver.enable()
        pair = driver.create_queues(550)
        place = driver.alloc(PAGE)
        for _ in range(100):
            driver.submit(pair, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
            bench.controller.write(DOORBELLS + 8 * pair.qid, pair.sq_tail.to_bytes(4, "little"))
            bench.settle()
            assert driver.poll(pair, ring=False) is not None
            bench.controller.write(DOORBELLS + 8 * pair.qid + 4, pair.cq_head.to_bytes(4, "little"))
