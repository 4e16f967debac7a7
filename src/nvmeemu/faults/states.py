"""Faults of the device as a whole. Their effect lasts until ``seconds`` have passed or the fault is removed.

They can fire at every place, for example at the hundredth write. "now" is when the fault is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nvmeemu.controller.bounds import MOST_NAMESPACES
from nvmeemu.controller.events import Event
from nvmeemu.faults.action import Action, Go
from nvmeemu.faults.layers import last
from nvmeemu.faults.match import LAST_VECTOR
from nvmeemu.faults.passage import PIN, Passage
from nvmeemu.faults.places import PLACES, At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target, Undo
from nvmeemu.faults.words import FaultError, choice, flag, number, seconds, table
from nvmeemu.spec import (
    SHST_COMPLETE,
    SHST_OCCURRING,
    ControllerStatus,
    ErrorEvent,
    EventType,
    LogId,
    NoticeEvent,
    SmartEvent,
)
from nvmeemu.subsystem.namespace import Namespace

_EVENTS = {
    "smart": Event(EventType.SMART, SmartEvent.TEMPERATURE, LogId.SMART),
    "error": Event(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogId.ERROR_INFORMATION),
    "notice": Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACE_LIST),
}


class State(Action):
    """``start`` begins the state and returns how to end it."""

    places = (At.NOW, *PLACES[:-1])
    changes = False
    reads = True
    options: ClassVar[tuple[str, ...]] = ("seconds",)
    lasts = True
    stops = False
    holds = False
    silent = False

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.seconds = seconds(options["seconds"], "do.seconds") if "seconds" in options else None
        self._take(argument)

    def _take(self, argument: Any) -> None:
        """Understand the argument."""
        if argument is not True:
            raise FaultError(f"do.{self.name}: takes no argument, but has {argument!r}")

    def start(self, target: Target) -> Undo:
        return lambda: None

    def view(self, target: Target, status: ControllerStatus) -> None:
        """Change what the host sees in CSTS."""

    def configured(self, target: Target, enable: bool) -> None:
        """The host writes CC."""

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        target.begin(self)
        if not self.stops:
            go(*payload)

    def plan(self, target: Target, plan: Plan) -> None:
        target.begin(self)
        if self.stops and plan.at != At.DMA:  # there the transfer is stopped
            plan.park(lambda request, resume: None)

    def read(self, target: Target, passage: Passage, value: bytes) -> bytes:
        target.begin(self)
        return value


class Fatal(State):
    """CSTS.CFS: nothing is served until the host resets the controller."""

    name = "cfs"
    options = ()
    lasts = False
    stops = True

    def start(self, target: Target) -> Undo:
        target.controller.fail("a fault")
        return lambda: None


class Ready(State):
    """CSTS.RDY reads 0, or 1, whatever the host does."""

    name = "rdy"

    def _take(self, argument: Any) -> None:
        self.value = bool(number(int(argument) if isinstance(argument, bool) else argument, "do.rdy", 0, 1))

    def view(self, target: Target, status: ControllerStatus) -> None:
        status.rdy = self.value


class SlowReady(State):
    """CSTS.RDY follows CC.EN that many seconds late."""

    name = "slow_rdy"
    example = "2s"

    def _take(self, argument: Any) -> None:
        self.wait = seconds(argument, "do.slow_rdy")
        self._until = 0.0
        self._shown = False

    def start(self, target: Target) -> Undo:
        self._shown = target.controller.status.rdy
        return lambda: None

    def configured(self, target: Target, enable: bool) -> None:
        if enable != self._shown:
            self._until = target.clock.now() + self.wait

    def view(self, target: Target, status: ControllerStatus) -> None:
        if target.clock.now() >= self._until:
            self._shown = status.rdy
        status.rdy = self._shown


class EndlessShutdown(State):
    """A shutdown never completes: CSTS.SHST stays at 01b."""

    name = "endless_shutdown"

    def view(self, target: Target, status: ControllerStatus) -> None:
        if status.shst == SHST_COMPLETE:
            status.shst = SHST_OCCURRING


class Hang(State):
    """The controller is hung. It fetches and completes nothing until it is reset, or goes on. Registers work."""

    name = "hang"
    holds = True

    def plan(self, target: Target, plan: Plan) -> None:
        target.begin(self)
        if plan.at != At.DMA:  # there the transfer is stopped
            plan.park(lambda request, resume: target.kept.hold(resume))


class Removal(State):
    """The drive is pulled: registers read all ones, and it does nothing. After ``seconds`` it is back, as after
    power-on."""

    name = "remove"
    stops = silent = True

    def start(self, target: Target) -> Undo:
        target.controller.reset()
        return target.controller.reset  # nothing of what happened to it meanwhile is left


class _OfNamespace(State):
    """The argument is the NSID."""

    def _take(self, argument: Any) -> None:
        self.nsid = 1 if argument is True else number(argument, f"do.{self.name}", 1, MOST_NAMESPACES)


class Vanish(_OfNamespace):
    """The namespace (1) is gone, and the host is told if it wants to be."""

    name = "vanish"

    def start(self, target: Target) -> Undo:
        device, nsid = target.controller.state, self.nsid
        away: list[Namespace] = []  # detached: its number stays taken

        def put(is_there: bool) -> None:
            if not is_there:
                away.append(device.namespaces[nsid])
                device.subsystem.detach(nsid, device.cntlid)
            elif away and device.subsystem.namespaces.by_nsid.get(nsid) is away.pop():
                device.subsystem.attach(nsid, device.cntlid)

        return target.layers.add(
            ("vanish", nsid), False, get=lambda: nsid in device.namespaces.by_nsid, put=put, combine=all
        )


class Shrink(_OfNamespace):
    """The namespace has only ``blocks`` blocks (half of them) from now on; the host is told if it wants to be."""

    name = "shrink"
    options = ("seconds", "blocks")

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        super().__init__(argument, options)
        self.blocks = number(options["blocks"], "do.blocks", 1) if "blocks" in options else None

    def start(self, target: Target) -> Undo:
        device = target.controller.state
        namespace = device.namespaces.by_nsid.get(self.nsid)
        if namespace is None:
            return lambda: None

        def put(blocks: int) -> None:
            if device.namespaces.by_nsid.get(self.nsid) is namespace:
                device.subsystem.resize(self.nsid, blocks)
            else:  # it has vanished: nobody is to be told
                namespace.blocks = blocks

        blocks = self.blocks or max(1, namespace.blocks // 2)
        return target.layers.add(("shrink", namespace), blocks, get=lambda: namespace.blocks, put=put, combine=min)


class ReadOnly(_OfNamespace):
    """The namespace is write protected from now on; the host is told if it wants to be."""

    name = "read_only"

    def start(self, target: Target) -> Undo:
        device = target.controller.state
        namespace = device.namespaces.by_nsid.get(self.nsid)
        if namespace is None:
            return lambda: None

        def put(read_only: bool) -> None:
            namespace.read_only = read_only
            device.subsystem.changed(self.nsid)

        return target.layers.add(("read_only", namespace), True, get=lambda: namespace.read_only, put=put, combine=any)


class Smart(State):
    """The SMART log says ``temperature`` (kelvin), ``spare`` (percent), ``degraded``; the host hears the warnings
    that it wants to hear."""

    name = "smart"
    example = "{ temperature = 360 }"

    def _take(self, argument: Any) -> None:
        words = table(argument, "do.smart")
        parsers: dict[str, Callable[[Any], int | bool]] = {
            "temperature": lambda value: number(value, "do.smart.temperature", 0, 0xFFFF),
            "spare": lambda value: number(value, "do.smart.spare", 0, 100),
            "degraded": lambda value: flag(value, "do.smart.degraded"),
        }
        if not words or set(words) - set(parsers):
            raise FaultError(f"do.smart: {words!r}: give some of {', '.join(parsers)}")
        self.values = {key: parsers[key](value) for key, value in words.items()}

    def start(self, target: Target) -> Undo:
        undo = [self._start(target, name, value) for name, value in self.values.items()]

        def undo_all() -> None:
            for one in undo:
                one()

        return undo_all

    def _start(self, target: Target, name: str, value: int | bool) -> Undo:
        health, set_health = target.controller.state.subsystem.health, target.controller.set_health
        get, put = {
            "temperature": (lambda: health.temperature, lambda new: set_health(temperature=new)),
            "spare": (lambda: health.spare, lambda new: set_health(spare=new)),
            "degraded": (lambda: health.is_degraded, lambda new: set_health(is_degraded=new)),
        }[name]
        return target.layers.add(("smart", name), value, get=get, put=put, combine=last)


class Flood(State):
    """So many asynchronous events of a ``type`` (smart, error, notice), one each ``interval`` (10 ms), also if the
    host has not looked at the one before: it must give a request for each."""

    name = "flood"
    example = "100"
    options = ("seconds", "interval", "type")

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        super().__init__(argument, options)
        self.interval = seconds(options.get("interval", 0.01), "do.interval")
        kind = options.get("type", "smart")
        self._event = _EVENTS[choice(kind, "do.type", tuple(_EVENTS))]

    def _take(self, argument: Any) -> None:
        self.count = number(argument, "do.flood", 1, 1_000_000)

    def start(self, target: Target) -> Undo:
        left = self.count
        is_over = False

        def send() -> None:
            nonlocal left
            if is_over or not left:
                target.end(self)
                return
            events = target.controller.state.events
            if events.outstanding:
                left -= 1
                events.was_read(self._event.log)  # or it would wait for the host to read that page
                events.report(self._event)
            target.clock.call_later(self.interval, send)

        def undo() -> None:
            nonlocal is_over
            is_over = True

        send()
        return undo


class Spurious(State):
    """An interrupt for nothing, on this vector (0), or on the "pin"."""

    name = "spurious"
    options = ()
    lasts = False

    def _take(self, argument: Any) -> None:
        if argument == "pin":
            self.vector = PIN
        else:
            self.vector = 0 if argument is True else number(argument, "do.spurious", 0, LAST_VECTOR)

    def start(self, target: Target) -> Undo:
        interrupts = target.controller.state.interrupts
        if self.vector == PIN:
            interrupts.drive(True)
            interrupts.drive(False)
        else:
            interrupts.send(self.vector)
        return lambda: None
