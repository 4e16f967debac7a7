"""The recorder: sees what passes the controller's taps, and puts it into a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol
from zlib import crc32

from nvmeemu import __version__
from nvmeemu.controller import taps
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.controller.transfer import Transfer
from nvmeemu.ports import PciState
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.trace.file import Description
from nvmeemu.trace.records import (
    BIGGEST_PIECE,
    MOST_RUNS,
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
    MetadataDigest,
    PciChange,
    Prp,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
    Sgl,
    Signal,
    encode,
)


class Sink(Protocol):
    """Where the records go: a ``TraceFile``, or a list in memory."""

    def now(self) -> int:
        """Nanoseconds since the trace began."""
        ...

    def put(self, data: bytes) -> None: ...


def describe(controller: Controller, *, payload: bool = False, comment: str = "", drive: str = "") -> Description:
    """What the header of a trace of this controller says."""
    state = controller.state
    return Description(
        program=f"nvmeemu {__version__}",
        comment=comment,
        drive=drive,
        engine="python" if state.engine is None else "native",
        payload=payload,
        identity={**asdict(state.subsystem.identity), "cntlid": state.cntlid},
        limits=asdict(state.limits),
        namespaces=[
            {
                "nsid": namespace.nsid,
                "blocks": namespace.blocks,
                "block_size": namespace.format.data_size,
                "identity": namespace.identity,
                "ids": {"nguid": namespace.nguid.hex(), "eui64": namespace.eui64.hex(), "uuid": namespace.uuid.hex},
                "read_only": namespace.read_only,
                "volatile_cache": namespace.media.volatile_cache,
            }
            for namespace in state.namespaces
        ],
    )


class Recorder(taps.Observer):
    """Give it to ``Controller.observe``. ``payload``: all data goes into the trace, not only its digests."""

    def __init__(self, sink: Sink, state: ControllerState, *, payload: bool = False) -> None:
        self._sink = sink
        self._state = state
        self._payload = payload
        self._msix = False
        self.interrupts_changed(state.host.msix_enabled)
        self._shadows: dict[SubmissionQueue | CompletionQueue, int] = {}  # the last value that is in the trace

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
        value = queue.server.head if is_cq else queue.server.tail
        if self._shadows.get(queue, 0) != value:
            self._shadows[queue] = value
            self._record(Doorbell, queue.qid, is_cq, True, value)

    # --- commands

    def fetched(self, request: Request[Any]) -> None:
        sq = request.sq
        if sq.server.is_engine:
            return  # the native engine has fetched it, and tells the sink itself
        if sq.shadow is not None:
            self._look_at_shadow(sq)
        self._record(Fetch, sq.qid, (sq.server.head or sq.entries) - 1, request.entry)

    def transferred(self, request: Request[Any], views: list[memoryview], to_host: bool) -> None:
        sqid, cid, length = request.sq.qid, request.cid, request.transfer.length
        self._record_places(request, request.transfer)
        self._record(Digest, sqid, cid, to_host, length, _crc(views))
        if self._payload or not (to_host or request.command.MOVES_BLOCKS):
            data = b"".join(views)
            for start in range(0, length, BIGGEST_PIECE):
                self._record(Data, sqid, cid, to_host, start, data[start : start + BIGGEST_PIECE])

    def metadata_transferred(self, request: Request[Any], views: list[memoryview], to_host: bool) -> None:
        metadata = request.metadata
        self._record_places(request, metadata, of_metadata=True)
        self._record(MetadataDigest, request.sq.qid, request.cid, to_host, metadata.length, _crc(views))

    def _record_places(self, request: Request[Any], transfer: Transfer, *, of_metadata: bool = False) -> None:
        """Where it lies, if the command alone does not say it."""
        sqid, cid, runs = request.sq.qid, request.cid, tuple(transfer.runs)
        if not transfer.has_list:
            return
        if not transfer.is_sgl:
            self._record(Prp, sqid, cid, runs)
            return
        for start in range(0, len(runs), MOST_RUNS):
            self._record(Sgl, sqid, cid, of_metadata, runs[start : start + MOST_RUNS])

    def posted(self, cq: CompletionQueue, slot: int, entry: bytes) -> None:
        if cq.shadow is not None:
            self._look_at_shadow(cq)
        self._record(Completion, cq.qid, slot, entry)

    def event(self, event: Event) -> None:
        self._record(AsyncEvent, event.type, event.info, event.log)

    def injected(self, injection: taps.FiredFault) -> None:
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


def _crc(views: list[memoryview]) -> int:
    crc = 0
    for view in views:
        crc = crc32(view, crc)
    return crc
