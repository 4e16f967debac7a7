"""The same host twice: one controller serves it in Python, one with the native engine, and all must end alike."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from differential.cases import (
    BLOCKS,
    COMPLETIONS,
    DATA,
    DISK,
    FILE,
    LISTS,
    MEMORY,
    MORE_DATA,
    PLACES,
    QUEUES,
    READ_ONLY,
    ROM,
    STRIPES,
    TOP,
    Case,
    Generator,
)
from nvmeemu.backend import open_backend
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import AdminOpcode, Completion, CreateCq, NvmOpcode, Status
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair

COMPARED = (QUEUES, LISTS, DATA, MORE_DATA, ROM, TOP)  # the completion queues are compared entry by entry
SIZES = ((8, 3), (17, 16), (STRIPES + 1, 2))  # entries of the submission and completion queue of each pair
DISK_EVERY = 16  # cases
PATIENCE = 0.2  # seconds; longer than a command waits for its memory


class Difference(AssertionError):
    """The two paths do not do the same."""


class Side:
    """A controller, its host and its disks: a file, memory, a file that is read-only."""

    def __init__(self, engine: str, folder: Path, seed: int, mps: int) -> None:
        chance = random.Random(seed)
        disks = []
        for nsid in (FILE, READ_ONLY):
            disks.append(folder / f"{engine}-{nsid}")
            disks[-1].write_bytes(chance.randbytes(DISK))
        self.bench = Bench(open_backend(str(disks[0])), ram=0, engine=engine)
        memory = MemoryBackend(DISK)
        memory.write(0, [memoryview(chance.randbytes(DISK))])
        for nsid, backend in ((MEMORY, memory), (READ_ONLY, open_backend(str(disks[1]), read_only=True))):
            self.bench.namespaces.add(self.bench.namespace(nsid, backend, BLOCKS[nsid]))
        self.memory = {iova: bytearray(chance.randbytes(size)) for iova, size in PLACES.items()}
        for iova, data in self.memory.items():
            self.bench.ram.map(iova, len(data), data=data, writable=iova != ROM)
        self.driver = Driver(self.bench, heap=QUEUES)
        self.driver.enable(mps=mps)
        self.pairs = [self._create(qid, *sizes) for qid, sizes in enumerate(SIZES, 1)]

    def _create(self, qid: int, sq_entries: int, cq_entries: int) -> QueuePair:
        cq = COMPLETIONS + (qid - 1) * 4 * PAGE
        self.bench.write_memory(cq, bytes(4 * PAGE))
        opcode = AdminOpcode.CREATE_CQ
        command = CreateCq(opcode=opcode, prp1=cq, qid=qid, qsize=cq_entries, pc=True, ien=qid != 3, iv=qid)
        self.driver.succeed(self.driver.admin, command)
        return QueuePair(qid, self.driver.create_sq(qid, sq_entries), cq, sq_entries, cq_entries)

    def close(self) -> None:
        self.bench.close()
        for namespace in self.bench.namespaces:
            namespace.media.close()

    def execute(self, pair: int, cases: Sequence[Case]) -> list[Completion]:
        """All completions of these commands, in order."""
        bench, queue = self.bench, self.pairs[pair]
        bench.ram.interrupts.clear()
        for case in cases:
            for iova, data in case.writes:
                bench.write_memory(iova, data)
            case.command.cid = 0  # so that the driver gives it one, the same on both sides
            self.driver.submit(queue, case.command, ring=False)
        self.driver.ring_sq(queue)
        done = self.driver.drain(queue)
        if len(done) < len(cases):
            bench.clock.advance(PATIENCE)
            bench.settle()
            done += self.driver.drain(queue)
        return done

    def take_counts(self) -> int:
        """How many commands the engine has done itself since the last call; for SMART, too."""
        engine, health = self.bench.engine, self.bench.subsystem.health
        if engine is None:
            return 0
        counts = engine.take_counts()
        health.reads += counts.reads
        health.writes += counts.writes
        health.bytes_read += counts.bytes_read
        health.bytes_written += counts.bytes_written
        return counts.reads + counts.writes + counts.others

    @property
    def totals(self) -> dict[str, int]:
        """What SMART counts."""
        health = self.bench.subsystem.health
        names = ("reads", "writes", "bytes_read", "bytes_written", "media_errors")
        return {name: getattr(health, name) for name in names}

    def disk(self, nsid: int) -> bytearray:
        data = bytearray(DISK)
        media = self.bench.namespaces[nsid].media
        assert isinstance(media, DiskMedia)
        media.backend.read(0, [memoryview(data)])
        return data


class Pair:
    """Both sides, and what was reached."""

    def __init__(self, folder: Path, seed: int, mps: int) -> None:
        self.seed = seed
        self.reached: Counter[tuple[int, int]] = Counter()  # opcode, status
        self.cases = 0
        self.served = 0  # by the engine itself
        self._stack = ExitStack()
        self._chance = random.Random(seed)
        self._generator = Generator(self._chance, PAGE << mps)
        self._sides = []
        for engine in ("python", "native"):
            side = Side(engine, folder, seed, mps)
            self._stack.callback(side.close)
            self._sides.append(side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _count(self, cases: list[Case], statuses: dict[int, int]) -> None:
        """What is ordinary must be the engine's: Python behind it hides a walk that gives up too early."""
        served = self._sides[1].take_counts()
        ordinary = [case for case in cases if case.is_ordinary and statuses[case.command.cid] == Status.SUCCESS]
        if served < len(ordinary):
            raise Difference(f"seed {self.seed}, case {self.cases}: left to Python: {'; '.join(map(str, cases))}")
        self.served += served

    def run(self, number: int) -> None:
        """So many cases. Raises Difference."""
        end, looked = self.cases + number, self.cases
        while self.cases < end:
            self._step()
            if self.cases - looked >= DISK_EVERY or self.cases >= end:
                looked = self.cases
                self._compare_disks()

    def _step(self) -> None:
        """A command alone, or several that do not meet, so that their order says nothing."""
        chance = self._chance
        pair = chance.randrange(len(SIZES))
        if chance.random() < 0.1:
            stripes = chance.sample(range(STRIPES), chance.randrange(2, min(STRIPES, SIZES[pair][0] - 1) + 1))
            cases = [self._generator.case(stripe) for stripe in stripes]
        else:
            cases = [self._generator.case()]
        python, native = (side.execute(pair, cases) for side in self._sides)
        self.cases += len(cases)
        self._compare(cases, python, native)
        statuses = {completion.cid: completion.status for completion in python}
        self._count(cases, statuses)
        for case in cases:
            self.reached[case.command.opcode, statuses[case.command.cid]] += 1

    def _compare(self, cases: list[Case], python: list[Completion], native: list[Completion]) -> None:
        where = f"seed {self.seed}, case {self.cases}: {'; '.join(map(str, cases))}"
        if len(cases) > 1:
            python, native = (sorted(side, key=lambda one: int(one.cid)) for side in (python, native))
        if len(python) != len(cases):
            raise Difference(f"{where}: the reference has {len(python)} completions")
        if [_seen(one, cases) for one in python] != [_seen(one, cases) for one in native]:
            raise Difference(f"{where}: completions {python}, {native}")
        rams = [side.bench.ram for side in self._sides]
        interrupts = [ram.interrupts if len(cases) == 1 else set(ram.interrupts) for ram in rams]
        if interrupts[0] != interrupts[1]:
            raise Difference(f"{where}: interrupts {interrupts}")
        for place in COMPARED:
            first, second = (side.memory[place] for side in self._sides)
            if first != second:
                at = next(index for index in range(len(first)) if first[index] != second[index])
                raise Difference(f"{where}: memory differs at {place + at:#x}")

    def _compare_disks(self) -> None:
        for nsid in BLOCKS:
            first, second = (side.disk(nsid) for side in self._sides)
            if first != second:
                at = next(index for index in range(DISK) if first[index] != second[index])
                raise Difference(f"seed {self.seed}, up to case {self.cases}: disk {nsid} differs at {at:#x}")
        python, native = (side.totals for side in self._sides)
        if python != native:
            raise Difference(f"seed {self.seed}, up to case {self.cases}: SMART counts {python}, {native}")


def _seen(completion: Completion, cases: list[Case]) -> bytes:
    """What must be the same; of several commands, SQ Head and phase depend on their order."""
    if len(cases) == 1:
        return bytes(completion)
    dw0, dw1, cid, status = completion.dw0, completion.dw1, completion.cid, completion.status
    same = Completion(dw0=dw0, dw1=dw1, cid=cid, sqid=completion.sqid, status=status)
    same.more, same.dnr = completion.more, completion.dnr
    return bytes(same)


def table(reached: Counter[tuple[int, int]]) -> str:
    """Status x opcode."""
    names = {opcode.value: opcode.name for opcode in NvmOpcode}
    known = Counter[tuple[str, int]]()
    for (opcode, status), number in reached.items():
        known[names.get(opcode, "others"), status] += number
    statuses = sorted({status for _, status in known})
    width = max(len(name) for name, _ in known)
    lines = [f"{'opcode':{width}}" + "".join(f"{status:>7x}h" for status in statuses)]
    for name in sorted({name for name, _ in known}):
        lines.append(f"{name:{width}}" + "".join(f"{known[name, status] or '':>8}" for status in statuses))
    return "\n".join(lines)
