"""``nvmeemu serve``: from the command line to an orderly end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from nvmeemu.app import logs, pid_file
from nvmeemu.app.announcing import announce, check_ready_fd
from nvmeemu.app.arguments import complain
from nvmeemu.app.assembly import Assembly, assemble, check, faults_of
from nvmeemu.app.disks import Disks
from nvmeemu.app.drive.command_line import drives_of
from nvmeemu.app.drive.description import Drive, check_together
from nvmeemu.app.drive.source import Failure
from nvmeemu.app.ending import Ending
from nvmeemu.backend import describe
from nvmeemu.vfio import Loop, Server

log = logging.getLogger(__name__)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal or, with ``--once``, until the client has left. Returns the exit status."""
    _fill_standard_fds()
    logs.set_up(arguments.log_level)
    try:
        serve_drives(drives_of(arguments), arguments)
        _give_up_on_broken_pipes()
    except Failure as failure:
        return complain("nvmeemu serve", failure, failure.status)
    except OSError as error:  # no more descriptors, a working folder that is gone, ...
        log.debug("where it failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        return complain("nvmeemu serve", f"{where}{describe(error)}")
    return 0


def serve_drives(drives: Sequence[Drive], process: argparse.Namespace) -> None:
    """Serve drives together. ``process`` has the options that belong to no drive: ``once``, ``pid_file``, ``ready_fd``.
    All drives are checked before anything is opened. Raises Failure."""
    check_ready_fd(process.ready_fd)
    check_together(drives, process.pid_file)
    faults = [faults_of(drive) for drive in drives]
    for drive in drives:
        check(drive)
    with ExitStack() as stack:
        loop = stack.enter_context(Loop())
        ending = stack.enter_context(Ending(loop))
        assemblies: list[Assembly] = []
        for drive, given in zip(drives, faults, strict=True):
            disks = Disks(drive, loop, ending.disks)
            ending.disks.append(disks)
            one = assemble(drive, disks, given, loop, stack)
            assemblies.append(one)
            if one.state is not None:
                ending.states.append(one.state)
        control_sockets = stack.enter_context(ExitStack())
        if any(drive.controller.control is not None for drive in drives):
            from nvmeemu.app.control_sockets import open_all  # start-up: many drives have none

            open_all(assemblies, loop, control_sockets)
        stack.enter_context(pid_file.pid_file(process.pid_file))
        ending.give_up = partial(pid_file.remove, process.pid_file)
        announce(assemblies, process.ready_fd)
        if process.once:
            _end_with_their_clients(assemblies, loop)
        loop.run()
        log.info("stopping")
        for one in assemblies:
            one.server.close()
            if one.state is not None:
                one.state.end(one.controller.state.subsystem.remembered(is_end=True), ending.state_ended)
        control_sockets.close()  # the loop goes on while the disks are synced
        if failures := ending.sync():
            raise Failure(f"not synced, data may be lost: {'; '.join(failures)}")
        for disks in ending.disks:
            disks.end()
    log.info("stopped")


def _end_with_their_clients(assemblies: Sequence[Assembly], loop: Loop) -> None:
    """End when each drive has had a client, and all clients have left."""
    without = {one.server for one in assemblies}

    def leave(server: Server, tell: Callable[[], None]) -> None:
        tell()
        without.discard(server)
        if not without:
            loop.request_stop()

    for server in tuple(without):
        server.on_leave = partial(leave, server, server.on_leave)


def _fill_standard_fds() -> None:
    """Open the standard descriptors that were closed at the start. Otherwise what is written to them would land in the
    file that is opened next: the disk."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _give_up_on_broken_pipes() -> None:
    """A reader that has left before our last message is no failure. (Python would exit with 120.)"""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed since before the start
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
