"""The steps of a profile, one a line, in the words of the specification; docs/profiles.md has them all.

read CAP                                      write CC = 0x460001
read ASQ = written                            wait rdy = 1
read VS = before                              pci interrupt_disable = 1
admin identify cns=controller -> success      q1 write slba=8 nlb=8 x4
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nvmeemu import spec
from nvmeemu.faults.match import register_place
from nvmeemu.faults.words import FaultError, named, number, seconds
from nvmeemu.spec import IdentifyController, IdentifyNamespace
from nvmeemu.spec.layout import Field, Number, Record
from nvmeemu.spec.names import key

MODES = ("polling", "msix", "pin")
_MOST_TIMES = 1024
_STRUCTURES: dict[int, type[Record]] = {
    spec.Cns.CONTROLLER: IdentifyController,
    spec.Cns.NAMESPACE: IdentifyNamespace,
}
_CONDITION = re.compile(r"(\w+)(>=|<=|=)(\w+)")


class StepError(ValueError):
    """A step that cannot be understood; the text is one line that says why."""


@dataclass(frozen=True)
class Step:
    """``line``: where it stands in the file; ``text``: how it is written."""

    line: int
    text: str


@dataclass(frozen=True)
class ReadStep(Step):
    """Reads a register, or a part of it. ``expected`` is a number, "written" (what the host wrote last), "before"
    (what the driver read there the time before), or None for anything."""

    offset: int
    size: int
    expected: int | str | None


@dataclass(frozen=True)
class WriteStep(Step):
    """Writes a register. ``value`` is a number, or "memory": the address of an admin queue, or the named half of it."""

    offset: int
    size: int
    value: int | str


@dataclass(frozen=True)
class WaitStep(Step):
    """Reads CSTS until its ``field`` (rdy, shst) has the value."""

    field: str
    value: int


@dataclass(frozen=True)
class ModeStep(Step):
    """How the driver learns of completions from here on. ``masking`` is what it writes to INTMS and INTMC around each
    interrupt, or 0. ``is_late``: it moves the head of a completion queue only after it has given its next command."""

    mode: str
    masking: int = 0
    is_late: bool = False


@dataclass(frozen=True)
class PciStep(Step):
    """Sets or clears Interrupt Disable in the Command register of the PCI configuration space. Bus master and memory
    space stay on."""

    interrupt_disable: bool


@dataclass(frozen=True)
class PauseStep(Step):
    seconds: float


@dataclass(frozen=True)
class FunctionResetStep(Step):
    """A reset of the PCI function: the machine is reset, or the host asks for it."""


@dataclass(frozen=True)
class Expect:
    """What the completion must be. ``statuses`` None means any. ``parked`` means that none comes until a reset.
    ``conditions`` are about what Identify gave: (field, ">=" or "<=" or "=", number)."""

    statuses: frozenset[int] | None = frozenset({0})
    parked: bool = False
    dw0: int | None = None
    conditions: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class SubmitStep(Step):
    """Gives a command in queue ``qid``, ``times`` at once; I/O then goes on block by block. The buffer begins ``at``
    bytes into a page, and a PRP list ``list_at``. ``data`` is what the host gives with the command. If ``is_joined``,
    the driver gives it without waiting for the step before, and waits for both."""

    qid: int
    command: spec.Command
    times: int = 1
    at: int = 0
    list_at: int = 0
    data: bytes = b""
    expect: Expect = field(default_factory=Expect)
    fields: tuple[str, ...] = ()  # that were written
    is_joined: bool = False

    @property
    def is_aer(self) -> bool:
        return isinstance(self.command, spec.AsyncEventRequest)

    @property
    def structure(self) -> type[Record] | None:
        """The structure that the command gives to the host, if its fields can be asked for."""
        return _structure(self.qid, self.command)


def parse_steps(text: str, first_line: int = 1) -> list[Step]:
    """The steps of a text. Raises StepError, which begins with the line."""
    steps: list[Step] = []
    for line, written in enumerate(text.splitlines(), first_line):
        words = written.split("#")[0].split()
        if words:
            try:
                step = _step(line, words)
                if (
                    isinstance(step, SubmitStep)
                    and step.is_joined
                    and not (steps and isinstance(steps[-1], SubmitStep))
                ):
                    raise StepError("no command stands before it")
                if isinstance(step, ReadStep) and step.expected == "before":
                    _check_before(step, steps)
                steps.append(step)
            except (StepError, FaultError, ValueError) as error:
                raise StepError(f"{line}: {' '.join(words)}: {error}") from None
    return steps


def _check_before(step: ReadStep, steps: list[Step]) -> None:
    if not any(isinstance(one, ReadStep) and (one.offset, one.size) == (step.offset, step.size) for one in steps):
        raise StepError("it was not read before")


def _step(line: int, words: list[str]) -> Step:
    text, (verb, *rest) = " ".join(words), words
    verb = verb.lower()
    if verb in MODES:
        return _mode(line, text, verb, rest)
    if is_joined := verb == "+":
        verb, *rest = rest or [""]
        verb = verb.lower()
    queue = re.fullmatch(r"q(\d+)", verb)
    if verb == "admin" or queue:
        return _submit(line, text, number(queue[1], "queue", 1, 0xFFFF) if queue else 0, rest, is_joined)
    if is_joined:
        raise StepError("a command follows it: + admin COMMAND, or + q1 COMMAND")
    simple: dict[str, Callable[[int, str, list[str]], Step]] = {
        "read": _read,
        "write": _write,
        "wait": _wait,
        "pci": _pci,
        "pause": _pause,
        "reset": _reset,
    }
    if verb not in simple:
        raise StepError(f"a step begins with {', '.join((*simple, 'admin', 'q1', *MODES))}")
    return simple[verb](line, text, rest)


def _mode(line: int, text: str, verb: str, words: list[str]) -> Step:
    if verb == "polling":
        if words not in ([], ["late"]):
            raise StepError("after it there is only: late")
        return ModeStep(line, text, verb, is_late=bool(words))
    name, equals, bits = (words or [""])[0].partition("=")
    if words[1:] or name not in ("", "masking") or (equals and not bits):
        raise StepError("after it there is only: masking, or masking=BITS")
    return ModeStep(line, text, verb, number(bits or "1", "masking", 1, 0xFFFFFFFF) if words else 0)


def _read(line: int, text: str, words: list[str]) -> Step:
    offset, size, value = _access(words)
    if value in (None, "written", "before"):
        return ReadStep(line, text, offset, size, value)
    return ReadStep(line, text, offset, size, number(value, "value"))


def _write(line: int, text: str, words: list[str]) -> Step:
    offset, size, value = _access(words)
    if value is None:
        raise StepError("write REGISTER = VALUE")
    if value == "memory":
        return WriteStep(line, text, offset, size, value)
    return WriteStep(line, text, offset, size, number(value, "value", 0, (1 << 8 * size) - 1))


def _access(words: list[str]) -> tuple[int, int, str | None]:
    """``CC``, ``ASQ+4`` (the half of 4 bytes there), then perhaps ``= VALUE``."""
    if len(words) not in (1, 3) or (len(words) == 3 and words[1] != "="):
        raise StepError("REGISTER, or REGISTER = VALUE")
    name, plus, part = words[0].partition("+")
    offset, size = register_place(name, "register")
    if plus:
        offset, size = offset + number(part, "part", 0, size - 4), 4
    return offset, size, words[2] if len(words) == 3 else None


def _wait(line: int, text: str, words: list[str]) -> Step:
    if len(words) != 3 or (name := key(words[0])) not in ("rdy", "shst") or words[1] != "=":
        raise StepError("wait rdy = 1, or wait shst = 2")
    return WaitStep(line, text, name, number(words[2], "value", 0, 3))


def _pci(line: int, text: str, words: list[str]) -> Step:
    if [key(word) for word in words[:2]] != ["interrupt_disable", "="] or words[2:] not in (["0"], ["1"]):
        raise StepError("pci interrupt_disable = 1, or pci interrupt_disable = 0")
    return PciStep(line, text, words[2] == "1")


def _pause(line: int, text: str, words: list[str]) -> Step:
    return PauseStep(line, text, min(seconds(" ".join(words), "pause"), 3600.0))


def _reset(line: int, text: str, words: list[str]) -> Step:
    if words:
        raise StepError("it takes nothing")
    return FunctionResetStep(line, text)


# --- commands


def _submit(line: int, text: str, qid: int, words: list[str], is_joined: bool) -> Step:
    before, _, after = " ".join(words).partition("->")
    if not before.strip():
        raise StepError("the command is missing")
    opcode, *written = before.split()
    known = spec.commands_of(qid)
    value = named(opcode, "opcode", known.names, 0xFF)
    command = known.of(value)(opcode=value)
    options: dict[str, Any] = {}
    fields = []
    for word in written:
        if re.fullmatch(r"x\d+", word):
            options["times"] = number(word[1:], "times", 1, _MOST_TIMES)
            continue
        written_name, equals, given = word.partition("=")
        name = key(written_name)
        if not equals:
            raise StepError(f"{word}: write FIELD=VALUE, or x4 for four at once")
        if name in ("at", "list_at"):
            options[name] = number(given, name, 0, 0xFFFC)
        elif name == "data":
            options["data"] = bytes.fromhex(given)
        else:
            _set(command, name, given)
            fields.append(name)
    if is_joined and isinstance(command, spec.CreateCq | spec.CreateSq):
        raise StepError("a queue is made by itself")
    expect = _expect(after.split(), _structure(qid, command))
    return SubmitStep(line, text, qid, command, **options, expect=expect, fields=tuple(fields), is_joined=is_joined)


def _set(command: spec.Command, name: str, given: str) -> None:
    field = next((one for other, one in type(command).fields() if other == name), None)
    if field is None:
        raise StepError(f"{name}: this command has no such field: use the specification's names, or cdw10 to cdw15")
    if isinstance(field, Number) and field.names is not None:
        value = int(named(given, name, field.names, 0xFF))
    else:
        value = spec.BROADCAST if (name, given) == ("nsid", "all") else number(given, name)
    try:
        setattr(command, name, value)
    except OverflowError:
        raise StepError(f"{name}: {value} does not fit") from None


def _structure(qid: int, command: spec.Command) -> type[Record] | None:
    return _STRUCTURES.get(command.cns) if not qid and isinstance(command, spec.Identify) else None


def _expect(words: list[str], structure: type[Record] | None) -> Expect:
    """``success|invalid_field dw0=1 nn<=255``, ``parked`` or ``any``."""
    if (alone := [key(word) for word in words]) in (["parked"], ["any"]):
        return Expect(statuses=None, parked=alone == ["parked"])
    names = words.pop(0) if words and not _CONDITION.fullmatch(words[0]) else "success"
    statuses = frozenset(int(named(name, "status", spec.Status, 0x7FF)) for name in names.split("|"))
    dw0, conditions = None, []
    for name, relation, value in _conditions(words):
        if (name, relation) == ("dw0", "="):
            dw0 = number(value, name)
        elif structure is not None and isinstance(getattr(structure, name, None), Field):
            conditions.append((name, relation, number(value, name)))
        else:
            raise StepError(f"{name}: nothing in the answer to this command has that name")
    return Expect(statuses, dw0=dw0, conditions=tuple(conditions))


def _conditions(words: list[str]) -> Iterator[tuple[str, str, str]]:
    for word in words:
        found = _CONDITION.fullmatch(word)
        if found is None:
            raise StepError(f"{word}: write FIELD=VALUE, FIELD>=VALUE or FIELD<=VALUE")
        yield key(found[1]), found[2], found[3]
