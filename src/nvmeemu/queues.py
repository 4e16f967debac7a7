"""Submission and completion queues. Base 1.4, 4.1 and 4.6.

A queue has an identity, which stays (``SubmissionQueue``, ``CompletionQueue``), and a server, which may change: Python
(``PythonSq``, ``PythonCq``, here) or the native engine (``engine.queues``). Only ``controller.owners`` moves a queue
from one to the other.

Base addresses are kept as IOVAs. A view of a queue is cached only until the memory map changes (``forget``), and a
queue that is contiguous for the host may still be scattered over many regions of its VMM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

from nvmeemu.controller.doorbells import Slot
from nvmeemu.controller.outstanding import Outstanding
from nvmeemu.ports import Host, HostMemoryError
from nvmeemu.spec import CQE_SIZE, SQE_SIZE


class QueueServer(Protocol):
    """Who serves a queue. Its properties only tell what is known; its methods may look at guest memory."""

    is_engine: ClassVar[bool]
    """The native engine, which then does on threads of its own what is done here otherwise."""

    @property
    def head(self) -> int: ...
    @property
    def tail(self) -> int: ...
    def ring(self, value: int) -> bool:
        """The host has rung the doorbell with ``value``. If there is a shadow doorbell, the value there counts. False:
        the queue cannot have this value (Base 1.4, Figure 145, Invalid Doorbell Write Value)."""
        ...

    def use_shadow(self, slot: Slot) -> None:
        """From now on the host writes its index there."""
        ...

    def find_memory(self) -> bool:
        """Look for the guest memory that is needed next. False: it is missing."""
        ...

    def forget(self) -> None:
        """The memory map is about to change: drop every view."""
        ...


class CqServer(QueueServer, Protocol):
    """The device produces at ``tail``, the host consumes at ``head``; one entry always stays free."""

    tap: EntryTap | None
    """Hears of each entry that Python writes; the engine has a trace of its own."""

    def find_room(self) -> bool:
        """Whether a completion would be written at once. If not, ask the host to ring when it has consumed more."""
        ...

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool = False) -> bool:
        """Write a completion with the Status Field ``field`` (15 bits) and its phase tag, perhaps inverted. False if
        it has to wait for room or memory. Nothing is fetched for this queue while one waits, so ``sqhd`` stays true."""
        ...

    def post_waiting(self) -> int:
        """Post completions that wait, as many as possible now; returns how many Python has posted."""
        ...

    def drop_waiting(self, sqid: int | None = None) -> None:
        """Forget the completions that wait, all or those of one submission queue."""
        ...

    def look(self) -> tuple[int, int]:
        """Take the head from the shadow doorbell, if there is one; head and tail."""
        ...


class SqServer(QueueServer, Protocol):
    """The host produces at ``tail``, the device consumes at ``head``."""

    @property
    def wants_turn(self) -> bool:
        """Whether ``fetch`` may find something."""
        ...

    @property
    def has_stopped(self) -> bool:
        """Whether, after ``stop``, no fetched command is under way, except those outstanding in Python."""
        ...

    def fetch(self) -> bytes | None:
        """The next entry, copied once. None: there is none for Python, and the host rings when there is. Raises
        HostMemoryError; then the entry is still the next one."""
        ...

    def hold(self, held: bool) -> None:
        """Fetch nothing for a while, or continue."""
        ...

    def stop(self) -> None:
        """Fetch nothing more."""
        ...


class Ring:
    """A circular buffer of ``entries`` entries of ``entry_size`` bytes at ``iova``, as arrays of 64-bit words."""

    def __init__(self, host: Host, iova: int, entries: int, entry_size: int) -> None:
        self.iova = iova
        self.entries = entries
        self._host = host
        self._entry_size = entry_size
        self._words = entry_size // 8
        self._whole: memoryview | None = None
        self._is_scattered = False

    def __getitem__(self, index: int) -> memoryview:
        """The entry's words. Raises HostMemoryError while no memory is there."""
        if self._whole is None:
            size = self._entry_size
            if not self._is_scattered:
                try:
                    self._whole = self._host.view(self.iova, self.entries * size).cast("Q")
                except HostMemoryError:
                    self._is_scattered = True
            if self._whole is None:
                return self._host.view(self.iova + index * size, size).cast("Q")
        start = index * self._words
        return self._whole[start : start + self._words]

    def forget(self) -> None:
        """The memory map is about to change: drop every view."""
        self._whole = None
        self._is_scattered = False


class PythonCq:
    """A completion queue that Python serves, a ``CqServer``. ``waiting`` holds completions that found no room or no
    memory. They go first, in order."""

    is_engine: ClassVar = False

    def __init__(
        self, host: Host, iova: int, entries: int, head: int = 0, tail: int = 0, shadow: Slot | None = None
    ) -> None:
        self.head = head
        self.tail = tail
        self.waiting: deque[tuple[int, int, int, int, int, bool]] = deque()  # what ``post`` was given
        self.tap: EntryTap | None = None
        self._entries = entries
        self._ring = Ring(host, iova, entries, CQE_SIZE)
        self._shadow = shadow
        self._phase = 1

    def find_room(self) -> bool:
        return not self.waiting and self._has_room()

    def _has_room(self) -> bool:
        return (self.tail + 1) % self._entries != self.head or self._refresh()

    def find_memory(self) -> bool:
        return not self.waiting or not self._has_room()

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool = False) -> bool:
        if self.waiting or not self._write(sqid, sqhd, cid, dw0, field, wrong_phase):
            self.waiting.append((sqid, sqhd, cid, dw0, field, wrong_phase))
            return False
        return True

    def post_waiting(self) -> int:
        posted = 0
        while self.waiting and self._write(*self.waiting[0]):
            self.waiting.popleft()
            posted += 1
        return posted

    def drop_waiting(self, sqid: int | None = None) -> None:
        self.waiting = deque(entry for entry in self.waiting if sqid is not None and entry[0] != sqid)

    def _write(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, wrong_phase: bool) -> bool:
        tail = self.tail
        after = tail + 1
        if after == self._entries:
            after = 0
        if after == self.head and not self._has_room():
            return False
        try:
            entry = self._ring[tail]
        except HostMemoryError:
            return False
        high = sqhd | sqid << 16 | cid << 32 | (self._phase ^ wrong_phase) << 48 | field << 49
        if self.tap is not None:  # first: from then on the host may answer, and change the entry
            self.tap(tail, (high << 64 | dw0).to_bytes(CQE_SIZE, "little"))
        # Two aligned 64-bit stores, the one with the phase tag last: the host polls that bit.
        entry[0] = dw0
        entry[1] = high
        self.tail = after
        if not after:
            self._phase ^= 1
        return True

    def look(self) -> tuple[int, int]:
        self._refresh()
        return self.head, self.tail

    def use_shadow(self, slot: Slot) -> None:
        self._shadow = slot

    def _refresh(self) -> bool:
        """Whether the host has consumed more, by its shadow doorbell. Otherwise it will ring when it does."""
        if self._shadow is None:
            return False
        try:
            value = self._shadow.value
            if value == self.head:
                value = self._shadow.await_change(value)
        except HostMemoryError:
            return False
        is_news = value != self.head and value < self._entries
        if is_news:
            self.head = value
        return is_news

    def ring(self, value: int) -> bool:
        if self._shadow is not None:
            self._refresh()
            return True
        consumed = (value - self.head) % self._entries
        if value >= self._entries or consumed == 0 or consumed > (self.tail - self.head) % self._entries:
            return False
        self.head = value
        return True

    def forget(self) -> None:
        self._ring.forget()


class PythonSq:
    """A submission queue that Python serves, an ``SqServer``."""

    is_engine: ClassVar = False

    def __init__(
        self, host: Host, iova: int, entries: int, head: int = 0, tail: int = 0, shadow: Slot | None = None
    ) -> None:
        self.head = head
        self.tail = tail
        self.has_stopped = False
        self._entries = entries
        self._ring = Ring(host, iova, entries, SQE_SIZE)
        self._shadow = shadow

    @property
    def wants_turn(self) -> bool:
        return self._shadow is not None or self.head != self.tail

    def fetch(self) -> bytes | None:
        head = self.head
        if head == self.tail and not self._refresh():
            return None
        entry = bytes(self._ring[head])
        head += 1
        self.head = 0 if head == self._entries else head
        return entry

    def _refresh(self) -> bool:
        """Look into the shadow doorbell of an empty queue. If there is nothing more, the host will ring when there is.
        Raises HostMemoryError."""
        if self._shadow is None:
            return False
        value = self._shadow.value
        if value == self.tail:
            value = self._shadow.await_change(value)
        is_news = value != self.tail and value < self._entries
        if is_news:
            self.tail = value
        return is_news

    def find_memory(self) -> bool:
        try:
            if self.head != self.tail or self._refresh():
                self._ring[self.head]
        except HostMemoryError:
            return False
        return True

    def use_shadow(self, slot: Slot) -> None:
        self._shadow = slot

    def ring(self, value: int) -> bool:
        if self._shadow is not None:
            return True
        added = (value - self.tail) % self._entries
        if value >= self._entries or added == 0 or added + (self.tail - self.head) % self._entries >= self._entries:
            return False
        self.tail = value
        return True

    def hold(self, held: bool) -> None:
        """Nothing to do: Python sees before each fetch how much is outstanding."""

    def stop(self) -> None:
        self.tail = self.head
        self._shadow = None
        self._ring.forget()
        self.has_stopped = True

    def forget(self) -> None:
        self._ring.forget()


class CompletionQueue:
    """Identifies a completion queue. ``sqs`` are the submission queues that use it, and ``server`` writes into it."""

    def __init__(self, host: Host, qid: int, iova: int, entries: int, vector: int, ien: bool) -> None:
        self.qid = qid
        self.iova = iova
        self.entries = entries
        self.vector = vector
        self.ien = ien
        self.sqs: set[int] = set()
        self.shadow: Slot | None = None
        self.server: CqServer = PythonCq(host, iova, entries)
        self._host = host

    def serve_in_python(self, head: int, tail: int) -> None:
        """The engine has let go of it there."""
        self.server = PythonCq(self._host, self.iova, self.entries, head, tail, self.shadow)

    def use_shadow(self, slot: Slot) -> None:
        """From now on the host writes its head there."""
        self.shadow = slot
        self.server.use_shadow(slot)

    def set_tap(self, tap: CqTap | None) -> None:
        """Tell ``tap`` each entry that Python writes; None: nobody."""
        self.server.tap = None if tap is None else partial(tap, self)


class SubmissionQueue:
    """Identifies a submission queue, and has its commands that have begun in Python. ``server`` fetches from it."""

    def __init__(self, host: Host, qid: int, iova: int, entries: int, cq: CompletionQueue) -> None:
        self.qid = qid
        self.iova = iova
        self.entries = entries
        self.cq = cq
        self.outstanding: set[Outstanding] = set()
        self.shadow: Slot | None = None
        self.server: SqServer = PythonSq(host, iova, entries)
        self._host = host
        self._on_idle: Callable[[], None] | None = None

    @property
    def is_closing(self) -> bool:
        """It is being deleted."""
        return self._on_idle is not None

    def serve_in_python(self, head: int, tail: int) -> None:
        """The engine has let go of it there: go on, unless it is to be closed."""
        self.server = PythonSq(self._host, self.iova, self.entries, head, tail, self.shadow)
        if self.is_closing:
            self.server.stop()

    def use_shadow(self, slot: Slot) -> None:
        """From now on the host writes its tail there."""
        self.shadow = slot
        self.server.use_shadow(slot)

    def close(self, when_idle: Callable[[], None]) -> None:
        """Fetch nothing more; call ``when_idle`` once nothing is outstanding."""
        self._on_idle = when_idle
        self.server.stop()
        self.check_idle()

    def check_idle(self) -> None:
        """If it is to be closed and nothing is outstanding any more, take it away. Called when that may have become
        so."""
        if self._on_idle and not self.outstanding and self.server.has_stopped:
            self.cq.server.drop_waiting(self.qid)  # nothing of a deleted queue may follow
            self.cq.sqs.discard(self.qid)  # not before: until here completions go into the completion queue
            on_idle, self._on_idle = self._on_idle, None
            on_idle()


EntryTap = Callable[[int, bytes], None]  # the entry's place in its queue, and its bytes
CqTap = Callable[[CompletionQueue, int, bytes], None]  # the same, with the queue
