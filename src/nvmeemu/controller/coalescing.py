"""Interrupt Coalescing and Interrupt Vector Configuration: a message waits for more completions, or for some time.
Base 1.4, 5.21.1.8 and 5.21.1.9.

Completions and time are counted for each vector. The admin queue's vector never waits, nor does the pin. The native
engine does the same for its completion queues when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from nvmeemu.engine.port import Engine
from nvmeemu.ports import Clock, Timer
from nvmeemu.queues import CompletionQueue

ADMIN_VECTOR = 0


class Coalescing:
    """Which messages wait. ``send`` sends one whose time has come."""

    def __init__(self, clock: Clock, engine: Engine | None, send: Callable[[int], None]) -> None:
        self._clock = clock
        self._engine = engine
        self._send = send
        self._time = 0.0
        self._completions = 1
        self._vectors: frozenset[int] = frozenset()
        self._held: dict[int, int] = {}  # vector -> completions that its message waits with
        self._timers: dict[int, Timer] = {}

    def configure(self, time: float, completions: int, vectors: Collection[int]) -> None:
        """Let the messages of these vectors wait for at most ``time`` seconds, or until there are so many completions.
        Messages that waited before are sent now."""
        is_on = time > 0 and completions > 1
        self._time, self._completions = time, completions
        self._vectors = frozenset(vectors) - {ADMIN_VECTOR} if is_on else frozenset()
        if self._engine is not None:
            self._engine.coalesce(self._time, self._completions, self._vectors)
        for vector in tuple(self._timers):
            self._release(vector)
            self._send(vector)

    def reset(self) -> None:
        """Switch coalescing off, and drop the messages that wait."""
        for vector in tuple(self._timers):
            self._release(vector)
        self.configure(0.0, 1, ())

    def is_due(self, cq: CompletionQueue, number: int) -> bool:
        """Whether to send the message of a queue that has got so many completions now. If not, it is sent later."""
        vector = cq.vector
        if vector not in self._vectors:
            return True
        if cq.server.is_engine:
            return False  # the engine has counted them
        held = self._held.get(vector, 0) + number
        if held >= self._completions:
            self._release(vector)
            return True
        self._held[vector] = held
        if vector not in self._timers:
            self._timers[vector] = self._clock.call_later(self._time, partial(self._late, vector))
        return False

    def _late(self, vector: int) -> None:
        self._release(vector)
        self._send(vector)

    def _release(self, vector: int) -> None:
        self._held.pop(vector, None)
        if vector in self._timers:
            self._timers.pop(vector).cancel()
