"""The control socket: what a client can do to a running server, and what a bad client cannot."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from nvmeemu.app.control import Control, ControlError, Unreachable
from nvmeemu.app.control.messages import INVALID_REQUEST, MOST_IN_A_BATCH
from nvmeemu.app.control.server import MOST_CLIENTS, ControlServer
from nvmeemu.spec import Cns, Command, FeatureId, LogId
from nvmeemu.testing import CommandError
from nvmeemu.vfio import Loop
from server.guest import Guest
from server.process import NVMEEMU, Served, run

pytestmark = pytest.mark.long

MIB = 1 << 20


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "c"


@pytest.fixture
def served(tmp_path: Path, control: Path) -> Iterator[Served]:
    served = Served(str(tmp_path / "s"), "--disk", "mem:16M", "--control", control)
    yield served
    served.close()


@pytest.fixture
def client(served: Served, control: Path) -> Iterator[Control]:
    with Control(control) as client:
        yield client


def ctl(control: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return run(*words, command=(NVMEEMU, "ctl", "--control", str(control)))


def ask(control: Path, text: bytes) -> list[Any]:
    """What is answered to these bytes, until the server hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(str(control))
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
    return [json.loads(line) for line in heard.splitlines()]


@pytest.mark.kills("a-control-socket-for-everybody", "the-control-socket-stays")
def test_the_socket_is_for_its_owner_and_goes_with_the_server(served: Served, control: Path) -> None:
    status = control.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert served.stop() == 0
    assert not control.exists()
    with pytest.raises(Unreachable):
        Control(control).open()


@pytest.mark.kills("a-batch-of-any-length", "an-empty-batch-is-answered-with-nothing")
def test_a_batch_is_bounded(control: Path, served: Served) -> None:
    """Nothing of what is too much is done."""

    def batch(number: int) -> bytes:
        table = {"jsonrpc": "2.0", "method": "fault.add", "params": {"do": "drop"}}
        return json.dumps([{**table, "id": one} for one in range(number)]).encode() + b"\n"

    (answers,) = ask(control, batch(MOST_IN_A_BATCH))
    assert [answer["id"] for answer in answers] == list(range(MOST_IN_A_BATCH))
    for number in (0, MOST_IN_A_BATCH + 1):
        (refused,) = ask(control, batch(number))
        assert (refused["id"], refused["error"]["code"]) == (None, INVALID_REQUEST)
        assert refused["error"]["message"] == f"a batch of {number} requests"
    with Control(control) as client:
        assert client.call("status")["faults"] == MOST_IN_A_BATCH


def test_status_tells_what_the_drive_is_doing(client: Control, served: Served) -> None:
    status = client.call("status")
    assert status["protocol"] == 1
    assert status["controller"] == {"rdy": 0, "cfs": 0, "shst": 0}
    assert status["namespaces"][0]["size"] == 16 * MIB
    guest = Guest(served.path)
    status = client.call("status")
    assert status["controller"]["rdy"] == 1
    assert status["queues"] == {"submission": [0, 1], "completion": [0, 1]}
    guest.leave()


def test_status_says_that_the_drive_was_pulled(client: Control, served: Served, control: Path) -> None:
    assert client.call("status")["removed"] is False
    fault = client.call("fault.add", do="remove")
    assert client.call("status")["removed"] is True
    assert "\nremoved: true\n" in ctl(control, "status").stdout
    client.call("fault.remove", id=fault["id"])
    assert client.call("status")["removed"] is False
    client.call("fault.add", do={"remove": True, "seconds": 0.05})
    end = time.monotonic() + 120
    while client.call("status")["removed"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_faults_come_count_and_go(client: Control, served: Served) -> None:
    guest = Guest(served.path)
    fault = client.call("fault.add", match={"opcode": "write"}, do={"status": "write_fault"}, when={"nth": 2})
    guest.write(0, b"a" * 512)
    with pytest.raises(CommandError):
        guest.write(0, b"b" * 512)
    (listed,) = client.call("fault.list")
    assert listed == {**fault, "seen": 2, "hits": 1}
    client.call("fault.remove", id=fault["id"])
    assert client.call("fault.list") == []
    assert len(client.call("scenario.add", name="flaky")) == 2
    client.call("fault.remove")
    assert client.call("status")["faults"] == 0
    guest.leave()


@pytest.mark.kills("numbers-are-texts", "a-size-that-is-no-number-of-blocks")
def test_a_bad_fault_is_refused_with_the_reason(client: Control) -> None:
    for method, parameters, said in (
        ("fault.add", {"do": "explode"}, "do: 'explode' is none of"),
        ("fault.add", {"do": "delay"}, "do: delay needs a value, for example do.delay=250ms"),
        ("fault.add", {"do": {"flood": True}}, "do: flood needs a value, for example do.flood=100"),
        ("fault.add", {"do": 5}, "do: 5 is no table"),
        ("fault.add", {"do": None}, "do: None is no table"),
        ("fault.add", {"self": 1}, "self: a fault has"),
        ("fault.remove", {"id": 4.0}, "no fault 4.0"),
        ("fault.add", {"what": 1}, "what: a fault has"),
        ("fault.remove", {"id": 4}, "no fault 4"),
        ("fault.remove", {"id": {}}, "no fault {}"),
        ("fault.add", {"do": {"flood": 1, "type": []}}, "do.type: [] is none of"),
        ("fault.add", {"do": [3]}, "do: 3 is no table"),
        ("fault.add", {"do": "drop", "match": {"opcode": [[1]]}}, "match.opcode: [1] is no whole number"),
        ("fault.add", {"do": "drop", "at": {}}, "at: {} is none of"),
        ("fault.add", {"do": "drop", "match": {"cid": 70000}}, "match.cid: 70000 is not within 0..65535"),
        ("fault.add", {"do": "drop", "match": {"opcode": "read", "fid": 1}}, "match.fid: no command that the rest"),
        ("fault.add", {"do": "drop", "when": 3}, "when: 3 is no table"),
        ("scenario.add", {"name": []}, "name: [] is not text"),
        ("namespace.add", {"disk": 3}, "disk: 3 is not text"),
        ("namespace.add", {"disk": "mem:8M", "nsid": {}}, "NSID {} is taken"),
        ("namespace.add", {"disk": "mem:8M", "nsid": 2.0}, "NSID 2.0 is taken"),
        ("namespace.remove", {"nsid": True}, "no namespace True"),
        ("namespace.remove", {"nsid": []}, "no namespace []"),
        ("scenario.add", {"name": "x"}, "no scenario 'x'"),
        ("scenario.add", {}, "missing a required argument"),
        ("namespace.remove", {"nsid": 9}, "no namespace 9"),
        ("namespace.add", {"disk": "mem:8M", "nsid": 1}, "NSID 1 is taken"),
        ("namespace.add", {"disk": "/none"}, "disk /none does not exist"),
        ("namespace.resize", {"nsid": 1, "size": "17M"}, "namespace 1 can have 1 to 32768 blocks"),
        ("namespace.resize", {"nsid": 1, "size": "x"}, "bad size 'x'"),
        ("namespace.resize", {"nsid": 1, "size": 1000}, "1000 is no whole number of blocks of 512 bytes"),
        ("explode", {}, "no method 'explode'"),
    ):
        with pytest.raises(ControlError) as refused:
            client.call(method, **parameters)
        assert str(refused.value).startswith(said)


def listen(guest: Guest) -> None:
    """Ask to be told of namespaces that change."""
    guest.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x100)
    guest.submit(guest.admin, Command(opcode=0x0C))


def heard(guest: Guest) -> int:
    """DW0 of the next event."""
    for _ in range(1000):
        if (completion := guest.poll(guest.admin)) is not None:
            return completion.dw0
        guest.bus.settle()
    raise TimeoutError("no event")


def changed(guest: Guest) -> list[int]:
    """The Changed Namespace List."""
    page = guest.get_log(LogId.CHANGED_NAMESPACE_LIST, 4096)
    found = [int.from_bytes(page[start : start + 4], "little") for start in range(0, 4096, 4)]
    return [nsid for nsid in found if nsid]


def test_namespaces_come_change_and_go_and_the_host_is_told(client: Control, served: Served, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"d" * MIB)
    guest = Guest(served.path)
    listen(guest)
    added = client.call("namespace.add", disk=str(disk))
    assert (added["nsid"], added["size"]) == (2, MIB)
    assert heard(guest) == 0x040002  # notice, namespace attribute changed, log page 04h
    assert changed(guest) == [2]
    assert changed(guest) == []
    assert guest.read(0, 1, nsid=2) == b"d" * 512
    guest.write(0, b"n" * 512, nsid=2)

    listen(guest)
    client.call("namespace.resize", nsid=2, size="512K")
    assert heard(guest) == 0x040002
    assert int.from_bytes(guest.identify(Cns.NAMESPACE, 2)[:8], "little") == 1024
    with pytest.raises(CommandError):
        guest.read(1024, 1, nsid=2)

    client.call("namespace.remove", nsid=2)
    assert changed(guest) == [2]
    assert guest.identify(Cns.ACTIVE_NAMESPACES)[:8] == b"\1\0\0\0\0\0\0\0"
    guest.leave()
    assert served.stop() == 0
    assert disk.read_bytes()[:1024] == b"n" * 512 + b"d" * 512


def test_memory_disks_of_one_size_come_and_go_in_any_order(client: Control) -> None:
    for nsid in (2, 3, 4):
        client.call("namespace.add", disk="mem:1M", nsid=nsid)
    for nsid in (2, 4, 3, 2, 3, 4) * 10:
        client.call("namespace.remove", nsid=nsid)
        client.call("namespace.add", disk="mem:1M", nsid=nsid)
        assert client.call("status")["namespaces"][-1]["nsid"] == nsid


@pytest.mark.parametrize(("kind", "is_new"), [("memory", True), ("overlay", True), ("file", False)])
def test_what_begins_anew_has_a_new_name(tmp_path: Path, control: Path, kind: str, is_new: bool) -> None:
    """A memory disk that comes back is empty, and an overlay has lost its writes; a file is the one that it was."""
    for name in ("first", "disk"):
        (tmp_path / name).write_bytes(bytes(MIB))
    spec = "mem:1M" if kind == "memory" else str(tmp_path / "disk")
    options = ["--overlay"] if kind == "overlay" else []
    served = Served(str(tmp_path / "s"), "--disk", tmp_path / "first", "--control", control, *options)
    guest = Guest(served.path)
    seen = []
    with Control(control) as client:
        for _ in range(3):
            add_again(client, spec)
            seen.append((guest.identify(Cns.NAMESPACE, 2)[104:120], guest.identify(Cns.NAMESPACE_DESCRIPTORS, 2)))
            client.call("namespace.remove", nsid=2)
    assert len(set(seen)) == (3 if is_new else 1)
    guest.leave()
    assert served.stop() == 0


@pytest.mark.parametrize("options", [(), ("--overlay",)], ids=["file", "overlay"])
def test_a_file_that_comes_back_has_the_name_that_it_was_given(
    tmp_path: Path, control: Path, options: tuple[str, ...]
) -> None:
    disks = [word for name in ("first", "second") for word in ("--disk", str(tmp_path / name))]
    for disk in disks[1::2]:
        Path(disk).write_bytes(bytes(MIB))
    given = ("--nguid", "1" * 32, "--nguid", "2" * 32)
    served = Served(str(tmp_path / "s"), *disks, *given, "--control", control, *options)
    guest = Guest(served.path)
    with Control(control) as client:
        client.call("namespace.remove", nsid=2)
        add_again(client, disks[3])
        nguid = guest.identify(Cns.NAMESPACE, 2)[104:120].hex()
        assert (nguid == "2" * 32) == (not options)
    guest.leave()
    assert served.stop() == 0


def add_again(client: Control, spec: str) -> None:
    """As NSID 2; what was removed just now may not be closed yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.call("namespace.add", disk=spec, nsid=2)
            return
        except ControlError as error:
            assert "was removed just now" in str(error)  # noqa: PT017
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_is_changed_is_logged(client: Control, served: Served) -> None:
    fault = client.call("fault.add", do="drop", match={"opcode": "flush"}, when={"nth": 3})
    client.call("fault.remove", id=fault["id"])
    client.call("scenario.add", name="flaky")
    client.call("fault.remove")
    client.call("namespace.add", disk="mem:8M", nsid=3)
    client.call("namespace.resize", nsid=3, size="1536K")
    client.call("namespace.remove", nsid=3)
    client.call("status")
    for words in (
        "fault 1: match.opcode=flush at=execute do=drop when.nth=3\n",
        "fault 1 is removed",
        "fault 2 is removed",
        "fault 3 is removed",
        "namespace 3 is added: disk mem:8M, 8 MiB",
        "namespace 3 has 1.5 MiB now: disk mem:8388608",
        "namespace 3 is removed: disk mem:8388608",
    ):
        served.expect(f" INFO {words}" if words.startswith("fault 1: ") else f" INFO control: {words}")


@pytest.mark.parametrize(
    "options", [("--engine", "python"), ("--engine", "native"), ("--direct",), ("--overlay",)], ids=" ".join
)
def test_a_disk_that_has_grown_is_seen_by_a_resize(control: Path, options: tuple[str, ...]) -> None:
    """On a real file system: /tmp may have no O_DIRECT."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        disk = Path(folder) / "disk"
        disk.write_bytes(b"d" * MIB)
        served = Served(f"{folder}/s", "--disk", disk, "--control", control, *options)
        guest = Guest(served.path)
        guest.write(0, b"n" * 512)
        with open(disk, "ab") as file:
            file.write(b"e" * MIB + b"odd")
        with Control(control) as client:
            with pytest.raises(CommandError):
                guest.read(2048, 1)
            with pytest.raises(ControlError, match="can have 1 to 4096 blocks"):
                client.call("namespace.resize", nsid=1, size="3M")
            listen(guest)
            assert client.call("namespace.resize", nsid=1)["size"] == 2 * MIB
            assert heard(guest) == 0x040002
            assert int.from_bytes(guest.identify(Cns.NAMESPACE, 1)[:8], "little") == 4096
            assert (guest.read(0, 1), guest.read(4095, 1)) == (b"n" * 512, b"e" * 512)
            guest.write(2047, b"w" * 1024)
            assert guest.read(2046, 4) == b"d" * 512 + b"w" * 1024 + b"e" * 512
            os.truncate(disk, 4 * MIB)
            assert client.call("namespace.resize", nsid=1, size="3M")["size"] == 3 * MIB
            os.truncate(disk, MIB)
            with pytest.raises(ControlError, match="can have 1 to 2048 blocks"):
                client.call("namespace.resize", nsid=1, size="2M")
            assert client.call("namespace.resize", nsid=1)["size"] == MIB
        guest.leave()
        assert served.stop() == 0


@pytest.mark.kills("a-removed-disk-stays-open")
def test_a_disk_comes_back_as_soon_as_it_is_closed(client: Control, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    client.call("namespace.add", disk=str(disk))
    with pytest.raises(ControlError, match="is a namespace already: give each disk once"):
        client.call("namespace.add", disk=str(disk))
    client.call("namespace.remove", nsid=2)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert client.call("namespace.add", disk=str(disk))["nsid"] == 2
            break
        except ControlError as error:
            assert (error.code, "was removed just now" in str(error)) == (1, True)  # noqa: PT017
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.kills(
    "any-id-is-sent-back", "another-protocol-is-served", "parameters-by-place", "deep-json-ends-the-server"
)
@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"nonsense\n", -32700),
        (b"[" * 100000 + b"\n", -32700),
        (b"[]\n", -32600),
        (b"3\n", -32600),
        (b'{"method": "status", "id": 1}\n', -32600),
        (b'{"jsonrpc": "2.0", "method": 3, "id": 1}\n', -32600),
        (b'{"jsonrpc": "2.0", "method": "status", "id": {}}\n', -32600),
        (b'{"jsonrpc": "2.0", "method": "status", "params": [1], "id": 1}\n', -32602),
        (b'{"jsonrpc": "2.0", "method": "status", "params": {"a": 1}, "id": 1}\n', -32602),
    ],
)
def test_what_is_no_request_is_answered_as_json_rpc_says(served: Served, control: Path, text: bytes, code: int) -> None:
    (answer,) = ask(control, text)
    assert answer["error"]["code"] == code
    assert served.stop() == 0


@pytest.mark.parametrize("answer", [b"", b"garbage\n", b"\xff\n", b"3\n", b"{}\n", b'{"error": 3}\n', b'{"result": 1}'])
def test_who_is_no_server_is_told_apart(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()

        def say() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        stranger = threading.Thread(target=say)
        stranger.start()
        result = ctl(tmp_path / "other", "status")
        stranger.join()
    assert result.returncode == 1
    assert result.stderr.startswith("nvmeemu ctl: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.kills("a-namespace-takes-the-nsid-of-one-that-vanished")
def test_a_namespace_that_vanishes_keeps_its_number(client: Control) -> None:
    fault = client.call("fault.add", do={"vanish": 1})
    assert client.call("namespace.add", disk="mem:1M")["nsid"] == 2
    with pytest.raises(ControlError, match="NSID 1 is taken"):
        client.call("namespace.add", disk="mem:1M", nsid=1)
    client.call("fault.remove", id=fault["id"])
    assert [one["size"] // MIB for one in client.call("status")["namespaces"]] == [16, 1]


@pytest.mark.parametrize(
    ("option", "is_read_only", "is_kept"),
    [("--read-only", True, False), ("--overlay", False, False), (None, False, True)],
)
def test_a_disk_that_comes_later_is_opened_like_the_first(
    tmp_path: Path, control: Path, option: str | None, is_read_only: bool, is_kept: bool
) -> None:
    (tmp_path / "first").write_bytes(bytes(MIB))
    (tmp_path / "later").write_bytes(bytes(MIB))
    options = [option] if option else []
    served = Served(str(tmp_path / "s"), "--disk", tmp_path / "first", "--control", control, *options)
    with Control(control) as client:
        added = client.call("namespace.add", disk=str(tmp_path / "later"))
    assert added["read_only"] == is_read_only
    guest = Guest(str(tmp_path / "s"))
    if not is_read_only:
        guest.write(0, b"w" * 512, nsid=2)
    guest.leave()
    assert served.stop() == 0
    assert ((tmp_path / "later").read_bytes()[:1] == b"w") == is_kept


@pytest.mark.kills("notifications-are-answered")
def test_notifications_are_not_answered_and_batches_are(served: Served, control: Path) -> None:
    note = {"jsonrpc": "2.0", "method": "fault.add", "params": {"do": "drop"}}
    ask_list = {"jsonrpc": "2.0", "method": "fault.list", "id": "a"}
    assert ask(control, json.dumps(note).encode() + b"\n") == []
    ((answer,),) = ask(control, json.dumps([note, ask_list]).encode() + b"\n")
    assert answer["id"] == "a"
    assert len(answer["result"]) == 2


@pytest.mark.kills("a-line-without-end", "any-number-of-clients")
def test_an_endless_line_and_too_many_clients_are_dropped(served: Served, control: Path) -> None:
    assert ask(control, b" " * (1 << 20)) == []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(str(control))
        with pytest.raises(OSError):  # noqa: PT011, PT012  # EPIPE or ECONNRESET
            for _ in range(8):  # a line has a megabyte
                connection.sendall(b"x" * (1 << 20))
    clients = [Control(control).open() for _ in range(16)]
    with Control(control) as one_too_many, pytest.raises(Unreachable):
        one_too_many.call("status")
    for client in clients:
        client.close()
    with Control(control) as client:
        assert client.call("status")["faults"] == 0
    assert served.stop() == 0


class Watched:
    """A loop whose test says which descriptor is looked at next: the kernel promises no order."""

    def __init__(self) -> None:
        self.looks: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, look: Callable[[], None]) -> None:
        self.looks[fd] = look

    def unwatch(self, fd: int) -> None:
        del self.looks[fd]


@pytest.mark.kills("clients-that-have-left-are-counted")
def test_clients_that_have_left_make_room_for_one_that_came_before_that_was_seen(tmp_path: Path) -> None:
    loop = Watched()
    path = str(tmp_path / "c")
    with ExitStack() as stack:
        stack.enter_context(ControlServer(cast(Loop, loop), path, {}))
        (accept,) = loop.looks.values()

        def connect() -> socket.socket:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            return client

        clients = []
        for _ in range(MOST_CLIENTS):
            clients.append(connect())
            accept()
        for client in clients:
            client.close()
        late = connect()
        accept()  # the new one is seen before those that have left
        assert len(loop.looks) == 2  # it, and the socket that listens
        late.sendall(b"{}\n")
        for look in tuple(loop.looks.values())[1:]:
            look()
        assert json.loads(late.recv(1 << 16))["error"]["code"] == INVALID_REQUEST
    assert not loop.looks


def test_the_command_line_does_the_same(served: Served, control: Path, tmp_path: Path) -> None:
    added = ctl(control, "fault", "add", "match.opcode=write", "do.status=write_fault", "when.nth=3")
    assert added.stdout.startswith("fault 1: 0 of 0 times: ")
    assert ctl(control, "fault", "add", "scenario:hung").returncode == 0
    file = tmp_path / "f.toml"
    file.write_text("[[fault]]\ndo = 'drop'\n[[fault]]\ndo = { delay = 1 }\n")
    assert ctl(control, "fault", "add", file).stdout.count("\n") == 2
    assert (
        len(json.loads(run("fault", "list", command=(NVMEEMU, "ctl", "--control", str(control), "--json")).stdout)) == 4
    )
    assert ctl(control, "fault", "rm", 1, 2).returncode == 0
    assert ctl(control, "fault", "rm", "all").returncode == 0
    assert "faults: 0\n" in ctl(control, "status").stdout
    assert ctl(control, "namespace", "add", "mem:2M").stdout.startswith("nsid: 2\n")
    assert "size: 1048576\n" in ctl(control, "namespace", "resize", 2, "1M").stdout
    assert ctl(control, "namespace", "rm", 2).returncode == 0
    for words, status, said in (
        (("fault", "add", "do=burn"), 2, "do: 'burn' is none of"),
        (("fault", "add", "do=drop", "match.nsid=2020-01-01"), 2, "match.nsid: datetime.date(2020, 1, 1) is no"),
        (("fault", "add", "nonsense=["), 2, "nonsense: a fault has"),
        (("fault", "add", tmp_path / "none"), 2, f"{tmp_path / 'none'}: No such file or directory"),
        (("fault", "rm", 99), 1, "no fault 99"),
        (("namespace", "rm", 9), 1, "no namespace 9"),
        (("namespace", "resize", 1, "1X"), 2, "bad size '1X'"),
        (("namespace", "add", "mem:1X"), 2, "bad size '1X'"),
        (("namespace", "add", ""), 2, "a disk without a name"),
    ):
        result = ctl(control, *words)
        assert result.returncode == status
        assert result.stderr.startswith(f"nvmeemu ctl: {said}")
        assert result.stderr.count("\n") == 1
    missing = ctl(tmp_path / "none", "status")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    command = (NVMEEMU, "ctl", "--control", str(control))
    with open("/dev/full", "w") as full:
        lost = run("status", command=command, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (lost.returncode, lost.stderr) == (1, "nvmeemu ctl: standard output: No space left on device\n")
