"""A descriptor that becomes readable at a given time. The timeouts of epoll and poll are milliseconds: too coarse for
us."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress


class Alarm:
    """A timerfd(2), from ``open`` to ``close``; at first not set."""

    def __init__(self) -> None:
        self.fd = -1
        self._when: float | None = None

    def open(self) -> None:
        """Raises OSError."""
        self.fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _error()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def set(self, when: float | None) -> None:
        """Become readable at this time of ``time.monotonic``, at once if it has passed. None: never."""
        if when == self._when:
            return
        self._when = when
        seconds, nanoseconds = divmod(max(round(when * 1e9), 1), 1_000_000_000) if when is not None else (0, 0)
        if _libc.timerfd_settime(self.fd, _ABSOLUTE, _Setting(0, 0, seconds, nanoseconds), None) < 0:
            raise _error()

    def drain(self) -> None:
        """Read it: from now on it is not readable until it is set again."""
        self._when = None
        with suppress(BlockingIOError):
            os.read(self.fd, 8)


_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_Setting = ctypes.c_long * 4  # struct itimerspec: an interval, and the time of the first; seconds, nanoseconds
_libc = ctypes.CDLL(None, use_errno=True)  # Python 3.13 is the first to have os.timerfd_create
_libc.timerfd_settime.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_long), ctypes.c_void_p]


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
