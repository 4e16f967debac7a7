"""Namespaces that come, go and change while a host uses them; it is told if it has asked for that.

Base 1.4, 5.2 and Figure 147 (Namespace Attribute Changed), 5.14.1.4 (Changed Namespace List).
"""

from __future__ import annotations

from nvmeemu.commands.features import is_write_cache_on, wanted_events
from nvmeemu.controller.events import Event
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import EventType, LogId, Notice, NoticeEvent
from nvmeemu.subsystem.namespace import Namespace


def add(controller: ControllerState, namespace: Namespace) -> None:
    """A namespace is there. Raises ValueError if its NSID is taken, or none."""
    controller.namespaces.add(namespace)
    changed(controller, namespace.nsid)


def remove(controller: ControllerState, nsid: int) -> Namespace:
    """A namespace is gone. What has begun on it goes on to its end. Raises KeyError."""
    namespace = controller.namespaces.active.pop(nsid)
    changed(controller, nsid)
    return namespace


def resize(controller: ControllerState, nsid: int, blocks: int | None = None) -> None:
    """It has another size, by default that of its disk, which is looked at anew. Raises KeyError, ValueError if the
    disk is not that large, and OSError if it cannot say how large it is."""
    namespace = controller.namespaces.active[nsid]
    namespace.media.refresh()
    most = namespace.media.blocks
    blocks = most if blocks is None else blocks
    if not 1 <= blocks <= most:
        raise ValueError(f"namespace {nsid} can have 1 to {most} blocks, not {blocks}: its disk has no more")
    namespace.blocks = blocks
    changed(controller, nsid)


def changed(controller: ControllerState, nsid: int) -> None:
    """What Identify says of it is new."""
    controller.configure_engine(write_cache=is_write_cache_on(controller))
    controller.changed_namespaces.add(nsid)
    if Notice.NAMESPACE_ATTRIBUTE in Notice(wanted_events(controller).notices):
        notice = Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACE_LIST)
        controller.events.report(notice)
