"""Directive Send and Directive Receive: which directives a host uses, and its streams. Base 1.4, 9."""

from __future__ import annotations

import struct
from typing import Any

from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    BROADCAST,
    PAGE_MIN,
    DirectiveParameters,
    DirectiveReceive,
    DirectiveSend,
    DirectiveType,
    IdentifyOperation,
    ReadWrite,
    Status,
    StreamsParameters,
    StreamsReceive,
    StreamsSend,
    StreamsStatus,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.subsystem.streams import MOST, Place, Streams

_NSID, _DOPER, _DTYPE, _CDW12 = (4, 0), (44, 0), (45, 0), (48, 0)
DIRECTED = bytes(ReadWrite(dtype=0xF)).index(0xF0)
"""The byte of a command whose upper half is DTYPE, for who is in a hurry: hardly any command has one."""


def _place(controller: ControllerState, nsid: int) -> Place:
    """Whose streams are meant: each controller is a host of its own, as for a Host Identifier of zero."""
    return nsid, controller.cntlid


def note_write(request: Request[ReadWrite]) -> None:
    """A write names a directive, which counts if it is the Streams directive and the host uses that. NVM 1.0, 3.2.6."""
    controller, command = request.controller, request.command
    if command.dtype == DirectiveType.STREAMS and command.dspec:
        controller.subsystem.streams.write(_place(controller, command.nsid), command.dspec)


def directive_send(request: Request[DirectiveSend]) -> int:
    """Base 1.4, 5.10."""
    controller, command = request.controller, request.command
    targets = controller.namespaces.addressed(command.nsid)
    if command.dtype == DirectiveType.IDENTIFY:
        return _enable(request, targets)
    streams = _used(request, targets)
    if command.nsid == BROADCAST:
        raise CommandFailed(Status.INVALID_FIELD, location=_NSID)
    place = _place(controller, targets[0].nsid)
    if command.doper == StreamsSend.RELEASE_IDENTIFIER:
        streams.release(place, command.dspec)
    elif command.doper == StreamsSend.RELEASE_RESOURCES:
        streams.release_all(*place)
    else:
        raise CommandFailed(Status.INVALID_FIELD, location=_DOPER)
    return 0


def _enable(request: Request[DirectiveSend], targets: list[Namespace]) -> int:
    controller, command = request.controller, request.command
    if command.doper != IdentifyOperation.ENABLE:
        raise CommandFailed(Status.INVALID_FIELD, location=_DOPER)
    if command.tdtype != DirectiveType.STREAMS:  # the Identify directive is always enabled
        raise CommandFailed(Status.INVALID_FIELD, location=(49, 0))
    places = {_place(controller, namespace.nsid) for namespace in targets}
    streams = controller.subsystem.streams
    if not command.endir:
        streams.forget(lambda *place: place in places)
    for place in places if command.endir else ():
        streams.enable(place)
    return 0


def directive_receive(request: Request[DirectiveReceive]) -> int:
    """Base 1.4, 5.9."""
    controller, command = request.controller, request.command
    targets = controller.namespaces.addressed(command.nsid)
    if command.dtype == DirectiveType.IDENTIFY:
        if command.doper != IdentifyOperation.RETURN_PARAMETERS:
            raise CommandFailed(Status.INVALID_FIELD, location=_DOPER)
        return _send(request, _parameters(controller, targets))
    streams = _used(request, targets)
    if command.doper == StreamsReceive.RETURN_PARAMETERS:
        return _send(request, _of_streams(request, streams))
    if command.doper == StreamsReceive.GET_STATUS:
        found = [one for namespace in targets for one in _opened(controller, streams, namespace)]
        page = StreamsStatus(number=len(found), identifiers=struct.pack(f"<{len(found)}H", *sorted(found)))
        return _send(request, bytes(page))
    if command.doper == StreamsReceive.ALLOCATE_RESOURCES:
        return _allocate(request, streams)
    raise CommandFailed(Status.INVALID_FIELD, location=_DOPER)


def _parameters(controller: ControllerState, targets: list[Namespace]) -> bytes:
    """Of several namespaces: what is enabled for all."""
    streams = controller.subsystem.streams
    supported = enabled = 1 << DirectiveType.IDENTIFY
    supported |= 1 << DirectiveType.STREAMS
    if targets and all(streams.is_enabled(_place(controller, one.nsid)) for one in targets):
        enabled |= 1 << DirectiveType.STREAMS
    return bytes(DirectiveParameters(supported=supported, enabled=enabled))


def _used(request: Request[Any], targets: list[Namespace]) -> Streams:
    """The streams, if the host uses them for one of these namespaces. Raises CommandFailed."""
    controller, command = request.controller, request.command
    streams = controller.subsystem.streams
    if command.dtype != DirectiveType.STREAMS:
        raise CommandFailed(Status.INVALID_FIELD, location=_DTYPE)
    if not any(streams.is_enabled(_place(controller, one.nsid)) for one in targets):
        raise CommandFailed(Status.INVALID_FIELD, location=_DTYPE, why="the host has not enabled Streams")
    return streams


def _of_streams(request: Request[DirectiveReceive], streams: Streams) -> bytes:
    """For NSID FFFFFFFFh: what is about no single namespace."""
    controller, command = request.controller, request.command
    page = StreamsParameters(msl=MOST, nssa=streams.available, nsso=streams.shared)
    if command.nsid != BROADCAST:
        namespace = controller.namespaces[command.nsid]
        place = _place(controller, namespace.nsid)
        page.sws = max(PAGE_MIN // namespace.format.data_size, 1)  # as NPWG and NPDG
        page.sgs = 1
        page.nsa = streams.own(place)
        page.nso = len(streams.opened(place))
    return bytes(page)


def _opened(controller: ControllerState, streams: Streams, namespace: Namespace) -> list[int]:
    place = _place(controller, namespace.nsid)
    return streams.opened(place) if streams.is_enabled(place) else []


def _allocate(request: Request[DirectiveReceive], streams: Streams) -> int:
    controller, command = request.controller, request.command
    if command.nsid == BROADCAST:
        raise CommandFailed(Status.INVALID_FIELD, location=_NSID)
    place = _place(controller, command.nsid)
    if streams.own(place):
        raise CommandFailed(Status.INVALID_FIELD, location=_DOPER, why="the host has streams of its own already")
    granted = streams.allocate(place, command.nsr)
    if command.nsr and not granted:
        raise CommandFailed(Status.STREAM_RESOURCE_ALLOCATION_FAILED, location=_CDW12, why="all are hosts' own")
    return granted


def _send(request: Request[DirectiveReceive], data: bytes) -> int:
    """As many dwords as the host wants. What lies past the end of a structure reads as zeros."""
    length = request.command.numd * 4
    if length > request.controller.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    request.send(data[:length].ljust(length, b"\0"))
    return 0
