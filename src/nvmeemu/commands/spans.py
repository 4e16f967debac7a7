"""Ranges of blocks of commands, and how their protection information is treated. NVM 1.0, 5.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from nvmeemu.commands.features import knows_extended_formats
from nvmeemu.controller.media_status import STATUS_OF
from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import Command, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import Blocks
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.protection import Checks, ProtectionError, Tags

PRINFO = (51, 2)


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks of a command, and how their protection information is treated. Where there is none, the fields of the
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


class GivenTags(NamedTuple):
    """The tags of the first block as a command has them; ``initial``: the storage tag above the reference tag."""

    initial: int
    application: int
    mask: int


def initial_tag(command: Command) -> int:
    """The storage tag above the reference tag, in as many bits as a command has for them."""
    return command.cdw2 << 64 | command.cdw3 << 32 | command.cdw14


def span_of(
    controller: ControllerState,
    namespace: Namespace,
    blocks: tuple[int, int],
    prinfo: int,
    stc: bool,
    given: GivenTags,
) -> Span:
    """``blocks``: the first one, and how many. Raises CommandFailed for a range or checks that cannot be."""
    if namespace.needs_extension and not knows_extended_formats(controller):
        why = "its format is an extended one, and the host has not said that it knows these (LBAFEE)"
        raise CommandFailed(Status.INVALID_NAMESPACE, location=(4, 0), why=why)
    slba, number = blocks
    namespace.length(slba, number)
    protected = namespace.format.protection
    if protected is None:
        return Span(namespace, slba, number, namespace.format, Tags(), Checks(), False)
    tags = protection.tags_of(protected, given.initial, given.application, given.mask)
    checks = Checks(bool(prinfo & 4), bool(prinfo & 2), bool(prinfo & 1), stc)
    if checks.reference and not protection.has_valid_reference(protected, tags, slba):
        raise CommandFailed(Status.INVALID_PROTECTION_INFORMATION, location=PRINFO, lba=slba)
    return Span(namespace, slba, number, namespace.format, tags, checks, bool(prinfo & 8))


def check(request: Request[Any], span: Span, blocks: Blocks, first: int = 0) -> None:
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
