"""Get LBA Status, and the log that says of which blocks to ask it. NVM 1.0, 4.2.1 and 5.8; Base 1.4, 5.14.1.14."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.spec import (
    ActionType,
    CompletionCondition,
    GetLbaStatus,
    GetLogPage,
    LbaStatusDescriptor,
    LbaStatusElement,
    LbaStatusHead,
    LbaStatusLogHead,
    LbaStatusRange,
    Status,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.media import FindBlocks, Media, Sought, merged
from nvmeemu.subsystem.namespace import Namespace

Runs = list[tuple[int, int]]  # of blocks: (slba, blocks)

_SCANNED_AT_ONCE = 4 << 20  # bytes of data
_MOST_IN_LOG = 256  # ranges of a namespace; what is behind them is in the last one
_MOST_BLOCKS = 1 << 32  # of a descriptor
_GENERATIONS = 1 << 16
_WANTED: dict[int, Sought] = {
    ActionType.ALLOCATED: Sought.ALLOCATED,
    ActionType.SCAN: Sought.UNREADABLE,
    ActionType.TRACKED: Sought.UNCORRECTABLE,
}


def get_lba_status(request: Request[GetLbaStatus]) -> Result:
    """NVM 1.0, 4.2.1. No more is transferred than the host has room for, and than there is."""
    controller, command = request.controller, request.command
    namespace = controller.namespaces[command.nsid]
    wanted = _WANTED.get(command.atype)
    if wanted is None:
        raise CommandFailed(Status.INVALID_FIELD, location=(55, 0))
    blocks = command.rl or max(namespace.blocks - command.slba, 1)
    namespace.length(command.slba, blocks)
    room = min(4 * command.mndw, controller.limits.transfer)
    most = max(0, room - LbaStatusHead.SIZE) // LbaStatusDescriptor.SIZE

    def then(runs: Runs) -> int:
        found = list(_pieces(runs))
        given = [bytes(LbaStatusDescriptor(dslba=slba, nlb=length)) for slba, length in found[:most]]
        cmpc = CompletionCondition.INCOMPLETE if len(found) > most else CompletionCondition.COMPLETE
        request.send((bytes(LbaStatusHead(nlsd=len(given), cmpc=cmpc)) + b"".join(given))[:room])
        return 0

    media = request.media(namespace)
    if wanted is Sought.UNREADABLE:
        return _scan(media, command.slba, command.slba + blocks, most + 1, [], then)
    return Pending(media, FindBlocks(command.slba, blocks, wanted, most + 1), then)


def _scan(media: Media, slba: int, end: int, most: int, before: Runs, then: Callable[[Runs], Result]) -> Result:
    """Try to read all blocks, piece by piece: when the command has ended, that ends, too."""
    if slba == end or len(before) == most:
        return then(before)
    blocks = min(end - slba, max(1, _SCANNED_AT_ONCE // media.format.data_size))

    def scanned(runs: Runs) -> Result:
        return _scan(media, slba + blocks, end, most, merged([*before, *runs], most), then)

    return Pending(media, FindBlocks(slba, blocks, Sought.UNREADABLE, most), scanned)


def _pieces(runs: Runs) -> Iterator[tuple[int, int]]:
    """As many blocks as a descriptor can tell of."""
    for slba, blocks in runs:
        for start in range(slba, slba + blocks, _MOST_BLOCKS):
            yield start, min(_MOST_BLOCKS, slba + blocks - start)


def gather_log(request: Request[GetLogPage], then: Callable[[bytes], Result]) -> Result:
    """LID 0Eh: where the namespaces of the controller have blocks that hosts have made uncorrectable."""
    known = [one for one in request.controller.namespaces if one.media.block_map is not None]
    return _look(request, [one for one in known if not one.is_being_formatted], [], then)


def _look(
    request: Request[GetLogPage],
    namespaces: Sequence[Namespace],
    found: list[tuple[Namespace, Runs]],
    then: Callable[[bytes], Result],
) -> Result:
    if not namespaces:
        return then(_log(request.controller.subsystem.lba_status_changes, found))
    first, *rest = namespaces
    media = request.media(first)

    def looked(runs: Runs) -> Result:
        return _look(request, rest, [*found, (first, runs)], then)

    return Pending(media, FindBlocks(0, first.blocks, Sought.UNCORRECTABLE, _MOST_IN_LOG), looked)


def _log(changes: int, found: list[tuple[Namespace, Runs]]) -> bytes:
    elements = []
    for namespace, runs in found:
        if len(runs) == _MOST_IN_LOG:
            runs[-1] = runs[-1][0], namespace.blocks - runs[-1][0]
        ranges = [bytes(LbaStatusRange(rslba=slba, rnlb=blocks)) for slba, blocks in _pieces(runs)]
        if ranges:
            head = LbaStatusElement(neid=namespace.nsid, nlrd=len(ranges), ratype=ActionType.TRACKED)
            elements.append(bytes(head) + b"".join(ranges))
    size = LbaStatusLogHead.SIZE + sum(map(len, elements))
    blocks = min(sum(blocks for _, runs in found for _, blocks in runs), _MOST_BLOCKS - 1)
    log = LbaStatusLogHead(lslplen=size, nlslne=len(elements), estulb=blocks, lsgc=changes % _GENERATIONS)
    return bytes(log) + b"".join(elements)
