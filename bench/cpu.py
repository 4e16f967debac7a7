"""What threads cost and how long they had to wait for a CPU, in nanoseconds: /proc/PID/task/TID/schedstat."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Times(NamedTuple):
    """Since a thread's start."""

    run: int
    waited: int  # for a CPU, though it could run


def thread(tid: int | None = None, pid: int | None = None) -> Times:
    """Of one thread; by default this one."""
    path = f"/proc/{pid or os.getpid()}/task/{tid or threading.get_native_id()}/schedstat"
    run, waited, _ = Path(path).read_text().split()
    return Times(int(run), int(waited))


def threads(pid: int) -> dict[int, Times]:
    """Of all threads of a process, by their numbers; the first one's is the process's."""
    return {int(name): thread(int(name), pid) for name in os.listdir(f"/proc/{pid}/task")}


def spent(before: dict[int, Times], after: dict[int, Times]) -> dict[int, Times]:
    """Between two looks, by those that live."""
    none = Times(0, 0)
    return {
        tid: Times(now.run - before.get(tid, none).run, now.waited - before.get(tid, none).waited)
        for tid, now in after.items()
    }


def disturbance(times: dict[int, Times]) -> int:
    """How long threads waited for others than each other."""
    everyone = sum(one.run for one in times.values())
    return max((one.waited - (everyone - one.run) for one in times.values()), default=0)


_CPUS = sorted(os.sched_getaffinity(0))


def leave_to_host(tid: int = 0) -> None:
    """A thread, by default this one, keeps off the host's CPU. Servers look at how many they have when they start."""
    os.sched_setaffinity(tid, _CPUS[:-1] or _CPUS)


@contextmanager
def host() -> Iterator[None]:
    """This thread runs on the last CPU, as the polling host."""
    os.sched_setaffinity(0, _CPUS[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, _CPUS)
