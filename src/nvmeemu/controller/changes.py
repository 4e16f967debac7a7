"""What a controller does when a namespace of its subsystem comes, goes or changes: the host is told if it has asked.

Base 1.4, 5.2 and Figure 147 (Namespace Attribute Changed), 5.14.1.4 (Changed Namespace List).
"""

from __future__ import annotations

from nvmeemu.commands.features import forget, is_write_cache_on, value, wanted_events
from nvmeemu.controller.events import Event
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import DNR, EventType, FeatureId, LbaStatusInformation, LogId, Notice, NoticeEvent, Status

_INTERVAL_UNIT = 0.1  # seconds


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


class _Alerts:
    """``next``: when the host may be told again of blocks that cannot be read; ``is_due``: it will be, then."""

    next = 0.0
    is_due = False


def lba_status_changed(controller: ControllerState) -> None:
    """There are more blocks that cannot be read: tell the host, if it wants that, as often as it wants it."""
    alerts, now = controller.part(_Alerts), controller.clock.now()
    if alerts.is_due or Notice.LBA_STATUS not in Notice(wanted_events(controller).notices):
        return
    if now < alerts.next:
        alerts.is_due = True
        controller.clock.call_later(alerts.next - now, lambda: _alert_late(controller, alerts))
        return
    interval = LbaStatusInformation.of(value(controller, FeatureId.LBA_STATUS_INFORMATION)).lsiri
    alerts.next = now + interval * _INTERVAL_UNIT
    controller.events.report(Event(EventType.NOTICE, NoticeEvent.LBA_STATUS_INFORMATION, LogId.LBA_STATUS))


def _alert_late(controller: ControllerState, alerts: _Alerts) -> None:
    alerts.is_due = False
    alerts.next = controller.clock.now()
    lba_status_changed(controller)


def end_commands(controller: ControllerState, nsid: int) -> None:
    """Commands that wait end as those to an inactive namespace do. One that may change the medium still ends as it
    will."""
    for qid, sq in controller.sqs.items():
        for request in tuple(sq.outstanding) if qid else ():
            if request.nsid == nsid:
                request.abort(Status.INVALID_FIELD | DNR)
