"""Faults of content: what passes is changed, or its disk fails."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from nvmeemu.faults import data, registers
from nvmeemu.faults.action import NOTHING_PASSES, Action, Go
from nvmeemu.faults.disk import History
from nvmeemu.faults.match import LAST_VALUE
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target
from nvmeemu.faults.words import FaultError, blocks, number, spoiling, table
from nvmeemu.spec import NVM_COMMANDS, Command, DataTransfer, Flush, ReadWrite, Write
from nvmeemu.spec.layout import Record
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.media import Blocks

R = TypeVar("R", bound=Record)


def _at_disk(opcode: int) -> type[Command]:
    """The I/O command with this opcode."""
    return NVM_COMMANDS.of(opcode)


class Fail(Action):
    """The disk fails with this errno: EIO, ENOSPC, ..., everywhere or where it touches the blocks ``lba``."""

    name = "error"
    example = "EIO"
    places = (At.BACKEND,)
    options = ("lba",)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        name = argument.strip().upper() if isinstance(argument, str) else ""
        self.errno: int = getattr(errno, name, 0) if name.startswith("E") else 0
        if not self.errno:
            raise FaultError(f"do.error: {argument!r} is no errno: EIO, ENOSPC, ETIMEDOUT, ...")
        self.lba = blocks(options["lba"], "do.lba") if "lba" in options else None

    def plan(self, target: Target, plan: Plan) -> None:
        plan.disk.errno, plan.disk.bad = self.errno, self.lba


class Lose(Action):
    """The disk says that it has written, but it has not."""

    name = "lose"
    places = (At.BACKEND,)

    def concerns(self, at: At, opcode: int) -> bool:
        return _at_disk(opcode).CHANGES_MEDIA or _at_disk(opcode) is Flush

    def wanted(self, at: At) -> str:
        return "writes to a disk or flushes it"

    def plan(self, target: Target, plan: Plan) -> None:
        plan.disk.loses = True


class Tear(Action):
    """Only the first bytes are written, or transferred, and the command succeeds."""

    name = "torn"
    example = "512"
    places = (At.BACKEND, At.DMA)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.bytes = number(argument, "do.torn", 0, 1 << 32)

    def concerns(self, at: At, opcode: int) -> bool:
        return super().concerns(at, opcode) if at == At.DMA else _at_disk(opcode).CHANGES_MEDIA

    def wanted(self, at: At) -> str:
        return super().wanted(at) if at == At.DMA else "writes to a disk: what arrives of a read is torn at dma"

    def plan(self, target: Target, plan: Plan) -> None:
        if plan.at == At.DMA:
            plan.spoil_transfer(lambda old, new: data.tear(old, new, self.bytes))
        else:
            plan.disk.kept = self.bytes


class Corrupt(Action):
    """Some of the data is wrong. "flip" changes ``bits`` (1) of it. "zeros", "ones" and "stale" replace it; "stale" is
    old data of the disk (backend) or of the host's memory (dma)."""

    name = "corrupt"
    places = (At.BACKEND, At.DMA, At.FETCH, At.COMPLETION, At.DOORBELL, At.REGISTER)
    reasons: ClassVar = {
        At.EXECUTE: "a command's data is corrupted at backend or dma, the command itself at fetch",
        At.INTERRUPT: "an interrupt carries no data",
        At.EVENT: "drop the event, or set the completion's dw0",
        At.NOW: NOTHING_PASSES,
    }
    options = ("bits",)
    reads = True

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.kind, self.bits = spoiling("do.corrupt", argument, options, ("flip", "zeros", "ones", "stale"))

    def concerns(self, at: At, opcode: int) -> bool:
        if at == At.BACKEND:
            return _at_disk(opcode).MOVES_BLOCKS
        is_stale_only = at == At.DMA and self.kind == "stale"
        return DataTransfer.TO_HOST in DataTransfer.of(opcode) if is_stale_only else super().concerns(at, opcode)

    def wanted(self, at: At) -> str:
        if at == At.BACKEND:
            return "reads or writes a disk's blocks"
        return "moves data to the host" if self.kind == "stale" else super().wanted(at)

    def applies(self, passage: Passage) -> bool:
        command = passage.command
        if self.history is None or not isinstance(command, ReadWrite) or isinstance(command, Write):
            return True
        return self.history.knows(command.nsid, command.slba, command.nlb)

    def _spoil(self, target: Target, value: bytes) -> bytes:
        return data.spoil(self.kind, self.bits, target.random, value)

    def _spoil_number(self, target: Target, value: int, size: int) -> int:
        return int.from_bytes(self._spoil(target, value.to_bytes(size, "little")), "little")

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        if passage.at == At.REGISTER:
            go(payload[0], self._spoil(target, payload[1]))
        elif passage.at == At.DOORBELL:
            go(payload[0], self._spoil_number(target, payload[1], 2))
        elif passage.at == At.FETCH:
            go(self._spoil(target, payload[0]))
        else:
            (reply,) = payload
            go(replace(reply, dw0=self._spoil_number(target, reply.dw0, 4)))

    def read(self, target: Target, passage: Passage, value: bytes) -> bytes:
        return self._spoil(target, value)

    def plan(self, target: Target, plan: Plan) -> None:
        if self.history is not None and isinstance(plan.request.command, Write):
            plan.disk.loses = True
        elif self.history is not None:
            plan.disk.recalls = self.history
        elif self.kind == "stale":
            plan.spoil_transfer(data.lose)
        elif plan.at == At.DMA:
            plan.spoil_transfer(lambda old, new: self._spoil(target, new))
        else:
            seed = target.random.getrandbits(32)  # now: the disk is read on another thread
            plan.disk.spoils.insert(0, partial(self._spoil_blocks, seed))

    def _spoil_blocks(self, seed: int, format: Format, slba: int, found: Blocks) -> Blocks:
        return found._replace(data=data.spoil(self.kind, self.bits, data.random_of(seed), found.data))

    def check(self, at: At, matched: Mapping[str, Any]) -> None:
        if self.kind == "stale" and at not in (At.BACKEND, At.DMA):
            raise FaultError("do.corrupt: only at backend (a disk) and dma (a buffer) is there something stale")
        if self.kind == "stale" and at == At.BACKEND:
            self.history = History()


class Set(Action):
    """Sets a value: fields of a register (or the register itself), a field of a command, ``value`` of a doorbell, or
    ``dw0``, ``cid`` or ``sqhd`` of a completion."""

    name = "set"
    places = (At.REGISTER, At.FETCH, At.COMPLETION, At.DOORBELL)
    reads = True

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        values = table(argument, "do.set") if isinstance(argument, Mapping) else {"value": argument}
        self.values = {key: number(one, f"do.set.{key}") for key, one in _plain(values).items()}
        if not self.values:
            raise FaultError("do.set: set what?")
        self._patch: registers.Patch = {}

    def check(self, at: At, matched: Mapping[str, Any]) -> None:
        """The fields that can be set there."""
        most: dict[str, Any] = {
            At.DOORBELL: {"value": LAST_VALUE},
            At.COMPLETION: {"dw0": 0xFFFFFFFF, "cid": 0xFFFF, "sqhd": 0xFFFF},
        }
        if at == At.REGISTER:
            self._patch = registers.patch_of(self.values, matched)
            return
        for key, value in self.values.items():
            if at == At.FETCH:
                _put(Command(), key, value)
            elif key not in most[at]:
                raise FaultError(f"do.set: nothing at '{at}' has {key!r}: {', '.join(most[at])}")
            else:
                number(value, f"do.set.{key}", 0, most[at][key])

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        values = self.values
        if passage.at == At.REGISTER:
            go(payload[0], self._register(payload[0], payload[1]))
        elif passage.at == At.DOORBELL:
            go(payload[0], values["value"])
        elif passage.at == At.FETCH:
            command = _editable(Command, payload[0])
            for key, value in values.items():
                _put(command, key, value)
            go(bytes(command))
        else:
            (reply,) = payload
            go(replace(reply, **values))

    def read(self, target: Target, passage: Passage, value: bytes) -> bytes:
        return self._register(passage.offset, value)

    def applies(self, passage: Passage) -> bool:
        if passage.at != At.REGISTER or not self._patch:
            return True
        return any(passage.offset <= place < passage.offset + passage.size for place in self._patch)

    def _register(self, offset: int, value: bytes) -> bytes:
        if not self._patch:  # a number for whatever is accessed
            return (self.values["value"] & (1 << 8 * len(value)) - 1).to_bytes(len(value), "little")
        return registers.patched(self._patch, offset, value)


def _editable(kind: type[R], value: bytes) -> R:
    record = kind()
    record.data = bytearray(value)
    return record


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: int(value) if isinstance(value, bool) else value for key, value in values.items()}


def _put(command: Command, key: str, value: int) -> None:
    if key not in _FIELDS:
        raise FaultError(f"do.set: {key!r} is no field of every command: {', '.join(_FIELDS)}")
    _try(command, key, value)


def _try(record: Record, key: str, value: int) -> None:
    try:
        setattr(record, key, value)
    except ValueError as error:
        raise FaultError(f"do.set: {error}") from None


_FIELDS = tuple(name for name, _ in Command.fields())
