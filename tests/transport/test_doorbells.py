"""Doorbells that are messages: those of the native engine's queues are taken many at once, without Python."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from nvmeemu.spec import DOORBELLS, Status
from nvmeemu.testing import VfioBus
from nvmeemu.testing.client import BAR0, HEADER, NO_REPLY, REGION_ACCESS, REGION_READ, REGION_WRITE
from transport.load import Load
from transport.served import ServedDisk

CSTS = 0x1C


@pytest.fixture(params=["python", "native"])
def load(request: pytest.FixtureRequest, path: str) -> Iterator[Load]:
    served = ServedDisk(path, "mem:16M", "--engine", request.param)
    before = served.footprint()
    with VfioBus(path, ram=8 << 20) as bus:
        load = Load(bus, seed=1)
        load.start()
        yield load
    served.check(before)
    assert served.stop() == 0


def write(offset: int, data: bytes, *, region: int = BAR0, flags: int = NO_REPLY, number: int = 7) -> bytes:
    body = REGION_ACCESS.pack(offset, region, len(data)) + data
    return HEADER.pack(number, REGION_WRITE, HEADER.size + len(body), flags, 0) + body


def ring(qid: int, value: int, *, is_cq: bool = False) -> bytes:
    return write(DOORBELLS + 8 * qid + 4 * is_cq, value.to_bytes(4, "little"))


def read(number: int) -> bytes:
    return HEADER.pack(number, REGION_READ, HEADER.size + REGION_ACCESS.size, 0, 0) + REGION_ACCESS.pack(CSTS, BAR0, 4)


def post(load: Load, count: int) -> list[bytes]:
    """Commands in the queue, and the doorbells for them, one each; none is sent."""
    before = load.queue.sq_tail
    written, load.bus.write_bar = load.bus.write_bar, lambda offset, data: None  # type: ignore[method-assign]
    load.submit(count)
    load.bus.write_bar = written  # type: ignore[method-assign]
    entries = load.queue.sq_entries
    added = (load.queue.sq_tail - before) % entries
    return [ring(load.queue.qid, (before + number + 1) % entries) for number in range(added)]


def test_doorbells_in_any_pieces_and_between_other_messages(load: Load) -> None:
    """Bad ones, and what only looks like one, are answered as they would be alone; nothing behind them is lost."""
    client, chance = load.bus.client, random.Random(2)
    others = [
        ring(9, 1),  # no such queue
        ring(1, 0xFFFF),  # no such value
        write(DOORBELLS + 10, bytes(4)),  # between two
        write(DOORBELLS + 0xFF8, bytes(8)),
        write(0x0C, bytes(4)),  # INTMS
        write(DOORBELLS, bytes(2)),
    ]
    for number in range(100):
        messages = post(load, chance.randrange(1, 20))
        for other in chance.sample(others, chance.randrange(3)):
            messages.insert(chance.randrange(len(messages) + 1), other)
        messages.insert(chance.randrange(len(messages) + 1), read(number))
        data = b"".join(messages)
        while data:
            size = chance.choice((1, 20, 36, 100, len(data)))
            client.send_raw(data[:size])
            data = data[size:]
        answer = client._receive(HEADER.size + REGION_ACCESS.size + 4)
        assert HEADER.unpack_from(answer)[0] == number
        assert struct.unpack_from("<I", answer, HEADER.size + REGION_ACCESS.size)[0] & 3 == 1  # RDY, not CFS
        load.collect()
    assert load.statuses == {Status.SUCCESS}


def test_a_doorbell_that_wants_an_answer_gets_it(load: Load) -> None:
    for message in post(load, 8):
        client = load.bus.client
        offset, _, _ = REGION_ACCESS.unpack_from(message, HEADER.size)
        client.write(BAR0, offset, message[HEADER.size + REGION_ACCESS.size :])
    load.collect()
    assert load.statuses == {Status.SUCCESS}


def test_descriptors_with_a_doorbell_are_not_kept(load: Load) -> None:
    for _ in range(300):
        for message in post(load, 4):
            load.bus.client.send_raw(message, [load.bus.memory.fd])
        load.collect()
    assert load.statuses == {Status.SUCCESS}
