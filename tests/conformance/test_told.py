"""What the log says of a driver's errors: which command, which field, its value, and what is wrong with it."""

from __future__ import annotations

import logging
import struct
from typing import Any

import pytest

from conformance.tools import NewBench
from nvmeemu.app.logs import MOST, NoFlood
from nvmeemu.spec import AdminOpcode, Command, CreateCq, CreateSq, DeleteQueue, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE, Bench, QueuePair

HOLE = 1 << 40
CREATE = AdminOpcode.CREATE_CQ


class Told:
    """A drive that is ready, and what is logged from here on."""

    def __init__(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        self.bench, self.driver, self._caplog = bench, bench.driver, caplog
        self.driver.enable()
        self.queue = self.driver.create_queues()
        caplog.set_level(logging.DEBUG)
        caplog.clear()

    def lines(self, command: Command, queue: QueuePair | None = None) -> list[str]:
        """What is told of a command that fails."""
        self._caplog.clear()
        queue = queue or self.queue
        cid = self.driver.submit(queue, command)
        while (completion := self.driver.poll(queue)) is None:
            self.bench.clock.advance(0.05)
            self.bench.settle()
        assert completion.cid == cid
        assert completion.status
        text = [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]
        return [line.replace(f"#{cid:04x}", "#CID") for line in text if " waits: " not in line]


@pytest.fixture
def told(new_bench: NewBench, caplog: pytest.LogCaptureFixture) -> Told:
    return Told(new_bench(), caplog)


def read(prp1: int, nlb: int = 8, **fields: Any) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=prp1, nlb=nlb, **fields)


def test_a_bad_prp_is_named_with_its_value(told: Told) -> None:
    assert told.lines(read(0x200003)) == [
        "WARNING Invalid PRP Offset: SQ 1 #CID Read nsid=1 slba=0 nlb=8 prp1=0x200003: prp1=0x200003: no multiple of 4"
    ]
    assert told.lines(read(0x200000, 16, prp2=0x201008)) == [
        "WARNING Invalid PRP Offset: SQ 1 #CID Read nsid=1 slba=0 nlb=16 prp1=0x200000 prp2=0x201008: "
        "prp2=0x201008: no multiple of the page size, 0x1000"
    ]
    place = told.driver.alloc(PAGE)
    told.driver.bus.write_memory(place, struct.pack("<3Q", 0x201000, 0x202010, 0x203000))
    (line,) = told.lines(read(0x200000, 32, prp2=place))
    assert line.endswith(f"the PRP list's entry at {place + 8:#x} is 0x202010: no multiple of the page size, 0x1000")
    (line,) = told.lines(read(0x200000, 32, prp2=place + 4))
    assert line.endswith(f": prp2={place + 4:#x}: the PRP list at {place + 4:#x}: no multiple of 8")


def test_memory_that_is_not_there_is_named(told: Told) -> None:
    assert told.lines(read(HOLE)) == [
        f"WARNING Data Transfer Error: SQ 1 #CID Read nsid=1 slba=0 nlb=8 prp1={HOLE:#x}: "
        f"no guest memory at {HOLE:#x}, 4096 bytes"
    ]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            read(0x200000, slba=1 << 60),
            f"WARNING LBA Out of Range: SQ 1 #CID Read nsid=1 slba={1 << 60} nlb=8 prp1=0x200000: "
            "slba=0x1000000000000000: up to block 0x1000000000000007 of 0x8000",
        ),
        (
            ReadWrite(opcode=NvmOpcode.WRITE, nsid=9, nlb=1),
            "DEBUG Invalid Field: SQ 1 #CID Write nsid=9 slba=0 nlb=1: nsid=0x9: no such namespace at this time",
        ),
        (
            ReadWrite(opcode=NvmOpcode.WRITE, nsid=99, nlb=1),
            "DEBUG Invalid Namespace: SQ 1 #CID Write nsid=99 slba=0 nlb=1: nsid=0x63: outside of 1 to NN, 16",
        ),
        (
            read(0x200000, 8192),
            "DEBUG Invalid Field: SQ 1 #CID Read nsid=1 slba=0 nlb=8192 prp1=0x200000: nlb=0x2000: "
            "0x400000 bytes, more than MDTS, 0x200000",
        ),
        (Command(opcode=0x7F), "DEBUG Invalid Opcode: SQ 1 #CID I/O opcode 7Fh: opcode=0x7f"),
    ],
)
def test_a_field_that_cannot_be_is_named(told: Told, command: Command, line: str) -> None:
    assert told.lines(command) == [line]


@pytest.mark.parametrize(
    ("command", "end"),
    [
        (CreateCq(opcode=CREATE, qid=1, qsize=2, pc=True), "qid=0x1: there is one already"),
        (CreateCq(opcode=CREATE, qid=65, qsize=2, pc=True), "qid=0x41: outside of 1 to 64"),
        (CreateCq(opcode=CREATE, qid=2, qsize=4096, pc=True), "qsize=0x1000: outside of 2 to 1024 entries"),
        (
            CreateCq(opcode=CREATE, qid=2, qsize=2, pc=True, prp1=0x200010),
            "prp1=0x200010: no multiple of the page size, 0x1000",
        ),
        (CreateCq(opcode=CREATE, qid=2, qsize=2, pc=True, iv=99), "iv=0x63: vectors now: 65"),
        (
            CreateSq(opcode=AdminOpcode.CREATE_SQ, qid=2, qsize=2, pc=True, cqid=5),
            "cqid=0x5: there is no such I/O queue",
        ),
        (DeleteQueue(opcode=AdminOpcode.DELETE_SQ, qid=7), "qid=0x7: there is no such I/O queue"),
        (DeleteQueue(opcode=AdminOpcode.DELETE_CQ, qid=1), "qid=0x1: submission queues that use it: [1]"),
    ],
)
def test_a_bad_queue_is_a_warning_with_the_reason(told: Told, command: Command, end: str) -> None:
    (line,) = told.lines(command, told.driver.admin)
    assert line.startswith("WARNING Invalid ")
    assert line.endswith(f": {end}")


@pytest.mark.parametrize(
    ("doorbell", "value", "line"),
    [
        (0x1008, 9999, "the tail doorbell of SQ 1 (at 0x1008) with 9999: the queue has 64 entries"),
        (0x100C, 3, "the head doorbell of CQ 1 (at 0x100c) with 3: nothing was posted there"),
        (0x1028, 1, "the tail doorbell of SQ 5 (at 0x1028) with 1: there is no such queue"),
    ],
)
def test_a_bad_doorbell_is_named(
    told: Told, caplog: pytest.LogCaptureFixture, doorbell: int, value: int, line: str
) -> None:
    caplog.clear()
    told.bench.write_bar(doorbell, struct.pack("<I", value))
    told.bench.settle()
    assert [record.getMessage() for record in caplog.records] == [f"the guest rang {line}"]


def test_a_command_of_zeros_is_named_with_its_likely_cause(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Guest memory that has a file but is not shared: what the driver writes into its queue is not there."""
    caplog.clear()
    tail = told.driver.admin.sq_tail
    told.bench.ram.view(told.driver.admin.sq + 64 * tail, 64)[:] = bytes(64)
    told.bench.write_bar(0x1000, struct.pack("<I", tail + 1))
    told.bench.settle()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("is 64 zero bytes" in line and "share=on" in line for line in lines)


def test_a_driver_that_does_nothing_else_fills_no_log(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """However its commands differ; and another error is told all the same."""
    flood = NoFlood()
    kept = []
    for number in range(50):
        told.lines(read(0x200001 + 4 * number, slba=number))
        kept += [record for record in caplog.records if flood.filter(record)]
    assert len(kept) == MOST
    told.lines(read(0x200000, slba=1 << 60))
    assert any(flood.filter(record) for record in caplog.records)
