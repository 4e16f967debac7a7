"""What the engine in C is told of namespaces that come and change while a host uses others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.engine.port import EngineNamespace
from nvmeemu.spec import FeatureId
from nvmeemu.subsystem import inventory
from nvmeemu.testing import Bench


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
        inventory.add(bench.controller.state, bench.namespace(3, Volatile(1 << 20), identity="disk 3"))
        if change == "resized":
            inventory.resize(bench.controller.state, 3, 100)
            assert told[-1][3].blocks == 100
        assert {nsid: disk.writes_through for nsid, disk in told[-1].items()} == {1: True, 3: True}
