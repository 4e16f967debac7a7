"""Get Log Page: the table of pages. Base 1.4, 5.14."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from nvmeemu.commands.features import critical_warnings
from nvmeemu.controller.device import Device
from nvmeemu.controller.request import CommandEntry
from nvmeemu.spec import BROADCAST, CommandEffect, CommandEffectsLog, FirmwareSlotLog, GetLogPage, LogId, Status
from nvmeemu.spec.errors import CommandFailed


def get_log_page(device: Device, command: GetLogPage) -> int:
    """Base 1.4, 5.14. What lies past the end of a page reads as zeros; NUMD and LPO may be anything else.

    The transfer comes before the page is marked as read, so that a command that fails leaves events as they are.
    """
    build = PAGES.get(command.lid)
    if build is None:
        raise CommandFailed(Status.INVALID_LOG_PAGE, location=(40, 0))
    length = command.numd * 4
    if length > device.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, location=(42, 0))
    if command.lid in _OF_CONTROLLER and command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_FIELD, location=(4, 0))
    page = build(device)
    if command.lpo & 3 or command.lpo > len(page):
        raise CommandFailed(Status.INVALID_FIELD, location=(48, 0))
    data = page[command.lpo : command.lpo + length].ljust(length, b"\0")
    device.send(command, data)
    if not command.rae:
        device.events.was_read(LogId(command.lid))
        if command.lid == LogId.CHANGED_NAMESPACE_LIST:
            device.changed_namespaces.clear()
    return 0


def _supported(device: Device) -> bytes:
    """LID 00h: a word for each page; bit 0: supported. Base 2.0, 5.16.1.1."""
    return b"".join(int(lid in PAGES).to_bytes(4, "little") for lid in range(256))


def _errors(device: Device) -> bytes:
    return device.errors.page()


def _smart(device: Device) -> bytes:
    device.collect_counts()
    return device.health.page(device.errors.count, critical_warnings(device))


def _firmware(device: Device) -> bytes:
    return bytes(FirmwareSlotLog(afi=1, frs1=device.identity.firmware))


def _changed_namespaces(device: Device) -> bytes:
    """LID 04h, in ascending order. Base 1.4, 5.14.1.4."""
    changed = sorted(device.changed_namespaces)
    return struct.pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _effects(device: Device) -> bytes:
    """LID 05h, from the dispatch tables."""

    def words(commands: Mapping[int, CommandEntry]) -> list[CommandEffect]:
        offered = {opcode: entry.effects for opcode, entry in commands.items() if entry.is_offered(device)}
        return [offered.get(opcode, CommandEffect()) for opcode in range(256)]

    return bytes(CommandEffectsLog(admin=words(device.admin_commands), io=words(device.io_commands)))


PAGES: dict[int, Callable[[Device], bytes]] = {
    LogId.SUPPORTED_LOG_PAGES: _supported,
    LogId.ERROR_INFORMATION: _errors,
    LogId.SMART: _smart,
    LogId.FIRMWARE_SLOT: _firmware,
    LogId.CHANGED_NAMESPACE_LIST: _changed_namespaces,
    LogId.COMMAND_EFFECTS: _effects,
}
_OF_CONTROLLER = (LogId.SMART,)  # per namespace only if LPA bit 0 says so
