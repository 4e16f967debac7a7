"""Interleavings of a lane with the controller's thread that once went wrong, each made on purpose."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from native.bench_arena import QuickDisk
from nvmeemu.backend import Direct, open_backend
from nvmeemu.backend.raw import RawBackend
from nvmeemu.engine.native.engine import _Cq
from nvmeemu.spec import CQE_SIZE, DOORBELLS, AdminOpcode, Command, FeatureId, NvmOpcode, ReadWrite, SetFeatures, Status
from nvmeemu.testing import PAGE, Bench, QueuePair

MIB = 1 << 20
PATIENCE = 10.0  # seconds


def ring(bench: Bench, doorbell: int, value: int) -> None:
    """As a host does: nobody waits for anything, unlike ``Driver``."""
    bench.write_bar(DOORBELLS + 4 * doorbell, value.to_bytes(4, "little"))


def test_more_commands_than_main_has_room_for_fail_at_the_disk(tmp_path: Path) -> None:
    """While main does something else: each goes to Python, none is lost."""
    disk = tmp_path / "disk"
    number = 1000
    with closing(Bench(open_backend(str(disk), create=True, size=16 * MIB), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1, 1024)
        os.truncate(disk, 0)
        place = driver.alloc(PAGE)
        for _ in range(number):
            driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
        ring(bench, 2, queue.sq_tail)
        assert bench.engine is not None
        bench.engine.wait_until_idle()
        bench.settle()
        statuses = [completion.status for completion in driver.drain(queue)]
        assert statuses == [Status.UNRECOVERED_READ_ERROR] * number


def test_heads_are_seen_by_a_lane_without_submission_queues() -> None:
    """Python serves the only queue of the second lane, and completions wait for room."""
    with closing(Bench(engine="mapped", lanes=2)) as bench:
        driver = bench.driver
        driver.enable()
        driver.create_queues(1)
        cq = driver.create_cq(2, 4)
        queue = QueuePair(2, driver.create_sq(2, 64), cq, 64, 4)
        bench.controller.serve_in_python(lambda qid: qid == 2)
        bench.settle()
        place = driver.alloc(PAGE)
        for _ in range(40):
            driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
        ring(bench, 4, queue.sq_tail)
        done, end = 0, time.monotonic() + PATIENCE
        while done < 40 and time.monotonic() < end:
            bench.controller.run()
            if driver.poll(queue, ring=False) is None:
                time.sleep(0.0001)
                continue
            done += 1
            time.sleep(0.002)  # what is there when the lane goes to sleep is not what is to be tried
            ring(bench, 5, queue.cq_head)
        assert done == 40


def test_the_head_of_a_submission_queue_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQHD is that of the time when the entry is written: before Python does, the lane serves another command."""
    with closing(Bench(engine="native")) as bench:
        driver, engine = bench.driver, bench.engine
        assert engine is not None
        driver.enable()
        queue = driver.create_queues(1)
        place, post = driver.alloc(PAGE), _Cq.post

        def post_late(cq: _Cq, *values: int, wrong_phase: bool) -> bool:
            driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
            ring(bench, 2, queue.sq_tail)
            engine.wait_until_idle()
            return post(cq, *values, wrong_phase=wrong_phase)

        monkeypatch.setattr(_Cq, "post", post_late)
        driver.submit(queue, Command(opcode=NvmOpcode.VERIFY, nsid=1))  # Python's
        assert [completion.sqhd for completion in driver.drain(queue)] == [2, 2]


def test_nothing_is_completed_while_memory_changes(tmp_path: Path) -> None:
    """A lane that writes to a file when it is paused: it comes back to a guest that is not to be touched."""
    with closing(Bench(open_backend(str(tmp_path / "disk"), create=True, size=64 * MIB), engine="native")) as bench:
        driver, chance = bench.driver, random.Random(1)
        driver.enable()
        queue = driver.create_queues(1, 64)
        size = MIB // 4
        prp1, prp2 = driver.prps(driver.alloc(size), size)
        for _ in range(200):
            for number in range(30):
                slba, nlb = number * size // 512, size // 512
                write = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=prp1, prp2=prp2, slba=slba, nlb=nlb)
                driver.submit(queue, write, ring=False)
            ring(bench, 2, queue.sq_tail)
            time.sleep(chance.random() * 0.002)
            bench.controller.quiesce()
            before = bench.read_memory(queue.cq, 64 * CQE_SIZE)
            time.sleep(0.001)
            assert bench.read_memory(queue.cq, 64 * CQE_SIZE) == before
            bench.controller.memory_changed()
            bench.settle()
            assert [completion.status for completion in driver.drain(queue)] == [Status.SUCCESS] * 30


def test_what_coalescing_holds_back_is_for_the_queue_with_interrupts() -> None:
    """Two completion queues share a vector, and one of them has no interrupts."""
    with closing(Bench(engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queues = []
        for qid, ien in ((1, False), (2, True)):
            cq = driver.create_cq(qid, vector=1, ien=ien)
            queues.append(QueuePair(qid, driver.create_sq(qid), cq, 64, 64))
        driver.set_feature(FeatureId.INTERRUPT_COALESCING, 0xFF09)
        place = driver.alloc(PAGE)
        bench.ram.interrupts.clear()
        driver.submit(queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8))
        assert 1 not in bench.ram.interrupts
        driver.set_feature(FeatureId.INTERRUPT_COALESCING, 0)
        assert 1 in bench.ram.interrupts


class SlowPipe(RawBackend):
    """A disk whose writes by the engine go into a pipe, which is full."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.durable: list[bool] = []
        self.pipe, write = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
        os.write(write, bytes(PAGE))
        self.direct = Direct(fd=write)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self.durable.append(fua)
        super().write(offset, views, fua)

    def close(self) -> None:
        assert self.direct is not None
        os.close(self.pipe)
        os.close(self.direct.fd)
        super().close()


def test_a_write_that_ends_after_the_write_cache_was_switched_off_is_durable(tmp_path: Path) -> None:
    open_backend(str(tmp_path / "disk"), create=True, size=MIB).close()
    with closing(SlowPipe(str(tmp_path / "disk"))) as disk, closing(Bench(disk, engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1)
        write = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=driver.alloc(PAGE), nlb=8)
        driver.submit(queue, write, ring=False)
        ring(bench, 2, queue.sq_tail)
        assert bench.engine is not None
        end = time.monotonic() + PATIENCE
        while not bench.engine.is_changing_media and time.monotonic() < end:
            pass
        off = SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.VOLATILE_WRITE_CACHE)
        driver.submit(driver.admin, off, ring=False)
        ring(bench, 0, driver.admin.sq_tail)
        while driver.poll(driver.admin, ring=False) is None and time.monotonic() < end:
            bench.controller.run()
            bench.worker.finish_all()
        assert driver.poll(queue, ring=False) is None
        os.read(disk.pipe, PAGE)
        bench.settle()
        assert [completion.status for completion in driver.drain(queue)] == [Status.SUCCESS]
        assert disk.durable == [True]


# liburing's, from a kernel that is short of memory at first.
SHORT_OF_MEMORY = """
#include <dlfcn.h>
#include <errno.h>
int io_uring_submit(void *ring)
{
    static int calls;
    int (*submit)(void *) = (int (*)(void *))dlsym(dlopen("liburing.so.2", RTLD_NOW), "io_uring_submit");
    return calls++ < 5 ? -EAGAIN : submit(ring);
}
"""


def test_what_the_kernel_does_not_take_at_once_is_tried_again(tmp_path: Path) -> None:
    """Although nothing else happens that would wake the lane."""
    source, library = tmp_path / "submit.c", tmp_path / "submit.so"
    source.write_text(SHORT_OF_MEMORY)
    subprocess.run(("cc", "-shared", "-fPIC", "-o", library, source, "-ldl"), check=True)
    preloaded = [os.environ.get("LD_PRELOAD", ""), str(library)]  # a sanitizer's has to be the first one
    path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])]
    environment = {**os.environ, "LD_PRELOAD": " ".join(preloaded), "PYTHONPATH": os.pathsep.join(path)}
    command = (sys.executable, "-c", "from native import test_interleavings as tests; tests.read_through_io_uring()")
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=3 * PATIENCE)


def read_through_io_uring() -> None:
    open_backend("disk", create=True, size=MIB).close()
    with closing(Bench(QuickDisk("disk").through_io_uring(), engine="native")) as bench:
        driver = bench.driver
        driver.enable()
        queue = driver.create_queues(1)
        read = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), nlb=8)
        driver.submit(queue, read, ring=False)
        ring(bench, 2, queue.sq_tail)
        end = time.monotonic() + PATIENCE
        while driver.poll(queue, ring=False) is None:
            assert time.monotonic() < end, "forgotten"
            bench.controller.run()


def test_records_of_a_lane_that_goes_to_sleep_are_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of them while main takes those of before."""
    with closing(Bench(engine="native")) as bench:
        driver, engine = bench.driver, bench.engine
        assert engine is not None
        driver.enable()
        queue, place = driver.create_queues(1), driver.alloc(PAGE)
        found: list[bytes] = []
        engine.trace(found.append)
        take = engine._take_trace

        def serve() -> None:
            driver.submit(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, nlb=8), ring=False)
            ring(bench, 2, queue.sq_tail)
            engine.wait_until_idle()

        def take_early(sink: Callable[[bytes], None]) -> None:
            take(sink)
            monkeypatch.undo()
            serve()

        monkeypatch.setattr(engine, "_take_trace", take_early)
        serve()
        bench.controller.run()
        assert engine.has_news
