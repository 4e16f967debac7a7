"""The actions by the names that they have in ``do``."""

from __future__ import annotations

from nvmeemu.faults.action import Action
from nvmeemu.faults.completion import SetStatus, UnknownCid, WrongPhase, WrongSqhd
from nvmeemu.faults.content import Corrupt, Fail, Lose, Set, Tear
from nvmeemu.faults.flow import Delay, Drop, Duplicate, Reorder
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

ACTIONS: dict[str, type[Action]] = {
    kind.name: kind
    for kind in (
        *(SetStatus, Delay, Drop, Duplicate, Reorder),
        *(Corrupt, Set, Tear, Lose, Fail),
        *(UnknownCid, WrongPhase, WrongSqhd, Spurious),
        *(Fatal, Hang, Ready, SlowReady, EndlessShutdown, Removal),
        *(Vanish, Shrink, ReadOnly, Smart, Flood),
    )
}
