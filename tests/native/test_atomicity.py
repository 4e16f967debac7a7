"""What the engine and others read and write at the same time: nobody meets a half of a write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from native.test_media import MIB, open_disk, queue_of, served, write, zeroes
from nvmeemu.backend.atomicity import Atomicity
from nvmeemu.spec import Command, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE, Bench


@pytest.fixture(params=["memory", "memory file", "file", "direct"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(open_disk(request.param, tmp_path), engine="native", manual=True)) as bench:
        bench.driver.enable()
        bench.driver.create_queues(1)
        yield bench
        bench.backend.close()


def atomicity_of(bench: Bench) -> Atomicity:
    atomicity = bench.namespaces[1].media.atomicity
    assert atomicity is not None
    return atomicity


def read(bench: Bench, slba: int, size: int = PAGE) -> ReadWrite:
    prp1, prp2 = bench.driver.prps(bench.driver.alloc(size), size)
    return ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=prp1, prp2=prp2, slba=slba, nlb=size // 512)


def zero(bench: Bench, slba: int) -> Command:
    return zeroes(slba, 8, deac=True)


def finish(bench: Bench) -> None:
    bench.settle()
    bench.worker.finish_all()
    bench.settle()


@pytest.mark.parametrize(
    ("command", "is_write"), [(read, True), (write, True), (write, False), (zero, True), (zero, False)]
)
def test_a_command_that_overlaps_another_one_waits_in_python(bench: Bench, command: Any, is_write: bool) -> None:
    """One that only touches it does not."""
    driver, queue = bench.driver, queue_of(bench)
    with atomicity_of(bench).held(8 * 512, 8 * 512, is_write):
        beside = [driver.submit(queue, command(bench, slba)) for slba in (0, 16)]
        over = [driver.submit(queue, command(bench, slba)) for slba in (1, 8, 15)]
        bench.settle()
        assert {one.cid for one in driver.drain(queue)} == set(beside)
        assert sum(served(bench)) == len(beside)
    finish(bench)
    ended = driver.drain(queue)
    assert {one.cid for one in ended} == set(over)
    assert all(one.status == Status.SUCCESS for one in ended)
    assert sum(served(bench)) == 0


def test_readers_overlap(bench: Bench) -> None:
    driver, queue = bench.driver, queue_of(bench)
    with atomicity_of(bench).held(0, MIB, is_write=False):
        assert driver.execute(queue, read(bench, 8)).status == Status.SUCCESS
    assert sum(served(bench)) == 1


def test_what_was_used_is_free_again(bench: Bench) -> None:
    """Whoever did it, and however it ended: the last of them is no command that can be done."""
    driver, queue = bench.driver, queue_of(bench)
    atomicity = atomicity_of(bench)
    for command in (write(bench, 0), read(bench, 0), zero(bench, 0), write(bench, 0, bytes(MIB)), read(bench, 0, MIB)):
        assert driver.execute(queue, command).status == Status.SUCCESS
        assert atomicity.hold_now(0, 16 * MIB, is_write=True)
        atomicity.leave()
    assert driver.execute(queue, read(bench, 32767)).status == Status.LBA_OUT_OF_RANGE
    assert atomicity.hold_now(0, 16 * MIB, is_write=True)
    atomicity.leave()
