"""The recorder: sees what passes the controller's taps, and puts it into a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol
from zlib import crc32

from nvmeemu import __version__
from nvmeemu.controller import prp, taps
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.device import Device
from nvmeemu.controller.events import Event
from nvmeemu.ports import HostMemoryError, PciState
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import Command
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.trace.file import Description
from nvmeemu.trace.records import (
    BIGGEST_PIECE,
    AsyncEvent,
    ClientAttached,
    ClientLeft,
    Completion,
    Data,
    Digest,
    DmaMap,
    DmaUnmap,
    Doorbell,
    Fetch,
    Injection,
    Interrupt,
    InterruptMode,
    PciChange,
    Prp,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
    Signal,
    encode,
)


class Sink(Protocol):
    """Where the records go: a ``TraceFile``, or a list in memory."""

    def now(self) -> int:
        """Nanoseconds since the trace began."""
        ...

    def put(self, data: bytes) -> None: ...


def describe(controller: Controller, *, payload: bool = False, comment: str = "") -> Description:
    """What the header of a trace of this controller says."""
    device = controller.device
    return Description(
        program=f"nvmeemu {__version__}",
        comment=comment,
        engine="python" if device.engine is None else "native",
        payload=payload,
        identity=asdict(device.identity),
        limits=asdict(device.limits),
        namespaces=[
            {
                "nsid": namespace.nsid,
                "blocks": namespace.blocks,
                "block_size": namespace.block_size,
                "identity": namespace.identity,
                "ids": {"nguid": namespace.nguid.hex(), "eui64": namespace.eui64.hex(), "uuid": namespace.uuid.hex},
                "read_only": namespace.backend.read_only,
                "volatile_cache": namespace.backend.volatile_cache,
            }
            for namespace in device.namespaces
        ],
    )


class Recorder(taps.Observer):
    """Give it to ``Controller.observe``. ``payload``: all data goes into the trace, not only its digests."""

    def __init__(self, sink: Sink, device: Device, *, payload: bool = False) -> None:
        self._sink = sink
        self._device = device
        self._payload = payload
        self._msix = False
        self.interrupts_changed(device.host.msix_enabled)
        self._shadows: dict[SubmissionQueue | CompletionQueue, int] = {}  # the last value that is in the trace
        self._taken: set[tuple[int, int, bool]] = set()  # data of commands under way that is in the trace

    def _record(self, kind: Callable[..., Record], *fields: object) -> None:
        self._sink.put(encode(kind(self._sink.now(), 0, *fields)))

    # --- registers and doorbells

    def register_read(self, offset: int, data: bytes) -> None:
        self._record(RegisterRead, offset, data)

    def register_written(self, offset: int, data: bytes) -> None:
        self._record(RegisterWrite, offset, data)

    def doorbell(self, number: int, value: int) -> None:
        self._record(Doorbell, number >> 1, bool(number & 1), False, value)

    def _look_at_shadow(self, queue: SubmissionQueue | CompletionQueue) -> None:
        """The host may have moved it without a word: then the device has found that out by now."""
        is_cq = isinstance(queue, CompletionQueue)
        value = queue.head if isinstance(queue, CompletionQueue) else queue.tail
        if self._shadows.get(queue, 0) != value:
            self._shadows[queue] = value
            self._record(Doorbell, queue.qid, is_cq, True, value)

    # --- commands

    def fetched(self, sq: SubmissionQueue, entry: bytes) -> None:
        self._forget(sq.qid, entry[2] | entry[3] << 8)  # of a CID that is used again too early
        if sq.owned is not None:
            return  # the native engine has fetched it, and tells the sink itself
        if sq.shadow is not None:
            self._look_at_shadow(sq)
        self._record(Fetch, sq.qid, (sq.head or sq.entries) - 1, entry)

    def transferred(self, sq: SubmissionQueue, command: Command, views: list[memoryview], to_host: bool) -> None:
        key = sq.qid, command.cid, to_host
        if key in self._taken:
            return
        self._taken.add(key)
        length = sum(len(view) for view in views)
        self._prp(sq, command, length)
        crc = 0
        for view in views:
            crc = crc32(view, crc)
        self._record(Digest, sq.qid, command.cid, to_host, length, crc)
        if self._payload or not (to_host or command.MOVES_BLOCKS):
            data = b"".join(views)
            for start in range(0, length, BIGGEST_PIECE):
                self._record(Data, sq.qid, command.cid, to_host, start, data[start : start + BIGGEST_PIECE])

    def _prp(self, sq: SubmissionQueue, command: Command, length: int) -> None:
        """The runs of a command with a PRP list: its data has gone that way, unless the host has changed it since."""
        device = self._device
        page_size = device.page_size
        if length > 2 * page_size - (command.prp1 & page_size - 1):
            try:
                runs = tuple(prp.runs(device.host, command.prp1, command.prp2, length, page_size))
            except (CommandFailed, HostMemoryError):
                return
            self._record(Prp, sq.qid, command.cid, runs)

    def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        if cq.shadow is not None:
            self._look_at_shadow(cq)
        self._record(Completion, cq.qid, slot, entry)

    def completed(self, sq: SubmissionQueue, cid: int, dw0: int, field: int) -> None:
        self._forget(sq.qid, cid)

    def _forget(self, sqid: int, cid: int) -> None:
        self._taken -= {(sqid, cid, False), (sqid, cid, True)}

    def event(self, event: Event) -> None:
        self._record(AsyncEvent, event.type, event.info, event.log)

    def injected(self, injection: taps.Injection) -> None:
        number, hits, sqid, cid, *texts = injection
        of_command = sqid is not None
        self._record(Injection, number, hits, sqid or 0, cid or 0, of_command, tuple(texts))

    # --- interrupts

    def interrupt(self, vector: int) -> None:
        self._record(Interrupt, vector, Signal.MSIX)

    def pin(self, asserted: bool) -> None:
        self._record(Interrupt, 0, Signal.PIN_UP if asserted else Signal.PIN_DOWN)

    def interrupts_changed(self, msix: bool) -> None:
        if msix != self._msix:
            self._msix = msix
            self._record(InterruptMode, msix)

    # --- around it

    def dropped(self) -> None:
        self._taken.clear()
        self._shadows.clear()

    def reset(self) -> None:
        self._record(Reset)

    def pci_changed(self, state: PciState) -> None:
        self._record(PciChange, *state)

    def mapped(self, iova: int, size: int, writable: bool) -> None:
        self._record(DmaMap, iova, size, writable)

    def unmapped(self, iova: int) -> None:
        self._record(DmaUnmap, iova)

    def attached(self, peer: str) -> None:
        self._record(ClientAttached, peer)

    def left(self) -> None:
        self._record(ClientLeft)
