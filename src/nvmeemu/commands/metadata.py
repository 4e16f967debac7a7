"""Read, Write, Compare, Verify and Write Zeroes of blocks with metadata. NVM 1.0, 5.2 and 5.3.

Metadata lie behind the data of each block in the same buffer (extended), or in a buffer of their own. Their protection
information is made and checked here, above the medium: what a medium has changed meanwhile is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nvmeemu.commands.blocks import changing, check_transfer, is_durable, is_from_media, refuses_deallocated
from nvmeemu.commands.features import knows_extended_formats
from nvmeemu.controller.media_status import STATUS_OF
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.controller.transfer import scatter
from nvmeemu.spec import ReadWrite, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import (
    VERIFIED_AT_ONCE,
    Blocks,
    Media,
    ReadBlocks,
    VerifyBlocks,
    WriteBlocks,
    ZeroBlocks,
)
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.protection import Checks, ProtectionError, Tags

_PRINFO = (51, 2)


@dataclass(frozen=True, slots=True)
class _Range:
    """The blocks of a command, and how their protection information is treated. Where there is none, the fields of the
    command for it count for nothing: there are no checks, and no ``pract``."""

    namespace: Namespace
    slba: int
    blocks: int
    format: Format
    tags: Tags
    checks: Checks
    pract: bool

    @property
    def protection(self) -> Protection | None:
        """Of each block."""
        return self.format.protection

    @property
    def is_stripped(self) -> bool:
        """The host neither gives nor gets metadata: they are protection information alone, and the controller's."""
        return self.pract and self.protection is not None and self.format.metadata_size == self.protection.size

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return self.blocks * self.format.data_size

    @property
    def metadata_size(self) -> int:
        """Bytes of metadata."""
        return self.blocks * self.format.metadata_size

    @property
    def transferred(self) -> int:
        """Bytes in the buffer of the data."""
        is_together = self.format.is_extended and not self.is_stripped
        return self.data_size + (self.metadata_size if is_together else 0)

    @property
    def is_apart(self) -> bool:
        """The metadata are transferred in a buffer of their own."""
        return not self.format.is_extended and not self.is_stripped


def _range(request: Request[ReadWrite]) -> _Range:
    """Raises CommandFailed for a range or checks that cannot be."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    if namespace.needs_extension and not knows_extended_formats(controller):
        why = "its format is an extended one, and the host has not said that it knows these (LBAFEE)"
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0), why=why)
    namespace.length(command.slba, command.nlb)
    protected = namespace.format.protection
    if protected is None:
        return _Range(namespace, command.slba, command.nlb, namespace.format, Tags(), Checks(), False)
    value = command.cdw2 << 64 | command.cdw3 << 32 | command.cdw14
    tags = protection.tags_of(protected, value, command.lbat, command.lbatm)
    checks = Checks(command.check_guard, command.check_application, command.check_reference, command.stc)
    if checks.reference and not protection.has_valid_reference(protected, tags, command.slba):
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=_PRINFO, lba=command.slba)
    return _Range(namespace, command.slba, command.nlb, namespace.format, tags, checks, command.pract)


def _check(request: Request[ReadWrite], span: _Range, blocks: Blocks, first: int = 0) -> None:
    """Check the protection information of blocks, from the one with the number ``first`` of the command on. Raises
    CommandFailed for the first block that fails."""
    if span.protection is None or not span.checks.bits:
        return
    tags = span.tags if not first else protection.advanced(span.protection, span.tags, first)
    try:
        protection.check(span.format, blocks.data, blocks.metadata, tags, span.checks)
    except ProtectionError as error:
        request.controller.subsystem.health.media_errors += 1
        raise CommandFailed(STATUS_OF[error.kind], lba=span.slba + first + error.block) from None


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
        _check(request, span, blocks)
        if span.is_stripped or span.is_apart:
            request.send(blocks.data)
        else:
            request.send(protection.interleave(span.format, blocks.data, blocks.metadata))
        if span.is_apart:
            scatter(request.metadata_places(span.metadata_size), blocks.metadata)
        return 0

    return Pending(media, _reading(request, span, media), then)


def _reading(request: Request[ReadWrite], span: _Range, media: Media) -> ReadBlocks:
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
    health.writes += 1
    health.bytes_written += span.data_size
    if span.protection is not None and span.pract:
        protection.generate(span.format, data, metadata, span.tags)
    else:
        _check(request, span, Blocks(data, metadata))
    operation = WriteBlocks(span.slba, memoryview(data), memoryview(metadata), is_durable(request, media))
    return changing(request, media, operation)


def _given(request: Request[ReadWrite], span: _Range) -> tuple[bytes | bytearray, bytearray]:
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
        _check(request, span, blocks)
        given = Blocks(*_given(request, span))
        _check(request, span, given)
        theirs, ours = (_without_protection(span, one.metadata) for one in (given, blocks))
        if given.data != blocks.data or theirs != ours:
            raise CommandFailed(Status.COMPARE_FAILURE, lba=span.slba)
        return 0

    return Pending(media, _reading(request, span, media), then)


def _without_protection(span: _Range, metadata: bytes | bytearray) -> bytes | bytearray:
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
        _check(request, span, blocks, first)
        return go_on(first + number)

    return go_on(0)


def write_zeroes(request: Request[ReadWrite]) -> Result:
    """NVM 1.0, 3.2.8. With PRACT the blocks have protection information with the tags of the command; without it all
    of their metadata is zeros."""
    command = request.command
    span = _range(request)
    if span.checks.bits & ~Checks(storage=True).bits:
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=_PRINFO, lba=span.slba)
    span.namespace.check_writable()
    media = request.media(span.namespace)
    metadata = bytearray()
    if span.protection is not None and span.pract:
        metadata = protection.generate_for_zeros(span.format, span.blocks, span.tags)
    durable = is_durable(request, media)
    return changing(request, media, ZeroBlocks(span.slba, span.blocks, command.deac, durable, memoryview(metadata)))


def _refuse_action(span: _Range) -> None:
    if span.pract:
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=(51, 5), lba=span.slba)
