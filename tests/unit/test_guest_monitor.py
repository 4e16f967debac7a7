"""QEMU's control connection, with a QEMU that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded, GuestError, GuestTimeout
from nvmeemu.guest.monitor import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 10}, "package": ""}, "capabilities": []}}
Answer = Callable[["Qemu", dict[str, Any]], None]


class Qemu:
    """The other end: greets, negotiates, and has each command answered by the test."""

    def __init__(self, connection: socket.socket, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, **message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.say(event=name, data=data, timestamp={"seconds": 1, "microseconds": 0})

    def end(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        self.say(**GREETING)
        while data := self._connection.recv(65536):  # the library waits for each answer, so it is one command
            asked = json.loads(data)
            if asked["execute"] == "qmp_capabilities":
                self.say(**{"return": {}})
            else:
                self._answer(self, asked)

    def close(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._connection.close()


Start = Callable[[Answer], Monitor]


@pytest.fixture
def start() -> Iterator[Start]:
    ends: list[tuple[Monitor, Qemu]] = []

    def make(answer: Answer) -> Monitor:
        ours, theirs = socket.socketpair()
        ends.append((Monitor(ours), Qemu(theirs, answer)))
        return ends[-1][0]

    yield make
    for monitor, qemu in ends:
        monitor.close()
        qemu.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "qemu.qmp"]


def succeed(qemu: Qemu, asked: dict[str, Any]) -> None:
    qemu.say(**{"return": asked.get("arguments"), "id": asked["id"]})


def test_a_command_takes_arguments_and_returns_something(start: Start) -> None:
    assert start(succeed).execute("send-key", {"keys": [1]}, Deadline(10)) == {"keys": [1]}


def test_a_refused_command_is_one_line_in_qemus_words(start: Start) -> None:
    def refuse(qemu: Qemu, asked: dict[str, Any]) -> None:
        qemu.say(error={"class": "GenericError", "desc": "no such key"}, id=asked["id"])

    with pytest.raises(GuestError, match=r"^QEMU does not send-key: no such key$"):
        start(refuse).execute("send-key", {}, Deadline(10))


def test_events_wait_for_whoever_asks_and_each_is_told_once(start: Start) -> None:
    def answer(qemu: Qemu, asked: dict[str, Any]) -> None:
        qemu.event("DEVICE_DELETED", device="other")
        qemu.event("RESET", guest=True)
        qemu.event("DEVICE_DELETED", device="drive")
        succeed(qemu, asked)

    monitor = start(answer)
    monitor.execute("device_del", {}, Deadline(10))
    assert monitor.await_event("RESET", Deadline(10)) == {"guest": True}
    assert monitor.await_event("DEVICE_DELETED", Deadline(10)) == {"device": "other"}
    assert monitor.await_event("DEVICE_DELETED", Deadline(10)) == {"device": "drive"}
    with pytest.raises(GuestTimeout, match=r"^timeout: RESET did not come in 0\.05 s$"):
        monitor.await_event("RESET", Deadline(0.05))


def test_an_event_after_a_timeout_is_not_lost(start: Start) -> None:
    def answer(qemu: Qemu, asked: dict[str, Any]) -> None:
        qemu.event("RESET")
        succeed(qemu, asked)

    monitor = start(answer)
    with pytest.raises(GuestTimeout):
        monitor.await_event("RESET", Deadline(0.01))
    monitor.execute("system_reset", {}, Deadline(10))
    assert monitor.await_event("RESET", Deadline(10)) == {}


def test_a_command_that_is_not_answered_has_its_time(start: Start) -> None:
    monitor = start(lambda qemu, asked: None)
    with pytest.raises(GuestTimeout, match=r"^timeout: stop did not come in 0\.05 s$"):
        monitor.execute("stop", {}, Deadline(0.05))


def test_the_end_of_qemu_ends_what_waits(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    monitor = start(lambda qemu, asked: qemu.end())
    with pytest.raises(GuestEnded, match=r"^QEMU ended before system_reset$"):
        monitor.execute("system_reset", {}, Deadline(10))
    with pytest.raises(GuestEnded, match=r"^QEMU ended before RESET$"):
        monitor.await_event("RESET", Deadline(10))
    with pytest.raises(GuestEnded, match=r"^QEMU ended before stop$"):
        monitor.execute("stop", {}, Deadline(10))
    assert monitor.shutdown_reason() == ""
    assert caplog.text == ""


def test_a_qemu_that_ends_before_it_greets_is_told(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    monitor = Monitor(ours)
    theirs.close()
    with pytest.raises(GuestEnded, match=r"^QEMU ended before stop$"):
        monitor.execute("stop", {}, Deadline(10))
    assert monitor.shutdown_reason() == ""
    monitor.close()
    assert caplog.text == ""


def test_a_silent_qemu_hangs_nothing() -> None:
    ours, theirs = socket.socketpair()
    monitor = Monitor(ours)
    with pytest.raises(GuestTimeout):
        monitor.execute("stop", {}, Deadline(0.05))
    monitor.close()
    theirs.close()


def test_the_last_words_of_qemu_are_heard_after_its_end(start: Start) -> None:
    def power_off(qemu: Qemu, asked: dict[str, Any]) -> None:
        succeed(qemu, asked)
        qemu.event("POWERDOWN")
        qemu.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        qemu.end()

    monitor = start(power_off)
    monitor.execute("system_powerdown", {}, Deadline(10))
    assert monitor.shutdown_reason() == "guest-shutdown"


def test_an_asynchronous_test_can_wait_too(start: Start) -> None:
    async def in_a_loop() -> object:
        return start(succeed).execute("query-status", {"of": "all"}, Deadline(10))

    assert asyncio.run(in_a_loop()) == {"of": "all"}
