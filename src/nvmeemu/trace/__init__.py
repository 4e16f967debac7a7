"""Traces: everything that a host and the device said, recorded, decoded, compared, replayed.

    with open_trace("boot.trace") as trace:
        for record in trace:
            if isinstance(record, Fetch):
                print(record.time, record.sqid, record.command)

``records`` has the kinds of records, ``file`` writes and reads them; docs/trace-format.md is the format byte by byte.
"""

from nvmeemu.trace.file import Description, Reader, TraceError, Writer, open_trace
from nvmeemu.trace.records import (
    AsyncEvent,
    ClientAttached,
    ClientLeft,
    Completion,
    Data,
    Digest,
    DmaMap,
    DmaUnmap,
    Doorbell,
    Fetch,
    Injection,
    Interrupt,
    InterruptMode,
    Lost,
    MetadataDigest,
    Note,
    PciChange,
    Prp,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
    Sgl,
    Signal,
    Unknown,
)

__all__ = [
    "AsyncEvent",
    "ClientAttached",
    "ClientLeft",
    "Completion",
    "Data",
    "Description",
    "Digest",
    "DmaMap",
    "DmaUnmap",
    "Doorbell",
    "Fetch",
    "Injection",
    "Interrupt",
    "InterruptMode",
    "Lost",
    "MetadataDigest",
    "Note",
    "PciChange",
    "Prp",
    "Reader",
    "Record",
    "RegisterRead",
    "RegisterWrite",
    "Reset",
    "Sgl",
    "Signal",
    "TraceError",
    "Unknown",
    "Writer",
    "open_trace",
]
