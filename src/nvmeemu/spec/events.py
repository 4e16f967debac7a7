"""Asynchronous events: what their completions say, and what a host may want to hear of. Base 1.4, 5.2."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nvmeemu.spec.names import Names


class EventType(IntEnum):
    """Asynchronous Event Type. Base 1.4, Figure 144."""

    ERROR = 0
    SMART = 1
    NOTICE = 2


class ErrorEvent(IntEnum):
    """Asynchronous Event Information of an error event. Base 1.4, Figure 145."""

    INVALID_DOORBELL_REGISTER = 0
    INVALID_DOORBELL_VALUE = 1


class SmartEvent(IntEnum):
    """Asynchronous Event Information of a SMART / health event. Base 1.4, Figure 146."""

    RELIABILITY = 0
    TEMPERATURE = 1
    SPARE = 2


class NoticeEvent(IntEnum):
    """Asynchronous Event Information of a notice. Base 1.4, Figure 147."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0
    LBA_STATUS_INFORMATION = 5


EVENT_INFORMATION: dict[int, Names] = {
    EventType.ERROR: Names(ErrorEvent),
    EventType.SMART: Names(SmartEvent),
    EventType.NOTICE: Names(NoticeEvent),
}


class CriticalWarning(IntFlag):
    """Critical Warning of the SMART / health log. Base 1.4, Figure 193. The same bits of feature 0Bh ask
    for an event for each."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2


class Notice(IntFlag):
    """What notices there are: OAES of Identify Controller says which can come, feature 0Bh which the host wants.

    Base 1.4, Figure 247 and 5.21.1.11; ``ZONE_DESCRIPTOR``: ZNS 1.1.
    """

    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    TELEMETRY = 1 << 10  # feature 0Bh only
    ANA_CHANGE = 1 << 11
    PREDICTABLE_LATENCY = 1 << 12
    LBA_STATUS = 1 << 13
    ENDURANCE_GROUP = 1 << 14
    ZONE_DESCRIPTOR = 1 << 27
