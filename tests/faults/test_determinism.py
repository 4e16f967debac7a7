"""The same seed and the same commands: the same completions and the same trace, but for the times. In this process,
and over the socket with a server of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmeemu.faults.file import parse
from nvmeemu.spec import Command, NvmOpcode, ReadWrite
from nvmeemu.taps import Observer
from nvmeemu.testing import Bench, Driver, VfioBus
from server.process import Served

FAULTS = """\
seed = {seed}

[[fault]]
match = {{ queue = "io" }}
do = {{ status = "internal_error", dnr = false }}
when = {{ probability = 0.2 }}

[[fault]]
match = {{ opcode = "read" }}
do = {{ corrupt = "flip", bits = 4 }}
when = {{ probability = 0.3 }}

[[fault]]
match = {{ opcode = "write" }}
at = "dma"
do = {{ corrupt = "flip" }}
when = {{ every = 3 }}

[[fault]]
match = {{ queue = "io" }}
at = "completion"
do = [ "duplicate", {{ corrupt = "flip" }} ]
when = {{ probability = 0.1 }}
"""
COMMANDS = 300


def drive(driver: Driver) -> list[bytes]:
    """What the host sees: every completion, and the data of every read."""
    driver.enable()
    queue = driver.create_queues(1)
    place = driver.alloc(4096)
    chance = random.Random(3)
    seen = []
    for cid in range(1, COMMANDS + 1):
        opcode = chance.choice([NvmOpcode.READ, NvmOpcode.WRITE])
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


class Trace(Observer):
    """Everything but the times."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def register_read(self, offset: int, data: bytes) -> None:
        self.said.append(("read", offset, data))

    def doorbell(self, offset: int, value: int) -> None:
        self.said.append(("doorbell", offset, value))

    def fetched(self, sq: object, entry: bytes) -> None:
        self.said.append(("fetch", entry))

    def completed(self, sq: object, cid: int, dw0: int, field: int) -> None:
        self.said.append(("completion", cid, dw0, field))

    def interrupt(self, vector: int) -> None:
        self.said.append(("interrupt", vector))


def in_process(seed: int, engine: str = "python") -> tuple[list[bytes], list[tuple[object, ...]]]:
    from nvmeemu.faults import Faults

    with Bench(engine=engine) as bench:
        trace = Trace()
        bench.controller.observe(trace)
        found = parse(FAULTS.format(seed=seed))
        faults = Faults(bench.controller, found.seed or 0)
        for fault in found.faults:
            faults.add(fault)
        return drive(bench.driver), trace.said


@pytest.fixture
def over_socket(tmp_path: Path) -> Callable[[int], list[bytes]]:
    @contextmanager
    def served(seed: int) -> Iterator[Served]:
        file = tmp_path / "faults.toml"
        file.write_text(FAULTS.format(seed=seed))
        served = Served(str(tmp_path / "s"), "--disk", "mem:16M", "--faults", file, "--once")
        try:
            yield served
        finally:
            served.close()

    def run(seed: int) -> list[bytes]:
        with served(seed) as server, VfioBus(server.path) as bus:
            return drive(Driver(bus))

    return run


def test_the_same_seed_gives_the_same_completions_data_and_trace() -> None:
    assert in_process(1) == in_process(1)
    assert in_process(1, "native")[0] == in_process(1)[0]
    assert in_process(1)[0] != in_process(2)[0]


def test_so_it_does_over_the_socket(over_socket: Callable[[int], list[bytes]]) -> None:
    first = over_socket(1)
    assert over_socket(1) == first
    assert in_process(1)[0] == first
