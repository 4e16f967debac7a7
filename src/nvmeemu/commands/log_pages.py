"""Get Log Page: the table of pages. Base 1.4, 5.14."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from nvmeemu.commands.features import critical_warnings
from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState, Offer
from nvmeemu.spec import BROADCAST, CommandEffect, CommandEffectsLog, FirmwareSlotLog, GetLogPage, LogId, Status
from nvmeemu.spec.errors import CommandFailed


def get_log_page(request: Request[GetLogPage]) -> int:
    """Base 1.4, 5.14. What lies past the end of a page reads as zeros; NUMD and LPO may be anything else.

    The transfer comes before the page is marked as read, so that a command that fails leaves events as they are.
    """
    controller, command = request.controller, request.command
    build = PAGES.get(command.lid)
    if build is None:
        raise CommandFailed(Status.INVALID_LOG_PAGE, location=(40, 0))
    length = command.numd * 4
    if length > controller.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, location=(42, 0))
    if command.lid in _OF_CONTROLLER and command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_FIELD, location=(4, 0))
    page = build(controller)
    if command.lpo & 3 or command.lpo > len(page):
        raise CommandFailed(Status.INVALID_FIELD, location=(48, 0))
    data = page[command.lpo : command.lpo + length].ljust(length, b"\0")
    request.send(data)
    if not command.rae:
        controller.events.was_read(LogId(command.lid))
        if command.lid == LogId.CHANGED_NAMESPACE_LIST:
            controller.changed_namespaces.clear()
    return 0


def _supported(controller: ControllerState) -> bytes:
    """LID 00h: a word for each page; bit 0: supported. Base 2.0, 5.16.1.1."""
    return b"".join(int(lid in PAGES).to_bytes(4, "little") for lid in range(256))


def _errors(controller: ControllerState) -> bytes:
    return controller.errors.page()


def _smart(controller: ControllerState) -> bytes:
    controller.collect_counts()
    return controller.health.page(controller.errors.count, critical_warnings(controller))


def _firmware(controller: ControllerState) -> bytes:
    return bytes(FirmwareSlotLog(afi=1, frs1=controller.identity.firmware))


def _changed_namespaces(controller: ControllerState) -> bytes:
    """LID 04h, in ascending order. Base 1.4, 5.14.1.4."""
    changed = sorted(controller.changed_namespaces)
    return struct.pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _effects(controller: ControllerState) -> bytes:
    """LID 05h, from the dispatch tables."""

    def words(commands: Mapping[int, Offer]) -> list[CommandEffect]:
        offered = {opcode: entry.effects for opcode, entry in commands.items() if entry.is_offered(controller)}
        return [offered.get(opcode, CommandEffect()) for opcode in range(256)]

    return bytes(CommandEffectsLog(admin=words(controller.admin_commands), io=words(controller.io_commands)))


PAGES: dict[int, Callable[[ControllerState], bytes]] = {
    LogId.SUPPORTED_LOG_PAGES: _supported,
    LogId.ERROR_INFORMATION: _errors,
    LogId.SMART: _smart,
    LogId.FIRMWARE_SLOT: _firmware,
    LogId.CHANGED_NAMESPACE_LIST: _changed_namespaces,
    LogId.COMMAND_EFFECTS: _effects,
}
_OF_CONTROLLER = (LogId.SMART,)  # per namespace only if LPA bit 0 says so
