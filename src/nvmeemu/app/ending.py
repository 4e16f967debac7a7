"""How a server ends: the signals that it heeds, and the sync of its disks."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from nvmeemu.app.signals import MEANINGLESS, WISHES
from nvmeemu.backend import Backend, describe
from nvmeemu.vfio import Loop

log = logging.getLogger(__name__)

SAY_SO_AFTER = 1.0  # seconds of syncing
SAME_WISH = 1.0  # seconds in which one wish to end may come as several signals, of timeout(1) or of a wrapper, say


class Ending:
    """Signals, and the sync at the end. The first signal stops the loop; one that comes more than SAME_WISH seconds
    later ends the process at once. ``give_up`` is called just before that."""

    def __init__(self, loop: Loop) -> None:
        self.backends: dict[str, Backend] = {}
        self.give_up: Callable[[], None] = lambda: None
        self._unsynced: list[str] = []
        self._loop = loop
        self._heard_at = math.inf  # when the first signal came

    def __enter__(self) -> Ending:
        has_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heeded = [number for number in WISHES if not (has_nohup and number == signal.SIGHUP)]
        self._before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in heeded}
        self._before |= {number: signal.signal(number, signal.SIG_IGN) for number in MEANINGLESS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        self._heard_at = min(self._heard_at, now)
        self._loop.request_stop()
        if now - self._heard_at <= SAME_WISH:
            return
        disks = ", ".join(self._unsynced or self.backends)
        os.write(2, f"nvmeemu serve: ended by a second signal: not synced: {disks}\n".encode())
        self.give_up()
        os._exit(1)

    def sync(self) -> list[str]:
        """Make all written data durable; what failed, and why. On a thread of its own, so that signals are heard."""
        self._unsynced = [name for name, backend in self.backends.items() if backend.volatile_cache]
        failures: list[str] = []
        thread = threading.Thread(target=self._sync_all, args=(failures,), daemon=True)
        thread.start()
        thread.join(SAY_SO_AFTER)
        if thread.is_alive():
            log.info("syncing %s; a second signal ends without", ", ".join(self._unsynced))
            thread.join()
        return failures

    def _sync_all(self, failures: list[str]) -> None:
        for name in tuple(self._unsynced):
            try:
                self.backends[name].flush()
            except OSError as error:
                failures.append(f"{name}: {describe(error)}")
            self._unsynced.remove(name)
