"""Records in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nvmeemu import spec
from nvmeemu.spec.words import (
    command,
    command_of,
    completion,
    duration,
    entry,
    named,
    opcode,
    pointers,
    register,
    size,
    status,
    words,
)
from nvmeemu.text import plain
from nvmeemu.trace import records as kinds
from nvmeemu.trace.records import Record

__all__ = [
    "command",
    "command_of",
    "completion",
    "describe",
    "duration",
    "injection",
    "injections",
    "opcode",
    "pointers",
    "register",
    "size",
    "status",
    "words",
]  # of records, and of what is in them: a reader of traces needs both

_Line = tuple[str, str]  # where, what


def describe(record: Record, *, is_whole: bool = False) -> _Line:
    """Where (``SQ 1``, ``BAR0``, ...) and what; with all that is known of it if ``is_whole``."""
    if is_whole and isinstance(record, kinds.Fetch):
        return _fetch(record, True)
    if is_whole and isinstance(record, kinds.Prp | kinds.Sgl):
        return _list(record, True)
    return _DESCRIBE[type(record)](record)


def _doorbell(one: kinds.Doorbell) -> _Line:
    name = "head" if one.is_cq else "tail"
    return f"{'CQ' if one.is_cq else 'SQ'} {one.qid}", f"{'shadow ' if one.is_shadow else ''}{name} {one.value}"


def _fetch(one: kinds.Fetch, is_whole: bool = False) -> _Line:
    return f"SQ {one.sqid}", entry(one.sqid, one.sqe, is_whole=is_whole)


def _list(one: kinds.Prp | kinds.Sgl, is_whole: bool = False) -> _Line:
    runs = len(one.runs)
    places = (("bit bucket" if iova is None else f"{iova:#x}", size(length)) for iova, length in one.runs)
    listed = ", ".join(" ".join(place) for place in places)
    kind = "PRP list" if isinstance(one, kinds.Prp) else "SGL of metadata" if one.of_metadata else "SGL"
    said = f"{kind}: {size(one.length)} in {runs} run{'s' * (runs != 1)}{f': {listed}' * is_whole}"
    return f"SQ {one.sqid}", f"#{one.cid:04x} {said}"


def _digest(one: kinds.Digest | kinds.MetadataDigest) -> _Line:
    way = "to the host" if one.to_host else "to the controller"
    what = " of metadata" * isinstance(one, kinds.MetadataDigest)
    return f"SQ {one.sqid}", f"#{one.cid:04x} {size(one.length)}{what} {way}, crc {one.crc:08x}"


def _data(one: kinds.Data) -> _Line:
    way = "to the host" if one.to_host else "to the controller"
    shown = one.data[:16].hex(" ") + (" ..." if len(one.data) > 16 else "")
    return f"SQ {one.sqid}", f"#{one.cid:04x} data {way} from {one.offset} on, {size(len(one.data))}: {shown}"


def _completion(one: kinds.Completion) -> _Line:
    return f"CQ {one.cqid}", f"#{one.cid:04x} {completion(one.completion)}"


def _interrupt(one: kinds.Interrupt) -> _Line:
    if one.signal == kinds.Signal.MSIX:
        return "IRQ", f"vector {one.vector}"
    return "IRQ", f"pin {'asserted' if one.signal == kinds.Signal.PIN_UP else 'deasserted'}"


def _map(one: kinds.DmaMap) -> _Line:
    return "DMA", f"map {one.iova:#x}, {size(one.size)}{'' if one.writable else ', read-only'}"


def _event(one: kinds.AsyncEvent) -> _Line:
    names = spec.EVENT_INFORMATION.get(one.type)
    kind = f"type {one.type}" if names is None else words(spec.EventType(one.type))
    known = None if names is None else names.get(one.info)
    info = f"information {one.info:#x}" if known is None else words(known)
    return "event", f"{kind}, {info}, log {named('lid', one.log, spec.LOG_NAMES)}"


def injection(one: kinds.Injection) -> str:
    """``fault 1 "a bad block": status=write_fault at execute``, for behind what it was done to."""
    name = f' "{plain(one.name)}"' if one.name else ""
    return f"fault {one.fault}{name}: {plain(one.action)} at {plain(one.at)}"


def injections(some: Iterable[kinds.Injection]) -> str:
    """The faults that have fired at a command, for the end of its line: `` [fault 1: lose at backend]``, or nothing."""
    return "".join(f" [{injection(one)}]" for one in some)


def _pci(one: kinds.PciChange) -> _Line:
    parts = ["function level reset"] * one.function_level_reset
    parts += [f"bus master {_switch(one.bus_master)}", f"memory space {_switch(one.memory_space)}"]
    parts.append("D3hot" if one.power_state == 3 else f"D{one.power_state}")
    parts += ["INTx disabled"] * one.interrupt_disable + ["MSI-X masked"] * one.function_mask
    return "PCI", ", ".join(parts)


def _switch(is_on: bool) -> str:
    return "on" if is_on else "off"


_DESCRIBE: dict[Any, Callable[[Any], _Line]] = {
    kinds.RegisterRead: lambda one: ("BAR0", f"read {register(one.offset, one.data)}"),
    kinds.RegisterWrite: lambda one: ("BAR0", f"write {register(one.offset, one.data)}"),
    kinds.Doorbell: _doorbell,
    kinds.Fetch: _fetch,
    kinds.Prp: _list,
    kinds.Sgl: _list,
    kinds.MetadataDigest: _digest,
    kinds.Digest: _digest,
    kinds.Data: _data,
    kinds.Completion: _completion,
    kinds.Interrupt: _interrupt,
    kinds.InterruptMode: lambda one: ("IRQ", f"MSI-X {'enabled' if one.msix else 'disabled'}"),
    kinds.DmaMap: _map,
    kinds.DmaUnmap: lambda one: ("DMA", f"unmap {one.iova:#x}"),
    kinds.Reset: lambda one: ("reset", "the function is reset"),
    kinds.ClientAttached: lambda one: ("client", f"attached: {plain(one.name)}"),
    kinds.ClientLeft: lambda one: ("client", "left"),
    kinds.AsyncEvent: _event,
    kinds.Note: lambda one: ("note", plain(one.text)),
    kinds.Lost: lambda one: ("note", f"{one.records} records are missing here"),
    kinds.PciChange: _pci,
    kinds.Injection: lambda one: ("fault", f"{injection(one).removeprefix('fault ')}: {plain(one.subject)}"),
    kinds.Unknown: lambda one: ("?", f"a record of kind {one.kind}, which this version does not know"),
}
