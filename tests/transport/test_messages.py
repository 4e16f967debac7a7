"""Messages that no VMM should send: refused, or the end of the connection; never the end of the server, or a leak."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator

import pytest

from nvmeemu.testing import PAGE, Refused, SharedMemory, VfioBus, VfioClient
from nvmeemu.testing.client import (
    BAR0,
    DATA_BOOL,
    DATA_EVENTFD,
    DATA_NONE,
    DMA_MAP,
    DMA_UNMAP,
    GET_INFO,
    HEADER,
    INTX,
    MAP,
    MASK,
    MSIX,
    NO_REPLY,
    REGION_ACCESS,
    REGION_READ,
    REGION_WRITE,
    SET,
    SET_IRQS,
    TRIGGER,
    UNMAP,
    UNMASK,
)
from nvmeemu.vfio.messages import GET_DIRTY_BITMAP, Message, judge
from nvmeemu.vfio.sharing import File
from transport.load import Load
from transport.served import ServedDisk
from transport.test_rounds import FEW, WARM

READ_CAP = HEADER.pack(7, REGION_READ, 32, 0, 0) + REGION_ACCESS.pack(0, BAR0, 8)
WORDS = (0, 1, 2, 3, 7, 8, 63, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@pytest.fixture
def served(path: str) -> Iterator[ServedDisk]:
    served = ServedDisk(path, "mem:64M")
    yield served
    assert served.stop() == 0


@pytest.fixture
def vmm(served: ServedDisk) -> Iterator[VfioClient]:
    with VfioClient(served.path) as client:
        yield client


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def is_served(client: VfioClient) -> bool:
    return len(client.read(BAR0, 0, 8)) == 8


def refusal(client: VfioClient, command: int, body: bytes, fds: list[int] | None = None) -> str:
    """The name of the error that answers it; the client is still served."""
    with pytest.raises(Refused) as caught:
        client.call(command, body, fds or [])
    assert is_served(client)
    return errno.errorcode[caught.value.errno or 0]


def test_a_message_that_comes_in_pieces_is_served(vmm: VfioClient) -> None:
    """A stream has no messages. The library takes half a header for the end of the connection."""
    for cut in range(1, len(READ_CAP)):
        vmm.send_raw(READ_CAP[:cut])
        vmm.send_raw(READ_CAP[cut:])
        assert len(vmm._receive(40)) == 40
    vmm.send_raw(READ_CAP * 3 + READ_CAP[:9])
    assert len(vmm._receive(120)) == 120
    vmm.send_raw(READ_CAP[9:])
    assert len(vmm._receive(40)) == 40


@pytest.mark.kills("half-a-message-is-waited-for-without-end")
@pytest.mark.slow
def test_half_a_message_is_not_waited_for_without_an_end(served: ServedDisk, vmm: VfioClient) -> None:
    vmm.send_raw(READ_CAP[:20])
    with pytest.raises((EOFError, ConnectionResetError)):
        vmm._receive(1)
    assert "dropping the client: the rest of its message does not come" in served.log


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(1, REGION_READ, 15, 0, 0),
        HEADER.pack(1, REGION_READ, 0, 0, 0),
        HEADER.pack(1, REGION_WRITE, 0x10001, 0, 0),
        HEADER.pack(1, REGION_WRITE, 0xFFFFFFFF, 0, 0),
        HEADER.pack(1, REGION_READ, 32, 1, 0),  # a reply
        HEADER.pack(1, REGION_READ, 32, 15, 0),
    ],
)
def test_a_header_of_no_command_ends_the_connection(served: ServedDisk, vmm: VfioClient, header: bytes) -> None:
    """Where the next message begins is unknown; what stands there is not to be taken for one."""
    vmm.send_raw(header + READ_CAP * 4)
    with pytest.raises((EOFError, ConnectionResetError)):
        vmm._receive(1)
    with VfioClient(served.path) as following:
        assert is_served(following)
    assert "dropping the client: what it sent is no vfio-user command" in served.log


def test_unknown_commands_and_odd_sizes_are_refused(vmm: VfioClient) -> None:
    for command in (0, 1, 6, 11, 12, 14, 15, 99, 0xFFFF):
        for body in (b"", b"\0", bytes(40), b"\xff" * 40):
            assert refusal(vmm, command, body)
    for command in (DMA_MAP, 3, GET_INFO, 5, 7, SET_IRQS, REGION_READ, REGION_WRITE):
        for size in (0, 1, 3, 7):
            assert refusal(vmm, command, b"\xff" * size)


@pytest.mark.kills("half-a-message-about-memory", "every-refusal-is-a-line")
@pytest.mark.parametrize(
    ("command", "body"),
    [
        (DMA_MAP, MAP.pack(MAP.size, 3, 0, 0, PAGE)),
        (DMA_UNMAP, UNMAP.pack(UNMAP.size, 0, 0, PAGE)),
        (DMA_UNMAP, UNMAP.pack(UNMAP.size + 16, GET_DIRTY_BITMAP, 0, PAGE) + bytes(16)),
    ],
)
def test_memory_that_is_not_wholly_said(served: ServedDisk, vmm: VfioClient, command: int, body: bytes) -> None:
    """The library looks behind the end of such a message."""
    for size in range(len(body)):
        assert refusal(vmm, command, body[:size]) == "EINVAL"
    assert "libvfio-user: " not in served.log
    assert served.log.count("WARNING") == 1


def test_accesses_out_of_bounds_and_of_no_size(vmm: VfioClient) -> None:
    for offset, region, count in (
        (0x3FFF, BAR0, 2),
        (0x4000, BAR0, 1),
        ((1 << 64) - 1, BAR0, 1),
        ((1 << 64) - 8, BAR0, 16),
        (0, 3, 4),
        (0, 9, 4),
        (0, 0xFFFFFFFF, 4),
        (0, BAR0, 0xFFFFFFFF),
    ):
        assert refusal(vmm, REGION_READ, REGION_ACCESS.pack(offset, region, count)) == "EINVAL"
    assert refusal(vmm, REGION_WRITE, REGION_ACCESS.pack(0x14, BAR0, 8) + bytes(4)) == "EINVAL"
    assert vmm.call(REGION_READ, REGION_ACCESS.pack(0, BAR0, 0)) == b""


@pytest.mark.kills(
    "a-range-longer-than-its-file",
    "a-range-behind-the-end-of-all-addresses",
    "a-range-of-more-than-half-of-all-addresses",
    "an-odd-file-offset",
    "memory-that-is-mapped-is-mapped-again",
)
def test_memory_that_would_kill_the_server_is_refused(served: ServedDisk, vmm: VfioClient) -> None:
    memory = SharedMemory(4 * PAGE)
    fds = [memory.fd]

    def map_(address: int, size: int, offset: int = 0, flags: int = 3) -> bytes:
        return MAP.pack(MAP.size, flags, offset, address, size)

    assert refusal(vmm, DMA_MAP, map_(0, 5 * PAGE), fds) == "EINVAL"  # longer than its file: SIGBUS
    assert refusal(vmm, DMA_MAP, map_(0, PAGE, 4 * PAGE), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_(0, PAGE, (1 << 64) - PAGE), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_(0, PAGE, 512), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_(0, 0), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_((1 << 64) - PAGE, 2 * PAGE), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_(0x7B, (1 << 64) - PAGE)) == "ENOSPC"  # undefined in C
    assert "more than half of all addresses (ENOSPC)" in served.log
    assert refusal(vmm, DMA_MAP, map_(0, PAGE, flags=0xFF), fds) == "EINVAL"
    vmm.map(PAGE, 2 * PAGE, memory.fd)
    assert refusal(vmm, DMA_MAP, map_(PAGE, 2 * PAGE), fds) == "EEXIST"
    assert refusal(vmm, DMA_MAP, map_(2 * PAGE, PAGE), fds) == "EINVAL"
    assert refusal(vmm, DMA_MAP, map_(0, 2 * PAGE), fds) == "EINVAL"
    vmm.map(4 * PAGE, PAGE, memory.fd, offset=3 * PAGE)
    assert "its file ends before 0x5000 (EINVAL)" in served.log
    memory.close()


def test_memory_of_descriptors_that_cannot_be_mapped(vmm: VfioClient, eventfds: list[int]) -> None:
    read, write = os.pipe()
    for fd in (read, write, eventfds[0], vmm.socket.fileno()):
        assert refusal(vmm, DMA_MAP, MAP.pack(MAP.size, 3, 0, 0, PAGE), [fd])
    os.close(read)
    os.close(write)


@pytest.mark.kills("interrupts-that-wrap")
def test_the_last_interrupt_has_a_number() -> None:
    """What the library would do with the others ends the process."""
    for start, count, is_refused in ((0xFFFFFFFE, 1, False), (0xFFFFFFFE, 2, True), (1, 0xFFFFFFFF, True)):
        body = SET.pack(SET.size, 0x24, 2, start, count).ljust(32, b"\0")
        message = Message(1, SET_IRQS, HEADER.size + SET.size, 0, body, -1, File(0, 0), descriptors_lost=False)
        assert (judge(message) is not None) == is_refused


@pytest.mark.kills("interrupts-that-wrap")
def test_interrupts_whose_numbers_wrap_are_refused(vmm: VfioClient, eventfds: list[int]) -> None:
    """start + count is added in 32 bits by the library, and the array of eventfds was overrun."""
    for flags in (DATA_EVENTFD | TRIGGER, DATA_NONE | TRIGGER, DATA_NONE | MASK, DATA_BOOL | TRIGGER):
        for start, count in ((1, 0xFFFFFFFF), (0x40, 0xFFFFFFC1), (2, 0xFFFFFFFF), (0x80000000, 0x80000000)):
            for fds in ([], eventfds):
                assert refusal(vmm, SET_IRQS, SET.pack(SET.size, flags, MSIX, start, count), fds) == "EINVAL"


def test_interrupts_out_of_bounds_are_refused(vmm: VfioClient, eventfds: list[int]) -> None:
    for flags, index, start, count, fds in (
        (DATA_EVENTFD | TRIGGER, MSIX, 64, 2, eventfds[:2]),
        (DATA_EVENTFD | TRIGGER, MSIX, 65, 1, eventfds[:1]),
        (DATA_EVENTFD | TRIGGER, MSIX, 0, 2, eventfds),
        (DATA_EVENTFD | TRIGGER, MSIX, 0, 0, []),
        (DATA_EVENTFD | TRIGGER, INTX, 0, 2, eventfds[:2]),
        (DATA_EVENTFD | TRIGGER, 1, 0, 1, eventfds[:1]),
        (DATA_EVENTFD | TRIGGER, 99, 0, 1, eventfds[:1]),
        (DATA_EVENTFD | TRIGGER | MASK, MSIX, 0, 1, eventfds[:1]),
        (DATA_EVENTFD | DATA_NONE | TRIGGER, MSIX, 0, 1, eventfds[:1]),
        (DATA_NONE | TRIGGER, MSIX, 1, 0, []),
        (DATA_NONE | TRIGGER, MSIX, 0, 1, eventfds[:1]),
        (DATA_NONE | UNMASK, INTX, 0, 2, []),
        (DATA_BOOL | TRIGGER, MSIX, 0, 4, []),
    ):
        assert refusal(vmm, SET_IRQS, SET.pack(SET.size, flags, index, start, count), fds) == "EINVAL"


def strange(source: random.Random, fds: list[int]) -> tuple[bytes, list[int]]:
    """Something like a message, or nothing like it, and descriptors where none belong."""

    def word() -> int:
        return source.choice(WORDS) if source.random() < 0.7 else source.getrandbits(32)

    kind = source.randrange(6)
    given = source.choices(fds, k=source.choice((0, 0, 1, 2, 8, 40)))
    if kind == 0:
        return source.randbytes(source.randrange(1, 200)), given
    command = source.randrange(17)
    body = source.randbytes(source.randrange(64))
    if kind == 1:
        body = struct.pack("<10I", *(word() for _ in range(10)))[: source.randrange(41)]
    elif kind == 2:
        command = SET_IRQS
        flags = source.choice((1, 2, 4)) | source.choice((8, 16, 32))
        body = SET.pack(SET.size, flags, source.choice((0, 1, 2, 3, 4, 5)), word(), word()) + source.randbytes(
            source.choice((0, 1, 8))
        )
    elif kind == 3:
        command = DMA_MAP
        addresses = (0, PAGE, 2 * PAGE, (1 << 64) - PAGE, 123, word())
        body = MAP.pack(MAP.size, source.randrange(5), *source.choices(addresses, k=3))
    elif kind == 4:
        command = source.choice((REGION_READ, REGION_WRITE))
        body = REGION_ACCESS.pack(source.choice((0, 0x1000, 0xFF8, word())), source.randrange(11), word())
        body += source.randbytes(source.randrange(16))
    size = HEADER.size + len(body)
    if source.random() < 0.1:
        size = word()
    flags = source.choice((0, 0, 0, NO_REPLY, 1, 0x20))
    return HEADER.pack(source.getrandbits(16), command, size, flags, 0) + body, given


@pytest.mark.parametrize("rounds", [FEW, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_strange_messages_under_commands(served: ServedDisk, rounds: int, eventfds: list[int]) -> None:
    """Whatever a client sends, the server lives, and the next one finds a device that works."""
    memory = SharedMemory(PAGE)
    fds = [*eventfds, memory.fd, memory.fd]

    def play(number: int) -> None:
        source = random.Random(number)
        with VfioBus(served.path, ram=8 << 20, vectors=4) as bus:
            load = Load(bus, number)
            load.start()
            if number % 4 == 0:
                load.submit(8)
                load.collect()
            load.submit(8)
            bus.client.socket.settimeout(5)
            try:
                for _ in range(source.randrange(1, 6)):
                    bus.client.send_raw(*strange(source, fds))
            except OSError:  # it has hung up already
                pass

    for number in range(WARM):
        play(number)
    before = served.footprint()
    for number in range(WARM, WARM + rounds):
        play(number)
    served.check(before)
    memory.close()
