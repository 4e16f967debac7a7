"""Read, Write, Compare, Verify and Write Zeroes of blocks with metadata. NVM 1.0, 5.2 and 5.3.

Metadata lie behind the data of each block in the same buffer (extended), or in a buffer of their own. Their protection
information is made and checked here, above the medium: what a medium has changed meanwhile is found.
"""

from __future__ import annotations

from functools import partial

from nvmeemu.commands.blocks import changing, check_transfer, is_durable, is_from_media, refuses_deallocated
from nvmeemu.commands.directives import note_write
from nvmeemu.commands.spans import PRINFO, GivenTags, Span, check, initial_tag, span_of
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.controller.transfer import scatter
from nvmeemu.spec import ReadWrite, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.media import (
    VERIFIED_AT_ONCE,
    Blocks,
    Media,
    ReadBlocks,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.protection import Checks


def _range(request: Request[ReadWrite]) -> Span:
    """Raises CommandFailed for a range or checks that cannot be."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    tags = GivenTags(initial_tag(command), command.lbat, command.lbatm)
    return span_of(controller, namespace, (command.slba, command.nlb), command.prinfo, command.stc, tags)


def read(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.4."""
    health = request.controller.subsystem.health
    span = _range(request)
    check_transfer(request, span.transferred)
    media = request.media(span.namespace)
    request.places(span.transferred)  # a bad pointer comes before a bad medium
    if span.is_apart:
        request.metadata_places(span.metadata_size)
    health.reads += 1
    health.bytes_read += span.data_size

    def then(blocks: Blocks) -> int:
        check(request, span, blocks)
        if span.is_stripped or span.is_apart:
            request.send(blocks.data)
        else:
            request.send(protection.interleave(span.format, blocks.data, blocks.metadata))
        if span.is_apart:
            scatter(request.metadata_places(span.metadata_size), blocks.metadata)
        return 0

    return Pending(media, _reading(request, span, media), then)


def _reading(request: Request[ReadWrite], span: Span, media: Media) -> ReadBlocks:
    from_media = is_from_media(request.command, media)
    return ReadBlocks(span.slba, span.blocks, from_media, refuses_deallocated(request, span.namespace))


def write(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.6. All blocks are checked before any is written."""
    health = request.controller.subsystem.health
    span = _range(request)
    check_transfer(request, span.transferred)
    span.namespace.check_writable()
    media = request.media(span.namespace)
    data, metadata = _given(request, span)
    note_write(request)
    health.writes += 1
    health.bytes_written += span.data_size
    if span.protection is not None and span.pract:
        protection.generate(span.format, data, metadata, span.tags)
    else:
        check(request, span, Blocks(data, metadata))
    operation = WriteBlocks(span.slba, memoryview(data), memoryview(metadata), is_durable(request, media))
    return changing(request, media, operation)


def _given(request: Request[ReadWrite], span: Span) -> tuple[bytes | bytearray, bytearray]:
    """The data and metadata that the host gives."""
    data = request.receive(span.transferred)
    if span.is_stripped:
        return data, bytearray(span.metadata_size)
    if span.is_apart:
        return data, bytearray(b"".join(request.metadata_given(span.metadata_size)))
    return protection.split(span.format, data)


def compare(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.1: data and metadata of the host against the medium's, but for the protection information, which is
    checked on both sides."""
    health = request.controller.subsystem.health
    span = _range(request)
    _refuse_action(span)
    check_transfer(request, span.transferred)
    media = request.media(span.namespace)
    request.given(span.transferred)  # a bad pointer comes before a bad medium
    if span.is_apart:
        request.metadata_given(span.metadata_size)
    health.reads += 1
    health.bytes_read += span.data_size

    def then(blocks: Blocks) -> int:
        check(request, span, blocks)
        given = Blocks(*_given(request, span))
        check(request, span, given)
        theirs, ours = (_without_protection(span, one.metadata) for one in (given, blocks))
        if given.data != blocks.data or theirs != ours:
            raise CommandFailed(Status.COMPARE_FAILURE, lba=span.slba)
        return 0

    return Pending(media, _reading(request, span, media), then)


def _without_protection(span: Span, metadata: bytes | bytearray) -> bytes | bytearray:
    if span.protection is None:
        return metadata
    size, start = span.format.metadata_size, span.format.protection_offset
    blank, found = bytes(span.protection.size), bytearray(metadata)
    for at in range(start, len(found), size):
        found[at : at + len(blank)] = blank
    return found


def verify(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.5: the blocks can be read, and pass the checks. Nothing is transferred, so MDTS does not bind it."""
    span = _range(request)
    _refuse_action(span)
    media = request.media(span.namespace)
    request.controller.subsystem.health.bytes_read += span.data_size
    from_media, refuses = is_from_media(request.command, media), refuses_deallocated(request, span.namespace)
    if not span.checks.bits:
        return Pending(media, VerifyBlocks(span.slba, span.blocks, from_media, refuses))
    most = max(1, VERIFIED_AT_ONCE // span.format.block_size)

    def go_on(first: int) -> Result:
        if first == span.blocks:
            return 0
        number = min(most, span.blocks - first)
        reading = ReadBlocks(span.slba + first, number, from_media, refuses)
        return Pending(media, reading, partial(checked, first, number))

    def checked(first: int, number: int, blocks: Blocks) -> Result:
        check(request, span, blocks, first)
        return go_on(first + number)

    return go_on(0)


def write_zeroes(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.8. With PRACT the blocks have protection information with the tags of the command; without it all
    of their metadata is zeros."""
    command = request.command
    span = _range(request)
    if span.checks.bits & ~Checks(storage=True).bits:
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=PRINFO, lba=span.slba)
    span.namespace.check_writable()
    media = request.media(span.namespace)
    metadata = bytearray()
    if span.protection is not None and span.pract:
        metadata = protection.generate_for_zeros(span.format, span.blocks, span.tags)
    durable = is_durable(request, media)
    return changing(request, media, ZeroBlocks(span.slba, span.blocks, command.deac, durable, memoryview(metadata)))


def _refuse_action(span: Span) -> None:
    if span.pract:
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=(51, 5), lba=span.slba)
