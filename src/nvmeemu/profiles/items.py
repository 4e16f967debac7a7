"""What a run has found, and how the device is broken so that a run must find it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nvmeemu.profiles.profile import NEVER, Never, Profile
from nvmeemu.profiles.steps import ReadStep, Step, SubmitStep, WaitStep
from nvmeemu.spec import commands_of
from nvmeemu.trace.file import Reader

STEP = "step"  # the item of what must be seen: a step came to something else
_TELLING = ("nsid", "cns", "fid", "lid", "qid", "sel")  # fields that tell commands of one opcode apart


@dataclass(frozen=True)
class Item:
    """What the driver must see (``name`` is "step", at ``line``) or what must never happen (one of ``NEVER``)."""

    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"line {self.line}" if self.name == STEP else self.name


@dataclass(frozen=True)
class Finding:
    """An item that did not hold: where the driver was and what it met, in one line."""

    item: Item
    step: Step
    what: str
    time: int  # nanoseconds of the run's virtual clock

    def __str__(self) -> str:
        where = f"line {self.step.line}"
        item = "" if str(self.item) == where else f"{self.item}: "
        return f"{item}{where}: {self.step.text}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to. ``commands``: how many the driver gave; ``trace``: all that was said."""

    findings: list[Finding]
    commands: int
    trace: Reader


@dataclass(frozen=True)
class Break:
    """A switch that breaks the device, by a fault (docs/faults.md) or by its limits, so that ``item`` does not hold."""

    item: Item
    what: str
    fault: Mapping[str, Any] | None = None
    device: Mapping[str, Any] | None = None
    anywhere: bool = False  # whether another line than the item's may find it out

    def found_by(self, outcome: Outcome) -> bool:
        """Whether the run has found what it had to."""
        wanted = (self.item.name, 0 if self.anywhere else self.item.line)
        return any((one.item.name, 0 if self.anywhere else one.item.line) == wanted for one in outcome.findings)


def breaks(profile: Profile) -> list[Break]:
    """A break for each thing that must never happen, then one for each that must be seen."""
    made = [_of_never(never) for never in profile.nevers]
    seen: set[str] = set()
    for step in profile.steps:
        for one in _of_step(step):
            key = f"{one.fault} {one.item.name}"
            if key not in seen:
                seen.add(key)
                made.append(one)
    return made


def _of_never(never: Never) -> Break:
    return Break(Item(never.item), NEVER[never.item], never.fault, never.device, anywhere=True)


def _of_step(step: Step) -> Iterator[Break]:
    item = Item(STEP, step.line)
    if isinstance(step, ReadStep) and step.expected is not None:
        match = {"register": step.offset, "access": "read"}
        item = Item("unreadable_register") if step.expected == "written" else item
        fault: dict[str, Any] = {"match": match, "at": "register", "do": {"corrupt": "flip"}}
        if step.expected == "before":
            fault["when"] = {"after": 1}  # so that there is something that it was
        yield Break(item, step.text, fault, anywhere=True)
    elif isinstance(step, WaitStep) and step.field == "rdy":
        yield Break(item, step.text, {"do": {"rdy": 1 - step.value}}, anywhere=True)
    elif isinstance(step, WaitStep):
        yield Break(item, step.text, {"do": "endless_shutdown"})
    elif isinstance(step, SubmitStep):
        yield from _of_command(step, item)


def _of_command(step: SubmitStep, item: Item) -> Iterator[Break]:
    match = _match(step)
    if step.is_aer:
        item = Item("rejected_aer")
    if step.expect.statuses is not None or step.expect.parked:
        fault: dict[str, Any] = {"match": match, "at": "execute", "do": {"status": "internal_error", "dnr": True}}
        yield Break(item, step.text, fault, anywhere=True)
    if step.expect.dw0 is not None:
        fault = {"match": match, "at": "completion", "do": {"set": {"dw0": step.expect.dw0 ^ 1}}}
        yield Break(item, f"{step.text} (DW0)", fault, anywhere=True)
    for name, relation, _ in step.expect.conditions:
        content = "ones" if relation == "<=" else "zeros"
        fault = {"match": match, "at": "dma", "do": {"corrupt": content}}
        yield Break(item, f"{step.text} ({name})", fault, anywhere=True)


def _match(step: SubmitStep) -> dict[str, Any]:
    """The words of a fault that mean this command."""
    value = step.command.opcode
    known = commands_of(step.qid).names.get(value)
    opcode = value if known is None else known.name.lower()
    told = {name: int(getattr(step.command, name)) for name in _TELLING if name in step.fields}
    return {"opcode": opcode, "queue": step.qid or "admin"} | told
