"""Logging for the user: one line a message on stderr, and no flood of messages, whatever a guest does."""

from __future__ import annotations

import logging
import time

MOST = 5  # times that one message is told in WINDOW
WINDOW = 10.0  # seconds


class NoFlood(logging.Filter):
    """A filter that lets each message pass MOST times in WINDOW seconds. The next one says how many were left out.
    Messages with the same text in the code are the same message, whatever their numbers. DEBUG messages all pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}  # message -> (start of its window, times)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        now = time.monotonic()
        message = str(record.msg)
        start, times = self._seen.get(message, (now, 0))
        if now - start > WINDOW:
            if times > MOST:
                record.args, record.msg = (), f"{record.getMessage()} (and {times - MOST} more like it)"
            start, times = now, 0
        self._seen[message] = (start, times + 1)
        return times < MOST


def set_up(level: str) -> None:
    """Log to stderr from ``level`` (``info``, ``warning``, ...) up, with the time in UTC."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(NoFlood())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
