"""Copy: blocks of several ranges go, one range after the other, to one range. NVM 1.0, 3.2.2; with ranges of other
namespaces: NVM 1.1.

All that can be checked is checked before the first block is copied. Then pieces are read and written in turn, so that
neither a large copy nor many of them hold much memory, and a reset or an Abort ends a copy after a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from nvmeemu.commands.blocks import changing, is_durable, refuses_deallocated
from nvmeemu.commands.features import copy_formats
from nvmeemu.commands.spans import GivenTags, Span, check, initial_tag, span_of
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import Copy, CopyRange, LongCopyRange, Ocfs, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Guard
from nvmeemu.subsystem.media import Blocks, Media, ReadBlocks, WriteBlocks
from nvmeemu.subsystem.namespace import Namespace

MOST_RANGES = 128  # MSRC
_MOST = 64 << 20  # bytes of data of one command
_AT_ONCE = 1 << 20  # bytes
_OF_NAMESPACES = Ocfs.FORMAT_2 | Ocfs.FORMAT_3
_OF_LONG_GUARDS = Ocfs.FORMAT_1 | Ocfs.FORMAT_3
_DESFMT, _NR = (49, 0), (48, 0)


class CopyLimits(NamedTuple):
    """Blocks that one range (MSSRL) and one command (MCL) can have."""

    of_range: int
    of_command: int

    @classmethod
    def of(cls, format: Format) -> CopyLimits:
        """For a namespace of this format. A host divides a large copy, so that no command takes too long."""
        most = _MOST // format.data_size
        return cls(min(most, 0xFFFF), most)


def has_copy(controller: ControllerState) -> bool:
    """Whether there is the command: before Base 2.0 its bits in Identify were reserved."""
    return controller.limits.is_of_base_2


class _Plan(NamedTuple):
    destination: Span
    sources: list[Span]


class _Piece(NamedTuple):
    """Blocks that are read and written at once: those of range number ``range`` from its block ``first`` on go to where
    the block ``at`` of the destination is."""

    range: int
    first: int
    blocks: int
    at: int


def copy(request: Request[Copy]) -> Result:
    """NVM 1.0, 3.2.2. DW0 of a failure is the number of the first range that is not copied as a whole."""
    if not has_copy(request.controller):
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))
    plan = _plan(request)
    namespaces = {one.namespace.nsid: one.namespace for one in (plan.destination, *plan.sources)}
    for namespace in namespaces.values():
        request.media(namespace)
    health = request.controller.subsystem.health
    health.bytes_read += plan.destination.data_size
    health.bytes_written += plan.destination.data_size
    return _go_on(request, plan, _pieces(plan))


# --- what is to be copied


def _plan(request: Request[Copy]) -> _Plan:
    """Raises CommandFailed for a copy that cannot be."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    if command.desfmt > 3 or not (chosen := Ocfs(1 << command.desfmt)) & copy_formats(controller):
        raise CommandFailed(Status.INVALID_FIELD, location=_DESFMT)
    ranges = _ranges(request, namespace, is_long=bool(chosen & _OF_LONG_GUARDS))
    number = sum(one.nlb for one in ranges)
    given = GivenTags(initial_tag(command), command.lbat, command.lbatm)
    destination = span_of(controller, namespace, (command.sdlba, number), command.prinfow, command.stcw, given)
    namespace.check_writable()
    sources = []
    for index, one in enumerate(ranges):
        try:
            sources.append(_source(request, one, names_namespace=bool(chosen & _OF_NAMESPACES)))
            _check_source(sources[-1], destination, one, chosen)
        except CommandFailed as failure:
            why = f"range {index}: {failure.why or failure.status.name}"
            raise CommandFailed(failure.status, location=failure.location, lba=failure.lba, why=why) from None
    return _Plan(destination, sources)


def _ranges(request: Request[Copy], namespace: Namespace, *, is_long: bool) -> list[CopyRange | LongCopyRange]:
    """The ranges that the host gives. Raises CommandFailed for more than the limits of the destination's namespace."""
    number, kind = request.command.nr, LongCopyRange if is_long else CopyRange
    if number > MOST_RANGES:
        raise CommandFailed(Status.COMMAND_SIZE_LIMIT_EXCEEDED, location=_NR, why=f"{number} of {MOST_RANGES} ranges")
    data = request.receive(number * kind.SIZE)
    ranges = [kind(data[start : start + kind.SIZE]) for start in range(0, len(data), kind.SIZE)]
    limits = CopyLimits.of(namespace.format)
    if any(one.nlb > limits.of_range for one in ranges) or sum(one.nlb for one in ranges) > limits.of_command:
        raise CommandFailed(Status.COMMAND_SIZE_LIMIT_EXCEEDED, why="more blocks than MSSRL or MCL")
    return ranges


def _source(request: Request[Copy], one: CopyRange | LongCopyRange, *, names_namespace: bool) -> Span:
    controller, command = request.controller, request.command
    tag = int.from_bytes(one.elbt, "big") if isinstance(one, LongCopyRange) else one.elbt
    tags = GivenTags(tag, one.elbat, one.elbatm)
    try:
        namespace = controller.namespaces[one.snsid if names_namespace else command.nsid]
        return span_of(controller, namespace, (one.slba, one.nlb), command.prinfor, command.stcr, tags)
    except CommandFailed as failure:  # it is not the command's own field that is wrong
        raise CommandFailed(failure.status, lba=failure.lba, why=failure.why) from None


def _check_source(source: Span, destination: Span, one: CopyRange | LongCopyRange, chosen: Ocfs) -> None:
    """Raises CommandFailed for a range that cannot be copied there."""
    protected = [span.protection for span in (source, destination) if span.protection is not None]
    of_long_guards = [protection.guard is not Guard.CRC16 for protection in protected] or [False]
    if any(is_long != bool(chosen & _OF_LONG_GUARDS) for is_long in of_long_guards):
        why = "the descriptor format is not for the guards of these namespaces"
        raise CommandFailed(Status.INVALID_FORMAT, location=_DESFMT, why=why)
    _check_compatible(source, destination)
    if not chosen & _OF_NAMESPACES:
        return
    if one.fco:
        raise CommandFailed(Status.FAST_COPY_NOT_POSSIBLE)
    begins_before = source.slba < destination.slba + destination.blocks
    ends_behind = destination.slba < source.slba + source.blocks
    if source.namespace is destination.namespace and begins_before and ends_behind:
        raise CommandFailed(Status.OVERLAPPING_IO_RANGE, lba=source.slba)


def _check_compatible(source: Span, destination: Span) -> None:
    """Data and metadata of one can become those of the other: metadata as they are, but for protection information
    that one of them does not have, or that is made anew."""
    theirs, ours = source.protection, destination.protection
    if theirs is not None and ours is not None:
        is_same = theirs == ours and source.format.metadata_size == destination.format.metadata_size
        if is_same and source.pract != destination.pract:
            why = "PRACT of what is read and of what is written differ, and the formats do not"
            raise CommandFailed(Status.INVALID_FIELD, location=(51, 5), why=why)
        is_right = is_same or (source.is_stripped and destination.is_stripped)
    else:
        is_right = (theirs is None or source.pract) and (ours is None or destination.pract)
    is_right &= source.format.data_size == destination.format.data_size
    if not is_right or _carried(source) != _carried(destination):
        raise CommandFailed(Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT)


def _carried(span: Span) -> int:
    """Bytes of metadata of a block that go from one namespace to the other."""
    return 0 if span.is_stripped else span.format.metadata_size


# --- how it is copied


def _pieces(plan: _Plan) -> Iterator[_Piece]:
    """Of one range after the other. A range that overlaps with where it goes is copied as if it was read as a whole
    before the first of its blocks is written."""
    at = 0
    for index, source in enumerate(plan.sources):
        most = max(1, _AT_ONCE // source.format.block_size)
        starts = range(0, source.blocks, most)
        to = plan.destination.slba + at
        is_same = source.namespace is plan.destination.namespace
        if is_same and source.slba < to < source.slba + source.blocks:
            starts = starts[::-1]
        for first in starts:
            yield _Piece(index, first, min(most, source.blocks - first), at + first)
        at += source.blocks


def _go_on(request: Request[Copy], plan: _Plan, pieces: Iterator[_Piece]) -> Result:
    """Copy the next piece."""
    piece = next(pieces, None)
    if piece is None:
        return 0
    request.dw0_if_failed = piece.range
    source = plan.sources[piece.range]
    media = _media(request, source)
    refuses = refuses_deallocated(request, source.namespace)
    reading = ReadBlocks(source.slba + piece.first, piece.blocks, refuses_deallocated=refuses)
    return Pending(media, reading, partial(_write, request, plan, pieces, piece))


def _write(request: Request[Copy], plan: _Plan, pieces: Iterator[_Piece], piece: _Piece, blocks: Blocks) -> Result:
    source, destination = plan.sources[piece.range], plan.destination
    check(request, source, blocks, piece.first)
    metadata = _metadata(request, source, destination, piece, blocks)
    media = _media(request, destination)
    destination.namespace.check_writable()
    slba, is_fua = destination.slba + piece.at, is_durable(request, media)
    operation = WriteBlocks(slba, memoryview(blocks.data), memoryview(metadata), is_fua)
    return changing(request, media, operation, lambda: _go_on(request, plan, pieces))


def _metadata(
    request: Request[Copy], source: Span, destination: Span, piece: _Piece, blocks: Blocks
) -> bytes | bytearray:
    """The metadata that are written. Raises CommandFailed if they fail the checks of what is written."""
    size, protected = destination.format.metadata_size, destination.protection
    if protected is None:
        return blocks.metadata if size else b""
    if not destination.pract:
        check(request, destination, blocks, piece.at)
        return blocks.metadata
    metadata = bytearray(piece.blocks * size) if destination.is_stripped else bytearray(blocks.metadata)
    tags = protection.advanced(protected, destination.tags, piece.at)
    protection.generate(destination.format, blocks.data, metadata, tags)
    return metadata


def _media(request: Request[Copy], span: Span) -> Media:
    """The medium of a namespace that is as it was when the command began. Raises CommandFailed if it is not."""
    namespace = request.controller.namespaces[span.namespace.nsid]
    if namespace is not span.namespace or namespace.format != span.format:
        raise CommandFailed(Status.INVALID_FIELD, why=f"namespace {namespace.nsid} is another one now")
    namespace.length(span.slba, span.blocks)
    return request.media_at_once(namespace)
