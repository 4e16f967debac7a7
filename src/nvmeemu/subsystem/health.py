"""What the device remembers of its life: the Error Information log and the SMART counters."""

from __future__ import annotations

from collections import deque

from nvmeemu.ports import Changes, Clock, SavedState
from nvmeemu.spec import CriticalWarning, ErrorLogEntry, SmartLog
from nvmeemu.subsystem.saved import HEALTH, SavedValue, ended_in_use

ERROR_LOG_ENTRIES = 64
WARNING_TEMPERATURE = 343  # kelvin
CRITICAL_TEMPERATURE = 353
SPARE_THRESHOLD = 10  # percent
_UNIT = 512 * 1000  # bytes in a "data unit"
_COUNTERS = ("reads", "writes", "bytes_read", "bytes_written", "media_errors", "unsafe_shutdowns", "power_cycles")
_POWER_ON_SECONDS = SavedValue(HEALTH, "power_on_seconds", 0)
_SECONDS = 600  # of power that are not worth a transaction


class ErrorLog:
    """The last errors, newest first; their count goes on through controller resets. Base 1.4, 5.14.1.1."""

    def __init__(self, count: int = 0) -> None:
        self.entries: deque[ErrorLogEntry] = deque(maxlen=ERROR_LOG_ENTRIES)
        self.count = count

    def record(self, *, sqid: int, cid: int, field: int, nsid: int, location: int, lba: int, info: int) -> None:
        """Add an error; ``field`` is the completion's 15-bit Status Field, ``info`` Command Specific Information."""
        self.count += 1
        entry = ErrorLogEntry(
            error_count=self.count,
            sqid=sqid,
            cid=cid,
            status=field,
            nsid=nsid,
            location=location,
            lba=lba,
            command_specific=info,
        )
        self.entries.appendleft(entry)

    def page(self) -> bytes:
        return b"".join(map(bytes, self.entries)).ljust(ERROR_LOG_ENTRIES * ErrorLogEntry.SIZE, b"\0")


class Health:
    """State and counters for the SMART / Health Information log. Base 1.4, 5.14.1.2.

    A process is one power cycle; a reset of the VM is none. The counters go on from the saved state (``power_on``).
    Controller Busy Time stays 0, because each command of each engine would have to look at a clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.now()
        self._seconds_before = 0  # of the power cycles before
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

    def power_on(self, state: SavedState) -> Changes:
        """Power comes: the counters go on where they were. Returns what is new. Raises StateError."""
        for name in _COUNTERS:
            setattr(self, name, SavedValue(HEALTH, name, 0).of(state))
        self._seconds_before = _POWER_ON_SECONDS.of(state)
        self.power_cycles += 1
        changes = ended_in_use(state)
        self.unsafe_shutdowns += bool(changes)
        return {**changes, **self.remembered()}

    @property
    def power_on_seconds(self) -> int:
        """The time with power, of all power cycles."""
        return self._seconds_before + int(self._clock.now() - self._start)

    def remembered(self, *, is_end: bool = False) -> Changes:
        """The counters for the saved state. Time alone makes a difference every ten minutes only."""
        seconds = self.power_on_seconds
        time = seconds if is_end else seconds - seconds % _SECONDS
        return {_POWER_ON_SECONDS.key: time} | {(HEALTH, name): getattr(self, name) for name in _COUNTERS}

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
                power_on_hours=self.power_on_seconds // 3600,
                unsafe_shutdowns=self.unsafe_shutdowns,
                media_errors=self.media_errors,
                error_log_entries=error_log_entries,
            )
        )
