"""The base class of what a fault does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nvmeemu.faults.disk import History
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target
from nvmeemu.faults.words import FaultError
from nvmeemu.spec import DataTransfer

Go = Callable[..., None]

NOTHING_PASSES = 'nothing passes when it is "now"'
ANSWERED = "a register that is read must be answered at once, or the VMM gives up"


class Action:
    """One thing that a fault does. It is made of its argument and options as they were written; raises FaultError."""

    name: ClassVar[str]
    places: ClassVar[tuple[At, ...]]
    """Where it works; the first is meant if nothing is said."""
    reasons: ClassVar[Mapping[At, str]] = {}
    """Why it does not work elsewhere."""
    reads = False
    """Whether it works on register reads; otherwise it is about writes."""
    changes = True
    """Whether it changes what passes; otherwise that only sets it off."""
    ends = False
    """Whether a command goes no further than where it is executed."""
    options: ClassVar[tuple[str, ...]] = ()
    history: History | None = None
    """Hears of all that is written to disks."""
    example: ClassVar[str] = ""
    """Its argument, as it may be written; nothing: it takes none, or can do without."""

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        """``argument`` is True where none was given."""
        if argument is not True:
            raise FaultError(f"do.{self.name}: takes no argument, but has {argument!r}")

    def check(self, at: At, matched: Mapping[str, Any]) -> None:
        """Raise FaultError for what it cannot do at that place, with what ``match`` says."""

    def concerns(self, at: At, opcode: int) -> bool:
        """Whether it can do anything to commands with this opcode. At ``backend`` these are I/O commands."""
        return at != At.DMA or DataTransfer.of(opcode) != DataTransfer.NONE

    def wanted(self, at: At) -> str:
        """What the commands do that it concerns there, for a refusal."""
        return "moves data"

    def applies(self, passage: Passage) -> bool:
        """Whether it can change this. If not, its fault does not match."""
        return True

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        """Something passes a place. Call ``go`` with what shall pass on, perhaps later, more than once or never."""
        go(*payload)

    def plan(self, target: Target, plan: Plan) -> None:
        """A command is about to be executed. Plan what shall be different (execute, dma, backend)."""

    def read(self, target: Target, passage: Passage, value: bytes) -> bytes:
        """A register is read."""
        return value
