"""What the commands that read or change blocks have in common: durability, and errors that a host asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvmeemu.commands.features import is_write_cache_on, value
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.spec import Copy, ErrorRecovery, FeatureId, ReadWrite, Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.media import DeallocateBlocks, FlushMedia, Media, WriteBlocks, ZeroBlocks
from nvmeemu.subsystem.namespace import Namespace


def changing(
    request: Request[Any],
    media: Media,
    operation: WriteBlocks | ZeroBlocks | DeallocateBlocks,
    go_on: Callable[[], Result] = lambda: 0,
) -> Pending:
    """It changes a medium, and ``go_on`` follows. If the write cache was switched off meanwhile, what it has changed is
    made durable before."""

    def then(_: None) -> Result:
        if operation.is_durable or not writes_through(request, media):
            return go_on()
        return Pending(media, FlushMedia(), lambda _: go_on(), is_abortable=False)

    return Pending(media, operation, then)


def check_transfer(request: Request[ReadWrite], length: int) -> None:
    """Raises CommandFailed for more bytes than MDTS allows."""
    if length > request.controller.limits.transfer:
        raise too_long(request, length)


def too_long(request: Request[ReadWrite], length: int) -> CommandFailed:
    """The command has more bytes than MDTS allows."""
    why = f"{length:#x} bytes, more than MDTS, {request.controller.limits.transfer:#x}"
    return CommandFailed(Status.INVALID_FIELD, location=(48, 0), why=why)


def is_from_media(command: ReadWrite, media: Media) -> bool:
    """FUA of a command that reads: what only the cache holds has to be made durable first."""
    return command.fua and media.volatile_cache


def is_durable(request: Request[ReadWrite] | Request[Copy], media: Media) -> bool:
    """Whether what the command writes has to be durable when it completes."""
    return media.volatile_cache and (request.command.fua or writes_through(request, media))


def writes_through(request: Request[Any], media: Media) -> bool:
    """The write cache is off."""
    return media.volatile_cache and not is_write_cache_on(request.controller)


def refuses_deallocated(request: Request[Any], namespace: Namespace) -> bool:
    """The host wants an error for deallocated blocks (DULBE of Error Recovery)."""
    if namespace.media.block_map is None:
        return False
    return ErrorRecovery.of(value(request.controller, FeatureId.ERROR_RECOVERY, namespace.nsid)).dulbe
