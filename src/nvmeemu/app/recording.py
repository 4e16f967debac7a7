"""The trace of a controller, from its beginning on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from nvmeemu.app.drive.keys import ControllerTable
from nvmeemu.app.drive.source import Failure
from nvmeemu.controller.controller import Controller
from nvmeemu.engine.native.engine import NativeEngine

if TYPE_CHECKING:
    from nvmeemu.trace.sink import TraceFile


def start(
    table: ControllerTable, drive: str, controller: Controller, engine: NativeEngine | None, stack: ExitStack
) -> TraceFile | None:
    """Record everything from here on, if that is wanted. The trace names the ``drive``. Raises Failure."""
    if table.trace is None:
        return None
    from nvmeemu.trace.file import TraceError  # start-up: without a trace not needed
    from nvmeemu.trace.recorder import Recorder, describe
    from nvmeemu.trace.sink import BadTarget, TraceFile

    try:
        file = TraceFile(table.trace, describe(controller, payload=table.trace_payload, drive=drive)).open()
    except TraceError as error:
        raise Failure(f"--trace: {error}", 2 if isinstance(error, BadTarget) else 1) from None
    stack.callback(file.close)
    controller.observe(Recorder(file, controller.state, payload=table.trace_payload))
    if engine is not None:
        engine.trace(file.put, file.start)
        stack.callback(engine.trace, None)
    return file
