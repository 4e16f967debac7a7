"""A drive's saved state in a file, for the controller's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from nvmeemu.ports import Changes, StateError, Worker
from nvmeemu.state.database import Database
from nvmeemu.subsystem.saved import MemoryState

Done = Callable[[BaseException | None], None]


class StateFile(MemoryState):
    """All values are in memory, too: only changes wait for the file, each on a thread of the worker, one by one."""

    def __init__(self, path: str, database: Database, worker: Worker) -> None:
        super().__init__()
        self.path = path
        self._database = database
        self._worker = worker
        self._changes: deque[tuple[Callable[[Changes], None], Changes, Done]] = deque()  # the first one is under way
        self.put(database.read())

    @classmethod
    def open(cls, path: str, worker: Worker) -> StateFile:
        """Open the file, or make it. Raises StateError, whose text goes on after the path."""
        database = Database.open(path)
        try:
            return cls(path, database, worker)
        except StateError:
            database.close()
            raise

    def close(self) -> None:
        """The file may be opened by another server after that."""
        self._database.close()

    @property
    def is_busy(self) -> bool:
        """Changes are not durable yet."""
        return bool(self._changes)

    def begin(self, changes: Changes) -> None:
        """Power comes, with these changes, before anything else is saved. It blocks. Raises StateError."""
        self._database.begin(changes)
        self.put(changes)

    def end(self, changes: Changes, done: Done) -> None:
        """An orderly end, with these changes: like ``save``."""
        self._enqueue(self._database.end, changes, done)

    def save(self, changes: Changes, done: Done) -> None:
        if not self._changes and all(self.get(*key) == value for key, value in changes.items()):
            done(None)
        else:
            self._enqueue(self._database.write, changes, done)

    def _enqueue(self, write: Callable[[Changes], None], changes: Changes, done: Done) -> None:
        self._changes.append((write, dict(changes), done))
        if len(self._changes) == 1:
            self._begin()

    def _begin(self) -> None:
        write, changes, _ = self._changes[0]
        self._worker.submit(partial(write, changes), self._ended, self)

    def _ended(self, _: object, error: BaseException | None) -> None:
        _, changes, done = self._changes.popleft()
        if error is None:
            self.put(changes)
        elif isinstance(error, StateError):
            error = StateError(f"{self.path}: {error}")
        if self._changes:
            self._begin()
        done(error)
