"""The native engine of a controller, if the user wants it and it was built."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from nvmeemu.app.arguments import MOST_IO_THREADS
from nvmeemu.app.drive.keys import ControllerTable
from nvmeemu.app.drive.source import Failure
from nvmeemu.backend import describe
from nvmeemu.engine.native.engine import EngineMissing, NativeEngine, can_trace
from nvmeemu.vfio import Loop

log = logging.getLogger(__name__)


def start(table: ControllerTable, loop: Loop, stack: ExitStack) -> NativeEngine | None:
    """Start the native engine. None if it is not wanted or, with ``auto``, not there. Raises Failure."""
    is_mapped = table.doorbells == "mapped"  # auto: asleep when idle is worth more to most than a quick start
    if table.engine == "python":
        return None
    if table.trace is not None and (table.trace_payload or not can_trace()):
        option = "--trace-payload" if table.trace_payload else "--trace"
        if is_mapped:
            raise Failure(f"--doorbells mapped is for the native engine, which cannot serve {option}", 2)
        log.info("with %s reads and writes are served in Python", option)
        return None
    try:
        engine = NativeEngine(table.io_threads or usual_io_threads(), has_mapped_doorbells=is_mapped)
    except EngineMissing as missing:
        if table.engine == "native" or is_mapped:
            raise Failure(str(missing)) from None
        log.info("reads and writes are served in Python: %s", missing)
        return None
    except OSError as error:
        raise Failure(f"the native engine does not start: {describe(error)}") from None
    stack.callback(engine.close)
    loop.watch(engine.fd, engine.drain_fd)  # the news are delivered in the controller's ``run``
    stack.callback(loop.unwatch, engine.fd)
    return engine


def usual_io_threads() -> int:
    """Half of the CPUs that this process may use, at most what ``--io-threads`` takes."""
    return min(max(1, len(os.sched_getaffinity(0)) // 2), MOST_IO_THREADS)
