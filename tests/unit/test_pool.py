"""A pool over several lives of a drive. The power may go after each step of a change: what is there then is a whole
namespace, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app.folder_pool import FolderPool
from nvmeemu.backend import BackendError
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.ports import Changes
from nvmeemu.subsystem import management
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.identity import Identity
from nvmeemu.subsystem.inventory import Inventory
from nvmeemu.subsystem.management import NewNamespace
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.saved import MemoryState
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.subsystem.turns import Steps
from nvmeemu.testing import ManualWorker, VirtualClock

ROOM = 1 << 20
PLAIN = NewNamespace(64, Format())
MOST_STEPS = 12


class Life:
    """A drive from one start to the end of its power. Saves and work of threads wait until ``step``."""

    def __init__(self, folder: Path, values: MemoryState) -> None:
        self.values = values
        self.worker = ManualWorker()
        self.saves: list[tuple[Changes, Callable[[BaseException | None], None]]] = []
        self.pool = FolderPool(str(folder), ROOM, self.worker)
        self.pool.claim()
        self.clock = VirtualClock()
        self.subsystem = Subsystem(Identity(serial="POOL"), Inventory(), self.clock, self, self.pool)
        values.put(management.restore(self.subsystem))

    def get(self, scope: str, name: str) -> Any:
        return self.values.get(scope, name)

    def scope(self, scope: str) -> Any:
        return self.values.scope(scope)

    def save(self, changes: Changes, done: Callable[[BaseException | None], None]) -> None:
        self.saves.append((changes, done))

    def step(self) -> bool:
        """One thing that waits is done. False if nothing waits."""
        if self.saves:
            changes, done = self.saves.pop(0)
            self.values.put(changes)
            done(None)
        elif self.worker.tasks:
            self.worker.tasks[0].finish()
        else:
            return False
        return True

    def change(self, steps: Steps, most: int = 1 << 30) -> list[Any]:
        """Begin a change, and do so many steps; what it has answered."""
        answers: list[Any] = []
        self.subsystem.turns.begin(steps, lambda result, error: answers.append(error or result))
        while most and self.step():
            most -= 1
        return answers

    def make(self, most: int = 1 << 30) -> list[Any]:
        return self.change(management.create(self.subsystem, PLAIN), most)

    def delete(self, most: int = 1 << 30) -> list[Any]:
        return self.change(management.delete(self.subsystem, lambda: list(self.subsystem.namespaces), 1), most)

    def end(self) -> None:
        for namespace in self.subsystem.namespaces:
            namespace.media.close()
        self.pool.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def check(folder: Path, values: MemoryState) -> list[int]:
    """Another life finds what there is, and nothing else; its NSIDs."""
    life = Life(folder, values)
    there = list(life.subsystem.namespaces)
    assert names(folder) == {f"{one.pool_name}.raw{end}" for one in there for end in ("", ".nvme")}
    assert not values.scope("trash")
    life.end()
    return [one.nsid for one in there]


@pytest.mark.kills("trash-is-not-noted", "trash-stays", "unsaved-namespace")
def test_the_power_goes_while_a_namespace_is_made(tmp_path: Path) -> None:
    found = []
    for most in range(MOST_STEPS):
        folder, values = tmp_path / str(most), MemoryState()
        life = Life(folder, values)
        answers = life.make(most)
        life.end()
        found.append(check(folder, values))
        assert found[-1] == ([1] if answers else [])
    assert found[0] == []
    assert found[-1] == [1]


@pytest.mark.kills("deleted-comes-back", "trash-stays")
def test_the_power_goes_while_a_namespace_is_deleted(tmp_path: Path) -> None:
    found = []
    for most in range(MOST_STEPS):
        folder, values = tmp_path / str(most), MemoryState()
        life = Life(folder, values)
        assert life.make() == [1]
        answers = life.delete(most)
        life.end()
        found.append(check(folder, values))
        assert found[-1] == ([] if answers else [1])
    assert found[0] == [1]
    assert found[-1] == []


@pytest.mark.kills("attachment-is-not-restored", "ids-change-over-a-restart")
def test_a_namespace_is_the_same_in_another_life(tmp_path: Path) -> None:
    values = MemoryState()
    life = Life(tmp_path, values)
    life.change(management.create(life.subsystem, NewNamespace(64, Format(512, 8), is_shared=True)))
    for cntlid in (1, 7):
        life.subsystem.namespaces.of(cntlid)
        life.change(management.attach(life.subsystem, 1, [cntlid], [2], 16))
    before = life.subsystem.namespaces.by_nsid[1]
    life.end()
    life = Life(tmp_path, values)
    after = life.subsystem.namespaces.by_nsid[1]
    for cntlid in (1, 5, 7):
        assert (1 in life.subsystem.namespaces.of(cntlid).by_nsid) == (cntlid != 5)
    for name in ("uuid", "nguid", "format", "blocks", "capacity", "is_shared", "controllers"):
        assert getattr(after, name) == getattr(before, name)
    assert life.subsystem.unallocated == ROOM - 64 * 512
    life.end()


@pytest.mark.kills("attachment-of-another-disk")
def test_the_attachment_of_a_disk_is_that_disks(tmp_path: Path) -> None:
    """Another disk with the same NSID is attached to all."""
    values = MemoryState()
    life = Life(tmp_path, values)

    def given(identity: str) -> Namespace:
        return Namespace(1, DiskMedia(MemoryBackend(4096), Format(), life.worker), identity)

    life.subsystem.namespaces.of(1)
    life.subsystem.add(given("one"))
    life.change(management.detach(life.subsystem, 1, [1], [2]))
    life.end()
    life = Life(tmp_path, values)
    for identity, controllers in (("one", frozenset()), ("other", None)):
        namespace = given(identity)
        assert management.as_it_was(life.subsystem, namespace)
        assert namespace.controllers == controllers
    life.end()


def test_a_pool_has_one_user(tmp_path: Path) -> None:
    life = Life(tmp_path, MemoryState())
    other = FolderPool(str(tmp_path), ROOM, life.worker)
    with pytest.raises(BackendError, match="is in use by another server: give each a pool of its own"):
        other.claim()
    life.end()
    other.claim()
    other.close()
    with pytest.raises(BackendError, match="there is no folder"):
        FolderPool(str(tmp_path / "none" / "pool"), ROOM, life.worker).claim()
