"""The faults of one controller: asked at every place that something passes, and doing what they are there for."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nvmeemu import regs
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Reply, Request
from nvmeemu.controller.taps import FiredFault, GoOn, Interceptor
from nvmeemu.faults.action import Action
from nvmeemu.faults.disk import History
from nvmeemu.faults.fault import Fault
from nvmeemu.faults.kept import Kept
from nvmeemu.faults.layers import Layers
from nvmeemu.faults.passage import PIN, Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan, Stopped
from nvmeemu.faults.registers import only
from nvmeemu.faults.states import State
from nvmeemu.faults.target import Lasting, Undo
from nvmeemu.faults.when import Trigger
from nvmeemu.faults.words import FaultError
from nvmeemu.spec import Configuration, ControllerStatus

log = logging.getLogger(__name__)

Go = Callable[..., None]
_EN = int(Configuration(en=True))
_STAGES = frozenset({At.EXECUTE, At.DMA, At.BACKEND})
_AT_COMPLETION = frozenset({At.EXECUTE, At.COMPLETION})  # reordered commands wait for completions


class Faults(Interceptor):
    """Give it a controller and add faults; the same seed and the same commands give the same faults.

    faults = Faults(bench.controller, seed=1)
    fault = faults.add(Fault(match={"opcode": "write"}, do={"status": "write_fault"}, when={"nth": 3}))
    ...
    assert fault.hits == 1
    faults.remove(fault)
    """

    def __init__(self, controller: Controller, seed: int = 0) -> None:
        self.controller = controller
        self.clock = controller.state.clock
        self.seed = seed
        self._begin_chance()
        self.layers = Layers()
        self.kept = Kept(self.clock)
        self.on_reset: Callable[[], None] = lambda: None  # the function was reset
        self._faults: dict[int, Fault] = {}
        self._histories: tuple[History, ...] = ()  # of disks, that faults want to be kept
        self._places: frozenset[At] = frozenset()  # where there are faults: nowhere else is anything asked
        self._ids = itertools.count(1)
        self._is_fatal = False  # CSTS.CFS: nothing is completed until a reset
        self._states: dict[Lasting, Undo] = {}  # what lasts, and how to end it

    # --- for users

    def add(self, fault: Fault | Mapping[str, Any]) -> Fault:
        """Add a fault (or a table of it); it works from now on. Raises FaultError."""
        fault = fault if isinstance(fault, Fault) else Fault.of(fault)
        if fault.trigger is not None:
            raise FaultError("this fault was added before: make another one")
        fault.id = next(self._ids)
        fault.trigger = Trigger(fault.when, self.seed << 16 ^ next(self._streams), self.clock.now())
        self._faults[fault.id] = fault
        self._settle()
        log.info("fault %d: %s", fault.id, fault)
        if fault.at == At.NOW and fault.when.after_seconds:
            self.clock.call_later(fault.when.after_seconds, partial(self._now, fault))
        elif fault.at == At.NOW:
            self._now(fault)
        return fault

    def remove(self, fault: Fault | int) -> None:
        """Remove a fault (or the one with this id), and end what it has done to the device. Raises KeyError."""
        found = self._faults.pop(fault if isinstance(fault, int) else fault.id)
        for action in found.actions:
            if isinstance(action, State):
                self.end(action)
        self._settle()

    def clear(self) -> None:
        """Remove all faults. Random numbers start again, so they do not depend on faults that were there before."""
        for number in tuple(self._faults):
            self.remove(number)
        self._begin_chance()

    def _begin_chance(self) -> None:
        self.random = random.Random(self.seed)
        self._streams = itertools.count(1)  # each fault's place, for a chance of its own

    def __iter__(self) -> Iterator[Fault]:
        return iter(tuple(self._faults.values()))

    def __len__(self) -> int:
        return len(self._faults)

    def __getitem__(self, number: int) -> Fault:
        return self._faults[number]

    @property
    def is_removed(self) -> bool:
        """Whether a fault has pulled the drive out: the host reads all ones, and nothing reaches the device."""
        return self._is_silent

    def needs(self, qid: int) -> bool:
        """Whether the queue must be served in Python, because a fault looks at what passes it."""
        return (
            self._is_hung
            or self._is_silent
            or any(fault.match.queues is None or qid in fault.match.queues for fault in self._faults.values())
        )

    def _settle(self) -> None:
        self._places = frozenset(fault.at for fault in self._faults.values())
        actions = (action for fault in self._faults.values() for action in fault.actions)
        self._histories = tuple(action.history for action in actions if action.history is not None)
        self.controller.intercept(self if self._faults else None)
        self.controller.serve_in_python(self.needs)
        if not self._faults:  # from here on nothing is heard of resets
            self._is_fatal = False

    def _now(self, fault: Fault) -> None:
        if fault.id in self._faults:
            self._pass(Passage(At.NOW), lambda: None, sole=fault)

    # --- for actions

    def begin(self, state: Lasting) -> None:
        """Begin a state of the device, unless it lasts already."""
        if state in self._states:
            return
        queues = tuple(self.controller.state.sqs.values())
        self._states[state] = lambda: None  # what it does may pass here
        self._states[state] = state.start(self)
        if state.holds:
            self.controller.hang(True)
        if state.stops:
            self._is_fatal = not state.silent
            for sq in queues:  # one of them may be in the middle of its turn
                sq.server.stop()
        self.controller.serve_in_python(self.needs)
        if not state.lasts:
            del self._states[state]
        elif state.seconds is not None:
            self.clock.call_later(state.seconds, partial(self._expire, state, self._states[state]))

    def _expire(self, state: Lasting, undo: Undo) -> None:
        """It ends, unless it has ended before and begun anew."""
        if self._states.get(state) is undo:
            self.end(state)

    def end(self, state: Lasting) -> None:
        """End the state, if it lasts."""
        undo = self._states.pop(state, None)
        if undo is not None:
            undo()
            self.controller.serve_in_python(self.needs)
            if state.holds and not self._is_hung:
                self.controller.hang(False)
                self.kept.go_on()

    @property
    def _is_hung(self) -> bool:
        return any(state.holds for state in self._states)

    @property
    def _is_silent(self) -> bool:
        return any(state.silent for state in self._states)

    # --- what passes

    def _fired(self, passage: Passage, sole: Fault | None = None) -> list[Fault]:
        now = self.clock.now()
        found = []
        for fault in (sole,) if sole is not None else self:
            if fault.meets(passage) and fault.trigger is not None and fault.trigger.fires(now):
                self._tell(fault, passage)
                found.append(fault)
        return found

    def _actions(self, passage: Passage) -> list[Action]:
        return [action for fault in self._fired(passage) for action in fault.actions]

    def _tell(self, fault: Fault, passage: Passage) -> None:
        """A fault fires. Tell observers, so that a user sees that the trouble is on purpose."""
        level = logging.INFO if fault.hits == 1 else logging.DEBUG
        if not self.controller.taps.observers and not log.isEnabledFor(level):
            return  # fires perhaps at each command
        subject = str(passage)
        named = f' "{fault.name}"' if fault.name else ""
        message = (
            f"fault {fault.id}{named} fires at {fault.at}: {fault.words}"  # of each fault another: none is left out
        )
        log.log(level, message.replace("%", "%%") + ": %s", subject)
        sqid, cid = (None, None) if passage.command is None else (passage.qid, passage.command.cid)
        told = FiredFault(fault.id, fault.hits, sqid, cid, fault.at, fault.words, fault.name, subject)
        self.controller.taps.injected(told)

    def _pass(self, passage: Passage, go: Go, *payload: Any, sole: Fault | None = None) -> None:
        """Pass it through the faults that fire, the first one first."""
        behind = self.kept.take_behind(passage.at)
        for fault in reversed(self._fired(passage, sole)):
            for action in reversed(fault.actions):
                if passage.at == At.REGISTER:
                    go = partial(self._write_part, fault, action, passage, go)
                else:
                    go = partial(action.stream, self, passage, go)
        go(*payload)
        for release in behind:
            release()

    def register_read(self, offset: int, data: bytes) -> bytes:
        if At.REGISTER in self._places:
            passage = Passage(At.REGISTER, offset=offset, size=len(data))
            for fault in self._fired(passage):
                part = fault.match.part(offset, len(data))
                for action in fault.actions:
                    changed = action.read(self, only(passage, part), data[part])
                    data = data[: part.start] + changed + data[part.stop :]
        if self._states:
            data = self._shown(data, offset)
        return b"\xff" * len(data) if self._is_silent else data

    def _shown(self, data: bytes, offset: int) -> bytes:
        """The part of CSTS that the host sees, as states of the device change it."""
        status = self.controller.status
        shown = ControllerStatus(rdy=status.rdy, cfs=status.cfs, shst=status.shst)
        for state in self._states:
            state.view(self, shown)
        change = (int(shown) ^ int(status)) << 8 * regs.CSTS.offset >> 8 * offset
        mask = (1 << 8 * len(data)) - 1
        return (int.from_bytes(data, "little") ^ change & mask).to_bytes(len(data), "little")

    def register_write(self, go: Callable[[int, bytes], None], offset: int, data: bytes) -> None:
        if self._is_silent:
            return
        value = int.from_bytes(data, "little")
        passage = Passage(At.REGISTER, offset=offset, size=len(data), is_write=True, value=value)
        self._pass(passage, self._configured(go), offset, data)

    def _write_part(self, fault: Fault, action: Action, passage: Passage, go: Go, offset: int, data: bytes) -> None:
        """Of a write that reaches further than the register that the fault is about, the rest is written as it is."""
        part = fault.match.part(offset, len(data))
        if part.start:
            go(offset, data[: part.start])
        if data[part]:
            action.stream(self, only(passage, part), go, offset + part.start, data[part])
        if data[part.stop :]:
            go(offset + part.stop, data[part.stop :])

    def _configured(self, go: Callable[[int, bytes], None]) -> Callable[[int, bytes], None]:
        def write(offset: int, data: bytes) -> None:
            if offset <= regs.CC.offset < offset + len(data):
                for state in self._states:
                    state.configured(self, bool(data[regs.CC.offset - offset] & _EN))
            go(offset, data)

        return write

    def doorbell(self, go: Callable[[int, int], None], number: int, value: int) -> None:
        if not self._is_silent:
            passage = Passage(At.DOORBELL, qid=number >> 1, is_cq=bool(number & 1), value=value)
            self._pass(passage, go, number, value)

    def fetch(self, go: Callable[[Request[Any], bytes], None], request: Request[Any]) -> None:
        if self._is_silent:
            return
        if self._is_hung:  # the native engine has fetched it before
            self.kept.hold(partial(self.fetch, go, request))
            return
        if At.FETCH not in self._places:
            go(request, request.entry)
            return
        sq = request.sq

        def begin(entry: bytes) -> None:
            if self._is_hung:
                self.kept.hold(partial(begin, entry))
            elif self.controller.state.sqs.get(sq.qid) is sq:  # not deleted since
                go(request, entry)

        self._pass(Passage(At.FETCH, qid=sq.qid, command=request.command), begin, request.entry)

    def execute(self, request: Request[Any], go_on: GoOn) -> Plan:
        sqid, command = request.sq.qid, request.command
        plan = Plan(request, go_on, self.kept.hold, self._on_transfer)
        first = self._actions(Passage(At.EXECUTE, qid=sqid, command=command))
        is_executed = not any(action.ends for action in first)
        of_disk: list[Action] = []
        if is_executed and sqid and plan.uses_disk:
            of_disk = self._actions(Passage(At.BACKEND, qid=sqid, command=command, format=plan.format))
        plan.disk.histories = self._histories
        if of_disk or self._histories:
            plan.with_disk()
        self._plan(plan, At.BACKEND, of_disk)  # what waits there waits with what the disk has said
        self._plan(plan, At.EXECUTE, first)
        return plan

    def _plan(self, plan: Plan, at: At, actions: list[Action]) -> None:
        plan.at = at
        for action in reversed(actions):
            action.plan(self, plan)

    def _on_transfer(self, plan: Plan) -> bool:
        """The data of a command is about to move."""
        if not self._faults:
            return False
        if not plan.has_transferred:
            plan.has_transferred = True
            request = plan.request
            passage = Passage(At.DMA, qid=request.sq.qid, command=request.command)
            self._plan(plan, At.DMA, self._actions(passage))
        if self._is_fatal or self._is_silent or self._is_hung:  # just now
            raise Stopped(is_for_good=not self._is_hung)
        return True

    def complete(self, go: Callable[[Reply], None], reply: Reply) -> None:
        if self._is_hung:
            self.kept.hold(partial(self.complete, go, reply))
            return
        if self._is_fatal or self._is_silent:
            return
        if not self._places & _AT_COMPLETION and not self.kept.has_behind:
            go(reply)
            return
        sq = reply.request.sq

        def post(reply: Reply) -> None:
            if self._is_hung:
                self.kept.hold(partial(post, reply))
            elif sq.is_closing or self.controller.state.sqs.get(sq.qid) is sq:  # nothing of a deleted queue may follow
                go(reply)

        passage = Passage(At.COMPLETION, qid=sq.qid, command=reply.request.command, status=reply.field & 0x7FF)
        self._pass(passage, post, reply)
        for release in self.kept.take_behind(At.EXECUTE):
            release()

    def event(self, go: Callable[[Event], None], event: Event) -> None:
        self._pass(Passage(At.EVENT, event=event.type), go, event)

    @property
    def wants_interrupts(self) -> bool:
        return At.INTERRUPT in self._places

    def interrupt(self, go: Callable[[int], None], vector: int) -> None:
        if not self._is_silent:
            self._pass(Passage(At.INTERRUPT, vector=vector), go, vector)

    def pin(self, go: Callable[[bool], None], asserted: bool) -> None:
        if asserted and not self._is_silent:
            self._pass(Passage(At.INTERRUPT, vector=PIN), go, asserted)
        elif not asserted:
            go(asserted)

    def reset(self) -> None:
        self.on_reset()

    def dropped(self) -> None:
        self._is_fatal = False
        self.kept.drop()
        for state in tuple(self._states):
            if state.holds:
                self.end(state)
