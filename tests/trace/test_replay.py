"""Replay: recorded boots give what they gave, and a device that is different is found out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.tools import TellingBackend
from nvmeemu import admin, io, trace
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.controller.request import CommandEntry, Parked, Request, Result
from nvmeemu.replay import replay
from nvmeemu.spec import AdminOpcode, Cns, Command, FeatureId, GetFeatures, NvmOpcode, ReadWrite, SetFeatures, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.testing import PAGE, Bench
from nvmeemu.trace.commands import commands
from nvmeemu.trace.recorder import describe
from nvmeemu.trace.records import encode
from nvmeemu.trace.sink import Memory
from tracing import Traced, ready

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.trace.xz"))
FAMILIES = {
    *("seabios", "edk2", "u-boot", "linux-5.10", "linux-6", "linux-7"),
    *("freebsd-12", "freebsd-15", "openbsd", "nvme2k", "nvmewin"),
}


def again(bench: Traced, **options: Any) -> list[str]:
    """What is different when what this bench has seen is played to a new controller."""
    return [one.what for one in replay(bench.memory.reader(), **options).differences]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_recorded_boots_give_what_they_gave(path: Path) -> None:
    with trace.open_trace(path) as reader:
        result = replay(reader)
    assert result.differences == []
    assert result.commands > 20
    with trace.open_trace(path) as reader:
        assert not reader.is_cut


def test_every_family_of_hosts_is_in_the_corpus() -> None:
    names = [path.name.removesuffix(".trace.xz") for path in CORPUS]
    assert all(any(name.startswith(family) for name in names) for family in FAMILIES)


def broken(
    monkeypatch: pytest.MonkeyPatch, table: dict[int, CommandEntry[Any]], opcode: int, run: Callable[..., Result]
) -> None:
    monkeypatch.setitem(table, opcode, replace(table[opcode], run=run))


def refuse(request: Request[Command]) -> int:
    raise CommandFailed(Status.INVALID_FIELD)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("table", "opcode"),
    [(admin.COMMANDS, AdminOpcode.IDENTIFY), (io.COMMANDS, NvmOpcode.READ)],
    ids=["identify", "read"],
)
def test_a_device_that_answers_otherwise_is_found_out(
    path: Path, table: dict[int, CommandEntry[Any]], opcode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, table, opcode, refuse)
    with trace.open_trace(path) as reader:
        differences = replay(reader).differences
    assert differences
    assert all(one.what.endswith(", is Invalid Field, DNR, More") for one in differences)


@pytest.mark.kills("registers-are-not-compared", "dw0-is-not-compared")
def test_another_value_and_another_register_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ready()
    bench.driver.get_feature(FeatureId.NUMBER_OF_QUEUES)
    _ = bench.driver.capabilities
    assert again(bench) == []
    reader = bench.memory.reader()
    reader.description.limits |= {"io_queues": 8, "entries": 64}
    told = [one.what for one in replay(reader).differences]
    assert any(what.endswith("was Success, dw0=0x3f003f, is Success, dw0=0x70007") for what in told)
    assert any(what.startswith("BAR0: read CAP = ") for what in told)


def test_data_is_compared_if_that_is_asked_for() -> None:
    bench = ready()
    bench.driver.identify(1)
    assert again(bench, data=True) == []
    reader = bench.memory.reader()
    reader.description.identity["model"] = "another"
    assert [one.what.partition(": ")[2] for one in replay(reader, data=True).differences] == ["gave other data"]


def test_a_namespace_has_the_identifiers_that_it_had() -> None:
    bench = ready()
    namespace = bench.controller.state.namespaces[1]
    named = Ids(b"n" * 16, b"e" * 8, uuid.UUID(int=7))
    bench.controller.state.namespaces.by_nsid[1] = Namespace(1, namespace.media, ids=named)
    bench.driver.identify(Cns.NAMESPACE, 1)
    bench.driver.identify(Cns.NAMESPACE_DESCRIPTORS, 1)
    reader = bench.memory.reader()
    assert replay(reader, data=True).differences
    reader = bench.memory.reader()
    reader.description.namespaces = json.loads(json.dumps(describe(bench.controller).namespaces))
    assert not replay(reader, data=True).differences


def test_blocks_come_from_a_disk_or_from_the_payload() -> None:
    disk = MemoryBackend(16 << 20)
    disk.write(4096, [memoryview(b"old data" * 64)])
    bench = ready(payload=True, backend=disk)
    bench.driver.read(slba=8, blocks=1)
    bench.driver.write(slba=0, data=bytes(range(256)) * 512)  # a list of pages
    bench.driver.read(slba=0, blocks=256)
    assert [what.partition(": ")[2] for what in again(bench, data=True)] == ["gave other data"]  # the first read
    same = MemoryBackend(16 << 20)
    same.write(4096, [memoryview(b"old data" * 64)])
    assert again(bench, data=True, backends=[same]) == []


def test_lists_of_pages_are_there_again_chained_ones_too() -> None:
    bench = Traced(ram=64 << 20)
    driver = bench.driver
    driver.enable()
    driver.create_queues()
    pages = [driver.alloc(PAGE) for _ in range(600)][::-2]
    command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=pages[0], nlb=300 * 8)
    command.prp2 = driver.prp_list(pages[1:])
    command.prp2 = driver.prp_list(pages[1:])
    driver.succeed(driver.queues[1], command)
    assert again(bench, data=True) == []
    played = list(replay(bench.memory.reader()).trace)
    assert [one.runs for one in played if isinstance(one, trace.Prp)] == [one.runs for one in bench.of(trace.Prp)]
    assert len(bench.of(trace.Prp)) == 1


def test_what_a_host_gave_with_a_command_is_given_again() -> None:
    bench = ready()
    driver = bench.driver
    place = driver.alloc(PAGE)
    for first in (0, 2):  # 2: Advanced Command Retry Enable cannot be 2
        bench.ram.write(place, bytes([first]))
        driver.execute(
            driver.admin, SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place)
        )
    assert [one.completion.status for one in commands(bench.records) if one.completion][-2:] == [
        0,
        Status.INVALID_FIELD,
    ]
    assert again(bench) == []


def test_mistakes_of_a_host_are_repeated() -> None:
    bench = ready()
    driver = bench.driver
    driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.set_reg(0x1000 + 8 * 40, 7)  # no such queue: an event
    driver.set_reg(0x1008, 1000)  # no such tail
    driver.submit(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), slba=1 << 50))
    driver.submit(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=3))
    driver.submit(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=7, prp1=1 << 50))
    assert sum(one.completion is not None for one in commands(bench.records)) >= 4
    assert again(bench) == []


def test_commands_under_way_at_the_end_are_no_difference() -> None:
    """The trace was cut behind the fetch; after a reset it would be one."""
    bench = ready()
    bench.driver.read(slba=0, blocks=1)
    records = bench.records
    last = max(number for number, record in enumerate(records) if isinstance(record, trace.Fetch)) + 1

    def differences(*more: trace.Record) -> list[str]:
        memory = Memory(bench.memory.reader().description)
        for record in (*records[:last], *more):
            memory.put(encode(record))
        return [one.what for one in replay(memory.reader()).differences]

    assert differences() == []
    (found,) = differences(trace.Reset(0, 0))
    assert "had no completion" in found


def test_events_from_outside_come_again() -> None:
    bench = ready()
    driver = bench.driver
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 2)
    driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
    bench.controller.set_health(temperature=500)
    bench.settle()
    assert [one.completion.dw0 for one in commands(bench.records) if one.completion][-1] == 0x020101
    assert again(bench) == []


@pytest.mark.kills("the-newest-of-a-cid-first", "data-is-the-oldest-commands")
def test_a_cid_that_is_used_again_while_it_is_under_way() -> None:
    """As nvme2k does with its Flushes: both complete, in the order in which they were fetched, each with its data."""
    bench = ready(manual=True, backend=TellingBackend())
    driver = bench.driver
    queue = driver.queues[1]
    for blocks in (1, 3):
        command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=8, nlb=blocks, cid=7, prp1=driver.alloc(PAGE))
        driver.submit(queue, command)
    driver.submit(queue, ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, slba=8, nlb=2, cid=7, prp1=driver.alloc(PAGE)))
    while bench.worker.tasks:
        bench.worker.finish_all()
        bench.settle()
    assert len(driver.drain(queue)) == 3
    of_queue = [one for one in commands(bench.records) if one.fetch.sqid]
    assert all(one.completion is not None for one in of_queue)
    assert [[digest.length for digest in one.digests] for one in of_queue] == [[512], [1536], [1024]]
    assert [one.completion.slot for one in of_queue if one.completion] == [0, 1, 2]
    assert again(bench) == []


def test_resets_shadow_doorbells_and_the_pin() -> None:
    bench = Traced()
    driver = bench.driver
    for _ in range(2):
        bench.ram.msix_enabled = True
        bench.controller.interrupts_changed()
        driver.enable()
        driver.create_queues()
        shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
        driver.succeed(driver.admin, Command(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event))
        bench.ram.msix_enabled = False
        bench.controller.interrupts_changed()
        queue = driver.queues[1]
        for _ in range(100):  # round the queue of 64
            driver.submit(queue, Command(opcode=NvmOpcode.FLUSH, nsid=1), ring=False)
            bench.ram.write(shadow + 8, queue.sq_tail.to_bytes(4, "little"))
            driver.ring_sq(queue)
            while driver.poll(queue, ring=False):
                pass
            bench.ram.write(shadow + 12, queue.cq_head.to_bytes(4, "little"))
        bench.controller.reset()
    result = replay(bench.memory.reader())
    assert result.differences == []
    assert result.commands > 200


def test_memory_that_moves() -> None:
    bench = ready()
    data = bench.unmap(0)
    bench.map(0, data)
    bench.driver.get_feature(FeatureId.ARBITRATION)
    assert again(bench) == []


def test_a_command_that_is_not_answered_any_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ready()
    bench.driver.execute(bench.driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=FeatureId.ARBITRATION))
    never = Parked(lambda request: None)
    broken(monkeypatch, admin.COMMANDS, AdminOpcode.GET_FEATURES, lambda request: never)
    assert [what.partition(": ")[2] for what in again(bench)] == ["has no completion now"]


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"serial": ""}},
        {"identity": {"nonsense": 1}},
        {"limits": {"entries": "many"}},
        {"namespaces": [{"nsid": 1, "blocks": 1 << 70, "block_size": 512}]},
        {"namespaces": [{"nsid": 1, "blocks": "all"}]},
        {"namespaces": [{"nsid": 0}]},
        {"namespaces": [7]},
        {"namespaces": [{"nsid": 1, "ids": {"nguid": "12"}}]},
        {"namespaces": [{"nsid": 1, "ids": {"nguid": 12}}]},
        {"namespaces": [{"nsid": 1, "ids": {"nguid": "12" * 16, "eui64": "12" * 8, "uuid": "12"}}]},
    ],
)
def test_a_device_that_cannot_be_made_is_a_trace_error(change: dict[str, Any]) -> None:
    reader = Traced().memory.reader()
    for name, value in change.items():
        setattr(reader.description, name, value)
    with pytest.raises(trace.TraceError, match="the device of this trace cannot be made: "):
        replay(reader)


def test_a_bench_without_a_trace_is_as_it_was() -> None:
    """The recorder leaves nothing behind."""
    bench = Traced()
    observer = bench.controller.taps.observers[0]
    bench.controller.unobserve(observer)
    before = len(bench.records)
    bench.driver.enable()
    assert len(bench.records) == before
    assert isinstance(bench, Bench)
