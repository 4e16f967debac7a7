"""What Flush, FUA and a shutdown promise: the data has been synced before the guest is told.

Seen from below: the shim writes down each call that reaches the disk's file, in order, and before the server can tell
anybody. ``Medium`` keeps of it only what a sync or RWF_DSYNC covered: what is there after a power cut at its worst.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest

from nvmeemu.app.control.client import Control
from nvmeemu.spec import (
    Abort,
    AdminOpcode,
    Command,
    DatasetManagement,
    DeleteQueue,
    DsmRange,
    FeatureId,
    NvmOpcode,
    ReadWrite,
    SetFeatures,
    Status,
)
from nvmeemu.testing import CC, PAGE
from server.conftest import MIB, PATHS, Attach
from server.guest import ABRUPT, NORMAL, Guest
from server.load import BLOCK, transfer
from server.process import Serve
from server.shim import Event, Medium, Op, Record, Shim

pytestmark = pytest.mark.long

DATA = b"\x5a" * BLOCK
SLBA = 77


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever moves the data, a bad disk ends alike."""
    if "shim" in metafunc.fixturenames:
        metafunc.parametrize("shim", PATHS, indirect=True)


def flush_command(nsid: int = 1) -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=nsid)


def flush(guest: Guest, nsid: int = 1) -> None:
    guest.succeed(guest.queues[1], flush_command(nsid))


def zeroes(*, fua: bool = False, deac: bool = False) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=SLBA, nlb=1, fua=fua, deac=deac)


def deallocation(guest: Guest, *ranges: tuple[int, int]) -> DatasetManagement:
    place = guest.alloc(PAGE)
    guest.bus.write_memory(place, b"".join(bytes(DsmRange(slba=slba, length=length)) for slba, length in ranges))
    return DatasetManagement(
        opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=place, nr=len(ranges), ad=True, cdw12=0xFFFFFFFF
    )


def after_power_cut(shim: Shim) -> bytes:
    medium = Medium(16 * MIB)
    medium.take(shim.records())
    return bytes(medium.durable[SLBA * BLOCK :][:BLOCK])


@pytest.fixture
def guest(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> Guest:
    serve("--disk", disk, *shim.engine, environment=shim.environment)
    return attach()


def test_a_plain_write_promises_nothing(guest: Guest, disk: Path, shim: Shim) -> None:
    """And so is not slowed down by a sync. It is in the page cache, which the server's death does not take away."""
    guest.write(SLBA, DATA)
    assert after_power_cut(shim) == bytes(BLOCK)
    assert shim.calls(Op.SYNC) == 0
    assert disk.read_bytes()[SLBA * BLOCK :][:BLOCK] == DATA


@pytest.mark.parametrize("nsid", [1, 0xFFFFFFFF])
def test_flush_makes_every_completed_write_durable(guest: Guest, shim: Shim, nsid: int) -> None:
    guest.write(SLBA, DATA)
    flush(guest, nsid)
    assert after_power_cut(shim) == DATA
    assert shim.calls(Op.SYNC) == 1


def test_a_fua_write_is_durable_by_itself_and_alone(guest: Guest, shim: Shim) -> None:
    guest.write(SLBA + 1, DATA)
    guest.write(SLBA, DATA, fua=True)
    medium = Medium(16 * MIB)
    medium.take(shim.records())
    assert medium.durable[SLBA * BLOCK :][: 2 * BLOCK] == DATA + bytes(BLOCK)
    assert shim.calls(Op.SYNC) == 0


def test_without_the_write_cache_every_write_is_durable(guest: Guest, shim: Shim) -> None:
    guest.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    guest.write(SLBA, DATA)
    assert after_power_cut(shim) == DATA


def test_turning_the_write_cache_off_leaves_nothing_behind(guest: Guest, shim: Shim) -> None:
    """What was written before has to be durable, or flushed, too: a driver that turns it off sends no Flush."""
    guest.write(SLBA, DATA)
    guest.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    assert after_power_cut(shim) == DATA


@pytest.mark.parametrize("deac", [False, True])
def test_write_zeroes_with_fua_is_durable(guest: Guest, shim: Shim, deac: bool) -> None:
    guest.write(SLBA, DATA, fua=True)
    guest.succeed(guest.queues[1], zeroes(fua=True, deac=deac))
    assert after_power_cut(shim) == bytes(BLOCK)
    assert shim.calls(Op.SYNC) == 1


def change(guest: Guest, how: str) -> Command:
    """A command that makes three blocks zero, the second of them SLBA + 1, in no multiple of a file system's block."""
    if how == "deallocate":
        return deallocation(guest, (SLBA + 1, 1), (SLBA, 1), (0, 0), (SLBA + 2, 1))
    return ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=SLBA, nlb=3, deac=how == "deac")


@pytest.mark.parametrize("how", ["zeroes", "deac", "deallocate"])
def test_without_the_write_cache_zeroes_are_durable(guest: Guest, shim: Shim, how: str) -> None:
    """What a host has read as zeros must not be the old data after a power cut."""
    guest.write(SLBA - 1, 5 * DATA, fua=True)
    guest.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    guest.succeed(guest.queues[1], change(guest, how))
    medium = Medium(16 * MIB)
    medium.take(shim.records())
    assert medium.durable[(SLBA - 1) * BLOCK :][: 5 * BLOCK] == DATA + bytes(3 * BLOCK) + DATA


@pytest.mark.parametrize("how", ["zeroes", "deac", "deallocate"])
def test_zeroes_that_are_under_way_when_the_write_cache_goes_off_are_durable(
    guest: Guest, shim: Shim, how: str
) -> None:
    guest.write(SLBA, 3 * DATA, fua=True)
    shim.hold(Op.PUNCH)
    guest.submit(guest.queues[1], change(guest, how))
    shim.wait_for_held(Op.PUNCH)
    off = SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.VOLATILE_WRITE_CACHE)
    guest.succeed(guest.admin, off)
    shim.release()
    assert [one.status for one in guest.collect(1)] == [Status.SUCCESS]
    assert after_power_cut(shim) == bytes(BLOCK)


@pytest.mark.parametrize("op", [Op.SYNC, Op.PUNCH])
def test_what_waits_for_the_medium_holds_up_nobody_else(guest: Guest, shim: Shim, op: Op) -> None:
    """Not even on the same queue, nor a register; and a reset waits for it."""
    queue = guest.queues[1]
    command = flush_command() if op is Op.SYNC else zeroes(deac=True)
    guest.write(SLBA, DATA)
    shim.hold(op)
    for _ in range(3):
        guest.submit(queue, copy(command))
    shim.wait_for_held(op)
    assert guest.read(SLBA + 64, 1) == bytes(BLOCK)
    guest.write(SLBA + 1, DATA)
    assert guest.status.rdy
    guest.bus.write_bar(CC, bytes(4))
    for _ in range(5):
        guest.bus.settle()
        assert guest.status.rdy
    shim.release()
    guest.enable()


def abort(guest: Guest, control: Path, cids: list[int]) -> None:
    for cid in cids:
        completion = guest.execute(guest.admin, Abort(opcode=AdminOpcode.ABORT, sqid=1, target_cid=cid))
        assert completion.dw0 & 1  # not aborted


def delete_queue(guest: Guest, control: Path, cids: list[int]) -> None:
    guest.submit(guest.admin, DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=1))


def move_queue(guest: Guest, control: Path, cids: list[int]) -> None:
    """To Python, if it is the engine's."""
    with Control(control) as server:
        server.call("fault.add", match={"opcode": "read", "nsid": 1}, do="drop")


def remove_disk(guest: Guest, control: Path, cids: list[int]) -> None:
    with Control(control) as server:
        server.call("namespace.remove", nsid=1)


def shrink_disk(guest: Guest, control: Path, cids: list[int]) -> None:
    with Control(control) as server:
        server.call("namespace.resize", nsid=1, size=BLOCK)


@pytest.mark.parametrize("disturb", [abort, delete_queue, move_queue, remove_disk, shrink_disk])
def test_nothing_ends_before_its_sync_whatever_comes_between(
    disk: Path,
    folder: Path,
    serve: Serve,
    attach: Attach,
    shim: Shim,
    disturb: Callable[[Guest, Path, list[int]], None],
) -> None:
    control = folder / "control"
    serve("--disk", disk, "--control", control, *shim.engine, environment=shim.environment)
    guest = attach()
    queue = guest.queues[1]
    other = guest.create_queues(2)
    guest.write(SLBA - 2, 7 * DATA, fua=True)
    guest.write(SLBA + 5, DATA, qid=2)
    place = guest.alloc(PAGE)
    guest.bus.write_memory(place, b"\xa5" * PAGE)
    guest.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
    shim.hold(Op.SYNC, Op.WRITE)
    commands = [
        flush_command(),
        deallocation(guest, (SLBA, 1), (SLBA + 1, 1)),
        ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=SLBA + 2, nlb=1, fua=True, deac=True),
        transfer(NvmOpcode.WRITE, place, SLBA - 1, BLOCK, fua=True),
    ]
    cids = [guest.submit(queue, command) for command in commands]
    shim.wait_for_held(Op.SYNC, 3)
    shim.wait_for_held(Op.WRITE)
    disturb(guest, control, cids)
    for _ in range(5):
        guest.bus.settle()
    assert guest.poll(queue) is None
    assert guest.poll(other) is None
    assert guest.poll(guest.admin) is None  # the queue's deletion
    shim.release()
    done = {completion.cid: completion.status for completion in guest.collect(4)}
    assert done == dict.fromkeys(cids, Status.SUCCESS)
    medium = Medium(16 * MIB)
    medium.take(shim.records())
    expected = DATA + b"\xa5" * BLOCK + bytes(3 * BLOCK) + DATA + DATA + DATA
    assert medium.durable[(SLBA - 2) * BLOCK :][: len(expected)] == expected


@pytest.mark.parametrize("shn", [NORMAL, ABRUPT])
def test_a_shutdown_is_complete_when_all_is_durable(guest: Guest, shim: Shim, shn: int) -> None:
    guest.write(SLBA, DATA)
    shim.hold(Op.SYNC)
    guest.begin_shutdown(shn)
    shim.wait_for_held(Op.SYNC)
    assert guest.status.shst == 1
    shim.release()
    guest.shut_down(shn)
    assert after_power_cut(shim) == DATA


@pytest.mark.parametrize("cut", ["leave", "stop"])
def test_what_was_written_is_synced_when_the_server_ends(
    disk: Path, serve: Serve, attach: Attach, shim: Shim, cut: str
) -> None:
    """The guest had no time to say anything."""
    served = serve("--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    guest.write(SLBA, DATA)
    if cut == "leave":
        guest.leave()
        served.expect("detached")
    assert served.stop(signal.SIGTERM) == 0
    assert after_power_cut(shim) == DATA


def test_several_disks_are_all_synced(folder: Path, disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    """The shim watches the last of them."""
    other = folder / "other"
    other.write_bytes(bytes(MIB))
    serve("--disk", other, "--disk", disk, *shim.engine, environment=shim.environment)
    guest = attach()
    guest.write(SLBA, DATA, nsid=2)
    flush(guest, 1)
    assert shim.calls(Op.SYNC) == 0
    flush(guest, 0xFFFFFFFF)
    assert after_power_cut(shim) == DATA


def test_the_medium_loses_what_was_not_synced() -> None:
    """Of the model itself: it would prove nothing if it kept too much."""
    medium = Medium(8)

    def then(event: Event, data: bytes = b"", offset: int = 0, thread: int = 1) -> None:
        medium.take(iter([Record(event, thread, offset, len(data), data)]))

    def durable() -> bytes:
        return bytes(medium.durable[:2])

    expectations: list[tuple[Callable[[], None], bytes]] = [
        (lambda: then(Event.WROTE, b"a"), b"\0\0"),
        (lambda: then(Event.SYNC_BEGAN), b"\0\0"),
        (lambda: then(Event.WROTE, b"b", 1), b"\0\0"),
        (lambda: then(Event.SYNC_DONE), b"a\0"),  # the write came after it had begun
        (lambda: then(Event.WROTE, b"c"), b"a\0"),
        (lambda: then(Event.SYNC_BEGAN), b"a\0"),
        (lambda: then(Event.WROTE_DURABLY, b"d"), b"d\0"),
        (lambda: then(Event.SYNC_DONE), b"db"),  # of what was before it
        (lambda: then(Event.SYNC_BEGAN, thread=2), b"db"),
        (lambda: then(Event.PUNCHED, b"\0"), b"db"),
        (lambda: then(Event.SYNC_BEGAN, thread=3), b"db"),
        (lambda: then(Event.SYNC_DONE, thread=3), b"\0b"),
        (lambda: then(Event.SYNC_DONE, thread=2), b"\0b"),
    ]
    for step, (act, expected) in enumerate(expectations):
        act()
        assert durable() == expected, step
