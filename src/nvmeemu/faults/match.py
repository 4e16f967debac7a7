"""What a fault is about: which command, register access, doorbell, interrupt or event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nvmeemu import regs
from nvmeemu.faults.passage import PIN, Passage
from nvmeemu.faults.places import OF_COMMANDS, OF_QUEUES, At
from nvmeemu.faults.words import RANGE, FaultError, Numbers, blocks, choice, number, numbers
from nvmeemu.spec import (
    ADMIN_COMMANDS,
    NVM_COMMANDS,
    Command,
    Completion,
    EventType,
    ReadWrite,
    Status,
    names,
)
from nvmeemu.spec.layout import Field, Number

LAST_QUEUE = 0xFFFF  # Base 1.4, 5.4: QID
LAST_VECTOR = 2047  # PCI Local Bus 3.0, 6.8.2.3: Table Size
LAST_EVENT_TYPE = 7  # Base 1.4, Figure 144: bits 2:0
LAST_VALUE = 0xFFFFFFFF  # of a doorbell
_IO = Numbers(low=1, high=LAST_QUEUE)
_ADMIN = Numbers(frozenset({0}))
_EVERY = frozenset((is_admin, opcode) for is_admin in (True, False) for opcode in range(256))
_REGISTERS = {register.name.lower(): register for register in regs.REGISTERS}


Test = Callable[[Passage], bool]


class Match:
    """All conditions must hold. Raises FaultError for conditions that can never hold. ``queues`` are those whose
    commands it can match; None means any. ``commands`` are the commands that it can match (of the admin queue?,
    opcode)."""

    def __init__(self, at: At, table: Mapping[str, Any]) -> None:
        self.table = dict(table)
        self.queues: Numbers | None = None if at in OF_QUEUES else Numbers()
        self.at = at
        self._register: tuple[int, int] | None = None  # the one that is meant: offset and size
        self.commands = _EVERY  # fewer with each test
        first = [key for key in ("queue", "opcode", "register") if key in table]  # they say best what else there can be
        keys = [*first, *(key for key in table if key not in first)]
        self._tests: list[Test] = [self._test(key, table[key]) for key in keys]
        is_of_admin = at in OF_COMMANDS and all(is_admin for is_admin, _ in self.commands)
        if is_of_admin:
            self.queues = _ADMIN
        if at == At.BACKEND and is_of_admin:
            raise FaultError("match: no admin command comes to a disk: give another at, such as dma or execute")

    def __contains__(self, passage: Passage) -> bool:
        return passage.at == self.at and all(test(passage) for test in self._tests)

    def part(self, offset: int, size: int) -> slice:
        """Which bytes of a register access of ``size`` bytes at ``offset`` are meant."""
        if self._register is None:
            return slice(0, size)
        first, length = self._register
        start = max(0, first - offset)
        return slice(start, max(start, min(size, first + length - offset)))

    def _test(self, key: str, value: Any) -> Test:
        at, what = self.at, f"match.{key}"
        if at == At.NOW:
            reason = "there is nothing to match: it happens when the fault is added; give another at, such as execute"
            raise FaultError(f'{what}: at "now" {reason}')
        if key == "queue" and at in OF_QUEUES:
            return self._queue(value)
        if at in OF_COMMANDS:
            return self._of_command(key, value, what)
        if at == At.REGISTER:
            return self._of_register(key, value, what)
        if at == At.DOORBELL and key == "value":
            values = numbers(value, what, most=LAST_VALUE)
            return lambda passage: passage.value in values
        if at == At.DOORBELL and key == "doorbell":
            is_cq = choice(value, what, ("sq", "cq")) == "cq"
            return lambda passage: passage.is_cq == is_cq
        if at == At.INTERRUPT and key == "vector":
            vectors = Numbers(frozenset({PIN})) if _is(value, "pin") else numbers(value, what, most=LAST_VECTOR)
            return lambda passage: passage.vector in vectors
        if at == At.EVENT and key == "type":
            types = numbers(value, what, EventType, most=LAST_EVENT_TYPE)
            return lambda passage: passage.event in types
        raise FaultError(f"{what}: nothing at '{at}' has that: {', '.join(self._known())}")

    def _known(self) -> list[str]:
        return {
            At.REGISTER: ["register", "access", "value"],
            At.DOORBELL: ["queue", "doorbell", "value"],
            At.INTERRUPT: ["vector"],
            At.EVENT: ["type"],
        }.get(self.at, [])

    def _queue(self, value: Any) -> Test:
        if _is(value, "io"):
            found = _IO
        else:
            found = numbers(0 if _is(value, "admin") else value, "match.queue", most=LAST_QUEUE)
        self.queues = found
        has_admin, has_io = 0 in found, found.overlaps(1, LAST_QUEUE)
        self.commands = frozenset(one for one in _EVERY if (has_admin if one[0] else has_io))
        return lambda passage: passage.qid in found

    def _of_command(self, key: str, value: Any, what: str) -> Test:
        if key == "opcode":
            return self._opcode(value, what)
        if key == "lba":
            return self._lba(value, what)
        if key == "status" and self.at == At.COMPLETION:
            if _is(value, "ok"):
                return lambda passage: passage.status == Status.SUCCESS
            if _is(value, "error"):
                return lambda passage: passage.status != Status.SUCCESS
            statuses = numbers(value, what, Status, most=_limits([Completion.status])[1])
            return lambda passage: passage.status in statuses
        fields = {kind: found for kind in _kinds(_EVERY) if isinstance(found := _field(kind, key), Field)}
        if not fields:
            raise FaultError(
                f"{what}: no command has such a field: opcode, queue, nsid, cid, lba, the specification's names"
                " (slba, nlb, fid, lid, cns, ...) or cdw10 to cdw15"
            )
        kinds = tuple(_kinds(self.commands) & fields.keys())
        if not kinds:
            raise FaultError(f"{what}: no command that the rest of match asks for has such a field")
        self.commands = frozenset(one for one in self.commands if _kind(one) in kinds)
        meant = [fields[kind] for kind in kinds]
        least, most = _limits(meant)
        named = next((one.names for one in meant if isinstance(one, Number) and one.names is not None), None)
        wanted = numbers(value, what, named, least, most)
        return lambda passage: isinstance(passage.command, kinds) and int(getattr(passage.command, key)) in wanted

    def _lba(self, value: Any, what: str) -> Test:
        self.commands = frozenset(one for one in self.commands if issubclass(_kind(one), ReadWrite))
        if not self.commands:
            raise FaultError(f"{what}: no command that the rest of match asks for names a range of blocks")
        wanted = blocks(value, what)
        return lambda passage: _meets(passage.command, wanted)

    def _opcode(self, value: Any, what: str) -> Test:
        wanted = _opcodes(value, what)
        self.commands &= wanted
        if not self.commands:
            raise FaultError(f"{what}: no queue that match.queue asks for has {value!r}")
        return lambda passage: passage.command is not None and (not passage.qid, passage.command.opcode) in wanted

    def _of_register(self, key: str, value: Any, what: str) -> Test:
        if key == "access":
            is_write = choice(value, what, ("read", "write")) == "write"
            return lambda passage: passage.is_write == is_write
        if key == "value":
            if self.table.get("access") == "read":
                raise FaultError(f"{what}: only what is written is known before: leave it out, or access")
            values = numbers(value, what)
            return lambda passage: self._written(passage) in values
        if key != "register":
            raise FaultError(f"{what}: nothing at 'register' has that: {', '.join(self._known())}")
        first, size = self._register = register_place(value, what)
        return lambda passage: passage.offset < first + size and first < passage.offset + passage.size

    def _written(self, passage: Passage) -> int:
        """What is written to the register that is meant, at its place in it; to any: what is written."""
        if self._register is None or passage.value is None:
            return passage.value or 0
        first, size = self._register
        shifted = passage.value << 8 * passage.offset >> 8 * first
        return shifted & (1 << 8 * size) - 1


def _opcodes(value: Any, what: str) -> frozenset[tuple[bool, int]]:
    """Whether it is an admin command, and the opcode, of all that can be meant. A name says the former, a number does
    not."""
    if isinstance(value, Mapping) or (isinstance(value, str) and RANGE.fullmatch(value)):
        some = numbers(value, what, most=0xFF)
        return frozenset(one for one in _EVERY if one[1] in some)
    found: set[tuple[bool, int]] = set()
    for one in value if isinstance(value, list | tuple | set | frozenset) else [value]:
        if isinstance(one, str) and not names.is_number(one):
            found |= _named(one, what)
        else:
            found |= {(is_admin, number(one, what, 0, 0xFF)) for is_admin in (True, False)}
    if not found:
        raise FaultError(f"{what}: no opcode")
    return frozenset(found)


def _named(name: str, what: str) -> set[tuple[bool, int]]:
    kinds = ((True, ADMIN_COMMANDS.names), (False, NVM_COMMANDS.names))
    found = {(is_admin, int(one)) for is_admin, kind in kinds if (one := names.member(kind, name)) is not None}
    if not found:
        known = names.known(ADMIN_COMMANDS.names, NVM_COMMANDS.names)
        raise FaultError(f"{what}: {name!r} is none of {known}, nor a number")
    return found


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and names.bare(value) == name


def _kinds(commands: Iterable[tuple[bool, int]]) -> set[type[Command]]:
    return {_kind(one) for one in commands}


def _kind(command: tuple[bool, int]) -> type[Command]:
    """How such a command is understood."""
    is_admin, opcode = command
    return (ADMIN_COMMANDS if is_admin else NVM_COMMANDS).of(opcode)


def _limits(fields: Iterable[Field[Any]]) -> tuple[int, int]:
    """The least and the most that any of these fields can hold."""
    found = [
        (int(one.zero_based), (1 << one.high - one.low + 1) - 1 + one.zero_based) if isinstance(one, Number) else (0, 1)
        for one in fields
    ]
    return min(least for least, _ in found), max(most for _, most in found)


def _field(kind: type[Command], name: str) -> object:
    return next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)


def _meets(command: Command | None, wanted: Numbers) -> bool:
    if not isinstance(command, ReadWrite):
        return False
    return wanted.overlaps(command.slba, command.slba + command.nlb - 1)


def is_read_only(value: Any) -> bool:
    """Whether no write changes this register, or the 4 bytes at this offset."""
    start, size = register_place(value, "match.register")
    return not any(
        one.writable and start < one.offset + one.size and one.offset < start + size for one in regs.REGISTERS
    )


def register_place(value: Any, what: str) -> tuple[int, int]:
    """Offset and size of a register, by name or by offset."""
    if isinstance(value, str) and not names.is_number(value):
        register = _REGISTERS.get(names.bare(value))
        if register is None:
            raise FaultError(f"{what}: {value!r} is none of {', '.join(_REGISTERS)}, nor an offset")
        return register.offset, register.size
    offset = number(value, what, 0, 0xFFF)
    return offset, next((one.size for one in regs.REGISTERS if one.offset == offset), 4)
