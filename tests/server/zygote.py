"""Starts many servers quickly: ``python zygote.py ARGUMENTS`` forks one for each line on its standard input.

The imports are done once; from ``main`` on, each is the process that ``nvmeemu ARGUMENTS`` is.
"""

from __future__ import annotations

import os
import signal
import sys

import nvmeemu.app.serve  # noqa: F401
from nvmeemu.app.cli import main

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no burial
for _ in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os._exit(main(sys.argv[1:]))
