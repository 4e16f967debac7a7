"""The event loop: file descriptors, timers, blocking work on threads, and an orderly stop. Sleeps when idle.

One loop serves any number of controllers, each with its socket (``Server``) and its step (``Controller.run``).
Everything it calls runs on the thread that is in ``Loop.run``, the controllers' thread; only the work given to
``submit`` runs elsewhere. Nothing that it calls may wait: the other controllers would wait, too.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from nvmeemu.vfio.alarm import Alarm
from nvmeemu.vfio.workers import Done, Work, Workers, WorkItem

Step = Callable[[], bool]

# A thread that comes back from a disk has to take the interpreter lock from this one; Python's own 5 ms would be
# the latency of every command that waits for a disk while another one computes.
SWITCH_INTERVAL = 0.0002

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # whoever connects has to wait,
NO_DESCRIPTORS_TIME = 0.5  # so many seconds, until we try again


class Loop:
    """Provides the ports Clock and Worker, to all controllers. ``threads`` bounds how much work may block at one thing
    (a disk) at the same time; what blocks at one thing never holds up what is at another.

    It has its descriptors from ``open`` to ``close``."""

    _epoll: select.epoll

    def __init__(self, threads: int = 8) -> None:
        self._watched: dict[int, _Watch] = {}
        self._steps: list[Step] = []
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self._stopping = False
        # One pipe wakes the loop: for a finished work, for a stop, and (written by the interpreter) for a signal.
        self._wake_read = self._wake_write = -1
        self._waking = threading.RLock()  # a thread must not write to what has got the closed pipe's number
        self._alarm = Alarm()
        self._workers = Workers(threads, self._wake)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Raises OSError, and then nothing is open."""
        self._epoll = select.epoll()
        try:
            self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self.watch(self._wake_read, self._drain_wake)
            self._alarm.open()
            self.watch(self._alarm.fd, self._alarm.drain)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors. Threads that are still at work end by themselves, and their results are lost."""
        self._workers.close()
        self._epoll.close()
        with self._waking:
            write, self._wake_write = self._wake_write, -1
        if write >= 0:
            os.close(write)
            os.close(self._wake_read)
        self._alarm.close()

    # --- descriptors

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` can be read, or has failed, until ``unwatch``."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = _Watch(callback)

    def unwatch(self, fd: int) -> None:
        """End a ``watch``, also during a ``rest``. ``fd`` may be closed already."""
        if self._watched.pop(fd, None) is not None:
            with suppress(OSError):  # closing it took it out of the set
                self._epoll.unregister(fd)

    def rest(self, fd: int, seconds: float) -> None:
        """Do not watch ``fd`` for so many seconds, because it would be readable again at once, and again."""
        watch = self._watched[fd]
        with suppress(OSError):  # it rests already
            self._epoll.unregister(fd)
        self.call_later(seconds, lambda: self._end_rest(fd, watch))

    def _end_rest(self, fd: int, watch: _Watch) -> None:
        if self._watched.get(fd) is watch:  # else it is not watched any more, and the number may be another file's
            with suppress(FileExistsError):  # it has rested twice
                self._epoll.register(fd, select.EPOLLIN)

    # --- Clock

    def now(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(self.now() + delay, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    # --- Worker

    def submit(self, work: Work, done: Done, at: object) -> WorkItem:
        return self._workers.submit(work, done, at)

    # --- running

    @property
    def stopping(self) -> bool:
        return self._stopping

    def request_stop(self) -> None:
        """Make ``run`` return soon. May be called from a signal handler and from any thread."""
        self._stopping = True
        self._wake()

    def add_step(self, step: Step) -> None:
        """Call ``step`` each time after the events that were waiting. It does a bounded batch of work, and returns
        True if it has more. Then all steps are called again without sleep, after the events that have come meanwhile.
        So a step that always has more delays no other one."""
        self._steps.append(step)

    def remove_step(self, step: Step) -> None:
        """Call this step no more. Does nothing if it is not one of the loop's."""
        with suppress(ValueError):
            self._steps.remove(step)

    @property
    def step_count(self) -> int:
        """How many steps, that is controllers, share this loop."""
        return len(self._steps)

    def run(self) -> None:
        """Serve until ``request_stop``."""
        self.run_until(lambda: self._stopping)

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Serve until this is so, whether or not a stop was requested: it is asked after whatever has happened."""
        with _prompt_threads(), self._signals():
            more = True
            while not is_done():
                if not more:
                    self._set_alarm()
                for fd, _ in self._epoll.poll(0 if more else None):
                    watch = self._watched.get(fd)
                    if watch is not None:  # an earlier callback may have closed it
                        watch.callback()
                self._run_timers()
                self._workers.finish()
                more = self._run_steps()

    def _run_steps(self) -> bool:
        more = False
        for step in tuple(self._steps):
            more = step() or more
        return more

    def _set_alarm(self) -> None:
        """The time until the next timer."""
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        self._alarm.set(self._timers[0].when if self._timers else None)

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now = self.now()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def _wake(self) -> None:
        with self._waking, suppress(BlockingIOError):  # full: awake already
            if self._wake_write >= 0:
                os.write(self._wake_write, b"\0")

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Python runs signal handlers between two instructions, so a signal just before ``epoll_wait`` would wait
        for the next event: let the interpreter's own C handler write to the pipe."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _prompt_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Watch:
    """A descriptor that is watched: this time, not before or after."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback


class _Timer:
    """A pending call; its callback is None once it was made or cancelled."""

    __slots__ = ("callback", "number", "when")

    def __init__(self, when: float, number: int, callback: Callable[[], None]) -> None:
        self.when = when
        self.number = number
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: _Timer) -> bool:
        return (self.when, self.number) < (other.when, other.number)

    def cancel(self) -> None:
        self.callback = None
