"""Queues that the native engine serves, as ``queues`` wants them: it does itself what Python does for others."""

from __future__ import annotations

from typing import ClassVar

from nvmeemu.controller.doorbells import Slot
from nvmeemu.engine.port import CqHandle, SqHandle
from nvmeemu.queues import EntryTap


class EngineCq:
    """A completion queue that the engine serves, a ``queues.CqServer``."""

    is_engine: ClassVar = True
    tap: EntryTap | None = None

    def __init__(self, handle: CqHandle) -> None:
        self.handle = handle

    @property
    def head(self) -> int:
        return self.handle.head

    @property
    def tail(self) -> int:
        return self.handle.tail

    def ring(self, value: int) -> bool:
        return self.handle.ring(value)

    def use_shadow(self, slot: Slot) -> None:
        self.handle.use_shadow(slot.shadow, slot.event)

    def find_memory(self) -> bool:
        return self.handle.has_memory

    def forget(self) -> None:
        """Nothing to do: a paused engine has no views."""

    def find_room(self) -> bool:
        return self.handle.find_room()

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool = False) -> bool:
        return self.handle.post(sqid, sqhd, cid, dw0, field, wrong_phase=wrong_phase)

    def post_waiting(self) -> int:
        """Nothing to do: the engine posts what waits in it."""
        return 0

    def drop_waiting(self, sqid: int | None = None) -> None:
        """All of them end with the queue."""
        if sqid is not None:
            self.handle.drop_waiting(sqid)

    def look(self) -> tuple[int, int]:
        self.handle.look()
        return self.handle.head, self.handle.tail


class EngineSq:
    """A submission queue that the engine serves, a ``queues.SqServer``."""

    is_engine: ClassVar = True
    wants_turn: ClassVar = False
    has_stopped: ClassVar = False  # then it is the engine's no longer

    def __init__(self, handle: SqHandle) -> None:
        self.handle = handle

    @property
    def head(self) -> int:
        return self.handle.head

    @property
    def tail(self) -> int:
        return self.handle.tail

    def ring(self, value: int) -> bool:
        return self.handle.ring(value)

    def use_shadow(self, slot: Slot) -> None:
        self.handle.use_shadow(slot.shadow, slot.event)

    def find_memory(self) -> bool:
        return self.handle.has_memory

    def forget(self) -> None:
        """Nothing to do: a paused engine has no views."""

    def fetch(self) -> bytes | None:
        """Nothing: what is for Python comes to the ``Listener``."""
        return None

    def hold(self, held: bool) -> None:
        self.handle.hold(held)

    def stop(self) -> None:
        self.handle.stop()
