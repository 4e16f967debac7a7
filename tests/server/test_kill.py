"""kill -9 at 200 random points of a journaled load: everything that a Flush or FUA acknowledged is on the disk.

What proves what:

- The kill and the image file prove that no acknowledged write was in the server's own memory only, in no order of
  events: after the kill, the file has every acknowledged write, flushed or not. It proves nothing of the medium, as
  the kernel outlives the server and keeps the page cache.
- The record of the shim proves the medium's part. It holds each write and each sync at the disk's file in order, made
  before the server could tell anybody. ``Medium`` keeps of that record only what fdatasync or RWF_DSYNC covered and
  loses all else: a power cut, at its worst, at the same 200 points. What Flush or FUA had acknowledged must be there.
- Every fourth version of a page is zeros, by Write Zeroes or Dataset Management, which promise the same.
- That fdatasync itself does what it says is the kernel's and the drive's promise. No test here can prove it.

The acknowledgements that count are the completions in the guest's memory, also those that the guest had not seen yet.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nvmeemu.spec import Command, Completion, DatasetManagement, DsmRange, NvmOpcode, ReadWrite, Status
from nvmeemu.testing import PAGE
from server.conftest import MIB, PATHS
from server.guest import Guest
from server.load import BLOCK, transfer
from server.process import ANNOUNCED_LINES
from server.shim import Medium, Shim

pytestmark = pytest.mark.long

KILLS = 2 * int(os.environ.get("NVMEEMU_ROUNDS", "100"))
SLOTS = 48  # pages on the disk that are written again and again
MOST_STEPS = 12  # of the load before a kill
LONGEST_DELAY = 0.002  # seconds from a doorbell to the kill; half of them come at once, also on a busy machine
_BLOCK = struct.Struct("<IIQ")
ZYGOTE = Path(__file__).with_name("zygote.py")


def is_zeros(version: int) -> bool:
    return version % 4 == 0


def content(slot: int, version: int) -> bytes:
    """A page that says in each of its blocks what it is, unless it is zeros."""
    blocks = (_BLOCK.pack(slot, block, version) * (BLOCK // _BLOCK.size) for block in range(PAGE // BLOCK))
    return bytes(PAGE) if is_zeros(version) else b"".join(blocks)


@dataclass
class Knowledge:
    """What the guest knows of its disk: the version of each slot that it may, must, and must even after a power cut,
    find. Version 0 is the empty disk."""

    submitted: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(SLOTS), 0))
    completed: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(SLOTS), 0))
    durable: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(SLOTS), 0))

    def check(self, image: bytes | bytearray, least: dict[int, int]) -> None:
        """Each block of each slot must be whole, and of a version from ``least`` to what was submitted."""
        for slot in range(SLOTS):
            for start in range(slot * PAGE, (slot + 1) * PAGE, BLOCK):
                found = bytes(image[start : start + BLOCK])
                version: int = _BLOCK.unpack_from(found)[2] or self._last_zeros(slot)
                block = start % PAGE
                assert found == content(slot, version)[block : block + BLOCK], f"slot {slot}: torn or foreign"
                assert least[slot] <= version <= self.submitted[slot], f"slot {slot}: version {version}"

    def _last_zeros(self, slot: int) -> int:
        return self.submitted[slot] // 4 * 4


class Writer:
    """The load: writes and zeroes, some of them FUA, with Flushes among them, several in flight."""

    def __init__(self, guest: Guest, knowledge: Knowledge, random: random.Random) -> None:
        self._guest = guest
        self._knowledge = knowledge
        self._random = random
        self._queue = guest.queues[1]
        self._buffers = guest.alloc(SLOTS * PAGE)
        self._writes: dict[int, tuple[int, int, bool]] = {}  # CID -> slot, version, FUA
        self._flushes: dict[int, dict[int, int]] = {}  # CID -> what was completed when it was submitted

    def step(self) -> None:
        """Ring the doorbell for a few more commands."""
        busy = {slot for slot, _, _ in self._writes.values()}
        free = [slot for slot in range(SLOTS) if slot not in busy]
        for slot in self._random.sample(free, min(len(free), self._random.randint(1, 6))):
            self._write(slot, fua=self._random.random() < 0.3)
        if self._random.random() < 0.5:
            cid = self._guest.submit(self._queue, Command(opcode=NvmOpcode.FLUSH, nsid=1), ring=False)
            self._flushes[cid] = dict(self._knowledge.completed)
        self._guest.ring_sq(self._queue)

    def _write(self, slot: int, fua: bool) -> None:
        version = self._knowledge.submitted[slot] + 1
        self._knowledge.submitted[slot] = version
        place = self._buffers + slot * PAGE
        self._guest.bus.write_memory(place, content(slot, version))
        slba, blocks = slot * (PAGE // BLOCK), PAGE // BLOCK
        command: Command = transfer(NvmOpcode.WRITE, place, slba, fua=fua)
        if is_zeros(version) and not fua and self._random.random() < 0.5:
            ranges = [bytes(DsmRange(slba=slba + part, length=1)) for part in range(blocks)]
            self._guest.bus.write_memory(place, b"".join(ranges))
            command = DatasetManagement(
                opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, prp1=place, nr=len(ranges), ad=True
            )
        elif is_zeros(version):
            deac = self._random.random() < 0.5
            command = ReadWrite(opcode=NvmOpcode.WRITE_ZEROES, nsid=1, slba=slba, nlb=blocks, fua=fua, deac=deac)
        self._writes[self._guest.submit(self._queue, command, ring=False)] = slot, version, fua

    def collect(self, *, ring: bool) -> None:
        """Take note of every completion in the guest's memory."""
        while (completion := self._guest.poll(self._queue, ring=ring)) is not None:
            self._acknowledged(completion)

    def _acknowledged(self, completion: Completion) -> None:
        assert completion.status == Status.SUCCESS
        knowledge = self._knowledge
        if completion.cid in self._flushes:
            covered = self._flushes.pop(completion.cid)
            knowledge.durable = {slot: max(covered[slot], version) for slot, version in knowledge.durable.items()}
            return
        slot, version, fua = self._writes.pop(completion.cid)
        knowledge.completed[slot] = version
        if fua:
            knowledge.durable[slot] = version

    @property
    def in_flight(self) -> int:
        return len(self._writes) + len(self._flushes)


class Victims:
    """Servers on one disk, one after another, each to be killed."""

    def __init__(self, path: str, disk: Path, shim: Shim) -> None:
        arguments = [ZYGOTE, "serve", "--socket", path, "--disk", disk, "--log-level", "error", *shim.engine]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | shim.environment,
        )

    def start(self) -> None:
        """Return when one listens."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        lines = [self.process.stdout.readline() for _ in range(ANNOUNCED_LINES)]
        assert lines[-1], "the server did not start"

    @staticmethod
    def kill(guest: Guest) -> None:
        """Kill the server of this guest; return when it is gone, its locks too."""
        credentials = guest.bus.client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process = os.pidfd_open(struct.unpack("3i", credentials)[0])
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            assert select.select([process], [], [], 20)[0]
        finally:
            os.close(process)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


@pytest.fixture
def victims(path: str, disk: Path, shim: Shim) -> Iterator[Victims]:
    victims = Victims(path, disk, shim)
    yield victims
    victims.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shim", PATHS, indirect=True)
def test_what_flush_or_fua_acknowledged_survives_kill_9_and_a_power_cut(
    path: str, disk: Path, shim: Shim, victims: Victims
) -> None:
    seed = int(os.environ.get("NVMEEMU_SEED") or random.SystemRandom().getrandbits(32))
    print(f"NVMEEMU_SEED={seed}")
    chance = random.Random(seed)
    knowledge, medium = Knowledge(), Medium(16 * MIB)
    in_flight = 0
    for _ in range(KILLS):
        victims.start()
        guest = Guest(path, ram=2 * MIB, vectors=1)
        try:
            writer = Writer(guest, knowledge, chance)
            for _ in range(chance.randrange(MOST_STEPS)):
                writer.step()
                writer.collect(ring=True)
            writer.step()
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, LONGEST_DELAY))
            victims.kill(guest)
            writer.collect(ring=False)
            in_flight += writer.in_flight > 0
        finally:
            guest.leave()
        medium.take(shim.records())
        shim.drop_torn_record()
        medium.restart()
        knowledge.check(disk.read_bytes(), knowledge.completed)
        knowledge.check(medium.durable, knowledge.durable)
    print(f"{in_flight} of {KILLS} kills did hit the work")
    assert in_flight > KILLS // 4
    assert sum(knowledge.durable.values()) > KILLS
