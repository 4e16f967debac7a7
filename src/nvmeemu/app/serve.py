"""``nvmeemu serve``: disk, controller and socket connected, from listening to an orderly end."""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import logging
import os
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from nvmeemu import __version__
from nvmeemu.app import logs
from nvmeemu.app.arguments import MOST_IO_THREADS
from nvmeemu.app.control.methods import Methods
from nvmeemu.app.control.server import ControlServer
from nvmeemu.app.ending import Ending
from nvmeemu.backend import (
    Backend,
    BackendError,
    BadRequest,
    describe,
    in_words,
    is_memory,
    is_same,
    open_backend,
    parse_size,
)
from nvmeemu.controller.controller import Controller
from nvmeemu.controller.device import DEVICE_ID, VENDOR_ID, Identity, serial_of
from nvmeemu.controller.limits import Limits
from nvmeemu.engine.native.engine import EngineMissing, NativeEngine, can_trace
from nvmeemu.faults import FaultError, Faults
from nvmeemu.faults.file import load
from nvmeemu.faults.ocp import offer
from nvmeemu.ports import Mirrors
from nvmeemu.subsystem.namespace import Ids, Namespace, Namespaces
from nvmeemu.vfio import Loop, PciHost, PciIdentity, ServeError, Server, check

if TYPE_CHECKING:
    from nvmeemu.trace.sink import TraceFile

log = logging.getLogger(__name__)


class Failure(Exception):
    """Cannot serve; the text is the line for the user. ``status`` is 2 for bad use, else 1."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal or, with ``--once``, until the client has left; the exit status."""
    _fill_standard_fds()
    logs.set_up(arguments.log_level)
    try:
        _serve(arguments)
        _give_up_on_broken_pipes()
    except Failure as failure:
        print(f"nvmeemu serve: {failure}", file=sys.stderr)
        return failure.status
    except (BackendError, ServeError) as error:
        print(f"nvmeemu serve: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadRequest) else 1
    except OSError as error:  # no more descriptors, a working folder that is gone, ...
        log.debug("where it failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        print(f"nvmeemu serve: {where}{describe(error)}", file=sys.stderr)
        return 1
    return 0


def _fill_standard_fds() -> None:
    """Started with one of them closed, what is written to it would land in the file opened next: the disk."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _give_up_on_broken_pipes() -> None:
    """Nobody listens to our last words any more: that is no failure (Python would exit with 120)."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed since before the start
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _serve(arguments: argparse.Namespace) -> None:
    socket = arguments.socket
    _check_ready_fd(arguments.ready_fd)
    _check_paths(arguments)
    check(socket)
    with ExitStack() as stack:
        loop = stack.enter_context(Loop())
        ending = stack.enter_context(Ending(loop))
        for disk in arguments.disk:
            name = _name(disk, ending.backends)
            ending.backends[name] = _open(disk, arguments)
        host = PciHost()
        engine = _engine(arguments, loop, stack)
        controller = _controller(arguments, host, loop, list(ending.backends.values()), engine)
        host.mirror = Mirrors(engine, controller.taps)
        trace = _trace(arguments, controller, engine, stack)
        faults = _faults(arguments, controller)
        identity = controller.device.identity
        pci = PciIdentity(identity.vendor_id, identity.device_id, identity.vendor_id, identity.device_id)
        server = stack.enter_context(Server(loop, host, controller, socket, pci))
        server.on_attach, server.on_leave = controller.taps.attached, controller.taps.left
        if arguments.control is not None:
            methods = _methods(arguments, loop, controller, faults, ending, trace)
            stack.enter_context(ControlServer(loop, arguments.control, methods.table()))
        stack.enter_context(_pid_file(arguments.pid_file))
        ending.give_up = partial(_remove_pid_file, arguments.pid_file)
        _announce(arguments, ending.backends)
        server.run(once=arguments.once)
        log.info("stopping")
        server.close()
        if failures := ending.sync():
            raise Failure(f"not synced, data may be lost: {'; '.join(failures)}")
    log.info("stopped")


def _name(disk: str, others: Collection[str]) -> str:
    """What the disk is called beside the others. Raises BadRequest if it is one of them."""
    for other in others:
        if is_same(disk, other):
            raise BadRequest(f"disk {disk} is {other}, which is a namespace already: give each disk once")
    names = itertools.chain([disk], (f"{disk} ({number})" for number in itertools.count(2)))  # of memory there are many
    return next(name for name in names if name not in others)


def _open(disk: str, arguments: argparse.Namespace) -> Backend:
    try:
        size = None if arguments.size is None else parse_size(arguments.size)
    except BackendError as error:
        raise Failure(f"--size: {error}", 2) from None
    return open_backend(
        disk,
        size=size,
        create=arguments.create,
        read_only=arguments.read_only,
        overlay=arguments.overlay,
        direct=arguments.direct,
        block_size=arguments.block_size,
    )


def _engine(arguments: argparse.Namespace, loop: Loop, stack: ExitStack) -> NativeEngine | None:
    """The native engine, unless it is not wanted or, with ``auto``, not there."""
    is_mapped = arguments.doorbells == "mapped"  # auto: asleep when idle is worth more to most than a quick start
    if arguments.engine == "python":
        for is_given, option in ((arguments.io_threads, "--io-threads"), (is_mapped, "--doorbells mapped")):
            if is_given:
                raise Failure(f"{option} is for the native engine, not for --engine python", 2)
        return None
    if arguments.trace is not None and (arguments.trace_payload or not can_trace()):
        option = "--trace-payload" if arguments.trace_payload else "--trace"
        if is_mapped:
            raise Failure(f"--doorbells mapped is for the native engine, which cannot serve {option}", 2)
        log.info("with %s reads and writes are served in Python", option)
        return None
    threads = arguments.io_threads or usual_io_threads()
    try:
        engine = NativeEngine(threads, has_mapped_doorbells=is_mapped)
    except EngineMissing as missing:
        if arguments.engine == "native" or is_mapped:
            raise Failure(str(missing)) from None
        log.info("reads and writes are served in Python: %s", missing)
        return None
    except OSError as error:
        raise Failure(f"the native engine does not start: {describe(error)}") from None
    stack.callback(engine.close)
    loop.watch(engine.fd, engine.drain_fd)  # the news are delivered in the controller's ``run``
    stack.callback(loop.unwatch, engine.fd)
    return engine


def usual_io_threads() -> int:
    """Half of the CPUs that this process may use; as many as ``--io-threads`` takes at the most."""
    return min(max(1, len(os.sched_getaffinity(0)) // 2), MOST_IO_THREADS)


def _controller(
    arguments: argparse.Namespace, host: PciHost, loop: Loop, backends: list[Backend], engine: NativeEngine | None
) -> Controller:
    try:
        limits = Limits.of(vars(arguments), has_msix=not arguments.no_msix)
    except ValueError as error:
        raise Failure(f"there is no such controller: {error}", 2) from None
    if limits.dstrd and engine is not None and engine.doorbells_fd >= 0:
        raise Failure("--doorbells mapped: they lie side by side: leave out --dstrd", 2)
    namespaces = Namespaces(limits.namespaces)
    if len(backends) > namespaces.nn:
        disks = "1 disk" if namespaces.nn == 1 else f"{namespaces.nn} disks"
        raise Failure(f"at most {disks}, as --max-namespaces says", 2)
    names = [_identity(backend, arguments) for backend in backends]
    ids = _ids(arguments, len(backends))
    try:
        identity = Identity(
            serial=serial_of(names[0]) if arguments.serial is None else arguments.serial,
            model=arguments.model,
            firmware=arguments.firmware,
            cntlid=arguments.cntlid,
            nqn=arguments.subnqn,
            vendor_id=VENDOR_ID if arguments.vendor_id is None else arguments.vendor_id,
            device_id=DEVICE_ID if arguments.device_id is None else arguments.device_id,
        )
    except ValueError as error:
        raise Failure(str(error), 2) from None
    for nsid, (backend, name, own) in enumerate(zip(backends, names, ids, strict=True), 1):
        namespaces.add(Namespace(nsid, backend, arguments.block_size, name, own))
    return Controller(host, loop, loop, namespaces, identity, limits, engine)


def _faults(arguments: argparse.Namespace, controller: Controller) -> Faults:
    """The faults of --faults, at work."""
    try:
        found = [load(spec) for spec in arguments.faults or ()]
    except FaultError as error:
        raise Failure(f"--faults: {error}", 2) from None
    except OSError as error:
        raise Failure(f"--faults {error.filename}: {describe(error)}", 2) from None
    seeds = {one.seed for one in found if one.seed is not None}
    if len(seeds) > 1:
        raise Failure("--faults: the files have different seeds, and a drive has one: leave out all but one", 2)
    faults = Faults(controller, min(seeds, default=0))
    if arguments.ocp:
        offer(controller.device, faults)
    for fault in (fault for one in found for fault in one.faults):
        faults.add(fault)
    return faults


def _methods(
    arguments: argparse.Namespace,
    loop: Loop,
    controller: Controller,
    faults: Faults,
    ending: Ending,
    trace: TraceFile | None,
) -> Methods:
    """What the control socket can do."""
    leaving: list[Backend] = []  # of namespaces that were removed
    at_start = list(ending.backends.values())
    given = {one.identity: ids for one, ids in zip(at_start, _ids(arguments, len(at_start)), strict=True)}
    numbers = itertools.count(1)  # of those that are added

    def open_disk(nsid: int, disk: str) -> Namespace:
        if any(one in leaving and is_same(disk, name) for name, one in ending.backends.items()):
            raise BackendError(f"disk {disk} was removed just now, and is not closed yet: try again")
        name = _name(disk, ending.backends)
        backend = ending.backends[name] = open_backend(
            disk,
            read_only=arguments.read_only,
            overlay=arguments.overlay,
            direct=arguments.direct,
            block_size=arguments.block_size,
        )
        ids = Ids() if _begins_anew(backend, arguments) else given.get(backend.identity, Ids())
        return Namespace(nsid, backend, arguments.block_size, _identity(backend, arguments, next(numbers)), ids)

    def close_disk(backend: Backend) -> None:
        """As soon as nothing is under way any more, perhaps with this one."""
        if backend not in leaving:
            leaving.append(backend)
        if controller.is_busy:
            loop.call_later(0.1, lambda: close_disk(backend))
            return

        name = next(disk for disk, one in ending.backends.items() if one is backend)

        def done(_: object, error: BaseException | None) -> None:
            if error is not None:
                log.error("disk %s, which was removed, failed to flush: %s: written data may be lost", name, error)
            backend.close()
            leaving.remove(backend)
            del ending.backends[name]

        loop.submit(backend.flush, done, backend)

    return Methods(controller, faults, open_disk, close_disk, None if trace is None else trace.note)


def _trace(
    arguments: argparse.Namespace, controller: Controller, engine: NativeEngine | None, stack: ExitStack
) -> TraceFile | None:
    """Record everything from here on, if that is wanted."""
    if arguments.trace is None:
        if arguments.trace_payload:
            raise Failure("--trace-payload is for a trace: give --trace FILE", 2)
        return None
    from nvmeemu.trace.file import TraceError  # start-up: without --trace not needed
    from nvmeemu.trace.recorder import Recorder, describe
    from nvmeemu.trace.sink import BadTarget, TraceFile

    try:
        file = TraceFile(arguments.trace, describe(controller, payload=arguments.trace_payload))
    except TraceError as error:
        raise Failure(f"--trace: {error}", 2 if isinstance(error, BadTarget) else 1) from None
    stack.callback(file.close)
    controller.observe(Recorder(file, controller.device, payload=arguments.trace_payload))
    if engine is not None:
        engine.trace(file.put, file.start)
        stack.callback(engine.trace, None)
    return file


def _begins_anew(backend: Backend, arguments: argparse.Namespace) -> bool:
    """Whether nothing is left of what was written to it when it is opened again."""
    return is_memory(backend.identity) or bool(arguments.overlay)


def _identity(backend: Backend, arguments: argparse.Namespace, number: int = 0) -> str:
    """What identifies a disk. One that several servers can have at once is told apart by where it is served, and one
    that begins anew each time it is added, by which time it is: a host must not take two for one."""
    begins_anew = _begins_anew(backend, arguments)
    if not begins_anew and not backend.read_only:
        return backend.identity
    return f"{backend.identity}@{os.path.abspath(arguments.socket)}" + (f"#{number}" if begins_anew and number else "")


def _ids(arguments: argparse.Namespace, disks: int) -> list[Ids]:
    """Those that were given, for each disk."""
    columns: list[list[Any]] = []
    for option in ("nguid", "eui64", "uuid"):
        given = getattr(arguments, option) or []
        if len(given) > disks:
            raise Failure(f"--{option}: {len(given)} are given, for {disks} disk{'s' * (disks > 1)}", 2)
        if len(set(given)) < len(given):
            raise Failure(f"--{option}: give each namespace one of its own", 2)
        columns.append(given + [None] * (disks - len(given)))
    return [Ids(nguid, eui64, UUID(bytes=uuid) if uuid else None) for nguid, eui64, uuid in zip(*columns, strict=True)]


def _announce(arguments: argparse.Namespace, backends: dict[str, Backend]) -> None:
    path = os.path.abspath(arguments.socket)
    device = json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}}, separators=(",", ":"))
    mode = ", read-only" if arguments.read_only else ", writes are thrown away" if arguments.overlay else ""
    mode += ", direct" if arguments.direct else ""
    disks = ", ".join(f"{disk} ({in_words(backend.size)}{mode})" for disk, backend in backends.items())
    text = (
        f"nvmeemu {__version__}: disk {disks} on {path}\n"
        "QEMU: -object memory-backend-memfd,id=ram,size=1G,share=on -m 1G -machine q35,memory-backend=ram \\\n"
        f"      -device {shlex.quote(device)}\n"
    )
    try:
        os.write(1, os.fsencode(text))  # what sys.stdout cannot write, it tries again at exit
    except OSError as error:
        raise Failure(f"cannot write to the standard output: {describe(error)}") from None
    _tell_ready(arguments.ready_fd)


def _check_ready_fd(fd: int | None) -> None:
    """To be done before we open anything: a number that nobody gave us must not become that of a disk."""
    if fd is None:
        return
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise Failure(f"--ready-fd {fd}: {describe(error)}", 2) from None
    if mode == os.O_RDONLY:
        raise Failure(f"--ready-fd {fd}: not open for writing", 2)


def _check_paths(arguments: argparse.Namespace) -> None:
    """What is made or written must be nothing else that we use."""
    options = ("socket", "control", "trace", "pid-file")
    paths = {f"--{option}": getattr(arguments, option.replace("-", "_")) for option in options}
    given = [(option, path) for option, path in paths.items() if path is not None]
    given += [("--disk", disk) for disk in arguments.disk if not is_memory(disk)]
    for (option, path), (other, other_path) in itertools.combinations(given, 2):
        if option != "--disk" and is_same(path, other_path):
            raise Failure(f"{option} and {other} are both {path}: give each a path of its own", 2)


def _tell_ready(fd: int | None) -> None:
    if fd is None:
        return
    try:
        os.write(fd, b"ready\n")
        if fd > 2:
            os.close(fd)
    except OSError as error:
        raise Failure(f"--ready-fd {fd}: {describe(error)}") from None


@contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        found = _read(path).strip()
        if found and not found.isdigit():
            raise Failure(f"--pid-file {path}: there is a file that is no pid file: give another name", 2)
        with open(path, "wb", opener=_open_at_once) as file:
            file.write(_pid_line())
    except OSError as error:
        raise Failure(f"--pid-file {path}: {describe(error)}") from None
    try:
        yield
    finally:
        _remove_pid_file(path)


def _pid_line() -> bytes:
    return f"{os.getpid()}\n".encode()


def _remove_pid_file(path: str | None) -> None:
    """Not that of a server that has taken it over, and no device."""
    with suppress(OSError):
        if path is not None and _read(path) == _pid_line():
            os.unlink(path)


def _read(path: str) -> bytes:
    """The beginning of a file, nothing if there is none."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read(32)
    except FileNotFoundError:
        return b""


def _open_at_once(path: str, flags: int) -> int:
    """Also a pipe that nobody else has open."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
