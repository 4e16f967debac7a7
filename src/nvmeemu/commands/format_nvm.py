"""Format NVM: a namespace gets another format, and all that it has is erased. Base 1.4, 5.23."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nvmeemu.commands.features import knows_extended_formats
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import FormatNvm, SecureErase, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import PLAIN_FORMATS, Format, OfferedFormat, Protection
from nvmeemu.subsystem.formatting import AwaitFormatting, Formatting
from nvmeemu.subsystem.namespace import Namespace

log = logging.getLogger(__name__)

_FORMAT, _SES = (40, 0), (41, 1)


class _Told(set[int]):
    """The namespaces that a host wanted to format and may not, of which the user knows."""


def can_format(controller: ControllerState) -> bool:
    """Whether there are namespaces that hosts may format."""
    return controller.subsystem.can_format


def format_nvm(request: Request[FormatNvm]) -> Result:
    """Base 1.4, 5.23. NSID FFFFFFFFh: all namespaces of this controller; nothing begins unless all can be formatted."""
    controller, command = request.controller, request.command
    if not can_format(controller):
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))
    if command.ses > SecureErase.CRYPTOGRAPHIC:
        raise CommandFailed(Status.INVALID_FIELD, location=_SES)
    targets = controller.namespaces.addressed(command.nsid)
    wanted = [(namespace, _wanted(request, namespace)) for namespace in targets]
    for namespace, format in wanted:
        _check(controller, namespace, format)

    def by() -> int | None:
        return controller.cntlid if request.live else None

    is_overwriting = command.ses != SecureErase.NONE
    begun = [controller.subsystem.format(namespace, format, is_overwriting, by) for namespace, format in wanted]
    return _ended(begun)


def _ended(formattings: Sequence[Formatting]) -> Result:
    """Wait for the first, or tell how it has failed; then for the others."""
    if not formattings:
        return 0
    return Pending(formattings[0], AwaitFormatting(), lambda _: _ended(formattings[1:]), is_abortable=False)


def _wanted(request: Request[FormatNvm], namespace: Namespace) -> Format:
    controller, command = request.controller, request.command
    upper = command.lbafu << 4 if knows_extended_formats(controller) else 0
    formats = controller.subsystem.formats_of(namespace)
    return chosen(controller, formats, command.lbafl | upper, command.mset, command.pi, command.pil)


def chosen(
    controller: ControllerState,
    formats: Sequence[OfferedFormat],
    number: int,
    is_extended: bool,
    type: int,
    is_first: bool,
) -> Format:
    """The format that a host has chosen from a table: that with this number, with protection information of this type
    (0: none) first or last in the metadata. Raises CommandFailed(INVALID_FORMAT) for one that cannot be."""
    if number >= len(formats):
        raise _invalid(f"LBA format {number} of {len(formats)}")
    row = formats[number]
    if (number >= PLAIN_FORMATS or row.needs_extension) and not knows_extended_formats(controller):
        raise _invalid(f"LBA format {number} is an extended one, which the host does not know (LBAFEE)")
    if type and not protection.is_available():
        raise _invalid("this build has no protection information")
    try:
        of = Protection(type, row.guard, row.storage_tag_size, is_first) if type else None
        is_extended = is_extended and row.metadata_size > 0
        return Format(row.data_size, row.metadata_size, is_extended, of, row.guard, row.storage_tag_size)
    except ValueError as error:
        raise _invalid(f"LBA format {number}, protection {type}: {error}") from None


def _check(controller: ControllerState, namespace: Namespace, format: Format) -> None:
    """Raises CommandFailed for a namespace that cannot be given this format now."""
    if namespace.is_being_formatted:
        raise CommandFailed(Status.FORMAT_IN_PROGRESS)
    namespace.check_writable()
    if namespace.is_being_paired:
        raise CommandFailed(Status.NAMESPACE_NOT_READY, why="its companion is being made")
    if namespace.formatter is None:
        _tell(controller, namespace)
        raise CommandFailed(Status.OPERATION_DENIED, location=(4, 0), why="the user has not allowed it")
    if not namespace.formatter.takes(format):
        raise _invalid(f"the disk has no blocks of {format.data_size} bytes")


def _tell(controller: ControllerState, namespace: Namespace) -> None:
    told = controller.part(_Told)
    if namespace.nsid not in told:
        told.add(namespace.nsid)
        log.warning(
            "the guest wanted to format namespace %d, disk %s, and may not: to allow it, give --format allow, or "
            'format = "allow" in the drive file (logged once)',
            namespace.nsid,
            namespace.media.identity,
        )


def _invalid(why: str) -> CommandFailed:
    return CommandFailed(Status.INVALID_FORMAT, location=_FORMAT, why=why)
