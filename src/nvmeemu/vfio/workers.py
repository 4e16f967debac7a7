"""Threads for work that may block, mostly on a disk. They belong to the loop, and all its controllers share them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


def _nothing(*_: Any) -> None: ...


class WorkItem:
    """Work on its way through the threads. ``begun`` and ``cancelled`` are changed under their lock."""

    def __init__(self, workers: Workers, work: Work, done: Done, at: object) -> None:
        self._workers = workers
        self.work = work
        self.done = done
        self.at = at
        self.begun = False
        self.cancelled = False

    def cancel(self) -> bool:
        return self._workers.cancel(self)


class Workers:
    """Threads, started when first needed: ``limit`` for each thing that work may have to wait at.

    They are daemons: a disk that never answers must not keep the process from ending.
    """

    def __init__(self, limit: int, wake: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._todo: SimpleQueue[WorkItem | None] = SimpleQueue()  # there is a thread for each
        self._finished: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._threads = 0
        self._lock = threading.Lock()
        self._admitted: Counter[object] = Counter()  # in ``_todo`` and at threads, by where they may have to wait
        self._waiting: dict[object, dict[WorkItem, None]] = {}  # the others, in order

    def submit(self, work: Work, done: Done, at: object) -> WorkItem:
        job = WorkItem(self, work, done, at)
        with self._lock:
            if self._admitted[at] >= self._limit:
                self._waiting.setdefault(at, {})[job] = None
            else:
                self._admit(job)
        return job

    def _admit(self, job: WorkItem) -> None:
        self._admitted[job.at] += 1
        if self._threads < self._admitted.total():
            self._threads += 1
            threading.Thread(target=self._serve, name=f"nvmeemu-{self._threads}", daemon=True).start()
        self._todo.put(job)

    def cancel(self, job: WorkItem) -> bool:
        with self._lock:
            if job.begun:
                return False
            if not job.cancelled:
                job.cancelled = True
                job.work = job.done = _nothing  # if it stays in the queue, then without the memory that it was for
                self._forget(job)
            return True

    def _forget(self, job: WorkItem) -> None:
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

    def _run(self, job: WorkItem) -> None:
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
