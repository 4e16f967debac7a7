"""Directives: what the data of the commands and their fields say. Base 1.4, 9. Fields that stay zero are left out."""

from __future__ import annotations

from enum import IntEnum

from nvmeemu.spec.layout import Record, raw, uint


class DirectiveType(IntEnum):
    """Directive Type. Base 1.4, Figure 410."""

    IDENTIFY = 0
    STREAMS = 1


class IdentifyOperation(IntEnum):
    """Operations of the Identify directive: that of Directive Receive, and that of Directive Send. Base 1.4, 9.2."""

    RETURN_PARAMETERS = 1
    ENABLE = 1


class StreamsReceive(IntEnum):
    """What Directive Receive does with streams. Base 1.4, 9.3.1."""

    RETURN_PARAMETERS = 1
    GET_STATUS = 2
    ALLOCATE_RESOURCES = 3


class StreamsSend(IntEnum):
    """What Directive Send does with streams. Base 1.4, 9.3.2."""

    RELEASE_IDENTIFIER = 1
    RELEASE_RESOURCES = 2


class DirectiveParameters(Record, size=4096):
    """Return Parameters of the Identify directive: a bit for each ``DirectiveType``. Base 1.4, Figure 412;
    ``persistent`` (over Controller Level Resets): Base 2.0."""

    supported = uint(0, 32)
    enabled = uint(32, 32)
    persistent = uint(64, 32)


class StreamsParameters(Record, size=32):
    """Return Parameters of Streams. Base 1.4, Figure 417. From ``sws`` on they are about one namespace."""

    msl = uint(0, 2)  # streams that the subsystem can have
    nssa = uint(2, 2)  # those of them that are no namespace's own
    nsso = uint(4, 2)  # of these, how many are open
    nssc = uint(6, 1)
    sws = uint(16, 4)  # blocks that a write should be a multiple of
    sgs = uint(20, 2)  # multiples of that which are given back together
    nsa = uint(22, 2)  # streams of the namespace's own
    nso = uint(24, 2)  # those that are open


class StreamsStatus(Record, size=131072):
    """Get Status of Streams: the identifiers of the open ones, in ascending order. Base 1.4, Figure 418."""

    number = uint(0, 2)
    identifiers = raw(2, 131070)
