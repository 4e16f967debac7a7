"""Several controllers in one process: each has its socket, its client and its memory; they share the loop's thread.

What one of them is busy with, or waits for, is nothing that another one has to wait for. So the server of these tests
has the patience of an hour: a test in which somebody waits for the loop's thread does not end.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from nvmeemu.testing.client import (
    BAR0,
    HEADER,
    MSIX,
    NO_REPLY,
    REGION_ACCESS,
    REGION_READ,
    REGION_WRITE,
    VERSION,
    Refused,
    SharedMemory,
    VfioClient,
)
from nvmeemu.vfio.binding import Context, Device, ResetCause
from nvmeemu.vfio.newcomers import MOST
from transport.conftest import ServedFake
from transport.fake import BAR0_SIZE, BLOCK, BUSY, DATA, INTERRUPT, LATER, STORE
from transport.test_interrupts import enable_msix

PLACES = 8  # for work that blocks at one thing
ROOM = 20  # mappings
Serve = Callable[..., ServedFake]


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.fixture
def paths(path: str) -> tuple[str, str]:
    return path, f"{path}2"


@pytest.fixture
def both(serve: Serve, paths: tuple[str, str]) -> ServedFake:
    return serve(paths[1], "--patience", "3600")


@pytest.fixture
def first(both: ServedFake, paths: tuple[str, str]) -> Iterator[VfioClient]:
    with VfioClient(paths[0]) as client:
        client.enable_bus_master()
        both.wait_for(0, "memory")
        yield client


@pytest.fixture
def second(both: ServedFake, paths: tuple[str, str]) -> Iterator[VfioClient]:
    with VfioClient(paths[1]) as client:
        client.enable_bus_master()
        both.wait_for(1, "memory")
        yield client


def is_served(client: VfioClient) -> None:
    """It has its answers; and what it asks for besides (timers, work on threads, steps) ``has_been_served`` awaits."""
    for value in range(50):
        client.write(BAR0, 0x1000, number(value))
        assert client.read(BAR0, 0x1000, 8) == number(value)
    client.write(BAR0, LATER, number(1))
    client.write(BAR0, BLOCK, number(1))
    client.write(BAR0, BUSY, number(3))


def has_been_served(both: ServedFake, index: int) -> None:
    left = {"later", "blocked", "unblocked", "idle"}
    while left:
        at, what, *_ = both.next_event()
        if at == index:
            left.discard(what)


def test_each_has_registers_memory_and_interrupts_of_its_own(
    both: ServedFake, first: VfioClient, second: VfioClient, memory: SharedMemory
) -> None:
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    other_memory = SharedMemory(1 << 16)
    for index, (client, mine) in enumerate(((first, memory), (second, other_memory))):
        client.map(0x10000, 0x10000, mine.fd)
        both.wait_for(index, "memory", 1)
        client.set_interrupts(MSIX, 0, eventfds[index : index + 1])
        client.write(BAR0, DATA, bytes([index + 1]) * 0x100)
    for index, (client, mine) in enumerate(((first, memory), (second, other_memory))):
        client.write(BAR0, STORE, number(0x10000))
        both.wait_for(index, "stored")
        assert mine.data[:0x100] == bytes([index + 1]) * 0x100
    second.reset()
    both.wait_for(1, "reset")
    assert first.read(BAR0, DATA, 1) == b"\1"
    assert second.read(BAR0, DATA, 1) == b"\0"
    enable_msix(first)
    first.write(BAR0, INTERRUPT, number(0))
    assert [bool(select.select([fd], [], [], 0)[0]) for fd in eventfds] == [True, False]
    for fd in eventfds:
        os.close(fd)
    other_memory.close()


def test_who_always_has_more_to_do_keeps_no_other_one_waiting(
    both: ServedFake, first: VfioClient, second: VfioClient
) -> None:
    """Whichever of them is the first in the loop's list."""
    for index, (busy, other) in enumerate(((first, second), (second, first))):
        busy.write(BAR0, BUSY, number(1 << 62))
        is_served(other)
        has_been_served(both, 1 - index)
        busy.write(BAR0, BUSY, number(100_000))  # goes on although the other one has nothing to do
        both.wait_for(index, "idle")


def test_a_client_that_floods_its_socket_keeps_no_other_one_waiting(
    both: ServedFake, first: VfioClient, second: VfioClient
) -> None:
    is_over = threading.Event()
    body = REGION_ACCESS.pack(0, BAR0, 4) + bytes(4)
    write = HEADER.pack(1, REGION_WRITE, HEADER.size + len(body), NO_REPLY, 0) + body

    def flood() -> None:
        while not is_over.is_set():
            first.send_raw(write * 500)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        is_served(second)
        has_been_served(both, 1)
    finally:
        is_over.set()
        thread.join()


def test_work_that_blocks_at_one_holds_up_no_work_at_another(
    both: ServedFake, first: VfioClient, second: VfioClient
) -> None:
    """As a disk that does not answer."""
    for _ in range(3 * PLACES):
        first.write(BAR0, BLOCK, number(3_600_000))
    for _ in range(PLACES):
        both.wait_for(0, "blocked")
    is_served(second)
    has_been_served(both, 1)


Attacker = Callable[[str, bytes], AbstractContextManager[None]]


@contextmanager
def stranger(path: str, said: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        one.sendall(said)
        yield


@contextmanager
def vmm(path: str, said: bytes) -> Iterator[None]:
    with VfioClient(path) as one:
        one.send_raw(said)
        yield


@contextmanager
def deaf(path: str, said: bytes) -> Iterator[None]:
    """It asks and asks, and takes no answer, until there is no room for another question."""
    with VfioClient(path) as one:
        one.socket.setblocking(False)
        end = select.poll()
        end.register(one.socket, select.POLLOUT)
        while end.poll(500):  # the server may only have been slow: then it is a shorter flood
            try:
                one.socket.send(said)
            except BlockingIOError:
                continue
        yield


GREETING = HEADER.pack(1, VERSION, 400, 0, 0) + struct.pack("<HH", 0, 1)
READ = HEADER.pack(7, REGION_READ, 32, 0, 0) + REGION_ACCESS.pack(0, BAR0, BAR0_SIZE)


@pytest.mark.parametrize(
    ("attacker", "said"),
    [
        pytest.param(stranger, b"", id="silent"),
        pytest.param(stranger, GREETING[:7], id="half-a-header"),
        pytest.param(stranger, GREETING, id="half-a-greeting"),
        pytest.param(vmm, READ[:9], id="half-a-message"),
        pytest.param(vmm, HEADER.pack(7, REGION_READ, 3, 0, 0), id="nonsense"),
        pytest.param(deaf, READ, id="takes-no-replies"),
    ],
)
def test_whoever_keeps_one_waiting_keeps_no_other_one_waiting(
    both: ServedFake, paths: tuple[str, str], attacker: Attacker, said: bytes
) -> None:
    """Another one's client comes, is served and goes; and who was attacked is there for its next client."""
    with attacker(paths[0], said):
        for _ in range(2):
            with VfioClient(paths[1]) as client:
                assert client.read(BAR0, 0x1000, 8) == number(0)
                is_served(client)
                has_been_served(both, 1)
            both.wait_for(1, "reset")
    with VfioClient(paths[0]) as following:
        assert following.read(BAR0, 0, 4) == bytes(4)


def test_silent_strangers_keep_no_client_away(both: ServedFake, paths: tuple[str, str]) -> None:
    """However many: the oldest has to go."""
    with ExitStack() as stack:
        strangers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MOST + 3)]
        for one in strangers:
            one.connect(paths[0])
        for one in strangers[:3]:
            assert one.recv(1) == b""
        with VfioClient(paths[0]) as client:
            assert client.read(BAR0, 0, 4) == bytes(4)


def test_a_client_that_comes_and_goes_disturbs_no_other_one(
    both: ServedFake, paths: tuple[str, str], second: VfioClient
) -> None:
    second.write(BAR0, 0x1000, b"mine")
    for _ in range(100):
        with VfioClient(paths[0]) as client:
            client.write(BAR0, 0, b"\1")
    for _ in range(100):
        both.wait_for(0, "reset")
    assert second.read(BAR0, 0x1000, 4) == b"mine"
    is_served(second)
    has_been_served(both, 1)


def test_idle_they_use_no_cpu(both: ServedFake, first: VfioClient, second: VfioClient) -> None:
    for client in (first, second):
        client.read(BAR0, 0, 4)

    def switches() -> int:
        status = Path(f"/proc/{both.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    time.sleep(0.1)  # the replies have left before the server sleeps
    before = switches()
    time.sleep(0.5)
    assert switches() == before


def test_all_of_them_end_together(both: ServedFake, paths: tuple[str, str], first: VfioClient) -> None:
    assert both.terminate() == 0
    assert not any(os.path.exists(path) for path in paths)
    with pytest.raises((EOFError, OSError)):
        first.read(BAR0, 0, 1)


@pytest.mark.kills("all-mappings-are-one-client's")
def test_each_client_has_its_part_of_the_mappings_that_a_process_can_have(tmp_path: Path) -> None:
    """What one of them maps must not keep another one from mapping anything."""
    memory, page = SharedMemory(1 << 12), 1 << 12
    with mapped(2, tmp_path) as clients:
        for client in clients:
            for index in range(ROOM // 2):
                client.map(2 * page * index, page, memory.fd)
            with pytest.raises(Refused) as refused:
                client.map(2 * page * ROOM, page, memory.fd)
            assert refused.value.errno == errno.ENOSPC
    with mapped(1, tmp_path) as (client,):
        for index in range(ROOM):
            client.map(2 * page * index, page, memory.fd)
    memory.close()


@contextmanager
def mapped(count: int, folder: Path) -> Iterator[list[VfioClient]]:
    """The clients of so many, in a process that can have ``ROOM`` mappings for them."""
    paths = [str(folder / str(index)) for index in range(count)]
    served = ServedFake(paths[0], *paths[1:], "--mappings", str(ROOM))
    try:
        assert served.next_event() == ["listening"]
        with ExitStack() as stack:
            yield [stack.enter_context(VfioClient(path)) for path in paths]
    finally:
        served.stop()


class NoDevice:
    """A ``binding.Device`` of which nothing is heard but its end."""

    def reset(self, kind: ResetCause) -> None:
        pass


def test_the_library_is_for_the_thread_that_has_made_the_context(path: str) -> None:
    """It is not thread safe: whoever calls it on another thread hears of it at once."""
    context = Context(path, cast(Device, NoDevice()), bar0_size=0x4000, bar0_shared=None, bar4_size=0, vectors=0)
    calls: list[Callable[[], object]] = [
        context.poll_fd,
        context.run,
        context.hang_up,
        context.log_everything,
        context.close,
        lambda: context.attach(socket.socket(), b""),
        lambda: context.interrupt_fd(0),
        lambda: context.trigger(0),
    ]
    public = {name for name in vars(Context) if not name.startswith("_")}
    assert len(calls) == len(public - {"ring_directly"})  # which only keeps what it is given
    refused = 0

    def call_all() -> None:
        nonlocal refused
        for call in calls:
            with pytest.raises(AssertionError, match="not thread safe"):
                call()
            refused += 1

    thread = threading.Thread(target=call_all)
    thread.start()
    thread.join()
    assert refused == len(calls)
    context.close()
