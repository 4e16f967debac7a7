"""Get Log Page: the table of pages. Base 1.4, 5.14."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nvmeemu.commands import features
from nvmeemu.commands.features import critical_warnings
from nvmeemu.commands.lba_status import gather_log
from nvmeemu.controller.request import Request, Result
from nvmeemu.controller.state import ControllerState, Offer
from nvmeemu.spec import (
    BROADCAST,
    CHANGED_NAMESPACES,
    Afi,
    CommandEffect,
    CommandEffectsLog,
    Effect,
    FeatureEffect,
    FeatureEffectsLog,
    FirmwareSlotLog,
    GetLogPage,
    LogId,
    Lpa,
    Notice,
    Status,
    SupportedLogPage,
    SupportedLogPages,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.tables import Table

Then = Callable[[bytes], Result]
_NO_LPA, _NO_NOTICE = Lpa(0), Notice(0)


@dataclass(frozen=True)
class LogPage:
    """A log page: ``build`` makes all of it, and Get Log Page cuts out what was asked for.

    ``gather`` is for a page that has to wait for what it says: it gives the content of the page to ``then``.
    ``was_read`` is called when the host has read it and wants to hear of changes again (RAE = 0).
    ``is_of_controller``: a single namespace has none (Base 1.4, 5.14.1.2). ``lpa`` and ``oaes``: bits of Identify
    Controller that say to the host that there is this page, or that events name it.
    """

    lid: int
    build: Callable[[Request[GetLogPage]], bytes] = lambda request: b""
    gather: Callable[[Request[GetLogPage], Then], Result] | None = None
    was_read: Callable[[ControllerState], None] = lambda controller: None
    is_of_controller: bool = False
    lpa: Lpa = _NO_LPA
    oaes: Notice = _NO_NOTICE
    is_offered: Callable[[ControllerState], bool] = lambda controller: True

    @property
    def number(self) -> int:
        """Its row in the table of pages."""
        return self.lid


def get_log_page(request: Request[GetLogPage]) -> Result:
    """Base 1.4, 5.14. What lies past the end of a page reads as zeros; NUMD and LPO may be anything else.

    The transfer comes before the page is marked as read, so that a command that fails leaves events as they are.
    """
    controller, command = request.controller, request.command
    page = PAGES.get(command.lid)
    if page is None or not page.is_offered(controller):
        raise CommandFailed(Status.INVALID_LOG_PAGE, location=(40, 0))
    length = command.numd * 4
    if length > controller.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, location=(42, 0))
    if page.is_of_controller and command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_FIELD, location=(4, 0))
    if page.gather is not None:
        return page.gather(request, lambda content: _give(request, page, content))
    return _give(request, page, page.build(request))


def _give(request: Request[GetLogPage], page: LogPage, content: bytes) -> int:
    controller, command = request.controller, request.command
    length = command.numd * 4
    if command.lpo & 3 or command.lpo > len(content):
        raise CommandFailed(Status.INVALID_FIELD, location=(48, 0))
    data = content[command.lpo : command.lpo + length].ljust(length, b"\0")
    request.send(data)
    if not command.rae:
        controller.events.was_read(command.lid)
        page.was_read(controller)
    return 0


def attributes(controller: ControllerState) -> Lpa:
    """LPA of Identify Controller."""
    found = Lpa.EXTENDED_DATA
    for page in PAGES.values():
        if page.is_offered(controller):
            found |= page.lpa
    return found


def notices(controller: ControllerState) -> Notice:
    """OAES of Identify Controller."""
    found = Notice(0)
    for page in PAGES.values():
        if page.is_offered(controller):
            found |= page.oaes
    return found


def _supported(request: Request[GetLogPage]) -> bytes:
    """LID 00h. Base 2.0, 5.16.1.1."""
    offered = {lid for lid, page in PAGES.items() if page.is_offered(request.controller)}
    return bytes(SupportedLogPages(pages=[SupportedLogPage(supported=lid in offered) for lid in range(256)]))


def _errors(request: Request[GetLogPage]) -> bytes:
    return request.controller.errors.page()


def _smart(request: Request[GetLogPage]) -> bytes:
    controller = request.controller
    controller.collect_counts()
    return controller.subsystem.health.page(controller.errors.count, critical_warnings(controller))


def _firmware(request: Request[GetLogPage]) -> bytes:
    return bytes(FirmwareSlotLog(afi=int(Afi(active=1)), frs1=request.controller.subsystem.identity.firmware))


def _changed_namespaces(request: Request[GetLogPage]) -> bytes:
    """LID 04h, in ascending order. Base 1.4, 5.14.1.4."""
    changed = sorted(request.controller.changed_namespaces)
    if len(changed) > CHANGED_NAMESPACES:
        changed = [BROADCAST]
    return struct.pack(f"<{len(changed)}I", *changed).ljust(4 * CHANGED_NAMESPACES, b"\0")


def _forget_changes(controller: ControllerState) -> None:
    controller.changed_namespaces.clear()


_WITHOUT_SCOPE = Effect.OF_NAMESPACE - 1  # CSP is the word's highest field, of Base 2.0 on


def _effects(request: Request[GetLogPage]) -> bytes:
    """LID 05h, from the command sets."""
    controller = request.controller
    has_scopes = controller.limits.is_of_base_2

    def words(commands: Mapping[int, Offer], scope: Effect) -> list[CommandEffect]:
        found = [CommandEffect()] * 256
        for opcode, entry in commands.items():
            if entry.is_offered(controller):
                scoped = int(entry.effects) | (0 if entry.effects.csp else scope)
                found[opcode] = CommandEffect.of(scoped if has_scopes else scoped & _WITHOUT_SCOPE)
        return found

    return bytes(
        CommandEffectsLog(
            admin=words(controller.admin_commands, Effect.OF_CONTROLLER),
            io=words(controller.io_commands, Effect.OF_NAMESPACE),
        )
    )


def _feature_effects(request: Request[GetLogPage]) -> bytes:
    """LID 12h, from the features."""
    offered = features.offered(request.controller)
    found = [offered[fid].effects if fid in offered else FeatureEffect() for fid in range(256)]
    return bytes(FeatureEffectsLog(features=found))


PAGES = Table(
    LogPage(LogId.SUPPORTED_LOG_PAGES, _supported, lpa=Lpa.SUPPORTED_PAGES),
    LogPage(LogId.ERROR_INFORMATION, _errors),
    LogPage(LogId.SMART, _smart, is_of_controller=True),
    LogPage(LogId.FIRMWARE_SLOT, _firmware),
    LogPage(
        LogId.CHANGED_NAMESPACE_LIST, _changed_namespaces, was_read=_forget_changes, oaes=Notice.NAMESPACE_ATTRIBUTE
    ),
    LogPage(LogId.COMMAND_EFFECTS, _effects, lpa=Lpa.COMMAND_EFFECTS),
    LogPage(LogId.LBA_STATUS, gather=gather_log, oaes=Notice.LBA_STATUS),
    LogPage(LogId.FEATURE_EFFECTS, _feature_effects),
)
