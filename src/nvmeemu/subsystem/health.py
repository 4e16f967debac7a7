"""What the device remembers of its life: the Error Information log and the SMART counters."""

from __future__ import annotations

from collections import deque

from nvmeemu.ports import Clock
from nvmeemu.spec import CriticalWarning, ErrorLogEntry, SmartLog

ERROR_LOG_ENTRIES = 64
WARNING_TEMPERATURE = 343  # kelvin
CRITICAL_TEMPERATURE = 353
SPARE_THRESHOLD = 10  # percent
_UNIT = 512 * 1000  # bytes in a "data unit"


class ErrorLog:
    """The last errors, newest first; their count goes on through controller resets. Base 1.4, 5.14.1.1."""

    def __init__(self) -> None:
        self.entries: deque[ErrorLogEntry] = deque(maxlen=ERROR_LOG_ENTRIES)
        self.count = 0

    def record(self, *, sqid: int, cid: int, field: int, nsid: int, location: int, lba: int) -> None:
        """Add an error; ``field`` is the completion's 15-bit Status Field."""
        self.count += 1
        entry = ErrorLogEntry(
            error_count=self.count, sqid=sqid, cid=cid, status=field, nsid=nsid, location=location, lba=lba
        )
        self.entries.appendleft(entry)

    def page(self) -> bytes:
        return b"".join(map(bytes, self.entries)).ljust(ERROR_LOG_ENTRIES * ErrorLogEntry.SIZE, b"\0")


class Health:
    """State and counters for the SMART / Health Information log. Base 1.4, 5.14.1.2.

    The counters start with the process, which is the one power cycle that they count; a reset of the VM is none.
    Controller Busy Time stays 0, because each command of each engine would have to look at a clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.now()
        self.reads = 0
        self.writes = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.media_errors = 0
        self.unsafe_shutdowns = 0
        self.power_cycles = 1
        self.temperature = 313  # kelvin
        self.spare = 100  # percent
        self.is_degraded = False  # the media can no longer be relied upon

    def warnings(self, over: int, under: int) -> CriticalWarning:
        """What is critical now, by the temperature thresholds of feature 04h (kelvin)."""
        found = CriticalWarning(0)
        if self.spare < SPARE_THRESHOLD:
            found |= CriticalWarning.SPARE
        if not under < self.temperature < over:
            found |= CriticalWarning.TEMPERATURE
        if self.is_degraded:
            found |= CriticalWarning.RELIABILITY
        return found

    def page(self, error_log_entries: int, warnings: CriticalWarning) -> bytes:
        hours = int(self._clock.now() - self._start) // 3600
        return bytes(
            SmartLog(
                critical_warning=warnings,
                temperature=self.temperature,
                available_spare=self.spare,
                spare_threshold=SPARE_THRESHOLD,
                data_units_read=-(-self.bytes_read // _UNIT),
                data_units_written=-(-self.bytes_written // _UNIT),
                host_reads=self.reads,
                host_writes=self.writes,
                power_cycles=self.power_cycles,
                power_on_hours=hours,
                unsafe_shutdowns=self.unsafe_shutdowns,
                media_errors=self.media_errors,
                error_log_entries=error_log_entries,
            )
        )
