"""A disk that does not answer: the guest's registers do. (QEMU drops a device after 5 s; a Flush may take longer.)"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmeemu.spec import Command, Completion, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, Status
from nvmeemu.subsystem.media import MOST_HELD
from nvmeemu.testing import CC, CSTS, PAGE, VS
from server.conftest import MIB, PATHS, Attach
from server.guest import Guest
from server.load import run_batch, transfer
from server.process import Serve
from server.shim import Op, Shim

MORE_THAN_THREADS = 24
ACCESSES = 2000
LIMIT = 0.1  # seconds, the longest that a register access may take
LARGE = 2 * MIB  # the largest transfer
ROUNDS = 3  # one of which must be free of the machine's own hiccups

Make = Callable[[Guest], Command]


def reading(guest: Guest) -> Command:
    return transfer(NvmOpcode.READ, guest.alloc(PAGE), 8)


def writing(guest: Guest) -> Command:
    return transfer(NvmOpcode.WRITE, guest.alloc(PAGE), 8)


def writing_through(guest: Guest) -> Command:
    return transfer(NvmOpcode.WRITE, guest.alloc(PAGE), 8, fua=True)


def flushing(guest: Guest) -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=1)


def deallocating(guest: Guest) -> Command:
    page = guest.alloc(PAGE)
    guest.bus.write_memory(page, bytes(DsmRange(slba=0, length=8)))
    return DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, nr=1, ad=True)


def longest_access(guest: Guest) -> float:
    """Of many reads of a register, one write among a few of them."""
    longest = 0.0
    for number in range(ACCESSES):
        begin = time.monotonic()
        if number % 16 == 0:
            guest.bus.client.write(0, 0x0C, bytes(4))  # INTMS, with a reply
        assert guest.reg(VS) == 0x20000
        longest = max(longest, time.monotonic() - begin)
    return longest


@pytest.mark.parametrize(
    ("make", "op"),
    [
        (reading, Op.READ),
        (writing, Op.WRITE),
        (writing_through, Op.WRITE),
        (flushing, Op.SYNC),
        (deallocating, Op.PUNCH),
    ],
)
def test_a_blocked_disk_delays_no_register_access(
    disk: Path, serve: Serve, attach: Attach, shim: Shim, make: Make, op: Op
) -> None:
    """The disk is held for as long as the accesses take: that none waits for it does not depend on the clock."""
    serve("--disk", disk, environment=shim.environment)
    guest = attach()
    shim.hold(op)
    queue = guest.queues[1]
    for _ in range(MORE_THAN_THREADS):
        guest.submit(queue, make(guest))
    shim.wait_for_held(op)
    rounds = [longest_access(guest)]
    while rounds[-1] >= LIMIT and len(rounds) < ROUNDS:
        rounds.append(longest_access(guest))
    assert min(rounds) < LIMIT
    assert guest.poll(queue) is None
    assert guest.identify(1)[:2]  # the admin queue is served, too
    assert shim.held(op)
    shim.release()
    completions: list[Completion] = []
    while len(completions) < MORE_THAN_THREADS:
        guest.bus.settle()
        completions += guest.drain(queue)
    assert {completion.status for completion in completions} == {Status.SUCCESS}


def test_a_reset_and_a_shutdown_answer_while_the_disk_is_blocked(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """CSTS says that they are not done yet, and is there to be read."""
    serve("--disk", disk, environment=shim.environment)
    guest = attach()
    shim.hold(Op.WRITE, Op.SYNC)
    guest.submit(guest.queues[1], writing(guest))
    shim.wait_for_held(Op.WRITE)
    guest.begin_shutdown()
    for _ in range(100):
        assert guest.status.shst == 1  # in progress
    guest.set_reg(CC, guest.reg(CC) & ~1)
    for _ in range(100):
        assert guest.status.rdy  # a write of the past could still land on the disk
    shim.release()
    guest.enable()
    guest.create_queues(1)
    [completion] = run_batch(guest, [reading(guest)])
    assert completion.status == Status.SUCCESS
    assert guest.reg(CSTS) == 1


def test_a_disk_that_blocks_one_command_serves_the_others(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    serve("--disk", disk, environment=shim.environment)
    guest = attach()
    shim.hold(Op.SYNC)
    slow = guest.submit(guest.queues[1], flushing(guest))
    shim.wait_for_held(Op.SYNC)
    guest.create_queues(2)
    guest.write(0, b"\x5a" * 512, qid=2)
    assert guest.read(0, 1, qid=2) == b"\x5a" * 512
    assert guest.poll(guest.queues[1]) is None
    shim.release()
    while (completion := guest.poll(guest.queues[1])) is None:
        guest.bus.settle()
    assert (completion.cid, completion.status) == (slow, Status.SUCCESS)


@pytest.mark.parametrize(
    ("shim", "doorbells"), [*((path, "trapped") for path in PATHS), ("io_uring", "mapped")], indirect=["shim"]
)
@pytest.mark.parametrize(("make", "op"), [(reading, Op.READ), (writing, Op.WRITE)])
def test_commands_that_wait_for_one_disk_hold_up_no_other_disk(
    disk: Path, serve: Serve, attach: Attach, shim: Shim, make: Make, op: Op, doorbells: str
) -> None:
    """More than a disk is given at once, one lane for both queues, and commands for the other disk behind them in their
    own queue, too. The other disk has work for threads (Verify)."""
    lanes = () if shim.path == "python" else ("--io-threads", 1, "--doorbells", doorbells)
    serve("--disk", disk, "--disk", "mem:1M", *lanes, *shim.engine, environment=shim.environment)
    guest = attach(entries=512)
    guest.create_queues(2)
    shim.hold(op)
    command, waiting = make(guest), 400
    assert isinstance(command, ReadWrite)
    for number in range(waiting):
        command.slba = 8 * number  # who writes to the same blocks waits for the others, and not for the disk
        guest.submit(guest.queues[1], command, ring=False)
    guest.ring_sq(guest.queues[1])
    shim.wait_for_held(op, 4)
    for block in range(50):
        for qid in (1, 2):
            guest.write(block, bytes([block]) * 512, nsid=2, qid=qid, block_size=512)
            assert guest.read(block, 1, nsid=2, qid=qid, block_size=512) == bytes([block]) * 512
            guest.succeed(guest.queues[qid], ReadWrite(opcode=NvmOpcode.VERIFY, nsid=2, slba=block, nlb=1))
    assert guest.identify(1)[:2]  # the admin queue is served, too
    assert shim.held(op) >= 4
    shim.release()
    completions: list[Completion] = []
    while len(completions) < waiting:
        guest.bus.settle()
        completions += guest.drain(guest.queues[1])
    assert {completion.status for completion in completions} == {Status.SUCCESS}


@pytest.mark.parametrize("shim", ["io_uring"], indirect=True)
def test_all_lanes_together_give_a_disk_a_bounded_amount(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """Four lanes, each with more than the disk is given. When it answers, each of them gets its part."""
    serve("--disk", disk, "--io-threads", 4, *shim.engine, environment=shim.environment)
    guest = attach()
    queues = [guest.queues[1], *(guest.create_queues(qid, 64) for qid in (2, 3, 4))]
    prp1, prp2 = guest.prps(guest.alloc(LARGE), LARGE)
    shim.hold(Op.READ)
    for queue in queues:
        for _ in range(60):
            read = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=prp1, prp2=prp2, nlb=LARGE // 512)
            guest.submit(queue, read, ring=False)
        guest.ring_sq(queue)
    shim.wait_for_held(Op.READ, MOST_HELD // LARGE)
    time.sleep(0.2)  # for more to come, if they do
    assert shim.held(Op.READ) == MOST_HELD // LARGE
    shim.release()
    for queue in queues:
        completions: list[Completion] = []
        while len(completions) < 60:
            guest.bus.settle()
            completions += guest.drain(queue)
        assert {completion.status for completion in completions} == {Status.SUCCESS}


@pytest.mark.parametrize("shim", ["lane"], indirect=True)
def test_a_write_that_took_long_is_completed_by_who_has_taken_over(
    disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """Again and again: the two threads of a lane take turns."""
    serve("--disk", disk, "--io-threads", 1, *shim.engine, environment=shim.environment)
    guest = attach()
    for turn in range(3):
        shim.hold(Op.WRITE)
        cid = guest.submit(guest.queues[1], writing(guest))
        shim.wait_for_held(Op.WRITE)
        time.sleep(1.1)  # longer than such a disk is left to io_uring
        assert len(guest.read(turn, 1)) == 512
        shim.release()
        while (completion := guest.poll(guest.queues[1])) is None:
            guest.bus.settle()
        assert (completion.cid, completion.status) == (cid, Status.SUCCESS)
