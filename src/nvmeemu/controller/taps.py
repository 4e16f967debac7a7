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
from typing import Any, NamedTuple, Protocol

from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Reply, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.ports import PciState
from nvmeemu.queues import CompletionQueue

GoOn = Callable[[Request[Any]], None]
"""Run the stage of a request that was parked, unless it has ended."""


class FiredFault(NamedTuple):
    """The interceptor makes something go wrong. ``hits`` is how often this fault has fired, this time included. ``at``
    (where), ``action`` (what it does) and ``subject`` (to what) are words. ``sqid`` and ``cid`` are those of the
    command, if it is one."""

    fault: int
    hits: int
    sqid: int | None
    cid: int | None
    at: str
    action: str
    name: str
    subject: str


class Observer:
    """Sees what host and device say to each other. Override the methods of interest; they must not raise."""

    def register_read(self, offset: int, data: bytes) -> None:
        """The host has read BAR0 and gets ``data``."""

    def register_written(self, offset: int, data: bytes) -> None:
        """The host has written BAR0, below the doorbells."""

    def doorbell(self, number: int, value: int) -> None:
        """The host has rung the doorbell of SQ ``number // 2``, or of CQ ``number // 2`` if the number is odd."""

    def fetched(self, request: Request[Any]) -> None:
        """A submission queue entry has been copied; ``request.sq.server.head`` is behind it already."""

    def transferred(self, request: Request[Any], views: list[memoryview], to_host: bool) -> None:
        """The data of a command has moved, along ``request.transfer.runs``. Called once for each direction. ``views``
        must not be kept."""

    def metadata_transferred(self, request: Request[Any], views: list[memoryview], to_host: bool) -> None:
        """The same for its separate metadata, along ``request.metadata.runs``."""

    def completed(self, reply: Reply) -> None:
        """A command ends: its completion is posted or, in a full queue, waits in its place."""

    def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        """A completion queue entry was written. Not called for queues of the native engine."""

    def event(self, event: Event) -> None:
        """An asynchronous event is there to be told."""

    def interrupt(self, vector: int) -> None:
        """An MSI-X message was sent."""

    def pin(self, asserted: bool) -> None:
        """INTA# has this level."""

    def interrupts_changed(self, msix: bool) -> None:
        """MSI-X was enabled or disabled, or its messages have got another way."""

    def pci_changed(self, state: PciState) -> None:
        """The host has changed something in the configuration space, or a client has come and finds this."""

    def injected(self, injection: FiredFault) -> None:
        """A fault on purpose fires: it changes what passes next, or what the device does from here on."""

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
        """The client has gone. The function was reset before."""


class Interception(Protocol):
    """What an interceptor does to a command, from its execution to its completion."""

    def run(self, request: Request[Any]) -> Result:
        """Run its stage. That happens more than once if guest memory is missing."""
        ...

    def transfer(self, views: list[memoryview], to_host: bool) -> list[memoryview]:
        """Change where the data of the command goes, or comes from."""
        ...


class Interceptor:
    """Decides what becomes of what passes. Each method here passes it on unchanged."""

    def register_read(self, offset: int, data: bytes) -> bytes:
        """The value that the host gets."""
        return data

    def register_write(self, go: Callable[[int, bytes], None], offset: int, data: bytes) -> None:
        go(offset, data)

    def doorbell(self, go: Callable[[int, int], None], number: int, value: int) -> None:
        go(number, value)

    def fetch(self, go: Callable[[Request[Any], bytes], None], request: Request[Any]) -> None:
        """A command was fetched. The first call of ``go`` begins this request; each later call begins a request of its
        own."""
        go(request, request.entry)

    def execute(self, request: Request[Any], go_on: GoOn) -> Interception | None:
        """The command is about to be executed. Returns what intercepts it, or None. A stage that returns ``Parked``
        continues when ``go_on`` is called, with the stage that the request has then."""
        return None

    def complete(self, go: Callable[[Reply], None], reply: Reply) -> None:
        go(reply)

    def event(self, go: Callable[[Event], None], event: Event) -> None:
        go(event)

    @property
    def wants_interrupts(self) -> bool:
        """Whether the interrupts of the native engine, too, must pass."""
        return False

    def interrupt(self, go: Callable[[int], None], vector: int) -> None:
        go(vector)

    def pin(self, go: Callable[[bool], None], asserted: bool) -> None:
        go(asserted)

    def dropped(self) -> None:
        """Like ``Observer.dropped``: forget commands, completions and doorbells that were kept back."""

    def reset(self) -> None:
        """Like ``Observer.reset``."""


class Taps:
    """All observers and the interceptor of a controller. It is a ``MemoryMirror``, too."""

    def __init__(self, controller: ControllerState) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.interceptor: Interceptor | None = None
        self._regions: dict[int, tuple[int, bool]] = {}
        self._controller = controller

    def add(self, observer: Observer) -> None:
        """Add an observer, and tell it of the memory that is there."""
        self.observers += (observer,)
        for iova, (size, writable) in self._regions.items():
            observer.mapped(iova, size, writable)

    @property
    def is_used(self) -> bool:
        """Whether anybody wants to see what passes."""
        return bool(self.observers) or self.interceptor is not None

    def install(self) -> None:
        """Stand where interrupts, events and completions pass, or get out of the way if nobody wants anything."""
        self._controller.interrupts.tap = self if self.is_used else None
        self._controller.events.tap = self._event if self.is_used else None
        self._controller.tap_cqs(self._posted if self.is_used else None)

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

    def fetch(self, go: Callable[[Request[Any], bytes], None], request: Request[Any]) -> None:
        for observer in self.observers:
            observer.fetched(request)
        if self.interceptor is None:
            go(request, request.entry)
        else:
            self.interceptor.fetch(go, request)

    # --- what becomes of a command

    def execute(self, request: Request[Any], go_on: GoOn) -> None:
        """Observe this command from here on, and perhaps intercept it."""
        tapped = request.tap = _Tapped(self)
        if self.interceptor is not None:
            tapped.interception = self.interceptor.execute(request, go_on)

    # --- what the device says

    def complete(self, go: Callable[[Reply], None], reply: Reply) -> None:
        def tell(reply: Reply) -> None:
            for observer in self.observers:
                observer.completed(reply)
            go(reply)

        if self.interceptor is None:
            tell(reply)
        else:
            self.interceptor.complete(tell, reply)

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

    @property
    def wants_interrupts(self) -> bool:
        return self.interceptor is not None and self.interceptor.wants_interrupts

    def interrupt(self, vector: int) -> None:
        if self.interceptor is None:
            self._interrupt(vector)
        else:
            self.interceptor.interrupt(self._interrupt, vector)

    def _interrupt(self, vector: int) -> None:
        for observer in self.observers:
            observer.interrupt(vector)
        self._controller.interrupts.send_now(vector)

    def pin(self, asserted: bool) -> None:
        if self.interceptor is None:
            self._pin(asserted)
        else:
            self.interceptor.pin(self._pin, asserted)

    def _pin(self, asserted: bool) -> None:
        for observer in self.observers:
            observer.pin(asserted)
        self._controller.interrupts.drive_now(asserted)

    # --- what happens around it

    def interrupts_changed(self) -> None:
        for observer in self.observers:
            observer.interrupts_changed(self._controller.host.msix_enabled)

    def pci_changed(self, state: PciState) -> None:
        for observer in self.observers:
            observer.pci_changed(state)

    def injected(self, injection: FiredFault) -> None:
        """The interceptor calls this before it does what it says."""
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


class _Tapped:
    """Stands beside one command: a ``RequestTap``."""

    __slots__ = ("_moving", "_taps", "_told", "interception")

    def __init__(self, taps: Taps) -> None:
        self.interception: Interception | None = None
        self._taps = taps
        self._moving: list[tuple[list[memoryview], bool, bool]] = []  # of this stage; is it metadata, and to the host
        self._told: set[tuple[bool, bool]] = set()

    def run(self, request: Request[Any]) -> Result:
        """Run its stage, and tell what data has moved: to the host, if the stage has come to its end."""
        has_ended = False
        try:
            result = request.stage(request) if self.interception is None else self.interception.run(request)
            has_ended = isinstance(result, int)
            return result
        finally:
            moving, self._moving = self._moving, []
            for views, is_metadata, to_host in moving:
                if (has_ended or not to_host) and (is_metadata, to_host) not in self._told:
                    self._told.add((is_metadata, to_host))
                    for observer in self._taps.observers:
                        tell = observer.metadata_transferred if is_metadata else observer.transferred
                        tell(request, views, to_host)

    def transfer(self, request: Request[Any], views: list[memoryview], to_host: bool) -> list[memoryview]:
        self._moving.append((views, False, to_host))
        return views if self.interception is None else self.interception.transfer(views, to_host)

    def transfer_metadata(self, request: Request[Any], views: list[memoryview], to_host: bool) -> list[memoryview]:
        self._moving.append((views, True, to_host))
        return views
