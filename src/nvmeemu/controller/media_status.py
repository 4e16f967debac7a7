"""What the errors of media are to hosts. Base 1.4, 4.6.1.2.3."""

from __future__ import annotations

from nvmeemu.spec import Status
from nvmeemu.subsystem.media import ErrorKind

STATUS_OF = {
    ErrorKind.UNRECOVERED_READ: Status.UNRECOVERED_READ_ERROR,
    ErrorKind.WRITE_FAULT: Status.WRITE_FAULT,
    ErrorKind.NO_SPACE: Status.WRITE_FAULT,
    ErrorKind.READ_ONLY: Status.WRITE_FAULT,
    ErrorKind.GUARD_CHECK: Status.GUARD_CHECK_ERROR,
    ErrorKind.APPLICATION_TAG_CHECK: Status.APPLICATION_TAG_CHECK_ERROR,
    ErrorKind.REFERENCE_TAG_CHECK: Status.REFERENCE_TAG_CHECK_ERROR,
    ErrorKind.STORAGE_TAG_CHECK: Status.STORAGE_TAG_CHECK_ERROR,
    ErrorKind.DEALLOCATED: Status.DEALLOCATED_BLOCK,
    ErrorKind.UNCORRECTABLE: Status.UNRECOVERED_READ_ERROR,
    ErrorKind.FORMATTING: Status.FORMAT_IN_PROGRESS,
}
"""What the host is told of an error of a medium. DNR is set where the error ``is_lasting``."""
