"""Commands of one controller that wait until the drive has remembered something, and what else waits for that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from nvmeemu.controller.request import Changing, Request, Result, Saving
from nvmeemu.ports import Changes, SavedState, StateError
from nvmeemu.spec import Status
from nvmeemu.spec.errors import CommandFailed

log = logging.getLogger(__name__)


class Saves:
    """``go_on`` runs a request's stage, if the request still lives. ``on_progress`` is called when changes have become
    durable, or have failed. Changes that were given go on through a reset."""

    def __init__(
        self, state: SavedState, go_on: Callable[[Request[Any]], None], on_progress: Callable[[], None]
    ) -> None:
        self._state = state
        self._go_on = go_on
        self._on_progress = on_progress
        self._under_way = 0
        self._told: set[str] = set()  # what the user knows of

    @property
    def is_busy(self) -> bool:
        """Changes are not durable yet."""
        return bool(self._under_way)

    def begin(self, request: Request[Any], saving: Saving) -> None:
        """Save what a command changes; the command goes on after that."""
        request.is_abortable = False
        request.deadline = None
        self.save(saving.changes, partial(self._conclude, request, saving))

    def change(self, request: Request[Any], changing: Changing) -> None:
        """Change what the subsystem has; the command goes on after that."""
        request.is_abortable = False
        request.deadline = None
        self._under_way += 1

        def ended(result: Any, error: BaseException | None) -> None:
            self._under_way -= 1
            if isinstance(error, StateError):
                self._complain(str(error))
            request.stage = lambda _: changing.then(result) if error is None else _fail(error)
            self._go_on(request)
            self._on_progress()

        changing.begin(ended)

    def save(self, changes: Changes, done: Callable[[BaseException | None], None]) -> None:
        """Save changes that no command waits for. ``done`` gets the error; the user has been told of it."""
        self._under_way += 1

        def ended(error: BaseException | None) -> None:
            self._under_way -= 1
            if error is not None:
                self._complain(str(error))
            done(error)
            self._on_progress()

        self._state.save(changes, ended)

    def _conclude(self, request: Request[Any], saving: Saving, error: BaseException | None) -> None:
        request.stage = lambda _: _outcome(saving, error)
        self._go_on(request)

    def _complain(self, why: str) -> None:
        """Tell the user, once for each reason."""
        if why not in self._told:
            self._told.add(why)
            log.error("the saved state was not changed: %s (logged once)", why)


def _outcome(saving: Saving, error: BaseException | None) -> Result:
    return saving.then() if error is None else _fail(error)


def _fail(error: BaseException) -> Result:
    if isinstance(error, StateError):
        raise CommandFailed(Status.INTERNAL_ERROR, dnr=False, why="the saved state was not changed")
    raise error
