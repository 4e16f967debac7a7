"""What hosts do to namespaces: they make, delete, attach and detach them. Base 2.0, 5.22, 5.23 and 8.11.

Each change becomes durable (``Subsystem.state``) before it is seen, and one comes after the other (``turns``):

    make    the name is noted as trash  ->  its blocks are made  ->  the namespace is saved, and is no trash
    delete  the name is trash, and the namespace saved no more  ->  the blocks are discarded  ->  it is no trash

So whatever is there after a power cut is a whole namespace, or trash that the next start discards (``restore``).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvmeemu.backend import BackendError, describe, in_words
from nvmeemu.controller.bounds import MOST_NAMESPACES
from nvmeemu.ports import Changes, Value
from nvmeemu.spec import Status
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.formatter import Formatter
from nvmeemu.subsystem.namespace import Ids, Namespace
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.subsystem.pool import Pool
from nvmeemu.subsystem.saved import forgotten, of_namespace
from nvmeemu.subsystem.saved_namespaces import SavedNamespace, all_trash, as_saved, attachment, deleted, trash
from nvmeemu.subsystem.subsystem import Subsystem
from nvmeemu.subsystem.turns import Step, Steps

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.1  # seconds, until the medium of a deleted namespace may be idle
_MOST = (1 << 64) - 1


@dataclass(frozen=True)
class NewNamespace:
    """A namespace that a host wants. ``is_shared``: it may be attached to several controllers."""

    blocks: int
    format: Format
    is_shared: bool = False

    @property
    def capacity(self) -> int:
        """Bytes that it takes of the pool: of data, because metadata are none of what a host asks for."""
        return self.blocks * self.format.data_size


def create(subsystem: Subsystem, new: NewNamespace) -> Steps:
    """Its result is the lowest free NSID, of the new namespace, which is attached to no controller. Raises
    CommandFailed."""
    pool, inventory = _pool(subsystem), subsystem.namespaces
    nsid = next((one for one in range(1, inventory.nn + 1) if one not in inventory.by_nsid), 0)
    if not nsid:
        raise CommandFailed(Status.NSID_UNAVAILABLE, why=f"there are {inventory.nn} namespaces already")
    if new.capacity > subsystem.unallocated:
        why = f"{new.capacity} bytes are wanted, and {subsystem.unallocated} are left"
        raise CommandFailed(Status.INSUFFICIENT_CAPACITY, info=min(new.capacity, _MOST), why=why)
    name = str(uuid.uuid4())
    yield _save(subsystem, {trash(name).key: 1})
    try:
        media = yield pool.work(pool.make, name, new.capacity, new.format)
    except (OSError, BackendError) as error:
        why = describe(error) if isinstance(error, OSError) else str(error)
        log.error("the guest wants a namespace of %s: %s", in_words(new.capacity), why)
        yield from _discard(subsystem, [name])
        raise CommandFailed(Status.INTERNAL_ERROR, why=why) from None
    namespace = _of_pool(nsid, media, SavedNamespace(name, capacity=new.capacity, is_shared=new.is_shared))
    yield _save(subsystem, {**as_saved(namespace), trash(name).key: None})
    inventory.add(namespace)
    log.info("the guest has made namespace %d: %s, %s", nsid, in_words(new.capacity), media.identity)
    return nsid


def _of_pool(nsid: int, media: PairedMedia, saved: SavedNamespace) -> Namespace:
    """The name in the pool is the namespace's UUID, and its other identifiers are made of it: none is ever used again
    (NSFEAT)."""
    name = saved.pool_name
    namespace = Namespace(nsid, media, name, Ids(uuid=uuid.UUID(name)))
    namespace.pool_name, namespace.allotted = name, saved.capacity
    namespace.is_deletable, namespace.formatter = True, Formatter(media)
    namespace.is_shared, namespace.controllers = saved.is_shared, saved.controllers
    return namespace


def delete(subsystem: Subsystem, namespaces: Callable[[], Sequence[Namespace]], by: int) -> Steps:
    """``by``: the controller whose host asks for it, and so need not be told. ``namespaces`` is called when it is this
    change's turn. Raises CommandFailed; then all are as they were."""
    found = namespaces()
    for namespace in found:
        _check_deletable(namespace)
    names = [namespace.pool_name for namespace in found if namespace.pool_name is not None]
    changes: dict[tuple[str, str], Value | None] = {trash(name).key: 1 for name in names}
    for namespace in found:
        changes |= forgotten(subsystem.state, of_namespace(namespace.nsid))
        for controller in subsystem.controllers:
            changes |= controller.forgotten(namespace.nsid)
        if namespace.pool_name is None:
            changes[deleted(namespace.identity).key] = namespace.capacity
    yield _save(subsystem, changes)
    for namespace in found:
        subsystem.delete(namespace.nsid, by)
        log.info("the guest has deleted namespace %d: %s", namespace.nsid, namespace.media.identity)
    _retire(subsystem, [namespace for namespace in found if namespace.pool_name is not None])
    return 0


def _check_deletable(namespace: Namespace) -> None:
    if not namespace.is_deletable:
        if not namespace.has_told_of_delete:
            namespace.has_told_of_delete = True
            log.warning(
                "the guest may not delete namespace %d, which is %s: give it "
                'delete = "allow" in the drive file, if it may (logged once)',
                namespace.nsid,
                namespace.media.identity,
            )
        raise CommandFailed(Status.OPERATION_DENIED, location=(4, 0), why="the user has not allowed it")
    namespace.check_writable()
    if namespace.is_being_paired:
        raise CommandFailed(Status.NAMESPACE_NOT_READY, location=(4, 0), why="its companion is being made")
    if namespace.is_being_formatted:
        raise CommandFailed(Status.FORMAT_IN_PROGRESS, location=(4, 0))


def _retire(subsystem: Subsystem, namespaces: Sequence[Namespace]) -> None:
    """Close the media of deleted namespaces as soon as no command can use them, and discard what they lie on."""
    if any(controller.is_busy for controller in subsystem.controllers):
        subsystem.clock.call_later(LOOK_AGAIN, lambda: _retire(subsystem, namespaces))
        return
    for namespace in namespaces:
        namespace.media.close()
    names = [namespace.pool_name for namespace in namespaces if namespace.pool_name is not None]

    def done(_: object, error: BaseException | None) -> None:
        if error is not None:
            log.error("what the guest has deleted stays in the pool until the next start: %s", error)

    if names:
        subsystem.turns.begin(_discard(subsystem, names), done)


def _discard(subsystem: Subsystem, names: Sequence[str]) -> Steps:
    pool = _pool(subsystem)
    for name in names:
        yield pool.work(pool.discard, name)
    yield _save(subsystem, {trash(name).key: None for name in names})


def attach(subsystem: Subsystem, nsid: int, cntlids: Sequence[int], offsets: Sequence[int], most: int) -> Steps:
    """One controller after the other, up to the first that fails. ``offsets`` are the places of their numbers in what
    the host has given, in bytes; ``most`` is how many namespaces a controller can have. Raises CommandFailed."""
    for cntlid, offset in zip(cntlids, offsets, strict=True):
        namespace = subsystem.namespaces[nsid]
        attached = subsystem.namespaces.attached_to(nsid)
        status = None
        if cntlid in attached:
            status = Status.NAMESPACE_ALREADY_ATTACHED
        elif attached and not namespace.is_shared:
            status = Status.NAMESPACE_IS_PRIVATE
        elif len(subsystem.namespaces.of(cntlid).by_nsid) >= most:
            status = Status.ATTACHMENT_LIMIT_EXCEEDED
        if status is not None:
            raise CommandFailed(status, info=offset, why=f"controller {cntlid}")
        yield _save(subsystem, attachment(namespace, {*attached, cntlid}))
        subsystem.attach(nsid, cntlid)
    return 0


def detach(subsystem: Subsystem, nsid: int, cntlids: Sequence[int], offsets: Sequence[int]) -> Steps:
    """As ``attach`` attaches."""
    for cntlid, offset in zip(cntlids, offsets, strict=True):
        namespace = subsystem.namespaces[nsid]
        attached = subsystem.namespaces.attached_to(nsid)
        if cntlid not in attached:
            raise CommandFailed(Status.NAMESPACE_NOT_ATTACHED, info=offset, why=f"controller {cntlid}")
        yield _save(subsystem, attachment(namespace, {*attached} - {cntlid}))
        subsystem.detach(nsid, cntlid)
    return 0


def _save(subsystem: Subsystem, changes: Changes) -> Step:
    return lambda done: subsystem.state.save(changes, lambda error: done(None, error))


def _pool(subsystem: Subsystem) -> Pool:
    assert subsystem.pool is not None  # otherwise the commands are not offered
    return subsystem.pool


def restore(subsystem: Subsystem) -> Changes:
    """At a start: discard what is trash, and add the namespaces that hosts have made before. Returns what is to be
    saved then. May block. Raises BackendError, OSError, StateError, ValueError."""
    state, pool, nn = subsystem.state, subsystem.pool, subsystem.namespaces.nn
    changes: dict[tuple[str, str], Value | None] = {trash(name).key: None for name in all_trash(state)}
    for nsid in range(1, max(nn, MOST_NAMESPACES) + 1):
        saved = SavedNamespace.of(state, nsid)
        if saved is None or not saved.pool_name:
            continue
        if pool is None:
            raise BackendError(f"namespace {nsid} lies in a pool")
        if pool.begins_anew:
            changes |= forgotten(state, of_namespace(nsid))
        elif nsid > nn:
            raise BackendError(f"namespace {nsid} of the pool is more than --max-namespaces, {nn}")
        else:
            subsystem.add(_of_pool(nsid, pool.open(saved.pool_name), saved))
    if pool is None:
        return {}
    for name in all_trash(state):
        pool.discard(name)
    return changes


def as_it_was(subsystem: Subsystem, namespace: Namespace) -> bool:
    """At a start: give a namespace of the user's the attachment that hosts have given to it. False: a host has deleted
    it, and the user has let it. Raises StateError."""
    if size := deleted(namespace.identity).of(subsystem.state):
        subsystem.freed += size
        return False
    saved = SavedNamespace.of(subsystem.state, namespace.nsid)
    if saved is not None and saved.disk == namespace.identity:
        namespace.controllers = saved.controllers
    return True
