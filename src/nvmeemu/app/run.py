"""``nvmeemu run``: a server for as long as a command runs, in any language's CI.

The command shares our terminal and its process group, as under env(1) or timeout(1), so Ctrl-C reaches it as if it had
been started alone. The server has a session of its own: it is ended when the command has ended, never before.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from nvmeemu.app import process, serving, vmm
from nvmeemu.app.arguments import complain
from nvmeemu.app.drive.source import Failure
from nvmeemu.app.signals import MEANINGLESS, WISHES
from nvmeemu.backend import describe

ENDING = (*WISHES, signal.SIGQUIT)
NOT_FOUND, NOT_RUN = 127, 126  # as env(1) and the shells have them
PATIENCE = 10.0  # seconds that a command may take to end when its drive is lost
LOOK_AGAIN, FOREVER = 0.1, 1e6  # seconds
PLACEHOLDER = re.compile(r"\{(nvme(?::[1-9][0-9]?)?|socket(?::[1-9][0-9]?)?|memory:[1-9][0-9]*[MG])\}")
QEMU = re.compile(r"[^\s'\"=]*qemu-system-\w+")
LIKELY_MISTAKE = re.compile(r"\{memory(:[^{}]*)?\}")


class _Ended(Exception):
    """A signal asks us to end before the command has begun."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(command: Sequence[str], arguments: Sequence[str], socket: str | None = None, drives: Sequence[str] = ()) -> int:
    """Serve with these arguments of ``nvmeemu serve``, the files of ``drives`` among them, while the command runs; its
    exit status, 128+n for a signal.

    If the server fails, 1 or (bad use) 2; 126 or 127 if the command cannot be run.
    """
    try:
        with _signals_raise(), _places(socket, drives) as paths:
            words = fill_in(command, paths)
            program = _program(words[0])
            server = serving.start(paths[0] if len(paths) == 1 else None, arguments, None)
            try:
                return _attend(program, words, paths[0], server)
            finally:
                if server.poll() is None:  # we could not begin
                    process.end(server)
    except _Ended as ended:
        return 128 + ended.number
    except serving.ServerEnded as ended:  # it has said why
        return ended.status if ended.status > 0 else 1
    except (_CannotRun, Failure) as error:
        return complain("nvmeemu run", error, error.status)
    except serving.ServerError as error:
        return complain("nvmeemu run", error)
    except OSError as error:
        return complain("nvmeemu run", describe(error))


def fill_in(command: Sequence[str], sockets: Sequence[Path]) -> list[str]:
    """The command with its placeholders replaced.

    A word that is a placeholder becomes the words that it stands for; within a longer word (a script for ``sh -c``)
    they are quoted for a shell.
    """
    words: list[str] = []
    for word in command:
        if mistake := next((m for m in LIKELY_MISTAKE.finditer(word) if not PLACEHOLDER.fullmatch(m[0])), None):
            raise _CannotRun(f"{mistake[0]}: give a size in M or G, for example {{memory:1G}}", 2)
        if match := PLACEHOLDER.fullmatch(word):
            words += _meaning(match[1], sockets)
        else:
            words.append(PLACEHOLDER.sub(lambda match: shlex.join(_meaning(match[1], sockets)), word))
    return words


def _meaning(placeholder: str, sockets: Sequence[Path]) -> list[str]:
    name, _, value = placeholder.partition(":")
    if name == "memory":
        # QEMU adds up several -machine options, so this one goes with any -machine of the user's.
        memory = f"memory-backend-memfd,id=nvmeemu-memory,size={value},share=on"
        return ["-object", memory, "-m", value, "-machine", "memory-backend=nvmeemu-memory"]
    if int(value or 1) > len(sockets):
        drives = "1 drive" if len(sockets) == 1 else f"{len(sockets)} drives"
        raise _CannotRun(f"{{{placeholder}}}: there is only {drives}", 2)
    socket = sockets[int(value or 1) - 1]
    return [str(socket)] if name == "socket" else ["-device", json.dumps(serving.properties(socket))]


class _CannotRun(Exception):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _program(name: str) -> str:
    """The path of the command's program. Call it before a server is started for the command."""
    found = shutil.which(name)
    if found is not None:
        return found
    if "/" in name and Path(name).exists():
        raise _CannotRun(f"{name}: not an executable file", NOT_RUN)
    raise _CannotRun(f"{name}: no such command", NOT_FOUND)


@contextmanager
def _places(socket: str | None, drives: Sequence[str]) -> Iterator[list[Path]]:
    """Where each drive listens: as is wanted, or in a folder that only we may enter, gone afterwards.

    Raises Failure.
    """
    said = [socket]
    if drives and socket is None:
        from nvmeemu.app.drive.file import read  # start-up: without drive files not needed

        said = [read(path).tables.controllers[0].get("socket") for path in drives]
        if None in said and len(said) > 1:
            raise Failure(
                f"{drives[said.index(None)]}: a socket is missing: of several drives each says where it is", 2
            )
    if None not in said:
        yield [Path(str(path)).absolute() for path in said]
        return
    with tempfile.TemporaryDirectory(prefix="nvmeemu-run-") as folder:
        yield [Path(folder) / "nvme.sock"]


@contextmanager
def _signals_raise() -> Iterator[None]:
    def nothing(number: int, frame: FrameType | None) -> None: ...

    def handler(number: int, frame: FrameType | None) -> NoReturn:
        for other in _heeded(ENDING):  # what is to be cleared away now is cleared away wholly
            signal.signal(other, nothing)
        raise _Ended(number)

    before = {number: signal.signal(number, handler) for number in _heeded(ENDING)}
    before |= {number: signal.signal(number, nothing) for number in _heeded(MEANINGLESS)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _heeded(numbers: Iterable[int]) -> set[int]:
    """The signals among these that were not ignored when we were started, as nohup(1) does with SIGHUP."""
    return {number for number in numbers if signal.getsignal(number) != signal.SIG_IGN}


def _attend(program: str, words: Sequence[str], socket: Path, server: subprocess.Popen[bytes]) -> int:
    """Run the command, end the server; signals are taken one by one from here on."""
    watched = {*_heeded((*ENDING, *MEANINGLESS)), signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        dies_with_us = process.dies_with_us()

        def in_child() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            dies_with_us()

        try:
            command = subprocess.Popen(
                words, executable=program, env=os.environ | {"NVMEEMU_SOCKET": str(socket)}, preexec_fn=in_child
            )
        except OSError as error:
            raise _CannotRun(f"{program}: {os.strerror(error.errno or 0)}", NOT_RUN) from None
        is_server_lost = _wait(command, watched, beside=server)
        while signal.sigtimedwait(watched, 0):  # what ended the command was not meant for the server, too
            pass
        server.send_signal(signal.SIGTERM)  # does nothing to one that has ended
        _wait(server, watched)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if is_server_lost:
        complain("nvmeemu run", f"nvmeemu serve ended with status {server.returncode}")
        return 1
    status = command.returncode
    if status > 0:
        _explain(words)
    if status == 0 and server.returncode != 0:
        return 1  # not synced; it has said so
    return status if status >= 0 else 128 - status


def _explain(words: Sequence[str]) -> None:
    """QEMU says "not a valid device model name" where it has no vfio-user-pci: say which QEMU has."""
    for match in QEMU.finditer(" ".join(words)):
        program = shutil.which(match[0])
        if program is None:
            continue
        if obstacle := vmm.obstacle(Path(program)):
            ours = vmm.cache() / "bin"
            where = f"put {ours} first in PATH" if (ours / Path(program).name).exists() else "scripts/setup.sh has one"
            complain("nvmeemu run", f"{obstacle}: {where}")
        return


def _wait(child: subprocess.Popen[bytes], watched: set[int], beside: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait for a child's end and hand our signals on to it; was ``beside`` lost, and the child ended for that?"""
    is_lost = False
    killed_at = math.inf
    while child.poll() is None:
        if beside is not None and not is_lost and beside.poll():  # 0 is --once
            is_lost = True
            child.terminate()
            killed_at = time.monotonic() + PATIENCE
        if time.monotonic() >= killed_at:
            child.kill()
        received = signal.sigtimedwait(watched, LOOK_AGAIN if is_lost else FOREVER)
        if received is None or received.si_signo == signal.SIGCHLD:
            continue
        if beside is None:  # the server, which ends already
            if received.si_signo in ENDING:
                child.terminate()
        # The terminal has sent its own to the command, too: a second one would mean something else to many programs.
        elif received.si_code <= 0:  # of sigaction(2): not from the kernel, so by kill(2) or its like
            _hand_on(child, received.si_signo)
    return is_lost


def _hand_on(child: subprocess.Popen[bytes], number: int) -> None:
    """Pass a signal on. One that ends (ENDING) goes to all processes that the child has started, as from a terminal: a
    shell that ended alone would leave its VM behind. Any other signal goes to the command itself."""
    group = os.getpgid(child.pid)
    family = list(_below(child.pid)) if number in ENDING else []  # before one ends, and its children go elsewhere
    child.send_signal(number)
    for pid in family:
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group:  # not what has left for a session of its own
                os.kill(pid, number)


def _below(pid: int) -> Iterator[int]:
    """The process' children, their children, and so on."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in map(int, file.read_text().split()):
                yield child
                yield from _below(child)
