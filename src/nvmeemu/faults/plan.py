"""What shall become of one command: decided once, when it is about to be executed, and carried out as stages.

Guest memory may be missing when a stage runs; then it is run again, so nothing is decided, counted or drawn there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from nvmeemu.controller.prp import scatter
from nvmeemu.controller.request import Background, Parked, Request, Result, Stage
from nvmeemu.controller.taps import GoOn
from nvmeemu.faults.disk import Disk, FaultyBackend
from nvmeemu.faults.places import At
from nvmeemu.spec import BROADCAST, Command
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.namespace import Namespace, Namespaces

Take = Callable[[Request, Callable[[], None]], None]
HoldBack = Callable[[Callable[[], None]], None]
Spoil = Callable[[bytes, bytes], bytes]


class Stopped(Exception):
    """Its data shall not move now: the device has stopped, for good or (``is_for_good`` False) until it goes on."""

    def __init__(self, is_for_good: bool) -> None:
        self.is_for_good = is_for_good


class Plan:
    """``at`` is the place whose faults are being asked. What the host sees of a transfer is made by ``views``.
    ``hold_back`` keeps what it is given until a device that hangs goes on."""

    def __init__(
        self, namespaces: Namespaces, command: Command, stage: Stage, go_on: GoOn, hold_back: HoldBack
    ) -> None:
        self.at = At.EXECUTE
        self.has_transferred = False
        self.command = command
        self.disk = Disk()
        self.stage = stage
        self._namespaces = namespaces
        self._go_on = go_on
        self._hold_back = hold_back
        self._transfer_failure: Callable[[], CommandFailed] | None = None
        self._spoils: list[Spoil] = []
        self._moved: list[tuple[list[memoryview], list[memoryview]]] = []  # where it should go, where it goes

    # --- what actions ask for

    def fail(self, failure: Callable[[], CommandFailed]) -> None:
        """It is not executed."""

        def stage() -> Result:
            raise failure()

        self.stage = stage

    def park(self, take: Take, is_abortable: bool = True) -> None:
        """It waits, until ``take`` calls what it is given. At the backend, the disk has the command then."""
        stage, disk_first = self.stage, self.at == At.BACKEND

        def park() -> Result:
            result = stage() if disk_first else 0
            if isinstance(result, Parked):
                return result

            def took(request: Request) -> None:
                take(request, lambda: self._go_on(request, (lambda: result) if disk_first else stage))

            return Parked(took, is_abortable=is_abortable)

        self.stage = park

    def fail_transfer(self, failure: Callable[[], CommandFailed]) -> None:
        """It fails when its data is to be moved."""
        self._transfer_failure = failure

    def spoil_transfer(self, spoil: Spoil) -> None:
        """What arrives is made of what was there and what should be there."""
        self._spoils.append(spoil)

    # --- stages

    def with_disk(self) -> None:
        """Have it use the faulty disk."""
        stage = self.stage

        def run() -> Result:
            with self._faulty():
                return stage()

        self.stage = run

    @property
    def uses_disk(self) -> bool:
        """Whether there is one."""
        return bool(self._addressed())

    def _addressed(self) -> list[Namespace]:
        nsid, active = self.command.nsid, self._namespaces.active
        return list(active.values()) if nsid == BROADCAST else [active[nsid]] if nsid in active else []

    @contextmanager
    def _faulty(self) -> Iterator[None]:
        found = [(namespace, namespace.backend) for namespace in self._addressed()]
        for namespace, _ in found:
            namespace.backend = FaultyBackend(namespace, self.disk)
        try:
            yield
        finally:
            for namespace, backend in found:
                namespace.backend = backend

    def with_transfer(self) -> None:
        """Have what is moved pass ``views``."""
        stage = self.stage

        def run() -> Result:
            self._moved.clear()
            try:
                result = stage()
                if isinstance(result, int):
                    self._arrive()
            except Stopped as stop:
                return self._stopped(stop, run)
            finally:
                self._moved.clear()  # views of guest memory
            return replace(result, then=then(result.then)) if isinstance(result, Background) else result

        def then(conclude: Callable[[object], Result]) -> Callable[[object], Result]:
            def run(value: object) -> Result:
                try:
                    result = conclude(value)
                    self._arrive()
                except Stopped as stop:
                    return self._stopped(stop, lambda: run(value))
                finally:
                    self._moved.clear()
                return result

            return run

        self.stage = run

    def _stopped(self, stop: Stopped, again: Stage) -> Result:
        def took(request: Request) -> None:
            if not stop.is_for_good:
                self._hold_back(lambda: self._go_on(request, again))

        return Parked(took)

    def views(self, views: list[memoryview], to_host: bool) -> list[memoryview]:
        """What stands in for guest memory."""
        if self._transfer_failure is not None:
            raise self._transfer_failure()
        if not self._spoils:
            return views
        if to_host:
            private = [memoryview(bytearray(len(view))) for view in views]
            self._moved.append((views, private))
            return private
        content = b"".join(views)
        for spoil in self._spoils:
            content = spoil(bytes(len(content)), content)
        return [memoryview(content)]

    def _arrive(self) -> None:
        for places, private in self._moved:
            old, content = b"".join(places), b"".join(private)
            for spoil in self._spoils:
                content = spoil(old, content)
            scatter(places, content)
