"""QEMU's machine protocol (QMP): commands, events, and why the guest ended. QEMU's own library, qemu.qmp, speaks it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded, GuestError

LOOK_AGAIN_SECONDS = 0.02
END_SECONDS = 5.0
T = TypeVar("T")


class Monitor:
    """Our end of QEMU's control connection.

    The library is asynchronous. Its loop has a thread of its own, because whoever waits here may be in a loop already,
    as asynchronous tests are.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._client = QMPClient("guest")
        self._client.logger.setLevel(logging.CRITICAL)  # that QEMU ends is no error
        self._events: list[Message] = []  # that nobody has waited for yet
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qemu.qmp", daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(self._client.connect(connection), self._loop)

    def execute(self, command: str, arguments: dict[str, Any], deadline: Deadline) -> Any:
        """Run a QMP command and return its result. Raises GuestError if QEMU refuses, GuestTimeout, GuestEnded."""
        return self._wait(partial(self._client.execute, command, arguments), deadline, command)

    def await_event(self, name: str, deadline: Deadline) -> dict[str, Any]:
        """Wait for the next event of this kind, and return its data. Each event is returned once."""
        data = self._wait(partial(self._next, name), deadline, name).get("data", {})
        assert isinstance(data, dict)
        return data

    def shutdown_reason(self) -> str:
        """After QEMU's end: the reason it gave for it ("" if none), as in QMP's ShutdownCause."""
        try:
            return str(self.await_event("SHUTDOWN", Deadline(END_SECONDS))["reason"])
        except GuestEnded:
            return ""

    def close(self) -> None:
        """Close the connection."""
        self._session.cancel()
        with suppress(Exception):  # the connection's end, which the library tells as an error
            asyncio.run_coroutine_threadsafe(self._client.disconnect(), self._loop).result(END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, start: Callable[[], Coroutine[Any, Any, T]], deadline: Deadline, what: str) -> T:
        """The result of a coroutine in the library's loop."""
        try:
            self._session.result(deadline.check(what))
            timed = asyncio.wait_for(start(), deadline.check(what))
            return asyncio.run_coroutine_threadsafe(timed, self._loop).result()
        except TimeoutError:
            raise deadline.passed(what) from None
        except ExecuteError as error:
            raise GuestError(f"QEMU does not {what}: {error}") from None
        except (QMPError, EOFError):
            raise GuestEnded(f"QEMU ended before {what}") from None

    async def _next(self, name: str) -> Message:
        while True:
            self._events += self._client.events.clear()
            for event in self._events:
                if event["event"] == name:
                    self._events.remove(event)
                    return event
            if self._client.runstate is not Runstate.RUNNING:
                raise EOFError
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
