"""What a VMM does, over and over, against the real server with I/O in flight: nothing is lost, nothing is left behind.

Each test is one server process. It takes some rounds to get warm, a look at what it holds, many more rounds, another
look. ``NVMEEMU_ROUNDS`` sets how many; the tests marked slow (``scripts/test.sh --all``) do 1,000.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmeemu.spec import Status
from nvmeemu.testing import PAGE, VfioBus, VfioClient
from nvmeemu.testing.client import BAR0, HEADER, MSIX, REGION_READ, VERSION
from transport.load import Load
from transport.served import ServedDisk

FEW = int(os.environ.get("NVMEEMU_ROUNDS", "100"))
WARM = 30
RAM = 8 << 20
VECTORS = 12  # more than one SET_IRQS message takes
PATIENCE = 120_000  # milliseconds

pytestmark = pytest.mark.long

Repeat = Callable[[Callable[[int], None]], None]
RepeatAttached = Callable[[Callable[[Load], None]], None]


@pytest.fixture(params=["memory", "file", "native", "mapped"])
def served(request: pytest.FixtureRequest, path: str, tmp_path: Path) -> Iterator[ServedDisk]:
    """Either kind of disk; then the native engine, with either kind of doorbells."""
    disk = "mem:64M"
    options = []
    if request.param in ("native", "mapped"):
        options = ["--engine", "native", "--doorbells", {"native": "trapped"}.get(request.param, "mapped")]
    if request.param == "file":
        disk = str(tmp_path / "disk")
        with open(disk, "wb") as file:
            file.truncate(64 << 20)
    served = ServedDisk(path, disk, *options)
    yield served
    assert served.stop() == 0


@pytest.fixture(params=[FEW, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def repeat(served: ServedDisk, rounds: int) -> Repeat:
    """Do the rounds of a test whose clients come and go within a round, and check the footprint."""

    def run(play: Callable[[int], None]) -> None:
        for number in range(WARM):
            play(number)
        before = served.footprint()
        for number in range(WARM, WARM + rounds):
            play(number)
        served.check(before)

    return run


@pytest.fixture
def repeat_attached(served: ServedDisk, rounds: int) -> RepeatAttached:
    """The same for one client that stays, with a load: two of them, the first one to get warm."""

    def run(play: Callable[[Load], None]) -> None:
        _play(WARM, play)
        before = served.footprint()
        _play(rounds, play)
        served.check(before)

    def _play(count: int, play: Callable[[Load], None]) -> None:
        with VfioBus(served.path, ram=RAM, vectors=VECTORS) as bus:
            load = Load(bus, seed=count)
            load.start()
            for _ in range(count):
                play(load)
            load.submit()
            load.collect()
            assert load.completed > count

    return run


def test_clients_come_and_go(served: ServedDisk, repeat: Repeat) -> None:
    def play(number: int) -> None:
        with VfioClient(served.path) as client:
            if number % 2:
                client.device_info()
        with socket.socket(socket.AF_UNIX) as stranger:  # and one who does not even wait for an answer
            stranger.connect(served.path)
            if number % 3:
                stranger.send(HEADER.pack(1, VERSION, 20, 0, 0) + struct.pack("<HH", 0, 1))

    repeat(play)


def test_memory_is_mapped_in_other_pieces_under_commands(
    repeat_attached: RepeatAttached,
) -> None:
    """SeaBIOS does that to a controller that is enabled. What meets the gap is held and then goes on."""
    slowest = 0.0

    def play(load: Load) -> None:
        nonlocal slowest
        cuts = sorted(load.random.sample(range(1, RAM // PAGE), load.random.randrange(6)))
        load.submit()
        begin = time.monotonic()
        load.bus.remap(cut * PAGE for cut in cuts)
        slowest = max(slowest, time.monotonic() - begin)
        load.collect()
        if slowest < 0.1:
            assert load.statuses == {Status.SUCCESS}
        else:  # this machine was too slow for the patience that commands have
            assert load.statuses <= {Status.SUCCESS, Status.DATA_TRANSFER_ERROR}

    repeat_attached(play)


def test_memory_is_mapped_page_by_page_under_commands(
    repeat_attached: RepeatAttached,
) -> None:
    """A guest behind an IOMMU: the buffers of a batch come and go, each a region of its own, beside those in use."""

    def play(load: Load) -> None:
        client, memory, first = load.bus.client, load.bus.memory, load.buffers[0]
        size = 2 * PAGE * len(load.buffers)
        if load.completed == 0:
            load.bus.remap((first, first + size))
            client.unmap(first, size)
        pages = range(first, first + size, PAGE)
        for page in load.random.sample(pages, len(pages)):
            client.map(page, PAGE, memory.fd, offset=page)
        load.submit()
        load.collect()
        assert load.statuses == {Status.SUCCESS}
        for page in load.random.sample(pages, len(pages)):
            client.unmap(page, PAGE)

    repeat_attached(play)


def test_interrupts_are_routed_anew_under_commands(
    repeat_attached: RepeatAttached,
) -> None:
    """A guest that sleeps until its interrupt must get it, on the old route or on the new one."""

    def play(load: Load) -> None:
        bus = load.bus
        load.collect()
        bus.wait_for_interrupt(0)
        way = load.random.randrange(3)
        if way == 0:  # no route at all while the commands complete
            bus.client.disable_interrupts(MSIX)
            load.submit(4)
            bus.settle()
        else:
            load.submit(4)
        if way == 1:
            bus.client.set_interrupts(MSIX, 1, bus.eventfds[1:2])  # one vector only
        else:
            bus.client.set_interrupts(MSIX, 0, bus.eventfds)
        while load.pending:
            assert 1 in bus.wait_for_interrupt(PATIENCE), f"no interrupt, {len(load.pending)} commands wait"
            load.collect_what_is_there()

    repeat_attached(play)


@pytest.mark.parametrize("kind", ["device reset", "function level reset"])
def test_resets_under_commands(served: ServedDisk, repeat_attached: RepeatAttached, kind: str) -> None:
    def play(load: Load) -> None:
        load.submit()
        if load.random.randrange(2):
            load.bus.settle()
        if kind == "device reset":
            load.bus.reset()
        else:
            load.bus.function_level_reset()
        assert load.bus.read_bar(0x14, 4) == bytes(4)
        assert load.bus.read_bar(0x28, 8) == bytes(8)
        load.bus.connect_interrupts()
        load.start()
        load.submit(8)
        load.collect()
        assert load.statuses == {Status.SUCCESS}

    repeat_attached(play)


def test_a_client_that_dies_at_any_moment(served: ServedDisk, repeat: Repeat) -> None:
    """Between two messages, in the middle of one, with a descriptor in its half; before and after the enable."""
    source = random.Random(1)

    def play(number: int) -> None:
        with VfioBus(served.path, ram=RAM, vectors=VECTORS) as bus:
            if number % 3:
                load = Load(bus, seed=number)
                load.start()
                load.submit()
                if number % 5 == 0:
                    load.collect()
            message = HEADER.pack(9, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, BAR0, 4)
            torn = message[: source.randrange(len(message))]
            if torn:
                bus.client.send_raw(torn, [bus.memory.fd] if number % 2 else [])

    repeat(play)


def test_a_second_client_waits_for_the_first_to_leave(served: ServedDisk, repeat: Repeat) -> None:
    hello = HEADER.pack(1, VERSION, 20, 0, 0) + struct.pack("<HH", 0, 1)

    def play(number: int) -> None:
        with VfioBus(served.path, ram=RAM, vectors=VECTORS) as bus:
            load = Load(bus, seed=number)
            load.start()
            load.submit()
            with socket.socket(socket.AF_UNIX) as second:
                second.settimeout(PATIENCE / 1000)
                second.connect(served.path)
                if number % 3:
                    second.send(hello)
                load.collect()
                load.submit()
                load.collect()
                assert load.statuses == {Status.SUCCESS}
                bus.client.close()
                if number % 3 == 2:  # it is served now; the others have left without an answer
                    assert second.recv(HEADER.size)[2:4] == VERSION.to_bytes(2, "little")

    repeat(play)
