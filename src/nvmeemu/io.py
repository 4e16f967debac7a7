"""The NVM commands: one function each, and the table that runs and advertises them. Base 1.4, 6.

Reads and writes go straight between the medium and guest memory where the medium can do that without waiting.
Otherwise it works on private memory: the guest's may be unmapped before a slow disk has answered.
"""

from __future__ import annotations

from nvmeemu.commands import metadata
from nvmeemu.commands.blocks import (
    changing,
    is_durable,
    is_from_media,
    refuses_deallocated,
    too_long,
    writes_through,
)
from nvmeemu.commands.copy import copy, has_copy
from nvmeemu.commands.directives import DIRECTED, note_write
from nvmeemu.commands.features import flushed
from nvmeemu.controller.request import CommandEntry, CommandSet, Pending, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    Command,
    Compare,
    Copy,
    Csi,
    DatasetManagement,
    DsmRange,
    Flush,
    Oncs,
    Read,
    ReadWrite,
    Status,
    Verify,
    Write,
    WriteUncorrectable,
    WriteZeroes,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.media import (
    Blocks,
    DeallocateBlocks,
    MakeUncorrectable,
    ReadBlocks,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.namespace import Namespace


def read(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.9."""
    command, health = request.command, request.controller.subsystem.health
    namespace, slba, length = _extent(request)
    if namespace.has_metadata:
        return metadata.read(request)
    media = request.media(namespace)
    views = request.places(length)
    health.reads += 1
    health.bytes_read += length
    from_media = is_from_media(command, media)
    if not from_media and media.read_now(slba, views):
        return 0

    def then(blocks: Blocks) -> int:
        request.send(blocks.data)
        return 0

    return Pending(media, ReadBlocks(slba, command.nlb, from_media, refuses_deallocated(request, namespace)), then)


def write(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.15. With FUA, or with the write cache off, it is durable when it completes."""
    health = request.controller.subsystem.health
    namespace, slba, length = _extent(request)
    if namespace.has_metadata:
        return metadata.write(request)
    namespace.check_writable()
    media = request.media(namespace)
    views = request.given(length)
    if request.command.data[DIRECTED] & 0xF0:
        note_write(request)
    health.writes += 1
    health.bytes_written += length
    durable = is_durable(request, media)
    if not durable and media.write_now(slba, views):
        return 0
    data = memoryview(b"".join(views))
    return changing(request, media, WriteBlocks(slba, data, is_durable=durable))


def compare(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.4: the host's data against the medium's."""
    command, health = request.command, request.controller.subsystem.health
    namespace, slba, length = _extent(request)
    if namespace.has_metadata:
        return metadata.compare(request)
    media = request.media(namespace)
    request.given(length)  # bad PRPs come before bad media
    health.reads += 1
    health.bytes_read += length

    def then(blocks: Blocks) -> int:
        if blocks.data != request.receive(length):
            raise CommandFailed(Status.COMPARE_FAILURE, lba=slba)
        return 0

    reading = ReadBlocks(slba, command.nlb, is_from_media(command, media), refuses_deallocated(request, namespace))
    return Pending(media, reading, then)


def verify(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.6: the blocks can be read; nothing is transferred, so MDTS does not bind it (VSL is 0)."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    if namespace.has_metadata:
        return metadata.verify(request)
    length = namespace.length(command.slba, command.nlb)
    media = request.media(namespace)
    controller.subsystem.health.bytes_read += length
    refuses = refuses_deallocated(request, namespace)
    return Pending(media, VerifyBlocks(command.slba, command.nlb, is_from_media(command, media), refuses))


def write_uncorrectable(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.7. Nothing is transferred, so MDTS does not bind it. What the blocks are now is durable when it
    completes, like what a Flush makes so."""
    command = request.command
    namespace = request.controller.namespaces[command.nsid]
    namespace.length(command.slba, command.nlb)
    namespace.check_writable()
    if not namespace.can_be_uncorrectable:
        why = "nothing remembers which blocks of this namespace are uncorrectable (block_map)"
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0), why=why)
    if namespace.media.block_map is None:
        request.controller.subsystem.pair(namespace)
    media = request.media(namespace)

    def then(_: None) -> int:
        request.controller.subsystem.lba_status_changed(namespace.nsid)
        return 0

    return Pending(media, MakeUncorrectable(command.slba, command.nlb), then)


def _can_be_uncorrectable(controller: ControllerState) -> bool:
    return any(namespace.can_be_uncorrectable for namespace in controller.namespaces)


def write_zeroes(request: Request[ReadWrite]) -> Result:
    """Base 1.4, 6.16. MDTS does not bind it: nothing is transferred."""
    command = request.command
    namespace = request.controller.namespaces[command.nsid]
    if namespace.has_metadata:
        return metadata.write_zeroes(request)
    namespace.length(command.slba, command.nlb)
    namespace.check_writable()
    media = request.media(namespace)
    return changing(request, media, ZeroBlocks(command.slba, command.nlb, command.deac, is_durable(request, media)))


def flush(request: Request[Command]) -> Result:
    """Base 1.4, 6.8. NSID FFFFFFFFh: every namespace (Identify Controller, VWC bits 2:1)."""
    namespaces = request.controller.namespaces.addressed(request.command.nsid)
    media = [request.media(namespace) for namespace in namespaces]
    if not any(one.volatile_cache for one in media):
        return 0
    return flushed(media)


def dataset_management(request: Request[DatasetManagement]) -> Result:
    """Base 1.4, 6.7. Every range is checked before any is deallocated; hints are read and ignored. With the write
    cache off, a range that reads as zeros at completion does so after a power cut, too."""
    command = request.command
    namespace = request.controller.namespaces[command.nsid]
    media = request.media(namespace)
    data = request.receive(command.nr * DsmRange.SIZE)
    starts = range(0, len(data), DsmRange.SIZE)
    ranges = [DsmRange(data[start : start + DsmRange.SIZE]) for start in starts]
    for one in ranges:
        namespace.length(one.slba, one.length)
    if not command.ad:
        return 0
    namespace.check_writable()
    extents = [(one.slba, one.length) for one in ranges if one.length]
    return changing(request, media, DeallocateBlocks(extents, writes_through(request, media)))


def _extent(request: Request[ReadWrite]) -> tuple[Namespace, int, int]:
    """Of a command that transfers its blocks: the namespace, the first block, and bytes of data."""
    controller, command = request.controller, request.command
    nsid, slba = _fields(command.data)
    namespace = controller.namespaces[nsid]
    length = namespace.length(slba, command.nlb)
    if length > controller.limits.transfer:
        raise too_long(request, length)
    return namespace, slba, length


_fields = ReadWrite.unpacker("nsid", "slba")


COMMANDS = CommandSet(
    CommandEntry(Flush, flush),
    CommandEntry(Write, write),
    CommandEntry(Read, read),
    CommandEntry(
        WriteUncorrectable, write_uncorrectable, oncs=Oncs.WRITE_UNCORRECTABLE, is_offered=_can_be_uncorrectable
    ),
    CommandEntry(Compare, compare, oncs=Oncs.COMPARE),
    CommandEntry(Verify, verify, oncs=Oncs.VERIFY),
    CommandEntry(WriteZeroes, write_zeroes, oncs=Oncs.WRITE_ZEROES),
    CommandEntry(DatasetManagement, dataset_management, oncs=Oncs.DATASET_MANAGEMENT),
    CommandEntry(Copy, copy, oncs=Oncs.COPY, is_offered=has_copy),
    csi=Csi.NVM,
)
"""How each command is run, and what is said of it: ONCS and the Commands Supported and Effects log come from here."""
