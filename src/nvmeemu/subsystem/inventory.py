"""Namespaces that come, go and change while a host uses them. A host that has asked for it is told. Base 1.4, 5.2 and
Figure 147 (Namespace Attribute Changed), 5.14.1.4 (Changed Namespace List)."""

from __future__ import annotations

from nvmeemu.commands.features import is_write_cache_on, wanted_events
from nvmeemu.controller.events import Event
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import EventType, LogId, Notice, NoticeEvent
from nvmeemu.subsystem.namespace import Namespace


def add(controller: ControllerState, namespace: Namespace) -> None:
    """Add a namespace. Raises ValueError if its NSID is taken, or invalid."""
    controller.namespaces.add(namespace)
    changed(controller, namespace.nsid)


def remove(controller: ControllerState, nsid: int) -> Namespace:
    """Remove a namespace. Commands that have begun end normally. Raises KeyError."""
    namespace = controller.namespaces.active.pop(nsid)
    changed(controller, nsid)
    return namespace


def resize(controller: ControllerState, nsid: int, blocks: int | None = None) -> None:
    """Change the size, by default to that of its disk, which is looked at again. Raises KeyError, ValueError if the
    disk is not that large, and OSError if it cannot tell its size."""
    namespace = controller.namespaces.active[nsid]
    namespace.media.refresh()
    most = namespace.media.blocks
    blocks = most if blocks is None else blocks
    if not 1 <= blocks <= most:
        raise ValueError(f"namespace {nsid} can have 1 to {most} blocks, not {blocks}: its disk has no more")
    namespace.blocks = blocks
    changed(controller, nsid)


def changed(controller: ControllerState, nsid: int) -> None:
    """Tell the host that Identify says something new of this namespace."""
    controller.configure_engine(write_cache=is_write_cache_on(controller))
    controller.changed_namespaces.add(nsid)
    if Notice.NAMESPACE_ATTRIBUTE in Notice(wanted_events(controller).notices):
        notice = Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACE_LIST)
        controller.events.report(notice)
