"""Faults of time and number: what passes comes late, never, twice, or after the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nvmeemu.faults import data
from nvmeemu.faults.action import NOTHING_PASSES, Action, Go
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target
from nvmeemu.faults.words import seconds


class Delay(Action):
    """It happens later."""

    name = "delay"
    example = "250ms"
    places = (At.EXECUTE, At.FETCH, At.BACKEND, At.COMPLETION, At.INTERRUPT, At.DOORBELL, At.REGISTER, At.EVENT)
    reasons: ClassVar = {
        At.DMA: "a transfer takes no time of its own here: delay at execute or backend",
        At.NOW: NOTHING_PASSES,
    }
    options = ("jitter",)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.seconds = seconds(argument, "do.delay")
        self.jitter = seconds(options.get("jitter", 0), "do.jitter")

    def _choose(self, target: Target) -> float:
        return self.seconds + (target.random.uniform(0, self.jitter) if self.jitter else 0)

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        target.kept.later(self._choose(target), passage.at, lambda: go(*payload))

    def plan(self, target: Target, plan: Plan) -> None:
        wait = self._choose(target)
        plan.park(lambda request, resume: target.kept.later(wait, At.EXECUTE, resume))


class Drop(Action):
    """It never happens: an access or doorbell has no effect, a command is never completed, an interrupt is not sent."""

    name = "drop"
    places = (At.EXECUTE, At.FETCH, At.DMA, At.BACKEND, At.COMPLETION, At.INTERRUPT, At.DOORBELL, At.REGISTER, At.EVENT)
    reasons: ClassVar = {At.NOW: NOTHING_PASSES}
    ends = True

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        pass

    def plan(self, target: Target, plan: Plan) -> None:
        if plan.at == At.DMA:
            plan.spoil_transfer(data.lose)
        else:
            plan.park(lambda request, resume: None, is_abortable=plan.at == At.EXECUTE)


class Duplicate(Action):
    """It happens twice."""

    name = "duplicate"
    places = (At.COMPLETION, At.FETCH, At.INTERRUPT, At.DOORBELL, At.REGISTER, At.EVENT)
    reasons: ClassVar = {
        At.EXECUTE: "to execute a command twice, duplicate it at fetch",
        At.DMA: "nobody can see that data was transferred twice",
        At.BACKEND: "nobody can see that a disk was written twice",
        At.NOW: NOTHING_PASSES,
    }

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        go(*payload)
        if passage.at == At.EVENT:  # the second one shall not wait until the host has looked at the first
            target.controller.state.events.was_read(payload[0].log)
        go(*payload)


class Reorder(Action):
    """It waits until another one of its kind has passed, at most ``within`` seconds (1)."""

    name = "reorder"
    places = (At.COMPLETION, At.FETCH, At.EXECUTE, At.DOORBELL, At.INTERRUPT, At.EVENT)
    reasons: ClassVar = {
        At.REGISTER: "the bus keeps the order of register accesses",
        At.DMA: "reorder the commands, at execute",
        At.BACKEND: "reorder the commands, at execute",
        At.NOW: NOTHING_PASSES,
    }
    options = ("within",)

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        super().__init__(argument, options)
        self.within = seconds(options.get("within", 1.0), "do.within")

    def stream(self, target: Target, passage: Passage, go: Go, *payload: Any) -> None:
        target.kept.behind_next(passage.at, self.within, lambda: go(*payload))

    def plan(self, target: Target, plan: Plan) -> None:
        # behind the completion of another one: what has only begun may still come later than this
        plan.park(lambda request, resume: target.kept.behind_next(At.EXECUTE, self.within, resume))
