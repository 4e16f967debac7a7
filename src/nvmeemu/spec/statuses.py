"""Statuses of completions, and what they say about another attempt."""

from __future__ import annotations

from enum import IntEnum

from nvmeemu.spec.names import Names


class Status(IntEnum):
    """Status Code Type (bits 10:8) and Status Code (bits 7:0) of a completion. Base 1.4, 4.6.1.

    Some come from no command of ours: faults may ask for them, and traces and drivers must know their names.
    """

    def __str__(self) -> str:
        return self.name

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    CID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_PRP_OFFSET = 0x013
    NAMESPACE_WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    INVALID_CQ = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    AER_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    WRITE_TO_READ_ONLY_RANGE = 0x182
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    GUARD_CHECK_ERROR = 0x282
    APPLICATION_TAG_CHECK_ERROR = 0x283
    REFERENCE_TAG_CHECK_ERROR = 0x284
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286


STATUSES = Names(Status)

RETRYABLE = frozenset(
    {
        Status.DATA_TRANSFER_ERROR,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.NAMESPACE_NOT_READY,
        Status.ABORT_LIMIT_EXCEEDED,
        Status.AER_LIMIT_EXCEEDED,
    }
)
"""Statuses that another attempt may not meet; all others carry Do Not Retry (Base 1.4, Figure 124, DNR)."""

DRIVER_ERRORS = frozenset(
    {
        Status.DATA_TRANSFER_ERROR,
        Status.INVALID_PRP_OFFSET,
        Status.LBA_OUT_OF_RANGE,
        Status.INVALID_CQ,
        Status.INVALID_QUEUE_ID,
        Status.INVALID_QUEUE_SIZE,
        Status.INVALID_QUEUE_DELETION,
        Status.INVALID_INTERRUPT_VECTOR,
        Status.AER_LIMIT_EXCEEDED,
    }
)
"""Statuses that no driver means to get: none of them tells what a controller can do."""

DNR = 1 << 14  # in the 15-bit Status Field, that is without the phase tag
MORE = 1 << 13  # more about this in the Error Information log
