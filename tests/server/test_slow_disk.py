"""A disk that takes 100 ms for each read: the reads of a guest wait there together, not one behind the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeemu.spec import NvmOpcode, Status
from nvmeemu.testing import CSTS, PAGE
from server.conftest import MIB, Attach
from server.load import run_batch, transfer
from server.process import Serve
from server.slow_disk import SlowDisk

pytestmark = pytest.mark.long

LATENCY = 0.1  # seconds
READS = 32
TRIES = 5  # a busy machine may need longer than the disk to bring all the reads there
PYTHON_THREADS = 8


@pytest.fixture(params=["cached", "uncached", "--direct"])
def mode(request: pytest.FixtureRequest) -> str:
    """Whether the kernel caches the file, and if it does, whether we have it do so."""
    return str(request.param)


@pytest.fixture
def served(mode: str) -> list[str]:
    """The arguments of all servers here."""
    return ["--read-only", *(["--direct"] if mode == "--direct" else [])]


@pytest.fixture
def slow(folder: Path, mode: str) -> Iterator[SlowDisk]:
    place = folder / "slow"
    place.mkdir()
    try:
        disk = SlowDisk(place, 16 * MIB, LATENCY, direct=mode == "uncached")
    except OSError as error:
        pytest.skip(f"needs a FUSE file system: {error}")
    with disk:
        yield disk


@pytest.mark.parametrize(("engine", "wanted"), [("native", READS), ("python", PYTHON_THREADS)])
def test_reads_wait_for_a_slow_disk_together(
    slow: SlowDisk, served: list[str], serve: Serve, attach: Attach, engine: str, wanted: int
) -> None:
    """How many, is what counts; how long it took is printed. Pages that were read once are not read again, because
    they may be in the page cache."""
    serve("--disk", slow.path, *served, "--engine", engine)
    guest = attach()
    buffers = [guest.alloc(PAGE) for _ in range(READS)]
    step = slow.size // PAGE // (TRIES * READS)  # far enough from each other that no read-ahead helps
    for attempt in range(TRIES):
        slow.most = 0
        pages = [(attempt * READS + index) * step for index in range(READS)]
        begin = time.monotonic()
        completions = run_batch(
            guest,
            [transfer(NvmOpcode.READ, place, page * 8) for place, page in zip(buffers, pages, strict=True)],
        )
        took = time.monotonic() - begin
        assert {completion.status for completion in completions} == {Status.SUCCESS}
        for place, page in zip(buffers, pages, strict=True):
            assert guest.bus.read_memory(place, 8) == page.to_bytes(8, "little")
        print(f"{engine}: {READS} reads, {slow.most} at once, {took * 1000:.0f} ms")
        if slow.most >= wanted:
            return
    pytest.fail(f"at most {slow.most} reads waited at once, not {wanted}")


def test_a_slow_disk_delays_neither_registers_nor_a_change_of_the_memory_map(
    slow: SlowDisk, served: list[str], serve: Serve, attach: Attach
) -> None:
    """The engine must not wait in the system call that starts a read, either: some file systems block there."""
    slow.seconds = 1.0
    serve("--disk", slow.path, *served, "--engine", "native")
    guest = attach()
    guest.submit(guest.queues[1], transfer(NvmOpcode.READ, guest.alloc(PAGE), 8))
    while not slow.waiting:
        time.sleep(0.001)
    guest.bus.remap()
    assert guest.reg(CSTS) == 1
    assert slow.waiting  # all that, before the disk had answered
    while guest.poll(guest.queues[1]) is None:
        guest.bus.settle()
