"""What becomes of one command. It is decided once, when the command is about to be executed, and carried out as
stages.

A stage runs again if guest memory was missing. So nothing is decided, counted or drawn there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nvmeemu.controller.request import Parked, Request, Result, Stage
from nvmeemu.controller.taps import GoOn
from nvmeemu.controller.transfer import scatter
from nvmeemu.faults.disk import Disk, FaultyMedia
from nvmeemu.faults.places import At
from nvmeemu.spec import BROADCAST
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.formats import Format

Take = Callable[[Request[Any], Callable[[], None]], None]
HoldBack = Callable[[Callable[[], None]], None]
Spoil = Callable[[bytes, bytes], bytes]


class Stopped(Exception):
    """The data shall not move now, because the device has stopped: for good, or (``is_for_good`` False) until it goes
    on."""

    def __init__(self, is_for_good: bool) -> None:
        self.is_for_good = is_for_good


class Plan:
    """``at`` is the place whose faults are asked now. ``on_transfer`` is asked when data is about to move. It is False
    if there are no faults any more, and raises Stopped. ``hold_back`` keeps a call until a hung device goes on."""

    def __init__(
        self, request: Request[Any], go_on: GoOn, hold_back: HoldBack, on_transfer: Callable[[Plan], bool]
    ) -> None:
        self.at = At.EXECUTE
        self.has_transferred = False
        self.request = request
        self.disk = Disk()
        self._go_on = go_on
        self._hold_back = hold_back
        self._on_transfer = on_transfer
        self._transfer_failure: Callable[[], CommandFailed] | None = None
        self._spoils: list[Spoil] = []
        self._moved: list[tuple[list[memoryview], list[memoryview]]] = []  # where it should go, where it goes

    # --- what actions ask for

    def fail(self, failure: Callable[[], CommandFailed]) -> None:
        """The command is not executed."""

        def stage(request: Request[Any]) -> Result:
            raise failure()

        self.request.stage = stage

    def park(self, take: Take, is_abortable: bool = True) -> None:
        """The command waits until ``take`` calls what it is given. At the backend, the disk then has the command."""
        stage, disk_first = self.request.stage, self.at == At.BACKEND

        def park(request: Request[Any]) -> Result:
            result = self._carry(request, stage) if disk_first else 0
            if isinstance(result, Parked):
                return result

            def took(request: Request[Any]) -> None:
                take(request, lambda: self._resume(request, (lambda _: result) if disk_first else stage))

            return Parked(took, is_abortable=is_abortable)

        self.request.stage = park

    def _resume(self, request: Request[Any], stage: Stage) -> None:
        request.stage = stage
        self._go_on(request)

    def fail_transfer(self, failure: Callable[[], CommandFailed]) -> None:
        """The command fails when its data should move."""
        self._transfer_failure = failure

    def spoil_transfer(self, spoil: Spoil) -> None:
        """Compute what arrives from what was there and what should arrive."""
        self._spoils.append(spoil)

    # --- stages

    def with_disk(self) -> None:
        """Let the command use the faulty disk."""
        self.request.layer = partial(FaultyMedia, self.disk)

    @property
    def uses_disk(self) -> bool:
        """Whether there is a faulty disk."""
        nsid, active = self.request.command.nsid, self.request.controller.namespaces.by_nsid
        return bool(active) if nsid == BROADCAST else nsid in active

    @property
    def format(self) -> Format | None:
        """Of the blocks of its namespace, if it has one."""
        namespace = self.request.controller.namespaces.by_nsid.get(self.request.command.nsid)
        return None if namespace is None else namespace.format

    def run(self, request: Request[Any]) -> Result:
        """Run the stage of the command. What it moves arrives as planned."""
        return self._carry(request, request.stage)

    def _carry(self, request: Request[Any], stage: Stage) -> Result:
        self._moved.clear()
        try:
            result = stage(request)
            if isinstance(result, int):
                self._arrive()
        except Stopped as stop:
            return self._stopped(stop, stage)
        finally:
            self._moved.clear()  # views of guest memory
        return result

    def _stopped(self, stop: Stopped, again: Stage) -> Result:
        def took(request: Request[Any]) -> None:
            if not stop.is_for_good:
                self._hold_back(lambda: self._resume(request, again))

        return Parked(took)

    def transfer(self, views: list[memoryview], to_host: bool) -> list[memoryview]:
        """What stands in for guest memory."""
        if not self._on_transfer(self):
            return views
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
