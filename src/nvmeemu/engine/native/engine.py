"""The native engine, typed: the only importer of the raw cffi module. What its calls mean is said in ``engine``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nvmeemu.backend import Direct, DirectCompanion, MapInMemory
from nvmeemu.engine.port import Counts, CqHandle, EngineNamespace, Listener, QueueHandle
from nvmeemu.spec import BROADCAST

try:
    from nvmeemu.engine.native._engine import ffi, lib
except ImportError as error:
    _missing: str | None = error.msg if error.name != "nvmeemu.engine.native._engine" else "not compiled"
    ffi = lib = None
else:
    _missing = None

EVENTS = 512  # taken at once: 64 commands, and all else that so many queues can have to tell
_NO_DISK = Direct()
MAX_NSID = 64


class EngineMissing(Exception):
    """The package was built without the engine; the text is one line for the user."""


def require() -> None:
    """Raise EngineMissing if this build has no engine."""
    if _missing is not None:
        raise EngineMissing(f"this nvmeemu has no native engine ({_missing}): build it where a C compiler is")


def can_trace() -> bool:
    """The engine is there, and can trace what it does: it was built with libisal."""
    return _missing is None and bool(lib.engine_can_trace())


class NativeEngine:
    """An ``engine.Engine`` with ``lanes`` threads, and the mirror of a host's memory. Close it when done. Raises
    EngineMissing or OSError."""

    def __init__(self, lanes: int = 1, *, has_mapped_doorbells: bool = False) -> None:
        require()
        self._engine = lib.engine_new(lanes)
        if self._engine == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self.doorbells_fd = lib.engine_map_doorbells(self._engine) if has_mapped_doorbells else -1
        if has_mapped_doorbells and self.doorbells_fd < 0:
            code = ffi.errno
            lib.engine_free(self._engine)
            raise OSError(code, os.strerror(code))
        self._ids = itertools.count(1)
        self._cqs: dict[int, _Cq] = {}
        self._sqs: dict[int, _Sq] = {}
        self._events = ffi.new("struct event[]", EVENTS)
        self._counted = Counts(0, 0, 0, 0, 0)
        self._sink: Callable[[bytes], None] | None = None
        self._batch: Any = None  # records that have been taken
        self._nsids: set[int] = set()
        self._is_paused = False
        self._words: dict[int, Any] = {}  # of disks' FailedSync, as long as an old command may still need them
        self._maps: list[MapInMemory] = []  # of companions, likewise
        self._atomicities: dict[int, Any] = {}  # likewise

    def close(self) -> None:
        """End its threads, once the disks that they wait for have answered."""
        if self._engine != ffi.NULL:
            self.drop()
            engine, self._engine = self._engine, ffi.NULL
            lib.engine_free(engine)

    @property
    def fd(self) -> int:
        """A descriptor that can be read when there is news."""
        return int(lib.engine_fd(self._engine))

    def drain_fd(self) -> None:
        """Reset the descriptor. The news stay until they are delivered."""
        lib.engine_drain_fd(self._engine)

    # --- guest memory

    def add_region(self, iova: int, memory: memoryview) -> None:
        """Guest memory that is mapped from now on. The engine must be paused, also while one is removed. Raises
        OSError: no memory for it, or it is not aligned like ``iova``, at least to 16 bytes."""
        address = ffi.from_buffer(memory)
        if not lib.engine_map(self._engine, iova, len(memory), address, not memory.readonly):
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def remove_region(self, iova: int) -> None:
        """Not mapped any more; no effect where it was refused."""
        lib.engine_unmap(self._engine, iova)

    def pause(self) -> None:
        self._is_paused = True
        lib.engine_pause(self._engine)

    def resume(self) -> None:
        self._is_paused = False
        lib.engine_resume(self._engine)

    # --- the controller

    def configure(
        self, page_size: int, transfer: int, most_held: int, has_sgls: bool, disks: Mapping[int, EngineNamespace]
    ) -> None:
        lib.engine_set_limits(self._engine, page_size, transfer, most_held, has_sgls)
        lib.engine_set_flush_all(self._engine, BROADCAST)  # until all disks are known
        for nsid in self._nsids - disks.keys():
            self._set_disk(nsid, ffi.new("struct disk *", {"fd": -1}))
        self._nsids = {nsid for nsid in disks if nsid <= MAX_NSID}
        before, self._maps = self._maps, []
        for nsid in self._nsids:
            self._set_disk(nsid, self._disk(disks[nsid]))
        if self.is_letting_go:
            self._maps += before
        volatile = [nsid for nsid, disk in disks.items() if disk.is_volatile] or [0]
        lib.engine_set_flush_all(self._engine, volatile[0] if len(volatile) == 1 else BROADCAST)

    def _disk(self, disk: EngineNamespace) -> Any:
        direct = disk.direct or _NO_DISK
        word = direct.failed_sync.word
        self._words[id(word)] = ffi.from_buffer("struct failed_sync[]", word)
        self._atomicities[id(disk.atomicity)] = disk.atomicity
        ranges, journal = (0, 0) if disk.atomicity is None else disk.atomicity.addresses
        return ffi.new(
            "struct disk *",
            {
                "memory": ffi.NULL if direct.memory is None else ffi.cast("uint8_t *", ffi.from_buffer(direct.memory)),
                "fd": direct.fd,
                "never_waits": direct.never_waits,
                "can_read_now": direct.can_read_now,
                "begins_now": direct.begins_now,
                "writable": disk.writable,
                "is_volatile": disk.is_volatile and not direct.never_waits,  # nothing outlives memory
                "writes_through": disk.writes_through,
                "failed_sync": self._words[id(word)],
                "ranges": ffi.cast("struct ranges *", ranges),
                "journal": ffi.cast("struct journal *", journal),
                "block_shift": disk.block_size.bit_length() - 1,
                "blocks": disk.blocks,
                "companion": self._companion(direct.companion),
            },
        )

    def _companion(self, companion: DirectCompanion | None) -> dict[str, Any]:
        if companion is None:
            return {"fd": -1}
        self._maps.append(companion.map)
        return {
            "map": ffi.cast("struct block_map *", companion.map.address),
            "fd": companion.fd,
            "never_waits": companion.never_waits,
            "can_read_now": companion.can_read_now,
            "is_extended": companion.is_extended,
            "is_protected": companion.is_protected,
            "is_first": companion.is_first,
            "metadata_size": companion.metadata_size,
            "begin": companion.begin,
        }

    def _set_disk(self, nsid: int, disk: Any) -> None:
        if not lib.engine_set_disk(self._engine, nsid, disk):
            raise ValueError(f"the engine has no place for namespace {nsid}")

    def set_vector(self, vector: int, eventfd: int) -> None:
        lib.engine_set_vector(self._engine, vector, eventfd)

    def signal_all(self) -> None:
        lib.engine_signal_all(self._engine)

    def coalesce(self, time: float, completions: int, vectors: Iterable[int]) -> None:
        lib.engine_set_coalescing(self._engine, round(time * 1e9), completions)
        for vector in vectors:
            lib.engine_coalesce_vector(self._engine, vector)

    def set_test_time(self, time: float) -> None:
        """For ``coalesce``: the time stands still, at these seconds."""
        lib.engine_set_test_time(self._engine, round(time * 1e9))

    def hold(self, held: bool) -> None:
        lib.engine_hold(self._engine, held)

    def take_counts(self) -> Counts:
        counts = lib.engine_counts(self._engine)
        now = Counts(counts.reads, counts.writes, counts.bytes_read, counts.bytes_written, counts.others)
        before, self._counted = self._counted, now
        return Counts(*(new - old for new, old in zip(now, before, strict=True)))

    # --- queues

    def add_cq(self, qid: int, iova: int, entries: int, vector: int, ien: bool) -> _Cq:
        id = next(self._ids)
        cq = self._cqs[id] = _Cq(self, id, qid, lib.engine_add_cq(self._engine, id, qid, iova, entries, vector, ien))
        return cq

    def add_sq(self, qid: int, iova: int, entries: int, cq: CqHandle, head: int, tail: int) -> _Sq:
        assert isinstance(cq, _Cq)
        id = next(self._ids)
        raw = lib.engine_add_sq(self._engine, id, cq.raw, qid, iova, entries, head, tail)
        sq = self._sqs[id] = _Sq(self, id, qid, raw)
        return sq

    @property
    def direct_doorbells(self) -> tuple[int, int]:
        ring = ffi.addressof(lib, "engine_ring")
        return int(ffi.cast("uintptr_t", ring)), int(ffi.cast("uintptr_t", self._engine))

    def take_doorbells(self, is_wanted: bool) -> None:
        lib.engine_take_doorbells(self._engine, is_wanted)

    def watch(self, is_watched: bool) -> None:
        lib.engine_watch(self._engine, is_watched)

    def forget_doorbell(self, doorbell: int) -> None:
        lib.engine_forget_doorbell(self._engine, doorbell)

    def drop(self) -> dict[QueueHandle, tuple[int, int]]:
        was_paused = self._is_paused
        self.pause()  # nothing is posted behind the tails that are returned
        handles: list[_Cq | _Sq] = [*self._cqs.values(), *self._sqs.values()]
        places: dict[QueueHandle, tuple[int, int]] = {handle: (handle.head, handle.tail) for handle in handles}
        for handle in handles:
            handle.forget()
        lib.engine_drop(self._engine)
        if not was_paused:
            self.resume()
        self._cqs.clear()
        self._sqs.clear()
        return places

    # --- news

    @property
    def has_news(self) -> bool:
        return bool(lib.engine_has_news(self._engine))

    @property
    def is_busy(self) -> bool:
        return bool(lib.engine_in_flight(self._engine, False))

    @property
    def is_changing_media(self) -> bool:
        return bool(lib.engine_in_flight(self._engine, True))

    @property
    def is_letting_go(self) -> bool:
        return bool(lib.engine_is_letting_go(self._engine))

    def trace(self, sink: Callable[[bytes], None] | None, start: int = 0) -> None:
        """Give ``sink`` records of what the lanes do, encoded (``trace.records``), in batches, with the news;
        times count from ``start``, of ``time.monotonic_ns``. None: the rest, and no more. Only if ``can_trace``."""
        if self._sink is not None:
            self._take_trace(self._sink)
        self._sink = sink
        self._batch = None if sink is None else ffi.new("uint8_t[]", lib.TRACE_RING)
        if not lib.engine_trace(self._engine, sink is not None, start):
            raise MemoryError

    def _take_trace(self, sink: Callable[[bytes], None]) -> None:
        while size := lib.engine_take_trace(self._engine, self._batch):
            sink(bytes(ffi.buffer(self._batch, size)))

    def deliver(self, listener: Listener) -> None:
        number = lib.engine_events(self._engine, self._events, EVENTS)
        if self._sink is not None:  # after that: from there on there would be news of more
            self._take_trace(self._sink)
        for index in range(number):
            event = self._events[index]
            self._tell(listener, event.kind, event.id, event)

    def _tell(self, listener: Listener, kind: int, id: int, event: Any) -> None:
        if kind == lib.EVENT_ENGINE_IDLE:
            listener.became_idle()
        elif kind == lib.EVENT_RUNG:
            listener.rung(id, event.value)
        elif (sq := self._sqs.get(id)) is not None:  # not dropped meanwhile
            self._tell_of_sq(listener, kind, sq, event)
        elif (cq := self._cqs.get(id)) is not None:
            self._tell_of_cq(listener, kind, cq, event)

    def _tell_of_sq(self, listener: Listener, kind: int, sq: _Sq, event: Any) -> None:
        if kind == lib.EVENT_PUNT:
            listener.punted(sq, bytes(ffi.buffer(event.entry)), bool(event.value))
        elif kind == lib.EVENT_IDLE:
            head, tail = sq.head, sq.tail
            sq.remove()
            listener.stopped(sq, head, tail)
        elif kind == lib.EVENT_GAP:
            listener.missed_sq(sq)
        else:
            listener.misrung(2 * sq.qid, event.value)

    def _tell_of_cq(self, listener: Listener, kind: int, cq: _Cq, event: Any) -> None:
        if kind == lib.EVENT_POSTED:
            listener.posted(cq)
        elif kind == lib.EVENT_HEAD:
            listener.consumed(cq)
        elif kind == lib.EVENT_LOST:
            listener.lost_completion(cq)
        elif kind == lib.EVENT_GAP:
            listener.missed_cq(cq)
        else:
            listener.misrung(2 * cq.qid + 1, event.value)

    @property
    def can_wait(self) -> bool:
        """Commands wait for disks here, with io_uring; otherwise Python's threads do."""
        return bool(lib.engine_can_wait(self._engine))

    def wait_until_idle(self) -> None:
        """Wait until there is nothing to do and no disk is waited for; for tests."""
        lib.engine_wait_until_idle(self._engine)

    def remove_cq(self, cq: _Cq) -> None:
        """It is no longer ours."""
        del self._cqs[cq.id]
        lib.engine_remove_cq(self._engine, cq.raw)

    def remove_sq(self, sq: _Sq) -> None:
        """It is no longer ours; nothing of it is under way."""
        del self._sqs[sq.id]
        lib.engine_remove_sq(self._engine, sq.raw)


class _Queue:
    """What both kinds have of a ``port.QueueHandle``."""

    def __init__(self, engine: NativeEngine, id: int, qid: int, raw: Any) -> None:
        if raw == ffi.NULL:
            raise MemoryError
        self.id = id
        self.qid = qid
        self.raw = raw
        self._engine = engine
        self._queue = ffi.cast("struct queue *", raw)

    @property
    def has_memory(self) -> bool:
        return not lib.queue_has_gap(self._queue)

    def ring(self, value: int) -> bool:
        return bool(lib.queue_ring(self._queue, value))

    def use_shadow(self, shadow: int, event: int) -> None:
        lib.queue_set_shadow(self._queue, shadow, event)

    def forget(self) -> None:
        """The C object is freed now. Whoever still uses this gets a TypeError, and touches nothing."""
        self.raw = self._queue = None

    @property
    def _host(self) -> int:
        return int(lib.queue_host(self._queue))

    @property
    def _ours(self) -> int:
        return int(lib.queue_ours(self._queue))


class _Cq(_Queue):
    """A ``port.CqHandle``."""

    @property
    def head(self) -> int:
        return self._host

    @property
    def tail(self) -> int:
        return self._ours

    def find_room(self) -> bool:
        return bool(lib.engine_has_room(self.raw))

    def look(self) -> None:
        lib.engine_look(self.raw)

    def post(self, sqid: int, sqhd: int, cid: int, dw0: int, field: int, *, wrong_phase: bool) -> bool:
        return bool(lib.engine_post(self.raw, sqid, sqhd, cid, dw0, field, wrong_phase))

    def drop_waiting(self, sqid: int) -> None:
        lib.engine_drop_waiting(self.raw, sqid)

    def remove(self) -> None:
        self._engine.remove_cq(self)
        self.forget()


class _Sq(_Queue):
    """A ``port.SqHandle``."""

    @property
    def head(self) -> int:
        return self._ours

    @property
    def tail(self) -> int:
        return self._host

    def hold(self, held: bool) -> None:
        lib.engine_hold_sq(self.raw, held)

    def stop(self) -> None:
        lib.engine_stop_sq(self.raw)

    def remove(self) -> None:
        self._engine.remove_sq(self)
        self.forget()
