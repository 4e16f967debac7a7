"""The event loop: file descriptors, timers, blocking work on threads, and an orderly stop. Sleeps when idle.

Everything it calls runs on the thread that is in ``Loop.run``, the controller's thread; only the work given to
``submit`` runs elsewhere.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from nvmeemu.vfio.alarm import Alarm

log = logging.getLogger(__name__)

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]

# A thread that comes back from a disk has to take the interpreter lock from this one; Python's own 5 ms would be
# the latency of every command that waits for a disk while another one computes.
SWITCH_INTERVAL = 0.0002

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # whoever connects has to wait,
NO_DESCRIPTORS_TIME = 0.5  # so many seconds, until we try again


class Loop:
    """Provides the ports Clock and Worker. ``threads`` bounds how much work may block at one thing at the same time."""

    def __init__(self, threads: int = 8) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self._stopping = False
        # One pipe wakes the loop: for a finished work, for a stop, and (written by the interpreter) for a signal.
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waking = threading.RLock()  # a thread must not write to what has got the closed pipe's number
        self.watch(self._wake_read, self._drain_wake)
        self._alarm = Alarm()
        self.watch(self._alarm.fd, self._alarm.drain)
        self._pool = _Pool(threads, self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give up the descriptors. Threads still at work are left to end by themselves; nobody is told."""
        self._pool.close()
        self._epoll.close()
        with self._waking:
            write, self._wake_write = self._wake_write, -1
        if write >= 0:
            os.close(write)
            os.close(self._wake_read)
            self._alarm.close()

    # --- descriptors

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever ``fd`` can be read, or has failed, until ``unwatch``."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """The opposite; ``fd`` may be closed already."""
        if self._watched.pop(fd, None) is not None:
            with suppress(OSError):  # closing it took it out of the set
                self._epoll.unregister(fd)

    def rest(self, fd: int, seconds: float) -> None:
        """Do not call back for ``fd`` for so long: what it has to tell would be told at once again, and again."""
        callback = self._watched[fd]
        self.unwatch(fd)
        self.call_later(seconds, lambda: self.watch(fd, callback))

    # --- Clock

    def now(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(self.now() + delay, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    # --- Worker

    def submit(self, work: Work, done: Done, at: object = None) -> _Job:
        return self._pool.submit(work, done, at)

    # --- running

    @property
    def stopping(self) -> bool:
        return self._stopping

    def request_stop(self) -> None:
        """Make ``run`` return soon. May be called from a signal handler and from any thread."""
        self._stopping = True
        self._wake()

    def run(self, step: Callable[[], bool]) -> None:
        """Serve until ``request_stop``. ``step`` is called after all that was waiting has been served; as long as it
        returns True it is called again at once, in turn with what has come in meanwhile."""
        with _prompt_threads(), self._signals():
            more = True
            while not self._stopping:
                if not more:
                    self._set_alarm()
                for fd, _ in self._epoll.poll(0 if more else None):
                    callback = self._watched.get(fd)
                    if callback is not None:  # an earlier callback may have closed it
                        callback()
                self._run_timers()
                self._pool.finish()
                more = step()

    def _set_alarm(self) -> None:
        """To the next timer."""
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


def _nothing(*_: Any) -> None: ...


class _Job:
    """Work on its way through the pool. ``begun`` and ``cancelled`` are changed under the pool's lock."""

    def __init__(self, pool: _Pool, work: Work, done: Done, at: object) -> None:
        self._pool = pool
        self.work = work
        self.done = done
        self.at = at
        self.begun = False
        self.cancelled = False

    def cancel(self) -> bool:
        return self._pool.cancel(self)


class _Pool:
    """Threads for what may block, started when first needed: ``limit`` for each thing that work may have to wait at.

    They are daemons: a disk that never answers must not keep the process from ending.
    """

    def __init__(self, limit: int, wake: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._todo: SimpleQueue[_Job | None] = SimpleQueue()  # there is a thread for each
        self._finished: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._threads = 0
        self._lock = threading.Lock()
        self._admitted: Counter[object] = Counter()  # in ``_todo`` and at threads, by where they may have to wait
        self._waiting: dict[object, dict[_Job, None]] = {}  # the others, in order

    def submit(self, work: Work, done: Done, at: object) -> _Job:
        job = _Job(self, work, done, at)
        with self._lock:
            if self._admitted[at] >= self._limit:
                self._waiting.setdefault(at, {})[job] = None
            else:
                self._admit(job)
        return job

    def _admit(self, job: _Job) -> None:
        self._admitted[job.at] += 1
        if self._threads < self._admitted.total():
            self._threads += 1
            threading.Thread(target=self._serve, name=f"nvmeemu-{self._threads}", daemon=True).start()
        self._todo.put(job)

    def cancel(self, job: _Job) -> bool:
        with self._lock:
            if job.begun:
                return False
            if not job.cancelled:
                job.cancelled = True
                job.work = job.done = _nothing  # if it stays in the queue, then without the memory that it was for
                self._forget(job)
            return True

    def _forget(self, job: _Job) -> None:
        if job in (waiting := self._waiting.get(job.at, {})):
            del waiting[job]
            if not waiting:
                del self._waiting[job.at]

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            with self._lock:
                job.begun = not job.cancelled
            if job.begun:
                self._run(job)
            at = job.at
            del job
            with self._lock:
                self._ended(at)

    def _run(self, job: _Job) -> None:
        try:
            value, error = job.work(), None
        except BaseException as failure:  # whatever it is, the loop's thread has to hear of it
            value, error = None, failure
        self._finished.append((job.done, value, error))
        self._wake()

    def _ended(self, at: object) -> None:
        """A thread is done with a job there: the next one has its place."""
        self._admitted[at] -= 1
        if not self._admitted[at]:
            del self._admitted[at]
        if at in self._waiting:
            job = next(iter(self._waiting[at]))
            self._forget(job)
            self._admit(job)

    def finish(self) -> None:
        """Report the work that has finished by now."""
        for _ in range(len(self._finished)):
            done, value, error = self._finished.popleft()
            done(value, error)

    def close(self) -> None:
        for _ in range(self._threads):
            self._todo.put(None)
