"""The server's life: one client after another, resets, signals, sockets; and blocking work beside it all."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmeemu.testing.client import BAR0, CONFIG, HEADER, REGION_READ, VERSION, Refused, SharedMemory, VfioClient
from nvmeemu.vfio import ServeError, check
from nvmeemu.vfio.pci import EXPRESS
from transport.conftest import FAKE, ServedFake
from transport.fake import BAR0_SIZE, BLOCK, BUSY, FETCH, LATER

Serve = Callable[..., ServedFake]


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_a_second_client_is_told_at_once_and_the_first_goes_on(fake: ServedFake, client: VfioClient) -> None:
    for _ in range(20):
        with pytest.raises(Refused) as refused:
            VfioClient(fake.path)
        assert refused.value.errno == errno.EBUSY
        client.write(BAR0, 0x1000, b"abcd")
        assert client.read(BAR0, 0x1000, 4) == b"abcd"
    assert fake.read_log().count("is turned away: the drive is taken by ") == 20
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for one in silent:
        one.settimeout(60)
        while one.connect_ex(fake.path) == errno.EAGAIN:  # as many as may wait for us to accept them
            time.sleep(0.001)
    hung_up = select.poll()
    for one in silent:
        hung_up.register(one, select.POLLIN)
    assert len(hung_up.poll(60_000)) >= 1  # more than may say nothing: some have been hung up on
    for one in silent:
        one.close()
    assert client.read(BAR0, 0x1000, 4) == b"abcd"
    assert fake.read_log().count("is turned away") == 20  # who says nothing only looks whether we are there
    client.close()
    with VfioClient(fake.path) as another:
        assert len(another.read(BAR0, 0, 4)) == 4


def test_a_client_that_comes_while_another_one_goes_is_served(fake: ServedFake) -> None:
    for _ in range(200):
        with VfioClient(fake.path) as one:
            assert len(one.read(BAR0, 0, 4)) == 4
    assert "turned away" not in fake.read_log()


def test_resets_reach_the_function(fake: ServedFake, client: VfioClient) -> None:
    client.write(BAR0, 0, b"\x01")
    client.write(CONFIG, 4, b"\x06\x00")
    client.reset()
    fake.wait_for("reset")
    assert client.read(BAR0, 0, 1) == b"\0"
    assert client.read(CONFIG, 4, 2) == b"\0\0"
    client.write(BAR0, 0, b"\x01")
    client.write(CONFIG, EXPRESS + 8, b"\x00\x80\x00\x00")  # Initiate FLR, in a write over Device Status
    fake.wait_for("reset")
    assert client.read(BAR0, 0, 1) == b"\0"


def test_the_next_client_finds_the_device_as_new(fake: ServedFake, memory: SharedMemory) -> None:
    for _ in range(3):
        with VfioClient(fake.path) as client:
            assert client.read(BAR0, 0, 1) == b"\0"
            client.write(BAR0, 0, b"\x01")
            client.map(0, 0x1000, memory.fd)
        fake.wait_for("reset")
        assert fake.wait_for("memory") == ["memory", 0]
    with VfioClient(fake.path) as client:
        client.write(BAR0, FETCH, number(0))
        fake.wait_for("no memory")


def test_a_client_that_dies_in_the_middle_of_a_message_is_dropped(fake: ServedFake) -> None:
    for torn in (HEADER.pack(7, 9, 32, 0, 0)[:5], HEADER.pack(7, 9, 32, 0, 0), HEADER.pack(7, 9, 48, 0, 0) + b"body"):
        with VfioClient(fake.path) as client:
            client.socket.sendall(torn)
        fake.wait_for("reset")
    with VfioClient(fake.path) as client:
        assert client.read(BAR0, 0, 1) == b"\0"


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        HEADER.pack(1, VERSION, 20, 0, 0) + struct.pack("<HH", 99, 0),
        HEADER.pack(1, VERSION, 21, 0, 0) + struct.pack("<HH", 0, 1) + b"{",
        HEADER.pack(1, VERSION, 0xFFFFFFFF, 0, 0),
        HEADER.pack(1, VERSION, 3, 0, 0),
    ],
)
def test_a_client_that_fails_the_handshake_leaves_the_server_ready(fake: ServedFake, greeting: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(fake.path)
        stranger.sendall(greeting)
    with VfioClient(fake.path) as client:
        assert client.read(BAR0, 0, 1) == b"\0"


def test_messages_that_make_no_sense_are_refused_or_end_the_connection(fake: ServedFake) -> None:
    for command in range(16):
        for body in (b"", b"\0" * 3, b"\xff" * 40, b"\0" * 40):
            with VfioClient(fake.path) as client:
                try:
                    client.call(command, body)
                    client.read(BAR0, 0, 1)
                except (OSError, EOFError):
                    pass
    with VfioClient(fake.path) as client:
        assert client.read(BAR0, 0, 1) == b"\0"
    assert "Traceback" not in fake.read_log()


def test_once_the_server_ends_with_its_first_client(serve: Serve) -> None:
    served = serve("--once")
    VfioClient(served.path).close()
    assert served.wait() == 0
    assert not os.path.exists(served.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_idle_or_attached(serve: Serve, number: signal.Signals) -> None:
    for attach in (False, True):
        served = serve()
        client = VfioClient(served.path) if attach else None
        served.process.send_signal(number)
        assert served.wait() == 0
        assert served.wait_for("stopped")
        assert not os.path.exists(served.path)
        assert "Traceback" not in served.read_log()
        if client is not None:
            with pytest.raises((EOFError, OSError)):
                client.read(BAR0, 0, 1)
            client.close()


def test_a_signal_stops_it_under_load_and_with_blocked_work(fake: ServedFake, client: VfioClient) -> None:
    client.write(BAR0, BLOCK, number(10_000_000))  # ms: much longer than any test waits for the end
    fake.wait_for("blocked")
    client.write(BAR0, BUSY, number(1 << 62))  # run() always has more to do
    for _ in range(200):
        client.post(BAR0, 0, bytes(4))
    assert fake.terminate() == 0


def test_a_signal_stops_it_while_a_stranger_holds_the_line(fake: ServedFake) -> None:
    """Half a first message has come; the library would wait for the rest."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(fake.path)
        stranger.sendall(b"\0")
        time.sleep(0.05)  # lets it come to the wait more often than not; either way it must stop
        assert fake.terminate() == 0


def test_a_signal_stops_it_in_the_middle_of_a_message(fake: ServedFake, client: VfioClient) -> None:
    client.socket.sendall(HEADER.pack(7, REGION_READ, 32, 0, 0))
    time.sleep(0.05)
    assert fake.terminate() == 0


def test_a_signal_stops_it_when_the_client_takes_no_replies(fake: ServedFake, client: VfioClient) -> None:
    client.socket.setblocking(False)

    def flood() -> None:
        while True:
            client.send(REGION_READ, struct.pack("<QII", 0, BAR0, BAR0_SIZE))

    with pytest.raises(BlockingIOError):
        flood()
    assert fake.terminate() == 0


@pytest.mark.slow
def test_a_stranger_who_says_nothing_is_sent_away(fake: ServedFake) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(fake.path)
        with VfioClient(fake.path) as client:  # the place is not the stranger's
            assert client.read(BAR0, 0, 1) == b"\0"
        stranger.settimeout(60)
        assert stranger.recv(1) == b""


def test_registers_are_served_while_work_blocks_and_while_run_has_more_to_do(
    fake: ServedFake, client: VfioClient
) -> None:
    """The order of events proves it: the accesses are answered before the work is done, and before run() is."""
    client.write(BAR0, BLOCK, number(1500))
    fake.wait_for("blocked")
    client.write(BAR0, BUSY, number(200_000))
    slowest = 0.0
    for _ in range(100):
        begin = time.monotonic()
        client.read(BAR0, 0, 4)
        slowest = max(slowest, time.monotonic() - begin)
    events = [fake.next_event() for _ in range(2)]
    assert ["unblocked", 1500] in events
    assert ["idle"] in events
    assert slowest < 1.0  # of the order of 0.1 ms; a loaded machine may be slow, but not by the whole block


def test_many_works_block_beside_each_other(fake: ServedFake, client: VfioClient) -> None:
    for _ in range(4):
        client.write(BAR0, BLOCK, number(300))
    events = [fake.next_event()[0] for _ in range(8)]
    assert events == ["blocked"] * 4 + ["unblocked"] * 4


def test_a_timer_fires_in_an_idle_server(fake: ServedFake, client: VfioClient) -> None:
    client.write(BAR0, LATER, number(30))
    fake.wait_for("later")


def test_an_idle_server_uses_no_cpu(fake: ServedFake, client: VfioClient) -> None:
    client.read(BAR0, 0, 4)

    def switches() -> int:
        status = Path(f"/proc/{fake.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    time.sleep(0.1)  # the reply has left before the server sleeps
    before = switches()
    time.sleep(0.5)
    assert switches() == before


@pytest.mark.kills("a-socket-for-everybody")
def test_the_socket_is_for_its_owner_only(fake: ServedFake) -> None:
    assert stat.S_IMODE(os.stat(fake.path).st_mode) == 0o600


def test_a_stale_socket_is_replaced(serve: Serve, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
        stale.listen()
    served = serve()
    VfioClient(served.path).close()


def test_a_killed_server_can_be_started_again(serve: Serve) -> None:
    served = serve()
    served.process.kill()
    served.wait()
    assert os.path.exists(served.path)
    VfioClient(serve().path).close()


def test_a_live_server_is_not_disturbed(fake: ServedFake) -> None:
    for _ in range(3):
        second = subprocess.run([sys.executable, FAKE, fake.path], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr == f"{fake.path}: another server is listening there\n"
    with VfioClient(fake.path) as client:
        client.write(BAR0, 0, b"\x01")
        for _ in range(3):
            with pytest.raises(ServeError, match="another server"):
                check(fake.path)
        assert client.read(BAR0, 0, 1) == b"\x01"
    fake.wait_for("reset")
    VfioClient(fake.path).close()


@pytest.mark.kills("the-socket-of-another-server-is-removed")
def test_only_its_own_socket_is_removed(fake: ServedFake) -> None:
    os.unlink(fake.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(fake.path)
    assert fake.terminate() == 0
    assert os.path.exists(fake.path)


def test_paths_that_cannot_be_served_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServeError, match="exists and is not a socket"):
        check(str(tmp_path / "file"))
    with pytest.raises(ServeError, match="there is no folder"):
        check(str(tmp_path / "missing" / "s"))
    with pytest.raises(ServeError, match="too long"):
        check(str(tmp_path / ("s" * 108)))
    with pytest.raises(ServeError, match="empty"):
        check("")
