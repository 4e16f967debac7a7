"""A profile from a trace: the steps of its host. The answers that the host got are what it must see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby

from nvmeemu import regs, spec
from nvmeemu.controller.limits import Limits
from nvmeemu.profiles.learning import Learning
from nvmeemu.spec.layout import Number
from nvmeemu.spec.names import Names
from nvmeemu.text import plain
from nvmeemu.trace.commands import TracedCommand, by_fetch
from nvmeemu.trace.file import FIRST_VERSION, Reader, TraceError
from nvmeemu.trace.records import Fetch, PciChange, Record, RegisterRead, RegisterWrite, Reset
from nvmeemu.trace.words import command_of

_ADDRESSES = (regs.ASQ.offset, regs.ACQ.offset)
_MOST_DATA = 4096  # bytes that a step can show
_LIMITS = {one.name for one in fields(Limits)}


def profile_text(reader: Reader, title: str = "") -> str:
    """The text of a profile, for a person to read and complete. Raises TraceError if the trace has no driver."""
    records = list(reader)
    steps = list(_collapsed(_Steps(records).lines()))
    if not any(step.startswith(("admin", "q")) for step in steps):
        raise TraceError(f"{reader.name}: no commands: nothing to make a profile of")
    told = {"version": FIRST_VERSION, **reader.description.limits}
    device = {key: value for key, value in told.items() if key in _LIMITS}
    shown = plain(title or reader.description.comment or f"what the host of {reader.name} did")
    lines = [
        f"title = {_quoted(shown)}",
        'standing = "recorded"',
        'about = "What must never happen to this driver: add a [[never]] for it (docs/profiles.md)."',
        f"most_admin = {max(100, 2 * sum(step.startswith('admin') for step in steps))}",
        "",
        'steps = """',
        *steps,
        '"""',
        "",
        "[device]",
        f"version = {_quoted(str(device.pop('version')))}",
        *(f"{key} = {int(value)}" for key, value in device.items() if isinstance(value, int)),
    ]
    for one in reader.description.namespaces:
        lines += ["", "[[namespace]]"]
        lines += [f"{key} = {one[key]}" for key in ("nsid", "blocks", "block_size") if isinstance(one.get(key), int)]
        lines += ["write_cache = true"] * (one.get("volatile_cache") is True)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _collapsed(steps: Iterator[str]) -> Iterator[str]:
    """Requests that stay with the controller and follow each other, as given at once."""
    for step, group in groupby(steps):
        number = len(list(group))
        if step.endswith("-> parked") and number > 1:
            yield step.replace(" ->", f" x{number} ->")
        else:
            yield from [step] * number


class _Steps:
    """Makes the steps. It knows how each command ended before it writes the first step."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self._ended = by_fetch(records)
        self._learning = Learning(records)
        self._is_enabled = self._has_shut_down = self._interrupt_disable = False
        self._low: dict[int, int] = {}  # halves of ASQ and ACQ
        self._page = spec.PAGE_MIN  # bytes, by CC.MPS

    def lines(self) -> Iterator[str]:
        """The steps as text."""
        mode = ""
        for number, record in enumerate(self._records):
            if isinstance(record, Fetch):
                if mode != self._learning.modes[number]:
                    mode = self._learning.modes[number]
                    yield mode
                yield from self._command(self._ended[number])
            elif isinstance(record, RegisterRead) and record.offset != regs.CSTS.offset:
                yield from self._read(record)
            elif isinstance(record, RegisterWrite) and number not in self._learning.handlers:
                yield from self._write(record)
            elif isinstance(record, PciChange) and record.bus_master:  # without it, it is no driver's
                yield from self._pci(record)
            elif isinstance(record, Reset):
                self._is_enabled = self._has_shut_down = self._interrupt_disable = False
                yield "reset"

    def _pci(self, record: PciChange) -> Iterator[str]:
        if record.interrupt_disable != self._interrupt_disable:
            self._interrupt_disable = record.interrupt_disable
            yield f"pci interrupt_disable = {int(record.interrupt_disable)}"

    def _read(self, record: RegisterRead) -> Iterator[str]:
        name = _register(record.offset, len(record.data))
        if name is None:
            return
        value = int.from_bytes(record.data, "little")
        is_address = record.offset & ~7 in _ADDRESSES
        yield f"read {name} = " + ("written" if is_address and value else f"{value:#x}")

    def _write(self, record: RegisterWrite) -> Iterator[str]:
        name = _register(record.offset, len(record.data))
        if name is None:
            return
        value = int.from_bytes(record.data, "little")
        if record.offset in _ADDRESSES:
            self._low[record.offset] = value
        is_address = record.offset & ~7 in _ADDRESSES and self._low.get(record.offset & ~7, 0)
        yield f"write {name} = " + ("memory" if is_address else f"{value:#x}")
        if record.offset == regs.CC.offset:
            new = spec.Configuration.of(value)
            self._page = spec.PAGE_MIN << new.mps
            if new.en != self._is_enabled or not new.en:
                yield f"wait rdy = {int(new.en)}"
            if new.shn and not self._has_shut_down:
                yield "wait shst = 2"
            self._is_enabled, self._has_shut_down = new.en, bool(new.shn)

    def _command(self, traced: TracedCommand) -> Iterator[str]:
        fetch, command = traced.fetch, command_of(traced.fetch.sqid, traced.fetch.sqe)
        name = _name(spec.commands_of(fetch.sqid).names, command.opcode)
        if isinstance(command, spec.DoorbellBufferConfig):
            yield "# left out: doorbell_buffer_config (the driver of a profile rings its doorbells)"
            return
        where = f"q{fetch.sqid}" if fetch.sqid else "admin"
        words = [where, name, *_fields(command), *_data(traced, command, self._page)]
        if isinstance(command, spec.AsyncEventRequest):
            yield " ".join([*words, "-> parked"])
        elif traced.completion is None:
            yield f"# not answered before a reset, and left out: {' '.join(words)}"
        else:
            yield " ".join([*words, *_answer(traced)])


def _register(offset: int, size: int) -> str | None:
    """``ASQ``, or ``ASQ+4`` for a part of 4 bytes. None if it is no register, or an odd part of one."""
    for register in regs.REGISTERS:
        if register.offset <= offset and offset + size <= register.offset + register.size:
            if size == register.size:
                return register.name
            return f"{register.name}+{offset - register.offset}" if size == 4 else None
    return None


def _name(names: Names, number: int) -> str:
    known = names.get(number)
    return f"{number:#x}" if known is None else known.name.lower()


def _fields(command: spec.Command) -> Iterator[str]:
    if command.nsid:
        yield "nsid=all" if command.nsid == spec.BROADCAST else f"nsid={command.nsid}"
    for name, field in type(command).own_fields():
        value = int(getattr(command, name))
        if isinstance(field, Number) and field.names is not None:
            yield f"{name}={_name(field.names, value)}"
        elif value or name == "slba":
            yield f"{name}={value}"
    yield from _rest(command)


def _rest(command: spec.Command) -> Iterator[str]:
    """The dwords that the command's own fields do not cover."""
    again = type(command)(opcode=command.opcode)
    for name, _ in type(command).own_fields():
        setattr(again, name, getattr(command, name))
    for number in range(10, 16):
        value = getattr(command, f"cdw{number}")
        if value != getattr(again, f"cdw{number}"):
            yield f"cdw{number}={value:#x}"


def _data(traced: TracedCommand, command: spec.Command, page: int) -> Iterator[str]:
    """Where in its page the buffer began, and a PRP list; what the host gave with the command."""
    if isinstance(command, spec.CreateCq | spec.CreateSq):
        return
    if not command.psdt and command.prp1 % page:
        yield f"at={command.prp1 % page:#x}"
    if traced.prp is not None and command.prp2 % page:
        yield f"list_at={command.prp2 % page:#x}"
    given = b"".join(one.data for one in traced.data if not one.to_host)
    if not isinstance(command, spec.ReadWrite) and (shown := given[:_MOST_DATA].rstrip(b"\0")):
        yield f"data={shown.hex()}"


def _answer(traced: TracedCommand) -> Iterator[str]:
    """The answer, in the words of a profile; empty for a plain success."""
    assert traced.completion is not None
    completion = traced.completion.completion
    if completion.status:
        yield f"-> {_name(spec.STATUSES, completion.status)}"
    elif completion.dw0:
        yield f"-> dw0={completion.dw0:#x}"
