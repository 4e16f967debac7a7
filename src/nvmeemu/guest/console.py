"""The guest's serial console: what it printed, kernel messages and the rest told apart, and waiting for text in it."""

from __future__ import annotations

import codecs
import re
import select
import socket
from collections.abc import Callable
from pathlib import Path

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded

# A kernel message can land in the middle of what a program prints. It is found by its time stamp and its CR LF: our
# shell agent sets the terminal to end its lines with LF alone, so `dmesg` in the guest is not taken for the kernel.
KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ([^\r\n]*)\r\n")
KERNEL_BEGUN = re.compile(r"\[(?: *\d*(?:\.\d*(?:\][^\r\n]*\r?)?)?)?\Z")
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?=]*[ -/]*[@-~]|[()].|[@-Z\\^_=>c])")
ESCAPE_BEGUN = re.compile(r"\x1b(?:\[[0-9;?=]*|[()])?\Z")

SETTLE_SECONDS = 0.01  # under TCG the console comes byte by byte: gather before searching
GATHER_AT_MOST = 4096  # characters
OVERLAP = 4096  # a match may begin this far back in what an earlier search has seen


class Transcript:
    """What the console printed, without terminal control sequences and carriage returns."""

    def __init__(self) -> None:
        self.text = ""  # everything
        self.output = ""  # everything but kernel messages
        self.kernel: list[str] = []  # the kernel messages
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._undecided = ""
        self._kernel_undecided = ""

    def feed(self, data: bytes) -> None:
        """Take in the next bytes, cut anywhere."""
        text, self._undecided = _hold_back(ESCAPE_BEGUN, self._undecided + self._decoder.decode(data))
        text = ESCAPE.sub("", text)
        self.text += text.replace("\r", "")
        rest, self._kernel_undecided = _hold_back(
            KERNEL_BEGUN, KERNEL_LINE.sub(self._keep, self._kernel_undecided + text)
        )
        self.output += rest.replace("\r", "")

    def _keep(self, match: re.Match[str]) -> str:
        self.kernel.append(match[1])
        return ""


def _hold_back(begun: re.Pattern[str], text: str) -> tuple[str, str]:
    match = begun.search(text)
    return (text, "") if match is None else (text[: match.start()], text[match.start() :])


class Console:
    """The host's end of the guest's serial line."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self.transcript = Transcript()
        self.watch: Callable[[], None] = lambda: None  # called after each read; may raise
        self._connection = connection
        self._log = log.open("ab")
        self._seen = {"text": 0, "output": 0}
        self._ended = False

    def send(self, text: str) -> None:
        """Type something."""
        try:
            self._connection.sendall(text.encode())
        except OSError as error:
            raise GuestEnded(f"the guest ended before {text.strip()[:40]!r} could be typed") from error

    def expect(self, pattern: str, deadline: Deadline, *, stream: str = "text", name: str = "") -> re.Match[str]:
        """Wait until the console prints `pattern` (multi-line regular expression), after the last match.

        `stream` "output" looks at everything but the kernel's messages. `name` is the pattern's, for error messages.
        """
        regex = re.compile(pattern, re.MULTILINE)
        name = name or repr(pattern)
        start = self._seen[stream]
        while True:
            printed: str = getattr(self.transcript, stream)
            match = regex.search(printed, start)
            if match:
                self._seen[stream] = match.end()
                return match
            if self._ended:
                raise GuestEnded(f"the guest ended before it printed {name}")
            start = max(start, len(printed) - OVERLAP)
            self._read(deadline.check(name))

    def wait_for_end(self, deadline: Deadline) -> None:
        """Read on until the guest is gone."""
        while not self._ended:
            self._read(deadline.check("the end of the guest"))

    def close(self) -> None:
        """Close the line and the log."""
        self._connection.close()
        self._log.close()

    def _read(self, seconds: float) -> None:
        """Wait for something, then take all that comes in quick succession."""
        wait = min(seconds, 1.0)
        enough = len(self.transcript.text) + GATHER_AT_MOST
        while len(self.transcript.text) < enough and select.select([self._connection], [], [], wait)[0]:
            try:
                data = self._connection.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                self._ended = True
                break
            self._log.write(data)
            self._log.flush()
            self.transcript.feed(data)
            wait = SETTLE_SECONDS
        self.watch()
