"""Child processes, which never outlive the run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


def spawn(
    command: Sequence[str | Path],
    log: Path | None,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its output appended to `log`; `environment` is added to ours.

    Without a log its standard output is thrown away, and its standard error is ours. A session of its own: Ctrl-C
    reaches only us, and we end QEMU before its drive. Should we be killed outright, the kernel ends the child.
    """
    with open(log or os.devnull, "ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            pass_fds=pass_fds,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
            preexec_fn=dies_with_us(),
        )


def dies_with_us() -> Callable[[], None]:
    """A `preexec_fn`: the kernel kills the child when our process is gone."""
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


def end(process: subprocess.Popen[bytes], patience: float = 5.0) -> int:
    """Ask the program to end, then kill it. Returns its exit status (negative: the signal)."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(patience)
    _signal(process, signal.SIGKILL)  # also what it may have left behind in its session
    return process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; nothing if there is none."""
    if not path.exists():
        return []
    return path.read_text(errors="replace").splitlines()[-lines:]
