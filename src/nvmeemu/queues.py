"""Submission and completion queues in guest memory. Base 1.4, 4.1 and 4.6.

Base addresses are kept as IOVAs. A view of a queue is cached only until the memory map changes (``forget``), and a
queue that is contiguous for the host may still be scattered over many regions of its VMM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nvmeemu.controller.doorbells import Slot
from nvmeemu.controller.outstanding import Outstanding
from nvmeemu.engine.port import OwnedCq, OwnedSq
from nvmeemu.ports import Host, HostMemoryError
from nvmeemu.spec import CQE_SIZE, SQE_SIZE


class DoorbellError(Exception):
    """A doorbell value that the queue cannot have. Base 1.4, Figure 145, Invalid Doorbell Write Value."""


class Ring:
    """A circular buffer of ``entries`` entries of ``entry_size`` bytes at ``iova``."""

    def __init__(self, host: Host, iova: int, entries: int, entry_size: int) -> None:
        self.iova = iova
        self.entries = entries
        self._host = host
        self._entry_size = entry_size
        self._whole: memoryview | None = None
        self._is_scattered = False

    def __getitem__(self, index: int) -> memoryview:
        """The entry's bytes. Raises HostMemoryError while no memory is there."""
        size = self._entry_size
        if self._whole is None:
            if not self._is_scattered:
                try:
                    self._whole = self._host.view(self.iova, self.entries * size)
                except HostMemoryError:
                    self._is_scattered = True
            if self._whole is None:
                return self._host.view(self.iova + index * size, size)
        return self._whole[index * size : index * size + size]

    def forget(self) -> None:
        """The memory map is about to change: drop every view."""
        self._whole = None
        self._is_scattered = False


class CompletionQueue:
    """The device produces at ``tail``, the host consumes at ``head``; one entry always stays free.

    ``waiting`` holds completions that found no room or no memory; they go first, in order.
    """

    def __init__(self, host: Host, qid: int, iova: int, entries: int, vector: int, ien: bool) -> None:
        self.qid = qid
        self.entries = entries
        self.vector = vector
        self.ien = ien
        self.head = 0
        self.tail = 0
        self.waiting: deque[tuple[int, int, int, int, int, bool]] = deque()  # what ``post`` was given
        self.ring = Ring(host, iova, entries, CQE_SIZE)
        self.sqs: set[int] = set()
        self.shadow: Slot | None = None
        self.owned: OwnedCq | None = None  # by the native engine, which then does all of this
        self.tap: CqTap | None = None  # hears of each entry that was written
        self._phase = 1

    @property
    def is_empty(self) -> bool:
        return self.head == self.tail

    @property
    def is_full(self) -> bool:
        if self.owned is not None:
            return not self.owned.has_room
        if (self.tail + 1) % self.entries != self.head:
            return False
        return self.shadow is None or not self._refresh(self.shadow)

    @property
    def is_stuck(self) -> bool:
        """A completion waits for the queue's memory."""
        if self.owned is not None:
            return self.owned.is_stuck
        return bool(self.waiting) and not self.is_full

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool = False) -> bool:
        """Write a completion with the Status Field ``field`` (15 bits), its phase tag inverted or not; False if it has
        to wait. Nothing is fetched for this queue while one waits, so the head that it says stays true."""
        if self.owned is not None:
            return self.owned.post(sqid, sqhd, cid, dw0, field, wrong_phase=wrong_phase)
        if self.waiting or not self._write(sqid, sqhd, cid, dw0, field, wrong_phase):
            self.waiting.append((sqid, sqhd, cid, dw0, field, wrong_phase))
            return False
        return True

    def drop_waiting(self, sqid: int | None = None) -> None:
        """Forget the completions that wait, all or those of one submission queue."""
        if self.owned is not None and sqid is not None:
            self.owned.drop_waiting(sqid)
        self.waiting = deque(entry for entry in self.waiting if sqid is not None and entry[0] != sqid)

    def post_waiting(self) -> int:
        """Post what can be posted now of what waits; how many."""
        posted = 0
        while self.waiting and self._write(*self.waiting[0]):
            self.waiting.popleft()
            posted += 1
        return posted

    def _write(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, wrong_phase: bool) -> bool:
        tail = self.tail
        after = tail + 1
        if after == self.entries:
            after = 0
        if after == self.head and self.is_full:
            return False
        try:
            entry = self.ring[tail].cast("Q")
        except HostMemoryError:
            return False
        high = sqhd | sqid << 16 | cid << 32 | (self._phase ^ wrong_phase) << 48 | field << 49
        if self.tap is not None:  # first: from then on the host may answer, and change the entry
            self.tap(self, tail, (high << 64 | dw0).to_bytes(CQE_SIZE, "little"))
        # Two aligned 64-bit stores, the one with the phase tag last: the host polls that bit.
        entry[0] = dw0
        entry[1] = high
        self.tail = after
        if not after:
            self._phase ^= 1
        return True

    def look(self) -> None:
        """Take the head from the shadow doorbell, if there is one."""
        if self.owned is not None:
            self.owned.look()
            self.head, self.tail = self.owned.head, self.owned.tail
        elif self.shadow is not None:
            self._refresh(self.shadow)

    def disown(self) -> None:
        """A reset, or a fatal error, takes it from the engine: the host may still ring, and its values are judged by
        what was posted."""
        if self.owned is not None:
            self.head, self.tail = self.owned.head, self.owned.tail
            self.owned = None

    def use_shadow(self, slot: Slot) -> None:
        """From now on the host writes its head there."""
        self.shadow = slot
        if self.owned is not None:
            self.owned.use_shadow(slot)

    def close(self) -> None:
        """The queue is deleted."""
        if self.owned is not None:
            self.owned.remove()
            self.owned = None

    def _refresh(self, shadow: Slot) -> bool:
        """True if the host has consumed more than was known; otherwise it will ring when it does."""
        try:
            value = shadow.value
            if value == self.head:
                value = shadow.await_change(value)
        except HostMemoryError:
            return False
        is_news = value != self.head and value < self.entries
        if is_news:
            self.head = value
        return is_news

    def ring_head(self, value: int) -> None:
        """The host has rung: it has consumed up to ``value``, or to what the shadow doorbell says. Raises
        DoorbellError."""
        if self.owned is not None:
            if not self.owned.ring(value):
                raise DoorbellError
            return
        if self.shadow is not None:
            self._refresh(self.shadow)
            return
        consumed = (value - self.head) % self.entries
        if value >= self.entries or consumed == 0 or consumed > (self.tail - self.head) % self.entries:
            raise DoorbellError
        self.head = value


CqTap = Callable[[CompletionQueue, int, bytes], None]  # the queue, the entry's place in it, and its bytes


class SubmissionQueue:
    """The host produces at ``tail``, the device consumes at ``head``."""

    def __init__(self, host: Host, qid: int, iova: int, entries: int, cq: CompletionQueue) -> None:
        self.qid = qid
        self.entries = entries
        self.cq = cq
        self.head = 0
        self.tail = 0
        self.outstanding: set[Outstanding] = set()
        self.ring = Ring(host, iova, entries, SQE_SIZE)
        self.shadow: Slot | None = None
        self.owned: OwnedSq | None = None  # by the native engine, which then fetches
        self._on_idle: Callable[[], None] | None = None

    @property
    def is_empty(self) -> bool:
        return self.head == self.tail

    @property
    def is_closing(self) -> bool:
        """It is being deleted."""
        return self._on_idle is not None

    def pop(self) -> bytes:
        """The next entry, copied once. Raises HostMemoryError; then it is still the next."""
        head = self.head
        entry = bytes(self.ring[head])
        head += 1
        self.head = 0 if head == self.entries else head
        return entry

    def refresh(self) -> bool:
        """An empty queue may have more according to its shadow doorbell; otherwise the host will ring when it has.
        Raises HostMemoryError."""
        if self.shadow is None:
            return False
        value = self.shadow.value
        if value == self.tail:
            value = self.shadow.await_change(value)
        is_news = value != self.tail and value < self.entries
        if is_news:
            self.tail = value
        return is_news

    @property
    def is_stuck(self) -> bool:
        """The memory of the next entry, or of the shadow doorbell, is missing."""
        if self.owned is not None:
            return self.owned.is_stuck
        try:
            if not self.is_empty or self.refresh():
                self.ring[self.head]
        except HostMemoryError:
            return True
        return False

    def use_shadow(self, slot: Slot) -> None:
        """From now on the host writes its tail there."""
        self.shadow = slot
        if self.owned is not None:
            self.owned.use_shadow(slot)

    def disown(self) -> None:
        """The engine has let go of it: go on from there, unless it is to be closed."""
        self.look()
        if self.is_closing:
            self.tail = self.head
        self.owned = None

    def look(self) -> None:
        """Take head and tail from the engine."""
        if self.owned is not None:
            self.head, self.tail = self.owned.head, self.owned.tail

    def ring_tail(self, value: int) -> None:
        """The host has rung: there are entries up to ``value``, or what the shadow doorbell says. Raises
        DoorbellError."""
        if self.owned is not None:
            if not self.owned.ring(value):
                raise DoorbellError
            return
        if self.shadow is not None:
            return
        added = (value - self.tail) % self.entries
        if value >= self.entries or added == 0 or added + (self.tail - self.head) % self.entries >= self.entries:
            raise DoorbellError
        self.tail = value

    def close(self, when_idle: Callable[[], None]) -> None:
        """Fetch nothing more; call ``when_idle`` once nothing is outstanding."""
        self.tail = self.head
        self.shadow = None
        self.ring.forget()
        self._on_idle = when_idle
        if self.owned is not None:
            self.owned.stop()
        self.settled()

    def settled(self) -> None:
        """A request has ended."""
        if self._on_idle and not self.outstanding and self.owned is None:
            self.cq.drop_waiting(self.qid)  # nothing of a deleted queue may follow
            self.cq.sqs.discard(self.qid)  # not before: until here completions go into the completion queue
            on_idle, self._on_idle = self._on_idle, None
            on_idle()
