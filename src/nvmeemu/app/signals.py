"""Which signals end a process of ours in good order, and which mean nothing to it."""

from __future__ import annotations

import signal

WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""To end in good order."""

MEANINGLESS = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
    *(signal.SIGPWR, signal.SIGSTKFLT, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
)
"""They mean nothing to us, and would end us. (SIGPIPE and SIGXFSZ are ignored by Python.)"""
