"""What a fault is about: which command, register access, doorbell, interrupt or event."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvmeemu import admin, io, regs
from nvmeemu.faults.places import OF_COMMANDS, OF_QUEUES, At
from nvmeemu.faults.words import FaultError, Numbers, choice, number, numbers
from nvmeemu.layout import Field
from nvmeemu.spec import AdminOpcode, Command, EventType, NvmOpcode, ReadWrite, Status

PIN = -1  # the vector of INTA#
_IO = Numbers(low=1, high=0xFFFF)
_ADMIN = Numbers(frozenset({0}))
_ENTRIES = (*admin.COMMANDS.values(), *io.COMMANDS.values())
_KINDS: tuple[type[Command], ...] = tuple({Command, *(entry.kind for entry in _ENTRIES)})
_REGISTERS = {register.name.lower(): register for register in regs.REGISTERS}


@dataclass
class Passage:
    """What passes one of the places; what does not belong there is at its default."""

    at: At
    qid: int | None = None
    command: Command | None = None
    status: int | None = None  # of a completion
    offset: int = 0
    size: int = 0
    is_write: bool = False
    value: int | None = None  # of a doorbell, or what is written to a register
    is_cq: bool = False
    vector: int | None = None
    event: int | None = None


Test = Callable[[Passage], bool]


class Match:
    """All that is given must be so. ``queues``: those whose commands it can meet; None: any."""

    def __init__(self, at: At, table: Mapping[str, Any]) -> None:
        self.table = dict(table)
        self.queues: Numbers | None = None if at in OF_QUEUES else Numbers()
        self._at = at
        self._tests: list[Test] = []
        for key, value in table.items():
            self._tests.append(self._test(key, value))
        if at == At.BACKEND and self.queues == _ADMIN:
            raise FaultError("match: no admin command comes to a disk: give another at, such as dma or execute")

    def __contains__(self, passage: Passage) -> bool:
        return passage.at == self._at and all(test(passage) for test in self._tests)

    def _test(self, key: str, value: Any) -> Test:
        at, what = self._at, f"match.{key}"
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
            values = numbers(value, what)
            return lambda passage: passage.value in values
        if at == At.DOORBELL and key == "doorbell":
            is_cq = choice(value, what, ("sq", "cq")) == "cq"
            return lambda passage: passage.is_cq == is_cq
        if at == At.INTERRUPT and key == "vector":
            vectors = Numbers(frozenset({PIN})) if value == "pin" else numbers(value, what)
            return lambda passage: passage.vector in vectors
        if at == At.EVENT and key == "type":
            types = numbers(value, what, EventType)
            return lambda passage: passage.event in types
        raise FaultError(f"{what}: nothing at '{at}' has that: {', '.join(self._known())}")

    def _known(self) -> list[str]:
        return {
            At.REGISTER: ["register", "access", "value"],
            At.DOORBELL: ["queue", "doorbell", "value"],
            At.INTERRUPT: ["vector"],
            At.EVENT: ["type"],
        }.get(self._at, [])

    def _queue(self, value: Any) -> Test:
        if value == "io":
            found = _IO
        else:
            found = numbers(0 if value == "admin" else value, "match.queue")
        self.queues = found
        return lambda passage: passage.qid in found

    def _of_command(self, key: str, value: Any, what: str) -> Test:
        if key == "opcode":
            return self._opcode(value, what)
        if key == "lba":
            blocks = numbers(value, what)
            if blocks.mask:
                raise FaultError(f"{what}: give a block, a list or a range")
            return lambda passage: _meets(passage.command, blocks)
        if key == "status" and self._at == At.COMPLETION:
            statuses = numbers(value, what, Status)
            return lambda passage: passage.status in statuses
        kinds = tuple(kind for kind in _KINDS if isinstance(_field(kind, key), Field))
        if not kinds:
            raise FaultError(
                f"{what}: no command has such a field: opcode, queue, nsid, cid, lba, the specification's names"
                " (slba, nlb, fid, lid, cns, ...) or cdw10 to cdw15"
            )
        wanted = numbers(value, what)
        return lambda passage: isinstance(passage.command, kinds) and int(getattr(passage.command, key)) in wanted

    def _opcode(self, value: Any, what: str) -> Test:
        """A name says whether it is an admin command; a number does not."""
        if isinstance(value, Mapping) or (isinstance(value, str) and re.fullmatch(r"\d\w*-\w+", value)):
            opcodes = numbers(value, what)
            return lambda passage: passage.command is not None and passage.command.opcode in opcodes
        values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        names = [one for one in values if isinstance(one, str) and not one[:1].isdigit()]
        plain = frozenset(number(one, what, 0, 255) for one in values if one not in names)
        of_admin = frozenset(AdminOpcode[one.upper()] for one in names if one.upper() in AdminOpcode.__members__)
        of_io = frozenset(NvmOpcode[one.upper()] for one in names if one.upper() in NvmOpcode.__members__)
        known = {*AdminOpcode.__members__, *NvmOpcode.__members__}
        for one in names:
            if one.upper() not in known:
                raise FaultError(f"{what}: {one!r} is none of {', '.join(sorted(known)).lower()}, nor a number")
        if not values:
            raise FaultError(f"{what}: no opcode")
        if not of_io and not plain and self.queues is None:
            self.queues = _ADMIN
        return lambda passage: (
            passage.command is not None and passage.command.opcode in (plain | (of_io if passage.qid else of_admin))
        )

    def _of_register(self, key: str, value: Any, what: str) -> Test:
        if key == "access":
            is_write = choice(value, what, ("read", "write")) == "write"
            return lambda passage: passage.is_write == is_write
        if key == "value":
            values = numbers(value, what)
            return lambda passage: passage.value in values
        if key != "register":
            raise FaultError(f"{what}: nothing at 'register' has that: {', '.join(self._known())}")
        first, size = register_place(value, what)
        return lambda passage: passage.offset < first + size and first < passage.offset + passage.size


def _field(kind: type[Command], name: str) -> object:
    return next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)


def _meets(command: Command | None, blocks: Numbers) -> bool:
    if not isinstance(command, ReadWrite):
        return False
    return blocks.overlaps(command.slba, command.slba + command.nlb - 1)


def register_place(value: Any, what: str) -> tuple[int, int]:
    """Offset and size of a register, by name or by offset."""
    if isinstance(value, str) and not value[:1].isdigit():
        register = _REGISTERS.get(value.lower())
        if register is None:
            raise FaultError(f"{what}: {value!r} is none of {', '.join(_REGISTERS)}, nor an offset")
        return register.offset, register.size
    return number(value, what, 0, 0xFFF), 4
