"""The admin commands: one function each, and the table that runs and advertises them. Base 1.4, 5."""

from __future__ import annotations

from collections.abc import Collection

from nvmeemu.commands.features import get_features, set_features
from nvmeemu.commands.identify import identify
from nvmeemu.commands.log_pages import get_log_page
from nvmeemu.controller.device import Device
from nvmeemu.controller.doorbells import ShadowDoorbells
from nvmeemu.controller.request import CommandEntry, Parked, Request, Result
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import (
    CQE_SIZE,
    SQE_SIZE,
    Abort,
    AdminOpcode,
    AsyncEventRequest,
    Command,
    CommandEffect,
    CreateCq,
    CreateSq,
    DeleteCq,
    DeleteQueue,
    DeleteSq,
    DoorbellBufferConfig,
    GetFeatures,
    GetLogPage,
    Identify,
    SetFeatures,
    Status,
)
from nvmeemu.spec.errors import CommandFailed

_NO_QUEUE = "there is no such I/O queue"


def create_cq(device: Device, command: CreateCq) -> int:
    """Create I/O Completion Queue. Base 1.4, 5.3."""
    _check_new_queue(device, command.qid, command.qsize, device.cqs, device.entry_sizes.cq == CQE_SIZE)
    _check_memory(device, command)
    # Without MSI-X (or before the host enables it) there is one vector only.
    vectors = device.limits.vectors if device.host.msix_enabled else 1
    if command.iv >= vectors:
        raise CommandFailed(Status.INVALID_INTERRUPT_VECTOR, location=(46, 0), why=f"vectors now: {vectors}")
    cq = CompletionQueue(device.host, command.qid, command.prp1, command.qsize, command.iv, command.ien)
    device.add_cq(cq)
    return 0


def create_sq(device: Device, command: CreateSq) -> int:
    """Create I/O Submission Queue. Base 1.4, 5.4."""
    if not 1 <= command.cqid <= device.limits.io_queues:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(46, 0))
    if command.cqid not in device.cqs:
        raise CommandFailed(Status.INVALID_CQ, location=(46, 0), why=_NO_QUEUE)
    used = set(device.sqs).union(*(cq.sqs for cq in device.cqs.values()))  # the latter: also while a deletion waits
    _check_new_queue(device, command.qid, command.qsize, used, device.entry_sizes.sq == SQE_SIZE)
    _check_memory(device, command)
    cq = device.cqs[command.cqid]
    device.add_sq(SubmissionQueue(device.host, command.qid, command.prp1, command.qsize, cq))
    return 0


def _check_new_queue(device: Device, qid: int, qsize: int, existing: Collection[int], fits: bool) -> None:
    if not 1 <= qid <= device.limits.io_queues or qid in existing:
        why = "there is one already" if qid in existing else f"outside of 1 to {device.limits.io_queues}"
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=why)
    if not 2 <= qsize <= device.limits.entries or not fits:
        why = f"outside of 2 to {device.limits.entries} entries" if fits else "the size of entries in CC does not fit"
        raise CommandFailed(Status.INVALID_QUEUE_SIZE, location=(42, 0), why=why)


def _check_memory(device: Device, command: CreateCq | CreateSq) -> None:
    if not command.pc:  # CAP.CQR: queues are physically contiguous
        raise CommandFailed(Status.INVALID_FIELD, location=(44, 0), why="PC is 0, and CAP.CQR 1")
    if command.prp1 & device.page_size - 1:
        why = f"no multiple of the page size, {device.page_size:#x}"
        raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(24, 0), why=why)


def delete_sq(device: Device, command: DeleteQueue) -> Result:
    """Delete I/O Submission Queue. Base 1.4, 5.6: what is in flight is aborted, or waited for if the media may still
    change; every completion of the queue comes before this command's."""
    sq = device.sqs.get(command.qid) if command.qid else None
    if sq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=_NO_QUEUE)
    device.remove_sq(command.qid)
    for request in tuple(sq.outstanding):
        request.abort(Status.ABORTED_SQ_DELETION)
    return Parked(lambda request: sq.close(request.complete), is_abortable=False)  # the queue is gone already


def delete_cq(device: Device, command: DeleteQueue) -> int:
    """Delete I/O Completion Queue. Base 1.4, 5.5."""
    cq = device.cqs.get(command.qid) if command.qid else None
    if cq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=_NO_QUEUE)
    if cq.sqs:
        why = f"submission queues that use it: {sorted(cq.sqs)}"
        raise CommandFailed(Status.INVALID_QUEUE_DELETION, location=(40, 0), why=why)
    device.remove_cq(command.qid)
    return 0


def abort(device: Device, command: Abort) -> int:
    """Base 1.4, 5.1. DW0 bit 0 is 0 only if the command was really aborted; its completion comes first."""
    sq = device.sqs.get(command.sqid)
    for request in tuple(sq.outstanding) if sq else ():
        if request.command.cid == command.target_cid:
            return 0 if request.abort(Status.ABORT_REQUESTED) else 1
    return 1


def async_event_request(device: Device, command: Command) -> Result:
    """Base 1.4, 5.2: parked until something happens, without a time-out."""

    def take(request: Request) -> None:
        device.events.park(request)

    if device.events.outstanding >= device.limits.aerl:
        raise CommandFailed(Status.AER_LIMIT_EXCEEDED, why=f"{device.limits.aerl} are outstanding")
    return Parked(take)


def has_doorbell_buffers(device: Device) -> bool:
    """Not with the interrupt pin: a VMM over vfio-user ends an interrupt when the host accesses BAR0, and with shadow
    doorbells the host consumes completions without that."""
    return not device.host.pin_enabled


def doorbell_buffer_config(device: Device, command: DoorbellBufferConfig) -> int:
    """Base 1.4, 5.7. Queues that exist begin with the values that their doorbells have."""
    if not has_doorbell_buffers(device):
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))
    shadow, event = command.prp1, command.prp2
    if (shadow | event) & device.page_size - 1 or shadow == event:
        why = f"no multiple of the page size, {device.page_size:#x}, or both buffers are one"
        raise CommandFailed(Status.INVALID_FIELD, location=(24, 0), why=why)
    buffers = ShadowDoorbells(device.host, shadow, event, device.limits.stride)
    for qid, sq in device.sqs.items():
        sq.look()
        buffers.tail(qid).clear(sq.tail)
    for qid, cq in device.cqs.items():
        cq.look()
        buffers.head(qid).clear(cq.head)
    for qid in device.sqs.keys() - {0}:
        device.sqs[qid].use_shadow(buffers.tail(qid))
    for qid in device.cqs.keys() - {0}:
        device.cqs[qid].use_shadow(buffers.head(qid))
    device.shadow = buffers
    return 0


def _supported(*, ccc: bool = False) -> CommandEffect:
    return CommandEffect(csupp=True, ccc=ccc)


COMMANDS: dict[int, CommandEntry] = {
    AdminOpcode.DELETE_SQ: CommandEntry(DeleteSq, delete_sq, _supported()),
    AdminOpcode.CREATE_SQ: CommandEntry(CreateSq, create_sq, _supported()),
    AdminOpcode.GET_LOG_PAGE: CommandEntry(GetLogPage, get_log_page, _supported()),
    AdminOpcode.DELETE_CQ: CommandEntry(DeleteCq, delete_cq, _supported()),
    AdminOpcode.CREATE_CQ: CommandEntry(CreateCq, create_cq, _supported()),
    AdminOpcode.IDENTIFY: CommandEntry(Identify, identify, _supported()),
    AdminOpcode.ABORT: CommandEntry(Abort, abort, _supported()),
    AdminOpcode.SET_FEATURES: CommandEntry(SetFeatures, set_features, _supported(ccc=True)),
    AdminOpcode.GET_FEATURES: CommandEntry(GetFeatures, get_features, _supported()),
    AdminOpcode.ASYNC_EVENT_REQUEST: CommandEntry(AsyncEventRequest, async_event_request, _supported()),
    AdminOpcode.DOORBELL_BUFFER_CONFIG: CommandEntry(
        DoorbellBufferConfig,
        doorbell_buffer_config,
        _supported(),
        advertised=1 << 8,
        is_offered=has_doorbell_buffers,
    ),
}
"""Opcode -> how it is run and what is said of it: OACS and the Commands Supported and Effects log come from here."""
