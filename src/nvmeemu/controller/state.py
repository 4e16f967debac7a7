"""What the commands of a controller work on: its subsystem, namespaces, queues, features and logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Protocol, TypeVar, cast

from nvmeemu.controller.coalescing import Coalescing
from nvmeemu.controller.doorbells import ShadowDoorbells
from nvmeemu.controller.events import Events
from nvmeemu.controller.interrupts import InterruptPort
from nvmeemu.controller.limits import Limits
from nvmeemu.controller.owners import Owners
from nvmeemu.engine.port import Engine, EngineNamespace
from nvmeemu.ports import Changes, Clock, Host, HostMemoryError
from nvmeemu.queues import CompletionQueue, CqTap, SubmissionQueue
from nvmeemu.spec import (
    CQE_SIZE,
    PAGE_MIN,
    SQE_SIZE,
    CommandEffect,
    Configuration,
    CriticalWarning,
    Oacs,
    Oncs,
)
from nvmeemu.subsystem.health import ErrorLog
from nvmeemu.subsystem.saved import SavedValue, of_controller
from nvmeemu.subsystem.subsystem import Subsystem

_NSID = Struct("<I")
_ERRORS, _CHANGED_NAMESPACES = "errors", "changed_namespaces"


@dataclass(frozen=True)
class EntrySizes:
    """CC.IOSQES and CC.IOCQES in bytes. They may be anything, and change, until there are I/O queues (Base 1.4,
    3.1.5)."""

    sq: int = SQE_SIZE
    cq: int = CQE_SIZE

    @classmethod
    def of(cls, cc: Configuration) -> EntrySizes:
        """A size of zero, which some drivers leave there, means the only size that there is."""
        return cls(1 << cc.iosqes if cc.iosqes else SQE_SIZE, 1 << cc.iocqes if cc.iocqes else CQE_SIZE)


class Offer(Protocol):
    """What the host is told of a command, while it ``is_offered`` to this controller's host: ``effects`` goes into the
    Commands Supported and Effects log, ``oacs`` and ``oncs`` into Identify Controller."""

    @property
    def effects(self) -> CommandEffect: ...
    @property
    def oacs(self) -> Oacs: ...
    @property
    def oncs(self) -> Oncs: ...
    @property
    def is_offered(self) -> Callable[[ControllerState], bool]: ...


P = TypeVar("P")


@dataclass
class ControllerState:
    """The state that commands work on. ``page_size`` follows CC.MPS."""

    host: Host
    clock: Clock
    subsystem: Subsystem
    limits: Limits = field(default_factory=Limits)
    admin_commands: Mapping[int, Offer] = field(default_factory=dict)
    io_commands: Mapping[int, Offer] = field(default_factory=dict)
    engine: Engine | None = None
    page_size: int = PAGE_MIN
    shadow: ShadowDoorbells | None = None
    interrupt_mask: int = 0  # INTMS and INTMC: a bit for each vector
    entry_sizes: EntrySizes = EntrySizes()
    cntlid: int = 1
    sqs: dict[int, SubmissionQueue] = field(default_factory=dict)
    cqs: dict[int, CompletionQueue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.namespaces = self.subsystem.namespaces.of(self.cntlid)  # those that are attached
        if self.namespaces.nn != self.limits.namespaces:
            raise ValueError(f"NN is {self.namespaces.nn} or {self.limits.namespaces}")
        self.features: dict[tuple[int, int], int] = {}  # values that the host has set: (FID, which) -> value
        self._cq_tap: CqTap | None = None
        self.saved_features: dict[tuple[int, int], int] = {}  # those of the saved state, as of the last reset or SV
        self._parts: dict[type, Any] = {}
        self.uuids: list[bytes] = []  # of vendors' definitions, by UUID Index from 1 on
        self.owners = Owners(self.engine)
        self.is_pythons: Callable[[int], bool] = lambda qid: False  # submission queues that are not for the engine
        self.interrupts = InterruptPort(self.host)
        self.events = Events()
        self.coalescing = Coalescing(self.clock, self.engine, self.interrupts.send)
        remembered = self.subsystem.state
        changed = SavedValue(of_controller(self.cntlid), _CHANGED_NAMESPACES, b"").of(remembered)
        self.changed_namespaces = {nsid for (nsid,) in _NSID.iter_unpack(changed)}  # that the host has not read of
        self.errors = ErrorLog(SavedValue(of_controller(self.cntlid), _ERRORS, 0).of(remembered))
        self.had_io_queues = False
        self.told = CriticalWarning(0)  # the warnings that hold and that the host has been told
        self.reset_at = self.clock.now()  # seconds; where Timestamp begins

    def part(self, kind: type[P]) -> P:
        """What an extension keeps for this controller: the one object of this kind, made when it is first asked for."""
        found = self._parts.get(kind)
        if found is None:
            found = self._parts[kind] = kind()
        return cast(P, found)

    @property
    def has_write_cache(self) -> bool:
        return any(namespace.media.volatile_cache for namespace in self.namespaces)

    @property
    def has_io_queues(self) -> bool:
        return len(self.sqs) > 1 or len(self.cqs) > 1

    def add_admin_queues(self, sq: SubmissionQueue) -> None:
        """The admin submission queue, with its completion queue."""
        sq.cq.sqs.add(0)
        sq.cq.set_tap(self._cq_tap)
        self.cqs[0], self.sqs[0] = sq.cq, sq

    def tap_cqs(self, tap: CqTap | None) -> None:
        """Let all completion queues, also later ones, tell ``tap`` what is written into them."""
        self._cq_tap = tap
        for cq in self.cqs.values():
            cq.set_tap(tap)

    def add_cq(self, cq: CompletionQueue) -> None:
        """Add an I/O completion queue. Raises HostMemoryError, and then there is none."""
        if self.shadow is not None:
            slot = self.shadow.head(cq.qid)
            slot.clear(0)
            cq.use_shadow(slot)
        self.forget_doorbell(2 * cq.qid + 1)
        self.owners.take_cq(cq)
        cq.set_tap(self._cq_tap)
        self.cqs[cq.qid] = cq
        self.had_io_queues = True

    def add_sq(self, sq: SubmissionQueue) -> None:
        """Add an I/O submission queue. Raises HostMemoryError, and then there is none."""
        if self.shadow is not None:
            slot = self.shadow.tail(sq.qid)
            slot.clear(0)
            sq.use_shadow(slot)
        self.forget_doorbell(2 * sq.qid)
        if not self.is_pythons(sq.qid):
            self.owners.take_sq(sq)
        sq.cq.sqs.add(sq.qid)
        self.sqs[sq.qid] = sq
        self.had_io_queues = True

    def remove_sq(self, qid: int) -> None:
        """Close a submission queue. Its doorbell belongs to no queue any more."""
        del self.sqs[qid]
        self.forget_doorbell(2 * qid)

    def remove_cq(self, qid: int) -> None:
        self.owners.drop_cq(self.cqs.pop(qid))
        self.forget_doorbell(2 * qid + 1)

    def forget_doorbell(self, number: int) -> None:
        """Ignore what the host has rung before."""
        if self.engine is not None:
            self.engine.forget_doorbell(number)

    def configure_engine(self, write_cache: bool) -> None:
        """Tell the engine the namespaces. Without ``write_cache`` every write has to become durable."""
        if self.engine is None:
            return
        disks = {}
        for namespace in self.namespaces:
            media = namespace.media
            disks[namespace.nsid] = EngineNamespace(
                media.direct if media.budget.sole_user is None else None,
                namespace.format.data_size,
                namespace.blocks,
                writable=not namespace.is_write_protected,
                is_volatile=media.volatile_cache,
                writes_through=not write_cache,
                atomicity=media.atomicity,
            )
        self.engine.configure(
            self.page_size, self.limits.transfer, self.namespaces.most_held, self.limits.has_sgls, disks
        )

    def collect_counts(self) -> None:
        """Add what the engine has done to the SMART counters."""
        if self.engine is not None:
            counts = self.engine.take_counts()
            health = self.subsystem.health
            health.reads += counts.reads
            health.writes += counts.writes
            health.bytes_read += counts.bytes_read
            health.bytes_written += counts.bytes_written

    def remembered(self) -> Changes:
        """What the saved state says of this controller, beside its features."""
        scope = of_controller(self.cntlid)
        changed = b"".join(map(_NSID.pack, sorted(self.changed_namespaces)))
        return {(scope, _ERRORS): self.errors.count, (scope, _CHANGED_NAMESPACES): changed}

    def echo_admin_doorbells(self) -> None:
        """Ask for the next doorbell of the admin queue, whatever it is, because nobody looks at its shadows."""
        if self.shadow is not None:
            with suppress(HostMemoryError):
                self.shadow.tail(0).clear(self.sqs[0].server.tail)
                self.shadow.head(0).clear(self.cqs[0].server.head)

    def reset(self) -> None:
        """Back to what a Controller Reset leaves (Base 1.4, 7.3.2): no queues, features of before, no events. The error
        count and the namespaces that have changed are kept."""
        servers = [*(sq.server for sq in self.sqs.values()), *(cq.server for cq in self.cqs.values())]
        for server in servers:
            server.forget()  # a worker may keep the queue for long
        self.sqs.clear()
        self.cqs.clear()
        self.features = {}
        self.subsystem.streams.forget(lambda nsid, host: host == self.cntlid)
        self.shadow = None
        self.interrupt_mask = 0
        self.coalescing.reset()
        self.events = Events(self.events.tap)
        self.had_io_queues = False
        self.told = CriticalWarning(0)
        self.reset_at = self.clock.now()
