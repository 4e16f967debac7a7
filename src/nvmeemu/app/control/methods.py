"""The methods of the control socket: what a client can do to a running drive. docs/control.md lists them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from nvmeemu import __version__
from nvmeemu.app.control.messages import FAILED, INTERNAL_ERROR, INVALID_PARAMS, PROTOCOL, Method, RpcError
from nvmeemu.app.drive.check import BadKey, checked
from nvmeemu.backend import BackendError, BadRequest, in_words, parse_size
from nvmeemu.controller.controller import Controller
from nvmeemu.faults import Fault, FaultError, Faults
from nvmeemu.faults.file import scenario
from nvmeemu.subsystem.media import Media
from nvmeemu.subsystem.namespace import Namespace

log = logging.getLogger(__name__)

LONGEST_NOTE = 1000  # characters
OpenDisk = Callable[[int, Mapping[str, Any]], Namespace]


class Methods:
    """``open_disk`` makes a namespace with an NSID of a table [[namespace]] that was checked; ``close_disk`` is called
    with the medium of one that was removed, which may still be in use; ``note`` puts a remark into the trace, if there
    is one; ``drive`` is the name of the drive."""

    def __init__(
        self,
        controller: Controller,
        faults: Faults,
        open_disk: OpenDisk,
        close_disk: Callable[[Media], None],
        note: Callable[[str], None] | None = None,
        drive: str = "drive",
    ) -> None:
        self._drive = drive
        self._controller = controller
        self._state = controller.state
        self._faults = faults
        self._open_disk = open_disk
        self._close_disk = close_disk
        self._note = note

    def table(self) -> dict[str, Method]:
        """By their names in requests."""
        methods: dict[str, Method] = {
            "status": self.status,
            "fault.add": self.fault_add,
            "fault.list": self.fault_list,
            "fault.remove": self.fault_remove,
            "scenario.add": self.scenario_add,
            "namespace.add": self.namespace_add,
            "namespace.remove": self.namespace_remove,
            "namespace.resize": self.namespace_resize,
            "trace.note": self.trace_note,
        }
        return {name: _checked(method) for name, method in methods.items()}

    def status(self) -> dict[str, Any]:
        state, status = self._state, self._controller.status
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "drive": self._drive,
            "cntlid": state.cntlid,
            "serial": state.subsystem.identity.serial,
            "removed": self._faults.is_removed,
            "controller": {"rdy": int(status.rdy), "cfs": int(status.cfs), "shst": status.shst},
            "queues": {"submission": sorted(state.sqs), "completion": sorted(state.cqs)},
            "namespaces": [_namespace(one) for one in state.subsystem.namespaces],
            "faults": len(self._faults),
        }

    # --- faults

    def fault_add(self, /, **fault: Any) -> dict[str, Any]:
        return _fault(self._faults.add(Fault.of(fault)))

    def fault_list(self) -> list[dict[str, Any]]:
        return [_fault(fault) for fault in self._faults]

    def fault_remove(self, id: int | None = None) -> None:
        """One, or without an ``id`` all."""
        if id is None:
            for one in self._faults:
                log.info("control: fault %d is removed", one.id)
            self._faults.clear()
        else:
            if id not in [fault.id for fault in self._faults]:
                raise RpcError(FAILED, f"no fault {id!r}")
            self._faults.remove(int(id))
            log.info("control: fault %d is removed", id)

    def scenario_add(self, name: str) -> list[dict[str, Any]]:
        return [_fault(self._faults.add(fault)) for fault in scenario(_text(name, "name"))]

    # --- namespaces

    def namespace_add(self, disk: str, nsid: int | None = None, **keys: Any) -> dict[str, Any]:
        """With the keys of [[namespace]] in a drive file; under the first free NSID, if none is given."""
        namespaces = self._state.subsystem.namespaces
        free = [number for number in range(1, namespaces.nn + 1) if number not in namespaces.by_nsid]
        if nsid is None and not free:
            raise RpcError(FAILED, f"there are {namespaces.nn} namespaces already, the most there can be")
        number = free[0] if nsid is None else nsid
        if type(number) is not int or number not in free:
            raise RpcError(FAILED, f"NSID {number!r} is taken or outside 1..{namespaces.nn}")
        namespace = self._open_disk(number, checked("namespace", {"disk": disk, **keys}))
        self._state.subsystem.add(namespace)
        log.info(
            "control: namespace %d is added: disk %s, %s",
            number,
            disk,
            _size(namespace),
        )
        return _namespace(namespace)

    def namespace_remove(self, nsid: int) -> None:
        found = self._find_given(nsid)
        if found.is_being_formatted or found.is_being_paired:
            raise RpcError(FAILED, f"namespace {nsid} is being formatted: try again")
        namespace = self._state.subsystem.remove(nsid)
        log.info("control: namespace %d is removed: disk %s", nsid, namespace.media.identity)
        self._close_disk(namespace.media)

    def namespace_resize(self, nsid: int, size: str | int | None = None) -> dict[str, Any]:
        """To all that its disk has now, if no ``size`` is given."""
        namespace = self._find_given(nsid)
        blocks = None
        if size is not None:
            blocks, rest = divmod(parse_size(str(size)), namespace.format.data_size)
            if rest:
                raise RpcError(FAILED, f"{size} is no whole number of blocks of {namespace.format.data_size} bytes")
        self._state.subsystem.resize(nsid, blocks)
        length = _size(namespace)
        log.info("control: namespace %d has %s now: disk %s", nsid, length, namespace.media.identity)
        return _namespace(namespace)

    # --- the trace

    def trace_note(self, text: str) -> None:
        """Put a remark behind all that has been recorded: whoever finds it there has read what came before."""
        if self._note is None:
            raise RpcError(FAILED, "no trace is recorded: nvmeemu serve --trace FILE")
        if not isinstance(text, str) or len(text) > LONGEST_NOTE:
            raise RpcError(INVALID_PARAMS, f"text: a string of at most {LONGEST_NOTE} characters")
        self._note(text)

    def _find_given(self, nsid: object) -> Namespace:
        """One whose disk the user has given."""
        namespace = self._find(nsid)
        if namespace.pool_name is not None:
            raise RpcError(FAILED, f"namespace {nsid} is a guest's: only a guest can change it")
        return namespace

    def _find(self, nsid: object) -> Namespace:
        namespace = self._state.subsystem.namespaces.by_nsid.get(nsid) if type(nsid) is int else None
        if namespace is None:
            raise RpcError(FAILED, f"no namespace {nsid!r}")
        return namespace


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise RpcError(INVALID_PARAMS, f"{what}: {value!r} is not text")
    return value


def _fault(fault: Fault) -> dict[str, Any]:
    return {"id": fault.id, **fault.as_table(), "seen": fault.seen, "hits": fault.hits}


def _namespace(namespace: Namespace) -> dict[str, Any]:
    return {
        "nsid": namespace.nsid,
        "disk": namespace.media.identity,
        "size": namespace.blocks * namespace.format.data_size,
        "block_size": namespace.format.data_size,
        "read_only": namespace.read_only,
    }


def _size(namespace: Namespace) -> str:
    return in_words(namespace.blocks * namespace.format.data_size)


def _checked(method: Method) -> Method:
    """Have bad parameters, and what cannot be done, answered as errors."""
    signature = inspect.signature(method)

    @wraps(method)
    def call(**parameters: Any) -> Any:
        try:
            signature.bind(**parameters)
        except TypeError as error:
            raise RpcError(INVALID_PARAMS, str(error)) from None
        try:
            return method(**parameters)
        except (FaultError, BadRequest, BadKey) as error:
            raise RpcError(INVALID_PARAMS, str(error)) from None
        except (BackendError, ValueError, OSError) as error:
            raise RpcError(FAILED, str(error)) from None
        except RpcError:
            raise
        except Exception:  # whatever a client sends, the drive goes on
            log.exception("internal error in %s", method.__name__)
            raise RpcError(INTERNAL_ERROR, "internal error: see the server's log") from None

    return call
