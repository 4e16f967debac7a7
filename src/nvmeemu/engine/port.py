"""The port of a native engine: it serves the ordinary commands of I/O queues, on threads of its own.

A queue has one owner. Completion queues belong to the engine, if there is one, as long as they exist: it is their
only writer, and Python's completions go through it. Submission queues belong to it unless something that only Python
can do is wanted of them. Whatever the engine does not do itself comes to its ``Listener``, before any side effect.
All of this is called on the controller's thread; "news" waits for ``Engine.deliver`` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nvmeemu.backend import Direct
from nvmeemu.backend.atomicity import Atomicity


class QueueHandle(Protocol):
    """A queue that the engine serves, until it is removed, stopped or dropped."""

    @property
    def head(self) -> int: ...
    @property
    def tail(self) -> int: ...
    @property
    def has_memory(self) -> bool:
        """Whether the memory that it needs next is there, as far as is known."""
        ...

    def ring(self, value: int) -> bool:
        """The host has rung its doorbell. False: the queue cannot have this value."""
        ...

    def use_shadow(self, shadow: int, event: int) -> None:
        """From now on the host's value is at the guest address ``shadow``, and EventIdx at ``event``; ``ring`` says
        only that there may be a new one."""
        ...


class CqHandle(QueueHandle, Protocol):
    def find_room(self) -> bool:
        """Whether a completion would be written at once. If not, ``Listener.consumed`` follows when it would."""
        ...

    def look(self) -> None:
        """Take the head from the shadow doorbell, if there is one."""
        ...

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool) -> bool:
        """Write a completion with the Status Field ``field``, its phase tag inverted or not; False if it waits for room
        or memory. Of a submission queue of the engine's the head is known here, and ``sqhd`` does not count."""
        ...

    def drop_waiting(self, sqid: int) -> None:
        """Forget the completions of a submission queue that wait."""
        ...

    def remove(self) -> None:
        """The queue is deleted."""
        ...


class SqHandle(QueueHandle, Protocol):
    def hold(self, held: bool) -> None:
        """Fetch nothing for a while, or go on."""
        ...

    def stop(self) -> None:
        """Fetch nothing more; ``Listener.stopped`` follows once nothing is under way."""
        ...


class Listener(Protocol):
    """Python's part of the work. The queues are named by the handles that ``Engine`` gave."""

    def punted(self, sq: SqHandle, entry: bytes, is_behind_first: bool) -> None:
        """Run a command that the engine has fetched and does not serve. ``is_behind_first``: the command before it in
        the queue was the first one of a fused operation; so this comes here, whatever it is."""
        ...

    def posted(self, cq: CqHandle) -> None:
        """The engine has posted completions and cannot raise their interrupt."""
        ...

    def missed_sq(self, sq: SqHandle) -> None:
        """The memory of the next entry, or of the shadow doorbell, is missing."""
        ...

    def missed_cq(self, cq: CqHandle) -> None:
        """The memory for the next completion is missing."""
        ...

    def stopped(self, sq: SqHandle, head: int, tail: int) -> None:
        """The engine has let go of the queue and left it there."""
        ...

    def consumed(self, cq: CqHandle) -> None:
        """The host has consumed entries of a completion queue that had no room, or that the pin is for."""
        ...

    def lost_completion(self, cq: CqHandle) -> None:
        """There was no memory for a completion that had to wait. The host would wait for it for ever."""
        ...

    def rung(self, doorbell: int, value: int) -> None:
        """The host has rung a mapped doorbell that belongs to no queue of the engine's."""
        ...

    def misrung(self, doorbell: int, value: int) -> None:
        """The host has rung a mapped doorbell with a value that its queue cannot have."""
        ...

    def became_idle(self) -> None:
        """Nothing is in flight any more, after ``is_busy`` or ``is_changing_media`` was true."""
        ...


class Counts(NamedTuple):
    reads: int
    writes: int
    bytes_read: int
    bytes_written: int
    others: int  # Flush, Write Zeroes, Dataset Management: SMART does not count them


@dataclass(frozen=True)
class EngineNamespace:
    """A namespace for the engine. Without ``direct``, Python moves the data. Unless ``writable``, Python serves the
    writes, or refuses them."""

    direct: Direct | None
    block_size: int
    blocks: int
    writable: bool
    is_volatile: bool  # what is written may be lost until a sync
    writes_through: bool  # the write cache is off: a write completes when it is durable
    atomicity: Atomicity | None = None


class Engine(Protocol):
    def configure(
        self, page_size: int, transfer: int, most_held: int, has_sgls: bool, disks: Mapping[int, EngineNamespace]
    ) -> None:
        """CC.MPS, the largest transfer, what the commands at one disk may hold, all in bytes, whether they
        may have SGLs, all namespaces by their NSIDs."""
        ...

    def add_cq(self, qid: int, iova: int, entries: int, vector: int, ien: bool) -> CqHandle:
        """Serve an empty completion queue; with ``ien``, interrupts go to ``vector``. Raises MemoryError."""
        ...

    def add_sq(self, qid: int, iova: int, entries: int, cq: CqHandle, head: int, tail: int) -> SqHandle:
        """Serve a submission queue from its head on. Raises MemoryError."""
        ...

    @property
    def doorbells_fd(self) -> int:
        """A file that is like BAR0. A client may map its doorbells and write them without a message. -1: it may not.
        ``QueueHandle.ring`` works in any case."""
        ...

    @property
    def direct_doorbells(self) -> tuple[int, int]:
        """The addresses of a C function that takes doorbells and of its first argument, for who has them in C."""
        ...

    def take_doorbells(self, is_wanted: bool) -> None:
        """Whether that function takes those of the engine's queues; the others it never takes."""
        ...

    def watch(self, is_watched: bool) -> None:
        """Tell the listener when the host rings mapped doorbells that belong to no queue of the engine's. What the
        host has rung before does not count."""
        ...

    def forget_doorbell(self, doorbell: int) -> None:
        """The queue of this doorbell (its number, from the first one) begins or ends: what the host has rung before
        counts for nothing."""
        ...

    def drop(self) -> Mapping[QueueHandle, tuple[int, int]]:
        """A reset: the queues are gone, and nothing is completed. An operation of a disk ends, and its result is
        dropped. Returns the heads and tails that the queues had."""
        ...

    def hold(self, held: bool) -> None:
        """Fetch no commands, or go on."""
        ...

    def pause(self) -> None:
        """Touch no guest memory until ``resume``."""
        ...

    def resume(self) -> None: ...
    def deliver(self, listener: Listener) -> None:
        """Tell the listener everything that has happened since the last call: the engine's *news*."""
        ...

    @property
    def has_news(self) -> bool: ...
    @property
    def is_busy(self) -> bool:
        """Whether commands wait for a disk."""
        ...

    @property
    def is_changing_media(self) -> bool:
        """Whether writes wait for a disk."""
        ...

    @property
    def is_letting_go(self) -> bool:
        """Whether disks that are no namespaces any more have commands that have not ended."""
        ...

    def take_counts(self) -> Counts:
        """What the engine has done since the last call."""
        ...

    def set_vector(self, vector: int, eventfd: int) -> None:
        """Raise this interrupt through a copy of the eventfd; -1: tell the listener instead."""
        ...

    def coalesce(self, time: float, completions: int, vectors: Iterable[int]) -> None:
        """Interrupt Coalescing (Base 1.4, 5.21.1.8) for these vectors and no others: the engine raises their interrupts
        once there are so many completions, Python's too, or after so many seconds. Without any: not at all."""
        ...

    def signal_all(self) -> None:
        """The ways of the interrupts have changed. Raise the interrupts of all completion queues that are not empty."""
        ...
