"""What a controller does when a namespace of its subsystem comes, goes or changes: the host is told if it has asked.

Base 1.4, 5.2 and Figure 147 (Namespace Attribute Changed), 5.14.1.4 (Changed Namespace List).
"""

from __future__ import annotations

from nvmeemu.commands.features import forget, is_write_cache_on, wanted_events
from nvmeemu.controller.events import Event
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import DNR, EventType, LogId, Notice, NoticeEvent, Status


def namespace_changed(controller: ControllerState, nsid: int, is_told: bool) -> None:
    """Tell the host that Identify says something new of this namespace. A host that has done it itself ``is_told``
    nothing."""
    controller.configure_engine(write_cache=is_write_cache_on(controller))
    if nsid not in controller.subsystem.namespaces.by_nsid:
        forget(controller, nsid)
    if not is_told:
        return
    controller.changed_namespaces.add(nsid)
    if Notice.NAMESPACE_ATTRIBUTE in Notice(wanted_events(controller).notices):
        notice = Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACE_LIST)
        controller.events.report(notice)


def end_commands(controller: ControllerState, nsid: int) -> None:
    """Commands that wait end as those to an inactive namespace do. One that may change the medium still ends as it
    will."""
    for qid, sq in controller.sqs.items():
        for request in tuple(sq.outstanding) if qid else ():
            if request.nsid == nsid:
                request.abort(Status.INVALID_FIELD | DNR)
