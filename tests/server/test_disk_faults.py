"""What the disk cannot do becomes a status for the guest and one message for the user."""

from __future__ import annotations

import errno
import os
from copy import copy
from pathlib import Path

import pytest

from nvmeemu.spec import Command, Completion, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import CC, PAGE
from server.conftest import PATHS, Attach
from server.guest import Guest
from server.load import BLOCK, run_batch, transfer
from server.process import NVMEEMU, Serve
from server.shim import Event, Op, Shim

pytestmark = pytest.mark.long

MIB = 1 << 20
PYTHON_THREADS = 8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever moves the data, a bad disk ends alike."""
    if "shim" in metafunc.fixturenames:
        metafunc.parametrize("shim", PATHS, indirect=True)


def flush(guest: Guest) -> Completion:
    return guest.execute(guest.queues[1], Command(opcode=NvmOpcode.FLUSH, nsid=1))


def write(guest: Guest, slba: int, *, fua: bool = False) -> Completion:
    return guest.execute(guest.queues[1], transfer(NvmOpcode.WRITE, guest.alloc(PAGE), slba, fua=fua))


def read(guest: Guest, slba: int) -> Completion:
    return guest.execute(guest.queues[1], transfer(NvmOpcode.READ, guest.alloc(PAGE), slba))


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if " ERROR " in line or " WARNING " in line]


@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_full_file_system_is_a_write_fault(folder: Path, serve: Serve, attach: Attach, engine: str) -> None:
    """A real one: 1 MiB of tmpfs below a sparse disk of 8 MiB, seen only by the server. What is deallocated makes room
    again."""
    small = folder / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=1M none "{small}" && exec "$0" serve "$@"'
    program = ("unshare", "--mount", *(() if os.getuid() == 0 else ("-r",)), "sh", "-c", script, NVMEEMU)
    disk = ("--disk", small / "disk", "--create", "--size", "8M")
    served = serve(*disk, "--engine", engine, command=program)
    guest = attach()
    place = guest.alloc(PAGE)
    guest.bus.write_memory(place, b"\xa5" * PAGE)
    done: list[int] = []
    failed: list[Completion] = []
    for start in range(0, 2 * MIB // PAGE, 32):
        commands = [transfer(NvmOpcode.WRITE, place, 8 * page) for page in range(start, start + 32)]
        for page, command in enumerate(commands, start):  # a CID that says which
            command.cid = page + 1
        for completion in run_batch(guest, commands):
            if completion.status == Status.SUCCESS:
                done.append(completion.cid - 1)
            else:
                failed.append(completion)
    assert done
    assert failed
    assert {completion.status for completion in failed} == {Status.WRITE_FAULT}
    assert all(completion.dnr for completion in failed)  # trying again makes no room
    for page in done:
        assert guest.read(8 * page, 8) == b"\xa5" * PAGE
    last, queue = 7 * MIB // BLOCK, guest.queues[1]
    zeroes = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=last, nlb=PAGE // BLOCK, fua=True)
    for command in (transfer(NvmOpcode.WRITE, place, last, fua=True), zeroes):
        completion = guest.execute(queue, copy(command))
        assert (completion.status, completion.dnr) == (Status.WRITE_FAULT, True)
    ranges = b"".join(bytes(DsmRange(slba=8 * page, length=8)) for page in done[:8])
    guest.bus.write_memory(place, ranges)
    guest.succeed(queue, DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=place, nr=8, ad=True))
    guest.succeed(queue, transfer(NvmOpcode.WRITE, place, last + 8, fua=True))
    guest.succeed(queue, copy(zeroes))
    assert flush(guest).status == Status.SUCCESS  # nothing was lost that had succeeded
    assert guest.read(last, 16) == bytes(PAGE) + ranges + guest.bus.read_memory(place + len(ranges), PAGE - len(ranges))
    assert guest.read(8 * done[0], 8) == bytes(PAGE)
    assert guest.read(8 * done[8], 8) == b"\xa5" * PAGE
    assert len(complaints(served.log)) == 1
    assert "No space left on device" in served.log
    assert served.stop() == 0


def test_an_input_output_error_is_a_status_and_one_message(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    served = serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.WRITE, errno.EIO)
    for slba in range(20):
        completion = write(guest, slba)
        assert completion.status == Status.WRITE_FAULT
        assert not completion.dnr  # the next try may work
    assert len(complaints(served.log)) == 1
    assert "Input/output error" in served.log
    shim.fail(Op.WRITE, 0)
    assert write(guest, 0).status == Status.SUCCESS
    shim.fail(Op.READ, errno.EIO)
    for slba in range(20):
        assert read(guest, slba).status == Status.UNRECOVERED_READ_ERROR
    assert len(complaints(served.log)) == 2
    shim.fail(Op.READ, 0)
    assert guest.read(0, 1) == bytes(512)
    assert int.from_bytes(guest.get_log(2, 512)[160:176], "little") == 40  # Media and Data Integrity Errors
    assert served.stop() == 0


def test_the_disk_that_fails_is_named(folder: Path, disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    good = folder / "good"
    good.write_bytes(bytes(MIB))
    served = serve("--disk", good, "--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.SYNC, errno.EIO)
    flush_all = Command(opcode=NvmOpcode.FLUSH, nsid=0xFFFFFFFF)
    assert guest.execute(guest.queues[1], flush_all).status == Status.WRITE_FAULT
    shim.fail(Op.READ, errno.EIO)
    command = transfer(NvmOpcode.READ, guest.alloc(PAGE), 0)
    command.nsid = 2
    assert guest.execute(guest.queues[1], command).status == Status.UNRECOVERED_READ_ERROR
    told = [line.partition(" ERROR ")[2] for line in complaints(served.log)]
    assert told == [
        f"disk file:{disk} failed: Input/output error: the guest gets WRITE_FAULT (logged once)",
        f"disk file:{disk} failed: Input/output error: the guest gets UNRECOVERED_READ_ERROR (logged once)",
    ]
    guest.shut_down()
    served.expect(f"disk file:{disk} failed to flush at shutdown: Input/output error: written data may be lost")


def test_calls_that_do_only_a_part_are_continued(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    data = os.urandom(8 * PAGE)
    for op in (Op.WRITE, Op.READ):
        shim.cut(op)
        guest.write(8, data)
        assert guest.read(8, len(data) // 512) == data
        shim.cut(op, False)
    assert disk.read_bytes()[8 * 512 :][: len(data)] == data


def test_a_full_disk_is_a_write_fault_that_lasts(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.WRITE, errno.ENOSPC)
    completion = write(guest, 0)
    assert (completion.status, completion.dnr) == (Status.WRITE_FAULT, True)
    shim.fail(Op.WRITE, 0)
    assert write(guest, 0).status == Status.SUCCESS


def test_slow_calls_hold_nobody_else_up(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """Reads wait for the disk together, and are all completed once it answers; with io_uring, as many as there are."""
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    most = 32 if shim.path in ("io_uring", "lane") else PYTHON_THREADS
    shim.hold(Op.READ)
    place = guest.alloc(32 * PAGE)
    cids = {
        guest.submit(guest.queues[1], transfer(NvmOpcode.READ, place + PAGE * index, 8 * index), ring=False)
        for index in range(32)
    }
    guest.ring_sq(guest.queues[1])
    shim.wait_for_held(Op.READ, most)
    assert guest.status.rdy
    assert len(guest.identify(1)) == PAGE
    shim.release()
    done: list[Completion] = []
    while len(done) < len(cids):
        guest.bus.settle()
        done += guest.drain(guest.queues[1])
    assert {completion.cid for completion in done} == cids
    assert {completion.status for completion in done} == {Status.SUCCESS}


def test_a_reset_waits_for_writes_that_the_disk_has(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """Otherwise one of them could come over what the host writes next."""
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.hold(Op.WRITE)
    guest.submit(guest.queues[1], transfer(NvmOpcode.WRITE, guest.alloc(PAGE), 0))
    shim.wait_for_held(Op.WRITE)
    guest.bus.write_bar(CC, bytes(4))
    for _ in range(20):
        guest.bus.settle()
        assert guest.status.rdy
    shim.release()
    guest.enable()


def test_a_failed_sync_stays_failed(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """The kernel reports a lost write once, and drops it: the next fdatasync succeeds without it."""
    served = serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    assert write(guest, 0).status == Status.SUCCESS
    assert flush(guest).status == Status.SUCCESS
    shim.fail(Op.SYNC, errno.EIO)
    assert flush(guest).status == Status.WRITE_FAULT
    shim.fail(Op.SYNC, 0)
    assert flush(guest).status == Status.WRITE_FAULT
    guest.leave()
    served.expect("detached")
    assert flush(attach()).status == Status.WRITE_FAULT
    assert served.stop() == 1
    assert "not synced, data may be lost" in served.log


def test_a_failed_fua_write_makes_flush_fail_too(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """It may have been told of an earlier write's loss, which nobody hears of again."""
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.SYNC, errno.EIO)
    assert write(guest, 0, fua=True).status == Status.WRITE_FAULT
    shim.fail(Op.SYNC, 0)
    assert flush(guest).status == Status.WRITE_FAULT


def test_no_flush_succeeds_while_it_is_found_out_what_a_fua_write_failed_of(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """The kernel has told that write of the loss: the sync behind it hears of nothing. (The write may succeed, done
    again, once the guest was told by the Flush.)"""
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    queue = guest.queues[1]
    assert write(guest, 8).status == Status.SUCCESS
    shim.fail(Op.SYNC, errno.EIO, once=True)
    shim.hold(Op.WRITE)
    guest.submit(queue, transfer(NvmOpcode.WRITE, guest.alloc(PAGE), 0, fua=True))
    shim.wait_for_held(Op.WRITE)  # the same again, without a sync
    cid = guest.submit(queue, Command(opcode=NvmOpcode.FLUSH, nsid=1))
    shim.wait_for_record(Event.SYNC_DONE)
    for _ in range(5):  # it could be completed now
        guest.bus.settle()
    shim.release()
    done = {completion.cid: completion.status for completion in guest.collect(2)}
    assert done[cid] == Status.WRITE_FAULT
    assert flush(guest).status == Status.WRITE_FAULT


def test_a_fua_write_is_done_again_if_a_sync_has_failed_meanwhile(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """That one may have been told of this one's loss."""
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    place = guest.alloc(PAGE)
    guest.bus.write_memory(place, b"\x5a" * PAGE)
    shim.hold(Op.WRITE)
    guest.submit(guest.queues[1], transfer(NvmOpcode.WRITE, place, 0, fua=True))
    shim.wait_for_held(Op.WRITE)
    shim.fail(Op.SYNC, errno.EIO, once=True)
    assert flush(guest).status == Status.WRITE_FAULT
    shim.release()
    assert [completion.status for completion in guest.collect(1)] == [Status.SUCCESS]
    assert shim.calls(Op.WRITE) == 2
    assert disk.read_bytes()[:PAGE] == b"\x5a" * PAGE


@pytest.mark.parametrize("then", ["a part", "no room"])
def test_a_failed_sync_is_not_forgotten_because_the_write_then_fails_otherwise(
    disk: Path, serve: Serve, attach: Attach, shim: Shim, then: str
) -> None:
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.SYNC, errno.EIO, once=True)
    shim.cut(Op.WRITE, then == "a part")
    shim.fail(Op.WRITE, errno.ENOSPC if then == "no room" else 0)
    assert write(guest, 0, fua=True).status == Status.WRITE_FAULT
    shim.fail(Op.WRITE, 0)
    shim.cut(Op.WRITE, False)
    assert flush(guest).status == Status.WRITE_FAULT


def test_a_fua_write_without_room_says_nothing_of_the_others(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    served = serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    shim.fail(Op.WRITE, errno.ENOSPC)
    completion = write(guest, 0, fua=True)
    assert (completion.status, completion.dnr) == (Status.WRITE_FAULT, True)
    shim.fail(Op.WRITE, 0)
    assert write(guest, 0, fua=True).status == Status.SUCCESS
    assert flush(guest).status == Status.SUCCESS
    assert served.stop() == 0


def test_a_failed_flush_at_shutdown_is_told_and_does_not_hang_the_guest(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    served = serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    write(guest, 0)
    shim.fail(Op.SYNC, errno.EIO)
    guest.shut_down()
    served.expect("failed to flush at shutdown")
    assert served.stop() == 1


def test_an_image_that_became_shorter_is_a_read_error_and_no_hang(disk: Path, serve: Serve, attach: Attach) -> None:
    served = serve("--disk", disk)
    guest = attach()
    guest.write(0, b"\x5a" * 512)
    guest.write(16384, b"\x5a" * 512)
    os.truncate(disk, MIB + 512)
    assert guest.read(0, 1) == b"\x5a" * 512
    for slba in (16384, 2047, 2049):  # behind the end, across it
        assert read(guest, slba).status == Status.UNRECOVERED_READ_ERROR
    assert len(complaints(served.log)) == 1
    assert served.stop() == 0
