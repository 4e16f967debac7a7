"""One interception point for each stage of the controller: for faults, traces and checks of the host driver.

    host -> register, doorbell -> fetch -> execute -> transfer -> completion, event -> interrupt -> host

An ``Observer`` sees what passes. An ``Interceptor``, of which there is one at most, decides what becomes of it: it
calls ``go`` with what came - at once, later, changed, more than once or never. Observers see what the *host* says and
sees: what it sends before the interceptor has it, what it gets after that.

A controller without taps pays nothing for them: they are put between two stages when they are wanted
(``Controller.observe``, ``Controller.intercept``). All is called on the controller's thread. Of queues that the
native engine serves, only what it leaves to Python passes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nvmeemu.controller import prp
from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Background, Request, Result, Stage
from nvmeemu.ports import Host, PciState
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import Command

if TYPE_CHECKING:
    from nvmeemu.controller.device import Device

_T = TypeVar("_T")

GoOn = Callable[[Request, Stage], None]
Post = Callable[[SubmissionQueue, int, int, int], None]
"""Write a completion: the queue whose head it says, CID, DW0, and the 15-bit Status Field."""


class Injection(NamedTuple):
    """The interceptor makes something go wrong. ``hits``: how often this fault has fired, now included; ``at``: where,
    ``action``: what it does, ``subject``: to what, all in words; ``sqid`` and ``cid`` of the command, if it is one."""

    fault: int
    hits: int
    sqid: int | None
    cid: int | None
    at: str
    action: str
    name: str
    subject: str


class Observer:
    """Sees what host and device say to each other. Override what is of interest; it must not raise."""

    def register_read(self, offset: int, data: bytes) -> None:
        """The host has read BAR0 and gets ``data``."""

    def register_written(self, offset: int, data: bytes) -> None:
        """The host has written BAR0, below the doorbells."""

    def doorbell(self, number: int, value: int) -> None:
        """The host has rung that of SQ ``number // 2``, or of CQ ``number // 2`` if the number is odd."""

    def fetched(self, sq: SubmissionQueue, entry: bytes) -> None:
        """A submission queue entry has been copied; ``sq.head`` is behind it already."""

    def transferred(self, sq: SubmissionQueue, command: Command, views: list[memoryview], to_host: bool) -> None:
        """The data of a command, which has moved; Compare, and what waits for guest memory, may take the host's more
        than once. ``views`` must not be kept."""

    def completed(self, sq: SubmissionQueue, cid: int, dw0: int, field: int) -> None:
        """A command ends: its completion is posted or, in a full queue, waits in its place; ``field`` is the 15-bit
        Status Field."""

    def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        """A completion queue entry was written. Not told of queues of the native engine."""

    def event(self, event: Event) -> None:
        """An asynchronous event is there to be told."""

    def interrupt(self, vector: int) -> None:
        """An MSI-X message was sent."""

    def pin(self, asserted: bool) -> None:
        """INTA# has this level."""

    def interrupts_changed(self, msix: bool) -> None:
        """MSI-X was enabled or disabled, or its messages have got another way."""

    def pci_changed(self, state: PciState) -> None:
        """The host has changed something in the configuration space, or a client has come and this is what it finds."""

    def injected(self, injection: Injection) -> None:
        """What passes next, or does not, or what the device does from here on, is a fault on purpose."""

    def dropped(self) -> None:
        """Every command was dropped without a completion: a reset, a shutdown, or CSTS.CFS."""

    def reset(self) -> None:
        """The PCI function was reset."""

    def mapped(self, iova: int, size: int, writable: bool) -> None:
        """The VMM has mapped guest memory."""

    def unmapped(self, iova: int) -> None: ...
    def attached(self, peer: str) -> None:
        """A client has come."""

    def left(self) -> None:
        """It has gone; the function was reset before."""


class Interceptor:
    """Decides what becomes of what passes; each method here lets it through."""

    def register_read(self, offset: int, data: bytes) -> bytes:
        """What the host gets."""
        return data

    def register_write(self, go: Callable[[int, bytes], None], offset: int, data: bytes) -> None:
        go(offset, data)

    def doorbell(self, go: Callable[[int, int], None], number: int, value: int) -> None:
        go(number, value)

    def fetch(self, go: Callable[[bytes], None], sq: SubmissionQueue, entry: bytes) -> None:
        go(entry)

    def execute(self, go_on: GoOn, sq: SubmissionQueue, command: Command, stage: Stage) -> Stage:
        """What is run in place of ``stage``, perhaps more than once, if guest memory is missing. A stage that returns
        ``Parked`` goes on when ``go_on`` is called."""
        return stage

    def transfer(
        self, sq: SubmissionQueue, command: Command, views: list[memoryview], to_host: bool
    ) -> list[memoryview]:
        """Where the command's data shall go, or come from."""
        return views

    def complete(self, go: Post, sq: SubmissionQueue, command: Command, dw0: int, field: int) -> None:
        go(sq, command.cid, dw0, field)

    def event(self, go: Callable[[Event], None], event: Event) -> None:
        go(event)

    @property
    def wants_interrupts(self) -> bool:
        """Whether the native engine's interrupts, too, shall pass."""
        return False

    def interrupt(self, go: Callable[[int], None], vector: int) -> None:
        go(vector)

    def pin(self, go: Callable[[bool], None], asserted: bool) -> None:
        go(asserted)

    def dropped(self) -> None:
        """Like ``Observer.dropped``: what was kept back of commands, completions and doorbells is void."""

    def reset(self) -> None:
        """Like ``Observer.reset``."""


class Taps:
    """All observers and the interceptor of a controller; a ``MemoryMirror``, too. ``current`` is the command that is
    being run."""

    def __init__(self, device: Device) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.interceptor: Interceptor | None = None
        self._regions: dict[int, tuple[int, bool]] = {}
        self._device = device
        self._host = device.host
        self._current: tuple[SubmissionQueue, Command] | None = None
        self._moving: list[tuple[list[memoryview], bool]] = []  # its data so far, and whether it goes to the host

    def add(self, observer: Observer) -> None:
        """A new observer is told of the memory that is there."""
        self.observers += (observer,)
        for iova, (size, writable) in self._regions.items():
            observer.mapped(iova, size, writable)

    def install(self) -> bool:
        """Stand between device and ports, or get out of the way if nobody wants anything; whether it stands there."""
        is_used = bool(self.observers) or self.interceptor is not None
        self._device.host = _TappedHost(self._host, self) if is_used else self._host
        self._device.views = self._views if is_used else prp.views
        self._device.events.tap = self._event if is_used else None
        self._device.tap_cqs(self._posted if is_used else None)
        return is_used

    # --- what the host says

    def register_read(self, offset: int, data: bytes) -> bytes:
        if self.interceptor is not None:
            data = self.interceptor.register_read(offset, data)
        for observer in self.observers:
            observer.register_read(offset, data)
        return data

    def register_write(self, go: Callable[[int, bytes], None], offset: int, data: bytes) -> None:
        for observer in self.observers:
            observer.register_written(offset, data)
        if self.interceptor is None:
            go(offset, data)
        else:
            self.interceptor.register_write(go, offset, data)

    def doorbell(self, go: Callable[[int, int], None], number: int, value: int) -> None:
        for observer in self.observers:
            observer.doorbell(number, value)
        if self.interceptor is None:
            go(number, value)
        else:
            self.interceptor.doorbell(go, number, value)

    def fetch(self, go: Callable[[bytes], None], sq: SubmissionQueue, entry: bytes) -> None:
        for observer in self.observers:
            observer.fetched(sq, entry)
        if self.interceptor is None:
            go(entry)
        else:
            self.interceptor.fetch(go, sq, entry)

    # --- what becomes of a command

    def execute(self, go_on: GoOn, sq: SubmissionQueue, command: Command, stage: Stage) -> Stage:
        """``stage``, as the interceptor has it, with this command as the current one as long as it runs."""
        if self.interceptor is not None:

            def resume(request: Request, later: Stage) -> None:
                go_on(request, self._as_current(sq, command, later))

            stage = self.interceptor.execute(resume, sq, command, stage)
        return self._as_current(sq, command, stage)

    def _as_current(self, sq: SubmissionQueue, command: Command, stage: Stage) -> Stage:
        def run() -> Result:
            result = self._run(sq, command, stage)
            return replace(result, then=then(result.then)) if isinstance(result, Background) else result

        def then(conclude: Callable[[object], Result]) -> Callable[[object], Result]:
            return lambda value: self._run(sq, command, lambda: conclude(value))

        return run

    def _run(self, sq: SubmissionQueue, command: Command, stage: Callable[[], _T]) -> _T:
        """Run it as the current command, and tell what data has moved: to the host, if it has come to its end."""
        self._current = sq, command
        has_ended = False
        try:
            result = stage()
            has_ended = isinstance(result, int)
            return result
        finally:
            self._current = None
            moving, self._moving = self._moving, []
            for views, to_host in moving:
                if has_ended or not to_host:
                    for observer in self.observers:
                        observer.transferred(sq, command, views, to_host)

    def _views(
        self, host: Host, prp1: int, prp2: int, length: int, page_size: int, writable: bool = True
    ) -> list[memoryview]:
        views = prp.views(host, prp1, prp2, length, page_size, writable)
        if self._current is not None:
            self._moving.append((views, writable))
            if self.interceptor is not None:
                views = self.interceptor.transfer(*self._current, views, writable)
        return views

    # --- what the device says

    def complete(
        self,
        go: Callable[[SubmissionQueue, Command, int, int, int], None],
        sq: SubmissionQueue,
        command: Command,
        cid: int,
        dw0: int,
        field: int,
    ) -> None:
        def tell(sq: SubmissionQueue, cid: int, dw0: int, field: int) -> None:
            for observer in self.observers:
                observer.completed(sq, cid, dw0, field)
            go(sq, command, cid, dw0, field)

        if self.interceptor is None:
            tell(sq, cid, dw0, field)
        else:
            self.interceptor.complete(tell, sq, command, dw0, field)

    def _posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        for observer in self.observers:
            observer.posted(cq, slot, entry)

    def _event(self, go: Callable[[Event], None], event: Event) -> None:
        def tell(event: Event) -> None:
            for observer in self.observers:
                observer.event(event)
            go(event)

        if self.interceptor is None:
            tell(event)
        else:
            self.interceptor.event(tell, event)

    def interrupt(self, vector: int) -> None:
        if self.interceptor is None:
            self._interrupt(vector)
        else:
            self.interceptor.interrupt(self._interrupt, vector)

    def _interrupt(self, vector: int) -> None:
        for observer in self.observers:
            observer.interrupt(vector)
        self._host.interrupt(vector)

    def pin(self, asserted: bool) -> None:
        if self.interceptor is None:
            self._pin(asserted)
        else:
            self.interceptor.pin(self._pin, asserted)

    def _pin(self, asserted: bool) -> None:
        for observer in self.observers:
            observer.pin(asserted)
        self._host.pin(asserted)

    # --- what happens around it

    def interrupts_changed(self) -> None:
        for observer in self.observers:
            observer.interrupts_changed(self._host.msix_enabled)

    def pci_changed(self, state: PciState) -> None:
        for observer in self.observers:
            observer.pci_changed(state)

    def injected(self, injection: Injection) -> None:
        """The interceptor says so, before it does it."""
        for observer in self.observers:
            observer.injected(injection)

    def dropped(self) -> None:
        for observer in self.observers:
            observer.dropped()
        if self.interceptor is not None:
            self.interceptor.dropped()

    def reset(self) -> None:
        for observer in self.observers:
            observer.reset()
        if self.interceptor is not None:
            self.interceptor.reset()

    def attached(self, peer: str) -> None:
        for observer in self.observers:
            observer.attached(peer)

    def left(self) -> None:
        for observer in self.observers:
            observer.left()

    def add_region(self, iova: int, memory: memoryview) -> None:
        self._regions[iova] = len(memory), not memory.readonly
        for observer in self.observers:
            observer.mapped(iova, *self._regions[iova])

    def remove_region(self, iova: int) -> None:
        if self._regions.pop(iova, None) is not None:
            for observer in self.observers:
                observer.unmapped(iova)


class _TappedHost:
    """A ``Host`` whose interrupts pass the taps."""

    def __init__(self, host: Host, taps: Taps) -> None:
        self._host = host
        self._taps = taps
        self.interrupt = taps.interrupt
        self.pin = taps.pin

    def view(self, iova: int, size: int) -> memoryview:
        return self._host.view(iova, size)

    def views(self, iova: int, size: int, writable: bool = True) -> list[memoryview]:
        return self._host.views(iova, size, writable)

    def barrier(self) -> None:
        self._host.barrier()

    def interrupt_fd(self, vector: int) -> int:
        """None, if the native engine's interrupts shall pass the taps."""
        interceptor = self._taps.interceptor
        wanted = interceptor is not None and interceptor.wants_interrupts
        return -1 if wanted else self._host.interrupt_fd(vector)

    @property
    def obstacle(self) -> str:
        return self._host.obstacle

    @property
    def msix_enabled(self) -> bool:
        return self._host.msix_enabled

    @property
    def pin_enabled(self) -> bool:
        return self._host.pin_enabled
