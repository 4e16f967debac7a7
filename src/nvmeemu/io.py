"""The NVM commands: one function each, and the table that runs and advertises them. Base 1.4, 6.

Reads and writes go straight between the backend and guest memory where the backend can do that without waiting.
Otherwise a worker works on private memory: the guest's may be unmapped before a slow disk has answered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nvmeemu.backend import Backend
from nvmeemu.commands.features import value
from nvmeemu.controller.request import Background, CommandEntry, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    Command,
    CommandEffect,
    Compare,
    DatasetManagement,
    DsmRange,
    FeatureId,
    Flush,
    NvmOpcode,
    Read,
    ReadWrite,
    Status,
    Verify,
    Write,
    WriteZeroes,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.namespace import flush as flush_all


def read(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.9."""
    controller, command = request.controller, request.command
    namespace, offset, length = _extent(controller, command)
    views = request.places(length)
    controller.health.reads += 1
    controller.health.bytes_read += length
    backend = namespace.backend
    fua = _is_from_media(command, backend)
    if not fua and backend.read_now(offset, views):
        return 0

    def then(buffer: bytearray) -> int:
        request.send(buffer)
        return 0

    work = _reading(backend, offset, length, fua)
    return Background(namespace, work, then, Status.UNRECOVERED_READ_ERROR, size=length, droppable=True)


def _reading(backend: Backend, offset: int, length: int, fua: bool) -> Callable[[], bytearray]:
    """Work that reads; with ``fua`` what is returned has been made durable before (Base 1.4, 6.9)."""

    def work() -> bytearray:
        if fua:
            backend.flush()
        buffer = bytearray(length)
        backend.read(offset, [memoryview(buffer)])
        return buffer

    return work


def write(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.15. With FUA, or with the write cache off, it is durable when it completes."""
    controller, command = request.controller, request.command
    namespace, offset, length = _extent(controller, command)
    namespace.check_writable()
    views = request.given(length)
    controller.health.writes += 1
    controller.health.bytes_written += length
    backend = namespace.backend
    fua = _is_durable(controller, command, backend)
    if not fua and backend.write_now(offset, views):
        return 0
    data = memoryview(b"".join(views))

    def work() -> None:
        backend.write(offset, [data], fua)
        if not fua and _is_durable(controller, command, backend):  # the write cache was switched off meanwhile
            backend.flush()

    return Background(namespace, work, failure=Status.WRITE_FAULT, size=length)


def compare(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.4: the host's data against the disk's."""
    controller, command = request.controller, request.command
    namespace, offset, length = _extent(controller, command)
    request.given(length)  # bad PRPs come before bad media
    controller.health.reads += 1
    controller.health.bytes_read += length
    backend = namespace.backend

    def then(buffer: bytearray) -> int:
        if buffer != request.receive(length):
            raise CommandFailed(Status.COMPARE_FAILURE, lba=command.slba)
        return 0

    work = _reading(backend, offset, length, _is_from_media(command, backend))
    return Background(namespace, work, then, Status.UNRECOVERED_READ_ERROR, size=length, droppable=True)


def verify(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.6: the blocks can be read; nothing is transferred, so MDTS does not bind it (VSL is 0)."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    offset, length = namespace.extent(command.slba, command.nlb)
    controller.health.bytes_read += length
    backend = namespace.backend
    fua = _is_from_media(command, backend)

    def work() -> None:
        if fua:
            backend.flush()
        buffer = memoryview(bytearray(min(length, 1 << 20)))
        for start in range(0, length, len(buffer)):
            backend.read(offset + start, [buffer[: length - start]])

    return Background(namespace, work, failure=Status.UNRECOVERED_READ_ERROR, size=min(length, 1 << 20), droppable=True)


def write_zeroes(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.16. MDTS does not bind it: nothing is transferred."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    offset, length = namespace.extent(command.slba, command.nlb)
    namespace.check_writable()
    backend = namespace.backend
    deac = command.deac

    def work() -> None:
        backend.zero(offset, length, deac)
        if _is_durable(controller, command, backend):
            backend.flush()

    return Background(namespace, work, failure=Status.WRITE_FAULT)


def flush(request: Request[Command]) -> Result:
    """Base 1.4, 6.8. NSID FFFFFFFFh: every namespace (Identify Controller, VWC bits 2:1)."""
    controller, command = request.controller, request.command
    namespaces = controller.namespaces.addressed(command.nsid)
    backends = [namespace.backend for namespace in namespaces]
    if not any(backend.volatile_cache for backend in backends):
        return 0
    disk = namespaces[0] if len(namespaces) == 1 else None
    return Background(disk, partial(flush_all, backends), failure=Status.WRITE_FAULT)


def dataset_management(request: Request[DatasetManagement]) -> Result:
    """Base 1.4, 6.7. Every range is checked before anything is deallocated; hints are read and ignored. With the write
    cache off, a range that reads as zeros when it completes does so after a power cut, too."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    data = request.receive(command.nr * DsmRange.SIZE)
    starts = range(0, len(data), DsmRange.SIZE)
    ranges = [DsmRange(data[start : start + DsmRange.SIZE]) for start in starts]
    extents = [namespace.extent(one.slba, one.length) for one in ranges]
    if not command.ad:
        return 0
    namespace.check_writable()
    backend = namespace.backend

    def work() -> None:
        for offset, length in extents:
            if length:
                backend.deallocate(offset, length)
        if _writes_through(controller, backend):
            backend.flush()

    return Background(namespace, work, failure=Status.WRITE_FAULT, size=_EXTENT * len(extents))


def _extent(controller: ControllerState, command: ReadWrite) -> tuple[Namespace, int, int]:
    """Of a command that transfers its blocks: the namespace, and the extent in bytes."""
    nsid, slba = _fields(command.data)
    namespace = controller.namespaces[nsid]
    offset, length = namespace.extent(slba, command.nlb)
    if length > controller.limits.transfer:
        why = f"{length:#x} bytes, more than MDTS, {controller.limits.transfer:#x}"
        raise CommandFailed(Status.INVALID_FIELD, location=(48, 0), why=why)
    return namespace, offset, length


_EXTENT = 256  # bytes of memory that a pair of numbers takes, more or less
_fields = ReadWrite.unpacker("nsid", "slba")


def _is_from_media(command: ReadWrite, backend: Backend) -> bool:
    """FUA of a command that reads: what only the cache holds has to be made durable first."""
    return command.fua and backend.volatile_cache


def _is_durable(controller: ControllerState, command: ReadWrite, backend: Backend) -> bool:
    return (command.fua and backend.volatile_cache) or _writes_through(controller, backend)


def _writes_through(controller: ControllerState, backend: Backend) -> bool:
    """The write cache is off."""
    return backend.volatile_cache and not value(controller, FeatureId.VOLATILE_WRITE_CACHE) & 1


def _entry(
    kind: type[Command], run: Callable[..., Result], *, changes: bool = False, oncs: int = 0
) -> CommandEntry[Any]:
    return CommandEntry(kind, run, CommandEffect(csupp=True, lbcc=changes), oncs)


COMMANDS: dict[int, CommandEntry[Any]] = {
    NvmOpcode.FLUSH: _entry(Flush, flush),
    NvmOpcode.WRITE: _entry(Write, write, changes=True),
    NvmOpcode.READ: _entry(Read, read),
    NvmOpcode.COMPARE: _entry(Compare, compare, oncs=1 << 0),
    NvmOpcode.VERIFY: _entry(Verify, verify, oncs=1 << 7),
    NvmOpcode.WRITE_ZEROES: _entry(WriteZeroes, write_zeroes, changes=True, oncs=1 << 3),
    NvmOpcode.DATASET_MANAGEMENT: _entry(DatasetManagement, dataset_management, changes=True, oncs=1 << 2),
}
"""Opcode -> how it is run and what is said of it: ONCS and the Commands Supported and Effects log come from here."""
