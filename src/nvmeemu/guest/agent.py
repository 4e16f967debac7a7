"""The shell agent in the guest: runs what is typed on the console, takes files, and says how each command ended.

A command runs in a session of its own, beside the agent, which therefore always listens: a command that takes too long
can be killed, and one that hangs in the kernel, where nothing kills it, keeps nobody from the next one.
"""

from __future__ import annotations

import base64
import gzip
import re
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestError, GuestTimeout

# Reads from the console: an id, a number of lines, perhaps a file; then so many lines of base64. Without a file that is
# a command to run, with one it goes to the file's end. -onlcr: see console.py. The terminal gives `head` one line at a
# time, so it takes none that are behind its own.
AGENT = """\
stty -echo -onlcr
echo "@@ready $(uname -r)"
while read -r id lines file; do
    head -n "$lines" | base64 -d >>"${file:-/tmp/command-$id}"
    if [ -n "$file" ]; then
        echo "@@end $id $?"
        continue
    fi
    sed "s/^/@@> /" "/tmp/command-$id"
    setsid sh -c '
        echo "@@begin $0 $$"
        sh "/tmp/command-$0"
        echo "@@end $0 $?"
        rm "/tmp/command-$0"
    ' "$id" </dev/null 2>&1 &
done
"""

LINE = 1024  # characters: the guest's terminal holds 4096 of a line
PIECE = 12 << 10  # bytes at once: in base64, its driver holds 64 KiB of what the agent has not read yet
KILL_SECONDS = 10.0
NOT_FOUND = 127

Expect = Callable[[str, Deadline, str], re.Match[str]]


@dataclass(frozen=True)
class CommandResult:
    """How a command in the guest ended."""

    command: str
    status: int
    output: str

    def __repr__(self) -> str:
        return f"<{short(self.command)} ended with status {self.status}: {self.last_line}>"

    @property
    def last_line(self) -> str:
        """The last line of its output, where programs say why they fail."""
        return (self.output.strip().splitlines() or ["no output"])[-1]


class Agent:
    """Our side of the agent. ``send`` types on the console.

    ``expect(pattern, deadline, what)`` waits for a text on the console and leaves out kernel messages. ``what`` names
    the text in errors.
    """

    def __init__(self, send: Callable[[str], None], expect: Expect) -> None:
        self._send = send
        self._expect = expect

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        """Run a shell command; its standard error is in the output. When its time is over it is killed."""
        if len(command) <= PIECE:
            return self._run(command, command, deadline)
        place = f"/tmp/script-{secrets.token_hex(4)}"
        self._append(command.encode(), place, deadline)
        return self._run(f"sh {place}; status=$?; rm {place}; exit $status", command, deadline)

    def type(self, command: str) -> None:
        """Run a shell command whose end is not to be waited for."""
        self._say(secrets.token_hex(4), f"{command}\n".encode())

    def put(self, data: bytes, target: str, deadline: Deadline) -> None:
        """Write a file. Raises GuestError."""
        packed = f"/tmp/put-{secrets.token_hex(4)}"
        self._append(gzip.compress(data, mtime=0), packed, deadline)
        self._check(f"gunzip -c {packed} >{shlex.quote(target)}; status=$?; rm {packed}; exit $status", deadline)

    def get(self, source: str, deadline: Deadline) -> bytes:
        """Read a file of the guest's. Raises GuestError."""
        output = self._check(f"exec <{shlex.quote(source)} && gzip -c | base64", deadline)
        try:
            return gzip.decompress(base64.b64decode(output, validate=False))
        except (ValueError, OSError, EOFError) as error:
            raise GuestError(f"{source} did not come through the guest's console: {error}") from None

    def _check(self, command: str, deadline: Deadline) -> str:
        result = self._run(command, command, deadline)
        if result.status != 0:
            raise GuestError(f"in the guest: {result.last_line}")
        return result.output

    def _append(self, data: bytes, place: str, deadline: Deadline) -> None:
        for start in range(0, len(data), PIECE):
            name = secrets.token_hex(4)
            self._say(name, data[start : start + PIECE], place)
            status = self._expect(rf"@@end {name} (\d+)\n", deadline, f"the end of writing {place}")[1]
            if status != "0":
                raise GuestError(f"the guest's agent cannot write {place}")

    def _say(self, name: str, data: bytes, file: str = "") -> None:
        text = base64.b64encode(data).decode()
        lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
        self._send("\n".join([f"{name} {len(lines)} {file}", *lines, ""]))

    def _run(self, text: str, command: str, deadline: Deadline) -> CommandResult:
        name = secrets.token_hex(4)  # nothing printed before can look like our markers
        begin, awaited = None, f"the end of {short(command)}"
        self._say(name, f"{text}\n".encode())
        try:
            begin = self._expect(rf"@@begin {name} (\d+)\n", deadline, awaited)
            end = self._expect(rf"@@end {name} (\d+)\n", deadline, awaited)
        except GuestTimeout as timeout:
            raise GuestTimeout(f"{timeout}; {self._kill(name, begin)}") from None
        return CommandResult(command, int(end[1]), end.string[begin.end() : end.start()])

    def _kill(self, name: str, begin: re.Match[str] | None) -> str:
        """Kill a command and what it has started. Returns what became of it, for the message."""
        deadline = Deadline(KILL_SECONDS)
        killer = secrets.token_hex(4)
        try:
            begin = begin or self._expect(rf"@@begin {name} (\d+)\n", deadline, name)
            self._say(killer, f"kill -9 -{begin[1]}; rm -f /tmp/command-{name}\n".encode())
            self._expect(rf"@@end {killer} \d+\n", deadline, killer)
        except GuestTimeout:
            return "the guest's agent does not answer"
        return "it was killed"


def short(command: str) -> str:
    """A command as it stands in messages."""
    line = " ".join(command.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")
