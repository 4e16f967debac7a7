"""The admin commands: one function each, and the table that runs and advertises them. Base 1.4, 5."""

from __future__ import annotations

from collections.abc import Collection

from nvmeemu.commands.directives import directive_receive, directive_send
from nvmeemu.commands.features import get_features, set_features
from nvmeemu.commands.format_nvm import can_format, format_nvm
from nvmeemu.commands.identify import identify
from nvmeemu.commands.lba_status import get_lba_status
from nvmeemu.commands.log_pages import get_log_page
from nvmeemu.commands.namespaces import attach_namespace, has_management, manage_namespaces
from nvmeemu.controller.doorbells import ShadowDoorbells
from nvmeemu.controller.request import CommandEntry, CommandSet, Parked, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.queues import CompletionQueue, SubmissionQueue
from nvmeemu.spec import (
    CQE_SIZE,
    SQE_SIZE,
    Abort,
    AsyncEventRequest,
    Command,
    CreateCq,
    CreateSq,
    DeleteCq,
    DeleteQueue,
    DeleteSq,
    DirectiveReceive,
    DirectiveSend,
    DoorbellBufferConfig,
    Effect,
    FormatNvm,
    GetFeatures,
    GetLbaStatus,
    GetLogPage,
    Identify,
    NamespaceAttachment,
    NamespaceManagement,
    Oacs,
    Oncs,
    SetFeatures,
    Status,
)
from nvmeemu.spec.errors import CommandFailed

_NO_QUEUE = "there is no such I/O queue"


def create_cq(request: Request[CreateCq]) -> int:
    """Create I/O Completion Queue. Base 1.4, 5.3."""
    controller, command = request.controller, request.command
    _check_new_queue(controller, command.qid, command.qsize, controller.cqs, controller.entry_sizes.cq == CQE_SIZE)
    _check_memory(controller, command)
    # Without MSI-X (or before the host enables it) there is one vector only.
    vectors = controller.limits.vectors if controller.host.msix_enabled else 1
    if command.iv >= vectors:
        raise CommandFailed(Status.INVALID_INTERRUPT_VECTOR, location=(46, 0), why=f"vectors now: {vectors}")
    cq = CompletionQueue(controller.host, command.qid, command.prp1, command.qsize, command.iv, command.ien)
    controller.add_cq(cq)
    return 0


def create_sq(request: Request[CreateSq]) -> int:
    """Create I/O Submission Queue. Base 1.4, 5.4."""
    controller, command = request.controller, request.command
    if not 1 <= command.cqid <= controller.limits.io_queues:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(46, 0))
    if command.cqid not in controller.cqs:
        raise CommandFailed(Status.INVALID_CQ, location=(46, 0), why=_NO_QUEUE)
    # what a completion queue knows: also while a deletion waits
    used = set(controller.sqs).union(*(cq.sqs for cq in controller.cqs.values()))
    _check_new_queue(controller, command.qid, command.qsize, used, controller.entry_sizes.sq == SQE_SIZE)
    _check_memory(controller, command)
    cq = controller.cqs[command.cqid]
    controller.add_sq(SubmissionQueue(controller.host, command.qid, command.prp1, command.qsize, cq))
    return 0


def _check_new_queue(controller: ControllerState, qid: int, qsize: int, existing: Collection[int], fits: bool) -> None:
    if not 1 <= qid <= controller.limits.io_queues or qid in existing:
        why = "there is one already" if qid in existing else f"outside of 1 to {controller.limits.io_queues}"
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=why)
    if not 2 <= qsize <= controller.limits.entries or not fits:
        why = (
            f"outside of 2 to {controller.limits.entries} entries" if fits else "the size of entries in CC does not fit"
        )
        raise CommandFailed(Status.INVALID_QUEUE_SIZE, location=(42, 0), why=why)


def _check_memory(controller: ControllerState, command: CreateCq | CreateSq) -> None:
    if not command.pc:  # CAP.CQR: queues are physically contiguous
        raise CommandFailed(Status.INVALID_FIELD, location=(44, 0), why="PC is 0, and CAP.CQR 1")
    if command.prp1 & controller.page_size - 1:
        why = f"no multiple of the page size, {controller.page_size:#x}"
        raise CommandFailed(Status.INVALID_PRP_OFFSET, location=(24, 0), why=why)


def delete_sq(request: Request[DeleteQueue]) -> Result:
    """Delete I/O Submission Queue. Base 1.4, 5.6: what is in flight is aborted, or waited for if the media may still
    change; every completion of the queue comes before this command's."""
    controller, command = request.controller, request.command
    sq = controller.sqs.get(command.qid) if command.qid else None
    if sq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=_NO_QUEUE)
    controller.remove_sq(command.qid)
    for other in tuple(sq.outstanding):
        other.abort(Status.ABORTED_SQ_DELETION)
    return Parked(lambda parked: sq.close(parked.complete), is_abortable=False)  # the queue is gone already


def delete_cq(request: Request[DeleteQueue]) -> int:
    """Delete I/O Completion Queue. Base 1.4, 5.5."""
    controller, command = request.controller, request.command
    cq = controller.cqs.get(command.qid) if command.qid else None
    if cq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, location=(40, 0), why=_NO_QUEUE)
    if cq.sqs:
        why = f"submission queues that use it: {sorted(cq.sqs)}"
        raise CommandFailed(Status.INVALID_QUEUE_DELETION, location=(40, 0), why=why)
    controller.remove_cq(command.qid)
    return 0


def abort(request: Request[Abort]) -> int:
    """Base 1.4, 5.1. DW0 bit 0 is 0 only if the command was really aborted; its completion comes first."""
    controller, command = request.controller, request.command
    sq = controller.sqs.get(command.sqid)
    for other in tuple(sq.outstanding) if sq else ():
        if other.cid == command.target_cid:
            return 0 if other.abort(Status.ABORT_REQUESTED) else 1
    return 1


def async_event_request(request: Request[Command]) -> Result:
    """Base 1.4, 5.2: parked until something happens, without a time-out."""
    controller = request.controller

    def take(parked: Request[Command]) -> None:
        controller.events.park(parked)

    if controller.events.outstanding >= controller.limits.aerl:
        raise CommandFailed(Status.AER_LIMIT_EXCEEDED, why=f"{controller.limits.aerl} are outstanding")
    return Parked(take)


def has_doorbell_buffers(controller: ControllerState) -> bool:
    """Not with the interrupt pin: a VMM over vfio-user ends an interrupt when the host accesses BAR0, and with shadow
    doorbells the host consumes completions without that."""
    return not controller.host.pin_enabled


def doorbell_buffer_config(request: Request[DoorbellBufferConfig]) -> int:
    """Base 1.4, 5.7. Queues that exist begin with the values that their doorbells have."""
    controller, command = request.controller, request.command
    if not has_doorbell_buffers(controller):
        raise CommandFailed(Status.INVALID_OPCODE, location=(0, 0))
    shadow, event = command.prp1, command.prp2
    if (shadow | event) & controller.page_size - 1 or shadow == event:
        why = f"no multiple of the page size, {controller.page_size:#x}, or both buffers are one"
        raise CommandFailed(Status.INVALID_FIELD, location=(24, 0), why=why)
    buffers = ShadowDoorbells(controller.host, shadow, event, controller.limits.stride)
    for qid, sq in controller.sqs.items():
        buffers.tail(qid).clear(sq.server.tail)
    for qid, cq in controller.cqs.items():
        head, _ = cq.server.look()
        buffers.head(qid).clear(head)
    for qid in controller.sqs.keys() - {0}:
        controller.sqs[qid].use_shadow(buffers.tail(qid))
    for qid in controller.cqs.keys() - {0}:
        controller.cqs[qid].use_shadow(buffers.head(qid))
    controller.shadow = buffers
    return 0


COMMANDS = CommandSet(
    CommandEntry(DeleteSq, delete_sq),
    CommandEntry(CreateSq, create_sq),
    CommandEntry(GetLogPage, get_log_page),
    CommandEntry(DeleteCq, delete_cq),
    CommandEntry(CreateCq, create_cq),
    CommandEntry(Identify, identify),
    CommandEntry(Abort, abort),
    CommandEntry(SetFeatures, set_features, Effect.CCC, oncs=Oncs.SAVE_AND_SELECT),
    CommandEntry(GetFeatures, get_features, oncs=Oncs.SAVE_AND_SELECT),
    CommandEntry(AsyncEventRequest, async_event_request),
    CommandEntry(
        NamespaceManagement,
        manage_namespaces,
        Effect.NCC | Effect.NIC,
        oacs=Oacs.NAMESPACE_MANAGEMENT,
        is_offered=has_management,
    ),
    CommandEntry(
        NamespaceAttachment,
        attach_namespace,
        Effect.NIC,
        oacs=Oacs.NAMESPACE_MANAGEMENT,
        is_offered=has_management,
    ),
    CommandEntry(DirectiveSend, directive_send, oacs=Oacs.DIRECTIVES),
    CommandEntry(DirectiveReceive, directive_receive, oacs=Oacs.DIRECTIVES),
    CommandEntry(
        DoorbellBufferConfig,
        doorbell_buffer_config,
        oacs=Oacs.DOORBELL_BUFFER_CONFIG,
        is_offered=has_doorbell_buffers,
    ),
    CommandEntry(GetLbaStatus, get_lba_status, Effect.OF_NAMESPACE, oacs=Oacs.GET_LBA_STATUS),
    CommandEntry(
        FormatNvm,
        format_nvm,
        Effect.NCC | Effect.ALONE_IN_NAMESPACE | Effect.OF_NAMESPACE,
        oacs=Oacs.FORMAT_NVM,
        is_offered=can_format,
    ),
)
"""How each command is run, and what is said of it: OACS and the Commands Supported and Effects log come from here."""
