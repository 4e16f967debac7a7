"""What opens descriptors leaves none behind when it cannot have all that it needs, and no socket either."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nvmeemu import trace
from nvmeemu.app.control.server import ControlServer
from nvmeemu.trace.file import TraceError
from nvmeemu.trace.sink import TraceFile
from nvmeemu.vfio import Loop, ServeError, Server
from nvmeemu.vfio.function import PciHost
from transport.fake import IDENTITY, Fake


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def only(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So many more descriptors, and whatever is done about the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, descriptors())) + 1
    taken = []
    with monkeypatch.context() as changed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit + count, hard))
            changed.setattr("nvmeemu.vfio.server._raise_descriptor_limit", lambda: None)
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)


@pytest.mark.kills("a-loop-that-cannot-open-leaks")
def test_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    Loop()
    assert descriptors() == before  # a constructor opens nothing
    for count in range(4):  # epoll, two ends of a pipe, a timer
        with only(count, monkeypatch), pytest.raises(OSError, match="Too many open files"):
            Loop().open()
        assert descriptors() == before
    with only(4, monkeypatch), Loop():
        pass
    assert descriptors() == before


@pytest.mark.kills("a-server-that-cannot-open-leaks")
def test_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with Loop() as loop:

        def server() -> Server:
            host = PciHost()
            return Server(loop, host, Fake(host, loop, loop, 5, lambda *_: None), str(path), IDENTITY)

        with server():  # what is opened once for the process
            pass
        before = descriptors()
        failures = 0
        for count in range(30):
            one = server()
            with suppress(OSError, ServeError), only(count, monkeypatch):
                one.open()
            is_open = path.exists()
            failures += not is_open
            one.close()
            assert descriptors() == before
            assert not path.exists()
            assert loop.step_count == 0
            if is_open:
                break
        assert 2 <= failures < 30


@pytest.mark.kills("a-control-socket-that-cannot-open-leaks")
def test_a_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    with Loop() as loop:

        def fail(fd: int, callback: object) -> None:
            raise OSError("no more watches")

        before = descriptors()
        server = ControlServer(loop, str(path), {})
        assert not path.exists()
        with monkeypatch.context() as changed:
            changed.setattr(loop, "watch", fail)
            with pytest.raises(OSError, match="no more watches"):
                server.open()
        assert not path.exists()
        assert descriptors() == before
        with server:
            assert path.exists()
        assert not path.exists()


@pytest.mark.kills("a-trace-without-a-thread-leaks")
def test_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = descriptors()
    file = TraceFile(str(tmp_path / "t"), trace.Description())
    assert not (tmp_path / "t").exists()
    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", fail)
        with pytest.raises(TraceError, match="t: can't start new thread"):
            file.open()
    assert descriptors() == before
    file.open().close()
    assert descriptors() == before
