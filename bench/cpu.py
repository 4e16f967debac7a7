"""What threads cost and how long they had to wait for a CPU, in nanoseconds: /proc/PID/task/TID/schedstat. Where that
cannot tell (threads that have ended; what others do), CPU seconds by the clock's ticks: /proc/PID/stat, /proc/stat."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    found = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):  # it has ended
            found[int(name)] = thread(int(name), pid)
    return found


def process(pid: int) -> int:
    """CPU time of a process, with that of threads which have ended: the kernel's workers come and go."""
    return time.clock_gettime_ns(~pid << 3 | 2)  # clock_getcpuclockid(3)


def named(pid: int, name: str) -> set[int]:
    """The threads of a process that have this name."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            if (task / "comm").read_text().strip() == name:
                found.add(int(task.name))
    return found


def spent(before: dict[int, Times], after: dict[int, Times]) -> dict[int, Times]:
    """CPU time between two looks, of threads that still live."""
    none = Times(0, 0)
    return {
        tid: Times(now.run - before.get(tid, none).run, now.waited - before.get(tid, none).waited)
        for tid, now in after.items()
    }


def disturbance(times: dict[int, Times]) -> int:
    """How long threads waited for others, and not for each other."""
    everyone = sum(one.run for one in times.values())
    return max((one.waited - (everyone - one.run) for one in times.values()), default=0)


def percents(pids: Sequence[int], seconds: float) -> list[float]:
    """What each process takes of one CPU in that time, while nobody asks it for anything."""
    before, begin = [threads(pid) for pid in pids], time.monotonic_ns()
    time.sleep(seconds)
    after, took = [threads(pid) for pid in pids], time.monotonic_ns() - begin
    return [
        round(sum(one.run for one in spent(*looks).values()) / took * 100, 3)
        for looks in zip(before, after, strict=True)
    ]


class Others:
    """Which share of all CPUs goes to processes other than these. Time that a hypervisor takes away counts, if it says
    so."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._last = self._look()

    def share(self) -> float:
        """The share since it was made or asked last: 0.5 is half of all CPUs."""
        last, self._last = self._last, self._look()
        took, theirs = (now - then for now, then in zip(self._last, last, strict=True))
        return max(theirs, 0.0) / took / (os.cpu_count() or 1)

    def _look(self) -> tuple[float, float]:
        now = time.monotonic()
        user, nice, system, _idle, _iowait, *rest = _ticks(Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        ours = sum(sum(_ticks(self._fields(pid)[11:13])) for pid in self._pids)  # utime, stime: of all its threads
        return now, (user + nice + system + sum(rest) - ours) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _fields(pid: int) -> list[str]:
        """Of /proc/PID/stat, from the third on."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(words: Sequence[str]) -> list[int]:
    return [int(word) for word in words]


_CPUS = sorted(os.sched_getaffinity(0))


def leave_to_host(tid: int = 0) -> None:
    """A thread, by default this one, keeps off the host's CPU."""
    os.sched_setaffinity(tid, _CPUS[:-1] or _CPUS)


@contextmanager
def host() -> Iterator[None]:
    """This thread runs on the last CPU, as the polling host."""
    os.sched_setaffinity(0, _CPUS[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, _CPUS)
