"""Namespaces that are added and changed while hosts use others: the engine and each controller are told."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.engine.port import EngineNamespace
from nvmeemu.spec import AdminOpcode, Cns, Command, FeatureId, LogId, Notice, Status
from nvmeemu.testing import Bench, CommandError


class Volatile(MemoryBackend):
    volatile_cache = True


@pytest.mark.kills("a-new-namespace-has-its-cache-on", "the-engine-does-not-hear-of-a-new-namespace")
@pytest.mark.parametrize("change", ["added", "resized"])
def test_a_namespace_that_comes_while_the_write_cache_is_off_writes_through(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base 1.4, 5.21.1.6: the feature is the controller's, for all its namespaces."""
    told: list[Mapping[int, EngineNamespace]] = []
    with Bench(Volatile(1 << 20), engine="native") as bench:
        engine = bench.controller.state.engine
        assert engine is not None
        monkeypatch.setattr(engine, "configure", lambda *told_with: told.append(told_with[-1]))
        bench.driver.enable()
        assert [disk.writes_through for disk in told[-1].values()] == [False]
        bench.driver.set_feature(FeatureId.VOLATILE_WRITE_CACHE, 0)
        bench.subsystem.add(bench.namespace(3, Volatile(1 << 20), identity="disk 3"))
        if change == "resized":
            bench.subsystem.resize(3, 100)
            assert told[-1][3].blocks == 100
        assert {nsid: disk.writes_through for nsid, disk in told[-1].items()} == {1: True, 3: True}


@pytest.mark.kills("one-controller-hears-of-a-change")
def test_every_controller_of_a_subsystem_hears_of_a_change() -> None:
    """Base 1.4, 5.14.1.4: the list is each controller's own. They share the health, and tell who they are."""
    with Bench() as one, Bench(subsystem=one.subsystem, cntlid=2) as two:
        for number, bench in enumerate((one, two), 1):
            bench.driver.enable()
            assert int.from_bytes(bench.driver.identify(Cns.CONTROLLER)[78:80], "little") == number
            bench.driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, Notice.NAMESPACE_ATTRIBUTE)
            bench.driver.submit(bench.driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
        one.subsystem.add(one.namespace(3, MemoryBackend(1 << 20), identity="disk 3"))
        for bench in (one, two):
            bench.settle()
            assert [one.dw0 for one in bench.driver.drain(bench.driver.admin)] == [0x040002]
            assert bench.driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096)[:8] == struct.pack("<2I", 3, 0)
            assert bench.driver.identify(Cns.NAMESPACE, 3)[:8] == struct.pack("<Q", 2048)
        one.subsystem.health.temperature = 350
        assert two.driver.get_log(LogId.SMART, 512)[1:3] == struct.pack("<H", 350)


@pytest.mark.kills(
    "all-controllers-hear-of-an-attachment",
    "a-detached-namespace-stays-active",
    "a-controller-that-joins-gets-everything",
)
@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_namespace_is_there_for_the_controllers_to_which_it_is_attached(engine: str) -> None:
    """Base 2.0, 8.11: the others are told nothing, and to them it is inactive. Also to one that comes later."""
    with Bench(engine=engine) as one, Bench(subsystem=one.subsystem, cntlid=2, engine=engine) as two:
        for bench in (one, two):
            bench.driver.enable()
            bench.driver.create_queues(1)
        one.subsystem.detach(1, 2)
        assert one.namespaces.attached_to(1) == [1]
        with Bench(subsystem=one.subsystem, cntlid=3) as three:
            assert [list(bench.controller.state.namespaces.by_nsid) for bench in (one, two, three)] == [[1], [], []]
        one.driver.write(0, b"1" * 512)
        with pytest.raises(CommandError) as failure:
            two.driver.write(0, b"2" * 512, block_size=512)
        assert failure.value.status == Status.INVALID_FIELD
        assert _changes(one) == ()
        assert _changes(two) == (1,)
        one.subsystem.attach(1, 2)
        assert two.driver.read(0, 1) == b"1" * 512
        assert _changes(one) == ()
        assert _changes(two) == (1,)


def _changes(bench: Bench) -> tuple[int, ...]:
    page = bench.driver.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096)
    return tuple(nsid for nsid in struct.unpack("<1024I", page) if nsid)
