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
        self._changes: deque[tuple[Changes, Done]] = deque()  # the first one is under way
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

    def save(self, changes: Changes, done: Done) -> None:
        if not self._changes and self._has(changes):
            done(None)
            return
        self._changes.append((dict(changes), done))
        if len(self._changes) == 1:
            self._begin()

    def save_now(self, changes: Changes) -> None:
        """Save before anybody else does: it blocks. Raises StateError."""
        if not self._has(changes):
            self._database.write(changes)
            self.put(changes)

    def _has(self, changes: Changes) -> bool:
        return all(self.get(*key) == value for key, value in changes.items())

    def _begin(self) -> None:
        changes, _ = self._changes[0]
        self._worker.submit(partial(self._database.write, changes), self._ended, self)

    def _ended(self, _: object, error: BaseException | None) -> None:
        changes, done = self._changes.popleft()
        if error is None:
            self.put(changes)
        elif isinstance(error, StateError):
            error = StateError(f"{self.path}: {error}")
        if self._changes:
            self._begin()
        done(error)
