"""A medium of a namespace for one user alone: no command of any other is there meanwhile, and no engine.

others may not begin -> those that had begun have ended -> the user has it -> the others go on
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from nvmeemu.ports import Clock
from nvmeemu.subsystem.media import LOOK_AGAIN, Budget, Media
from nvmeemu.subsystem.namespace import Namespace


class _Wish:
    def __init__(self, namespace: Namespace, user: object, granted: Callable[[], None]) -> None:
        self.namespace = namespace
        self.media = namespace.media
        self.user = user
        self.granted = granted


class SoleUse:
    """Who wants a medium alone waits for those before it. ``is_used``: whether commands that have begun are at a
    medium. ``configure``: has engines look at whether they may use a namespace."""

    def __init__(self, clock: Clock, is_used: Callable[[Media], bool], configure: Callable[[Namespace], None]) -> None:
        self._clock = clock
        self._is_used = is_used
        self._configure = configure
        self._wishes: dict[Budget, deque[_Wish]] = {}
        self._looking: set[_Wish] = set()  # those that are first, and wait until others have ended

    def ask(self, namespace: Namespace, user: object, granted: Callable[[], None]) -> None:
        """Have ``granted`` called when ``user`` has the namespace's medium for itself, until ``end``. That may be at
        once."""
        wish = _Wish(namespace, user, granted)
        wishes = self._wishes.setdefault(wish.media.budget, deque())
        wishes.append(wish)
        if len(wishes) == 1:
            wish.media.budget.sole_user = user
            if wish.media.direct is not None:
                self._configure(namespace)
            self._look_until_it_is_free(wish)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits until commands that had begun have ended."""
        return bool(self._looking)

    def look(self) -> None:
        """Commands may have ended. (It is not told of all that do, and looks now and then by itself.)"""
        for wish in tuple(self._looking):
            if wish in self._looking and not self._is_used(wish.media):
                self._looking.remove(wish)
                wish.granted()

    def _look_until_it_is_free(self, wish: _Wish) -> None:
        self._looking.add(wish)
        self.look()
        if wish in self._looking:
            self._clock.call_later(LOOK_AGAIN, partial(self._look_again, wish))

    def _look_again(self, wish: _Wish) -> None:
        if wish in self._looking:
            self._look_until_it_is_free(wish)

    def end(self, user: object) -> None:
        """It needs it no more, or does not want it any more."""
        for wishes in tuple(self._wishes.values()):
            for wish in tuple(wishes):
                if wish.user is user:
                    self._end(wishes, wish)

    def end_when_unused(self, user: object) -> None:
        """The same, but what it has begun there ends before another one begins."""
        wish = next((one for wishes in self._wishes.values() for one in wishes if one.user is user), None)
        if wish is not None and self._is_used(wish.media):
            self._looking.discard(wish)
            self._clock.call_later(LOOK_AGAIN, partial(self.end_when_unused, user))
        else:
            self.end(user)

    def _end(self, wishes: deque[_Wish], wish: _Wish) -> None:
        self._looking.discard(wish)
        was_first = wishes[0] is wish
        wishes.remove(wish)
        budget = wish.media.budget
        if wishes and was_first:
            budget.sole_user = wishes[0].user
            self._look_until_it_is_free(wishes[0])
        elif not wishes:
            del self._wishes[budget]
            budget.sole_user = None
            if wish.media.direct is not None:
                self._configure(wish.namespace)
            self._clock.call_later(0, _nothing)  # all controllers look at what waits


def _nothing() -> None:
    pass
