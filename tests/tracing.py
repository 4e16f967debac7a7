"""A bench that is traced."""

from __future__ import annotations

from typing import TypeVar

from nvmeemu import trace
from nvmeemu.testing import Bench
from nvmeemu.trace.recorder import Recorder, describe
from nvmeemu.trace.sink import Memory

R = TypeVar("R")


class Traced(Bench):
    """Its clock is virtual, so are the times in the trace: nanoseconds of ``clock.advance``."""

    def __init__(self, *, payload: bool = False, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        description = describe(self.controller, payload=payload)
        self.memory = Memory(description, lambda: int(self.clock.now() * 1_000_000_000))
        self.controller.observe(Recorder(self.memory, self.controller.state, payload=payload))

    @property
    def records(self) -> list[trace.Record]:
        return list(self.memory.reader())

    def of(self, kind: type[R]) -> list[R]:
        """The records of one kind."""
        return [record for record in self.records if isinstance(record, kind)]


def ready(**options: object) -> Traced:
    """Enabled, with one pair of I/O queues."""
    bench = Traced(**options)  # type: ignore[arg-type]
    bench.driver.enable()
    bench.driver.create_queues()
    return bench
