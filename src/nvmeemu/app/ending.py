"""How a server ends: the signals that it obeys, and the sync of its disks."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from nvmeemu.app.disks import Disks
from nvmeemu.app.signals import MEANINGLESS, WISHES
from nvmeemu.backend import Backend, describe
from nvmeemu.vfio import Loop

log = logging.getLogger(__name__)

SAY_SO_AFTER = 1.0  # seconds of syncing
SAME_WISH = 1.0  # seconds in which one wish to end may come as several signals, of timeout(1) or of a wrapper, say


class Ending:
    """Signals, and the sync at the end. The first signal stops the loop. A signal more than SAME_WISH seconds later
    ends the process at once, after a call of ``give_up``."""

    def __init__(self, loop: Loop) -> None:
        self.disks: list[Disks] = []  # of each drive
        self.give_up: Callable[[], None] = lambda: None
        self._unsynced: list[tuple[str, Backend]] = []
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
        disks = ", ".join(name for name, _ in self._unsynced or self._all())
        os.write(2, f"nvmeemu serve: ended by a second signal: not synced: {disks}\n".encode())
        self.give_up()
        os._exit(1)

    def _all(self) -> list[tuple[str, Backend]]:
        return [(name, one.backend) for disks in self.disks for name, one in disks.media.items()]

    def sync(self) -> list[str]:
        """Make all written data durable; what failed, and why. On threads: signals are heard meanwhile, and no disk
        waits for another one, which may never answer."""
        todo = [(name, backend) for name, backend in self._all() if backend.volatile_cache]
        self._unsynced = list(todo)
        failures: dict[int, str] = {}
        threads = [
            threading.Thread(target=self._sync, args=(index, *one, failures), daemon=True)
            for index, one in enumerate(todo)
        ]
        for thread in threads:
            thread.start()
        say_so_at = time.monotonic() + SAY_SO_AFTER
        for thread in threads:
            thread.join(max(0.0, say_so_at - time.monotonic()))
        if names := ", ".join(name for name, _ in self._unsynced):
            log.info("syncing %s; a second signal ends without", names)
        for thread in threads:
            thread.join()
        return [failures[index] for index in sorted(failures)]

    def _sync(self, index: int, name: str, backend: Backend, failures: dict[int, str]) -> None:
        try:
            backend.flush()
        except OSError as error:
            failures[index] = f"{name}: {describe(error)}"
        self._unsynced.remove((name, backend))
