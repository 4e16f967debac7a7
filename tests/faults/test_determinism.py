"""The same seed and the same commands: the same completions and the same trace, but for the times. In this process,
and over the socket with a server of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.controller.request import Reply, Request
from nvmeemu.controller.taps import Observer
from nvmeemu.faults.file import parse
from nvmeemu.spec import Command, NvmOpcode, ReadWrite
from nvmeemu.testing import CSTS, Bench, Driver, VfioBus
from nvmeemu.trace.file import open_trace
from nvmeemu.trace.records import ClientAttached, Fetch, Lost, Record, RegisterRead
from server.process import Served

FAULTS = """\
seed = {seed}

[[fault]]
match = {{ queue = 1 }}
do = {{ status = "internal_error", dnr = false }}
when = {{ probability = 0.2 }}

[[fault]]
match = {{ queue = 1, opcode = "read" }}
do = {{ corrupt = "flip", bits = 4 }}
when = {{ probability = 0.3 }}

[[fault]]
match = {{ queue = 1, opcode = "write" }}
at = "dma"
do = {{ corrupt = "flip" }}
when = {{ every = 3 }}

[[fault]]
match = {{ queue = 1 }}
at = "completion"
do = [ "duplicate", {{ corrupt = "flip" }} ]
when = {{ probability = 0.1 }}
"""
COMMANDS = 300


def drive(driver: Driver) -> list[bytes]:
    """What the host sees: every completion, and the data of every read. Faults are set on the first of two queues."""
    driver.enable()
    queues = [driver.create_queues(1), driver.create_queues(2)]
    place = driver.alloc(4096)
    chance = random.Random(3)
    seen = []
    for cid in range(1, COMMANDS + 1):
        opcode = chance.choice([NvmOpcode.READ, NvmOpcode.WRITE])
        queue = chance.choice(queues)
        driver.bus.write_memory(place, chance.randbytes(512))
        driver.submit(queue, ReadWrite(opcode=opcode, nsid=1, prp1=place, slba=chance.randrange(64), nlb=1, cid=cid))
        while (completion := driver.poll(queue)) is None:
            driver.bus.settle()
        seen.append(bytes(completion))
        driver.submit(driver.admin, Command(opcode=0x0A, cdw10=7))  # whatever else comes of the write has come by then
        while driver.poll(driver.admin) is None:
            driver.bus.settle()
        seen += [bytes(extra) for extra in driver.drain(queue)]
        seen.append(driver.bus.read_memory(place, 512))
    return seen


class Said(Observer):
    """Everything but the times."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def register_read(self, offset: int, data: bytes) -> None:
        self.said.append(("read", offset, data))

    def doorbell(self, number: int, value: int) -> None:
        self.said.append(("doorbell", number, value))

    def fetched(self, request: Request[Any]) -> None:
        self.said.append(("fetch", request.entry))

    def completed(self, reply: Reply) -> None:
        self.said.append(("completion", reply.cid, reply.dw0, reply.field))

    def interrupt(self, vector: int) -> None:
        self.said.append(("interrupt", vector))


def in_process(seed: int, engine: str = "python") -> tuple[list[bytes], list[tuple[object, ...]]]:
    from nvmeemu.faults import Faults

    with Bench(engine=engine) as bench:
        trace = Said()
        bench.controller.observe(trace)
        found = parse(FAULTS.format(seed=seed))
        faults = Faults(bench.controller, found.seed or 0)
        for fault in found.faults:
            faults.add(fault)
        return drive(bench.driver), trace.said


Run = Callable[..., list[bytes]]


@pytest.fixture
def over_socket(tmp_path: Path) -> Run:
    """What the host sees of a server with these options; it has ended then."""

    def run(seed: int, *options: object) -> list[bytes]:
        file = tmp_path / "faults.toml"
        file.write_text(FAULTS.format(seed=seed))
        server = Served(str(tmp_path / "s"), "--disk", "mem:16M", "--faults", file, "--once", *options)
        try:
            with VfioBus(server.path) as bus:
                seen = drive(Driver(bus))
            assert server.wait() == 0
            return seen
        finally:
            server.close()

    return run


def recorded(path: Path) -> list[Record]:
    """Every record of a trace without its time, but for two that are not the commands': who came (a process's number),
    and how often the host has looked whether RDY follows."""
    with open_trace(path) as trace:
        records = [one._replace(time=0) for one in trace]
    return [
        one
        for one in records
        if not isinstance(one, ClientAttached) and not (isinstance(one, RegisterRead) and one.offset == CSTS)
    ]


def test_the_same_seed_gives_the_same_completions_data_and_trace() -> None:
    assert in_process(1) == in_process(1)
    assert in_process(1, "native")[0] == in_process(1)[0]
    assert in_process(1)[0] != in_process(2)[0]


def test_so_it_does_over_the_socket(over_socket: Run) -> None:
    first = over_socket(1)
    assert over_socket(1) == first
    assert in_process(1)[0] == first


@pytest.mark.long
@pytest.mark.parametrize("engine", ["python", "native"])
def test_the_trace_files_are_the_same_but_for_the_times(over_socket: Run, tmp_path: Path, engine: str) -> None:
    traces = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.nvmetrace"
        over_socket(seed, "--engine", engine, "--trace", path)
        traces.append(recorded(path))
    first, again, other = traces
    assert first == again
    assert first != other
    assert sum(isinstance(one, Fetch) for one in first) > 2 * COMMANDS
    assert not any(isinstance(one, Lost) for one in first)
