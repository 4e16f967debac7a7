"""Signals: serving stops at once, then the disks are synced, and a second signal waits for nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from nvmeemu.app.ending import SAME_WISH
from nvmeemu.app.signals import MEANINGLESS
from nvmeemu.spec import Command, NvmOpcode
from server.conftest import Attach
from server.guest import Guest
from server.load import run_batch, transfer
from server.process import NVMEEMU, Serve, Served
from server.shim import Op, Shim

PROMISE = 2.0  # seconds from the signal to the end of service
TRIES = 10  # a busy machine delays some of them: a slow server delays all


class Hammer:
    """Keeps the server busy, on a thread, until it hangs up."""

    def __init__(self, guest: Guest) -> None:
        self.completed = 0
        self.end = 0.0
        self._guest = guest
        self._place = guest.alloc(1 << 17)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._started.wait(20)

    def _run(self) -> None:
        opcodes = (NvmOpcode.READ, NvmOpcode.WRITE)
        commands = [transfer(opcodes[index % 2], self._place, 8 * index) for index in range(32)]
        flush = Command(opcode=NvmOpcode.FLUSH, nsid=1)
        try:
            while True:
                for command in (*commands, flush):
                    command.cid = 0
                self.completed += len(run_batch(self._guest, [*commands, flush]))
                self._started.set()
        except (EOFError, OSError):
            self.end = time.monotonic()

    def join(self) -> None:
        self._thread.join(20)
        assert self.end


def ends(served: Served) -> None:
    """What could keep it from that would do so without end. That it is quick is the test of an end under load."""
    assert served.stop() == 0
    assert not os.path.exists(served.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_time_also_under_load(
    path: str, disk: Path, serve: Serve, attach: Attach, number: signal.Signals
) -> None:
    whatever_we_ignore = ("env", f"--default-signal={number.name[3:]}")
    took: list[float] = []
    while not took or (took[-1] >= PROMISE and len(took) < TRIES):
        served = serve("--disk", disk, command=(*whatever_we_ignore, NVMEEMU, "serve"))
        hammer = Hammer(attach())
        begin = time.monotonic()
        assert served.stop(number) == 0
        hammer.join()
        took.append(hammer.end - begin)
        assert hammer.completed
        assert not os.path.exists(path)
        assert served.log.splitlines()[-1].endswith("INFO stopped")
    assert took[-1] < PROMISE, took


def test_with_nohup_it_stays_when_the_terminal_goes(serve: Serve, attach: Attach) -> None:
    served = serve("--disk", "mem:1M", command=("nohup", NVMEEMU, "serve"))
    served.send(signal.SIGHUP)
    attach().write(0, bytes(512))
    ends(served)


def test_a_signal_ends_it_while_a_stranger_says_nothing(path: str, serve: Serve) -> None:
    """The library waits for a client's first message."""
    served = serve("--disk", "mem:1M")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(path)
        stranger.sendall(b"\0")
        ends(served)


def test_what_was_written_is_synced_and_said_to_be_if_that_takes_long(
    path: str, disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    served = serve("--disk", disk, environment=shim.environment)
    attach().write(0, bytes(512))
    assert shim.calls(Op.SYNC) == 0
    shim.hold(Op.SYNC)
    served.send(signal.SIGTERM)
    served.expect(f"syncing {disk}")
    assert not os.path.exists(path)  # it serves no more
    shim.release()
    assert served.wait() == 0
    assert shim.calls(Op.SYNC) == 1


def test_a_quick_sync_is_not_mentioned(disk: Path, serve: Serve, attach: Attach) -> None:
    served = serve("--disk", disk)
    attach().write(0, bytes(512))
    assert served.stop() == 0
    assert "syncing" not in served.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_names_what_is_not_synced(
    folder: Path, path: str, disk: Path, serve: Serve, shim: Shim, second: signal.Signals
) -> None:
    pid_file, other = folder / "pid", folder / "other"
    options = ("--disk", "mem:1M", "--disk", other, "--disk", disk, "--pid-file", pid_file)
    with other.open("w") as file:
        file.truncate(1 << 20)
    served = serve(*options, environment=shim.environment)
    shim.hold(Op.SYNC)
    served.send(signal.SIGTERM)
    shim.wait_for_held(Op.SYNC)
    time.sleep(SAME_WISH + 0.1)
    served.send(second)
    assert served.wait() == 1
    assert served.log.splitlines()[-1] == f"nvmeemu serve: ended by a second signal: not synced: {disk}"
    assert not os.path.exists(path)
    assert not pid_file.exists()


@pytest.mark.parametrize("others", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGHUP)])
@pytest.mark.parametrize("options", [(), ("--once",)])
def test_one_wish_may_come_as_several_signals(
    disk: Path, serve: Serve, attach: Attach, shim: Shim, others: tuple[signal.Signals, ...], options: tuple[str, ...]
) -> None:
    """timeout(1) sends its own to the child and then to the group; a wrapper forwards what the child got, too."""
    command = ("env", "--default-signal=HUP,INT", NVMEEMU, "serve")
    served = serve("--disk", disk, *options, environment=shim.environment, command=command)
    guest = attach()
    guest.write(0, bytes(512))
    shim.hold(Op.SYNC)
    if options:
        guest.leave()  # it ends already
        shim.wait_for_held(Op.SYNC)
    for number in (signal.SIGTERM, *others):
        served.send(number)
        time.sleep(0.001)  # two of the same at once may arrive as one
    shim.wait_for_held(Op.SYNC)
    shim.release()
    assert served.wait() == 0
    assert shim.calls(Op.SYNC) == 1
    assert served.log.splitlines()[-1].endswith("INFO stopped")


def test_signals_without_a_meaning_end_nothing(disk: Path, serve: Serve, attach: Attach) -> None:
    served = serve("--disk", disk)
    guest = attach()
    for number in MEANINGLESS:
        served.process.send_signal(number)
    guest.write(0, b"here" * 128)
    assert served.stop() == 0
    assert disk.read_bytes()[:4] == b"here"


def test_a_sync_that_fails_is_an_error(disk: Path, serve: Serve, attach: Attach, shim: Shim) -> None:
    served = serve("--disk", disk, environment=shim.environment)
    shim.fail(Op.SYNC, errno.EIO)
    assert served.stop() == 1
    last = served.log.splitlines()[-1]
    assert last == f"nvmeemu serve: not synced, data may be lost: {disk}: Input/output error"


def test_a_disk_that_never_answers_does_not_keep_it_from_stopping(
    path: str, disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    """Eight writes at a dead disk, and more behind them: none was acknowledged, none is waited for."""
    served = serve("--disk", disk, environment=shim.environment)
    guest = attach()
    shim.hold(Op.WRITE)
    place = guest.alloc(4096)
    for slba in range(40):
        guest.submit(guest.queues[1], transfer(NvmOpcode.WRITE, place, slba * 8))
    shim.wait_for_held(Op.WRITE)
    ends(served)


def test_read_only_and_memory_disks_and_overlays_have_nothing_to_sync(
    folder: Path, disk: Path, serve: Serve, attach: Attach, shim: Shim
) -> None:
    for options in (("--read-only",), ("--overlay",)):
        served = serve("--disk", disk, *options, environment=shim.environment)
        attach().shut_down()
        assert served.stop() == 0
    assert shim.calls(Op.SYNC) == 0
