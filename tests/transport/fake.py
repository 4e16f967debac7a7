"""A process that serves a device made for tests. Its BAR0 is plain memory; writes to a few registers make it do things.

    python fake.py SOCKET... [--once] [--vectors N] [--patience SECONDS] [--mappings N]

What it was told is printed, a JSON line each; the tests wait for those lines instead of sleeping. With several sockets,
each has a device of its own, and its number comes first in the device's lines.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from nvmeemu.ports import Clock, HostMemoryError, PciState, Worker
from nvmeemu.vfio import Loop, PciHost, PciIdentity, ServeError, Server, memory, newcomers, server

IDENTITY = PciIdentity(0x1DE5, 0x4E56, 0x1DE5, 0x0001, revision=3)
BAR0_SIZE = 0x4000

# Registers that act, 8 bytes each, written whole. FETCH and STORE: the guest address; the data is at DATA.
FETCH, STORE, INTERRUPT, PIN, BLOCK, BUSY, LATER, FAIL = range(0x100, 0x140, 8)
DATA = 0x200
DATA_SIZE = 0x100


class Fake:
    """A Function that does what its registers say and reports what it is told."""

    def __init__(self, host: PciHost, clock: Clock, worker: Worker, vectors: int, report: Callable[..., None]) -> None:
        self.report = report
        self.host, self.clock, self.worker = host, clock, worker
        self.bar0_size = BAR0_SIZE
        self.bar0_shared: tuple[int, int, int] | None = None
        self.direct_doorbells: tuple[int, int] | None = None
        self.vectors = vectors
        self.registers = bytearray(BAR0_SIZE)
        self.busy = 0
        self.quiet = 0
        self.asserted = False

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.registers[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.registers[offset : offset + len(data)] = data
        if len(data) == 8 and FETCH <= offset <= FAIL:
            self.act(offset, int.from_bytes(data, "little"))

    def act(self, register: int, value: int) -> None:
        if register in (FETCH, STORE):
            self.copy(register, value)
        elif register == INTERRUPT:
            self.host.interrupt(value)
        elif register == PIN:
            self.asserted = bool(value)
            self.host.pin(self.asserted)
        elif register == BLOCK:
            self.worker.submit(lambda: self.block(value), lambda result, error: self.report("unblocked", result), self)
        elif register == BUSY:
            self.busy = value
        elif register == LATER:
            self.clock.call_later(value / 1000, lambda: self.report("later"))
        else:
            raise RuntimeError("a fault in the device")

    def block(self, milliseconds: int) -> int:
        self.report("blocked")
        time.sleep(milliseconds / 1000)
        if threading.current_thread() is threading.main_thread():
            raise AssertionError("blocking work on the loop's thread")
        return milliseconds

    def copy(self, register: int, iova: int) -> None:
        try:
            pieces = self.host.views(iova, DATA_SIZE, writable=register == STORE)
        except HostMemoryError as error:
            self.report("no memory", error.iova)
            return
        if register == FETCH:
            self.registers[DATA : DATA + DATA_SIZE] = b"".join(pieces)
            return
        at = DATA
        for piece in pieces:
            piece[:] = self.registers[at : at + len(piece)]
            at += len(piece)
        self.report("stored", len(pieces))

    def run(self) -> bool:
        if self.busy:
            self.busy -= 1
            if not self.busy:
                self.report("idle")
        return self.busy > 0

    def reset(self) -> None:
        self.registers[:] = bytes(BAR0_SIZE)
        self.busy = 0
        self.asserted = False
        self.report("reset")

    def quiesce(self) -> None:
        self.quiet += 1

    def memory_changed(self) -> None:
        assert self.quiet  # no change of the map without a warning
        self.quiet = 0
        self.report("memory", len(self.host))

    def interrupts_changed(self) -> None:
        pass

    def pci_changed(self, state: PciState) -> None:
        pass

    def pin_unmasked(self) -> None:
        self.report("unmasked")
        if self.asserted:
            self.host.pin(True)


def report(*values: Any) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())  # at once: threads report, too


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sockets", nargs="+")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--vectors", type=int, default=5)
    parser.add_argument("--patience", type=float, help="for a client that keeps us waiting, instead of the usual")
    parser.add_argument("--mappings", type=int, help="that the process can have for its clients")
    arguments = parser.parse_args()
    if arguments.mappings is not None:
        memory.LIBRARY_REGIONS = arguments.mappings
    if arguments.patience is not None:
        newcomers.HANDSHAKE_TIME = arguments.patience
        server.PATIENCE.update({turn: (arguments.patience, why) for turn, (_, why) in server.PATIENCE.items()})
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            loop = stack.enter_context(Loop())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: loop.request_stop())
            for index, path in enumerate(arguments.sockets):
                host = PciHost()
                told = report if len(arguments.sockets) == 1 else partial(report, index)
                fake = Fake(host, loop, loop, arguments.vectors, told)
                one = stack.enter_context(Server(loop, host, fake, path, IDENTITY))
                if arguments.once:
                    one.on_leave = loop.request_stop
            report("listening")
            loop.run()
            report("stopped")
    except ServeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
