"""The actions by the names that they have in ``do``."""

from __future__ import annotations

from nvmeemu.faults.action import Action
from nvmeemu.faults.completion import SetStatus, UnknownCid, WrongPhase, WrongSqhd
from nvmeemu.faults.content import Corrupt, Fail, Lose, Set, Tear
from nvmeemu.faults.flow import Delay, Drop, Duplicate, Reorder
from nvmeemu.faults.metadata import (
    ApplicationTagError,
    GuardError,
    ReferenceTagError,
    StorageTagError,
    WrongMetadata,
)
from nvmeemu.faults.states import (
    EndlessShutdown,
    Fatal,
    Flood,
    Hang,
    ReadOnly,
    Ready,
    Removal,
    Shrink,
    SlowReady,
    Smart,
    Spurious,
    Vanish,
)
from nvmeemu.spec import names
from nvmeemu.tables import Extensible


class Actions(Extensible[type[Action]], dict[str, type[Action]]):
    """By the names that they have in ``do``."""

    def __init__(self, *kinds: type[Action]) -> None:
        super().__init__({kind.name: kind for kind in kinds})

    def add(self, row: type[Action]) -> None:
        if names.choice(self, row.name) is not None:
            raise ValueError(f"fault action {row.name}: there is one already")
        self[row.name] = row

    def remove(self, row: type[Action]) -> None:
        del self[row.name]


ACTIONS = Actions(
    *(SetStatus, Delay, Drop, Duplicate, Reorder),
    *(Corrupt, Set, Tear, Lose, Fail),
    *(GuardError, ApplicationTagError, ReferenceTagError, StorageTagError, WrongMetadata),
    *(UnknownCid, WrongPhase, WrongSqhd, Spurious),
    *(Fatal, Hang, Ready, SlowReady, EndlessShutdown, Removal),
    *(Vanish, Shrink, ReadOnly, Smart, Flood),
)
