"""A trace that is being written: never at the guest's expense, and never over something else."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from nvmeemu import trace
from nvmeemu.trace import sink
from nvmeemu.trace.records import encode
from nvmeemu.trace.sink import BadTarget, TraceFile

NOTE = trace.Note(1, 0, "x" * 1000)


def read(path: Path) -> list[trace.Record]:
    with trace.open_trace(path) as found:
        return list(found)


def test_what_is_put_is_in_the_file_after_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "t"
    file = TraceFile(str(path), trace.Description()).open()
    for number in range(100):
        file.put(encode(trace.Note(number, 0, str(number))))
    for _ in range(100):
        if len(read(path)) == 100:  # without close: so much is there if the process dies
            break
        threading.Event().wait(0.05)
    else:
        raise AssertionError("nothing was written in 5 s")
    file.put(encode(trace.Note(100, 0, "100")))
    file.close()
    assert [one.text for one in read(path) if isinstance(one, trace.Note)] == [str(number) for number in range(101)]


@pytest.mark.kills("a-trace-over-a-disk")
def test_a_file_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    with pytest.raises(BadTarget, match="a file that is no trace"):
        TraceFile(str(disk), trace.Description()).open()
    assert disk.read_bytes() == bytes(4096)


@pytest.mark.kills("everybody-reads-traces")
def test_an_old_trace_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for text in ("a long one" * 100, "short"):
        file = TraceFile(str(path), trace.Description()).open()
        file.put(encode(trace.Note(0, 0, text)))
        file.close()
    assert read(path) == [trace.Note(0, 0, "short")]
    assert path.stat().st_mode & 0o777 == 0o600  # what a host gives may be a secret


@pytest.mark.kills("two-servers-write-one-trace")
def test_a_file_that_another_one_writes_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    first = TraceFile(path, trace.Description()).open()
    with pytest.raises(trace.TraceError, match="t: another process is writing a trace there"):
        TraceFile(path, trace.Description()).open()
    first.put(encode(NOTE))
    first.close()
    assert read(tmp_path / "t") == [NOTE]
    TraceFile(path, trace.Description()).open().close()


def test_what_is_saved_in_one_go_is_all_there_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is: there is no guest that must not wait."""
    monkeypatch.setattr(sink, "MOST_WAITING", 1 << 12)
    memory = sink.Memory(trace.Description())
    for _ in range(1000):
        memory.put(encode(NOTE))
    sink.save(str(tmp_path / "t"), memory.reader())
    assert read(tmp_path / "t") == [NOTE] * 1000
    with pytest.raises(trace.TraceError, match="/dev/full: No space left on device"):
        sink.save("/dev/full", memory.reader())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/t", "/nowhere/t: No such file or directory"),
        ("/", "/: Is a directory"),
        ("/dev/full", "/dev/full: No space left on device"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(path: str, message: str) -> None:
    with pytest.raises(trace.TraceError, match=f"^{message}$"):
        TraceFile(path, trace.Description()).open()


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(trace.TraceError, match="No such device or address"):
        TraceFile(str(tmp_path / "pipe"), trace.Description()).open()


@pytest.mark.kills("everything-waits")
def test_a_pipe_that_takes_nothing_never_stops_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may wait is counted, and the count is in the trace once there is room again."""
    monkeypatch.setattr(sink, "MOST_WAITING", 1 << 20)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = TraceFile(str(path), trace.Description()).open()
    note = encode(NOTE)
    for _ in range(5000):  # 5 MB; a pipe takes 64 KiB
        file.put(note)
    os.set_blocking(reading, True)
    closing = threading.Thread(target=file.close)
    closing.start()
    with trace.Reader(os.fdopen(reading, "rb")) as reader:
        found = list(reader)
    closing.join()
    lost = [one.records for one in found if isinstance(one, trace.Lost)]
    assert 1000 < len(found) < 5000
    assert len(found) - len(lost) + sum(lost) == 5000


class Stalled:
    """A trace into a pipe: what is put first is being written, and waits until somebody reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.file = TraceFile(str(path), trace.Description()).open()
        self.stall()

    def stall(self) -> None:
        """Put more than the pipe holds, and wait until the thread has it."""
        self.file.put(encode(NOTE) * 300)
        while self.file._waiting:
            threading.Event().wait(0.01)

    def read(self, size: int) -> None:
        """Let go on: so many bytes are read, and not looked at."""
        os.set_blocking(self.reading, True)
        while size:
            size -= len(os.read(self.reading, size))

    def close(self) -> list[int]:
        """The numbers that the rest of the trace has lost."""
        closing = threading.Thread(target=self.file.close)
        closing.start()
        while not self.file._closing.is_set():
            threading.Event().wait(0.01)
        os.set_blocking(self.reading, True)
        with os.fdopen(self.reading, "rb") as pipe:
            rest = pipe.read()
        closing.join()
        known = encode(trace.Lost(0, 0, 0))[8:12]  # length, kind and lane
        places = [at - 8 for at in range(len(rest)) if rest.startswith(known, at)]
        return [int.from_bytes(rest[at + 12 : at + 20], "little") for at in places]


@pytest.mark.kills("lost-counts-pieces", "lost-at-the-end-is-not-told")
def test_what_is_lost_is_counted_in_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several may come at once; also those that are lost while the last of the others are written."""
    monkeypatch.setattr(sink, "MOST_WAITING", 1 << 12)
    stalled = Stalled(tmp_path / "pipe")
    for number in (1, 3, 20):
        stalled.file.put(encode(NOTE) * number)
    assert stalled.close() == [24]


@pytest.mark.kills("lost-is-told-again")
def test_what_is_lost_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MOST_WAITING", 1 << 12)
    stalled = Stalled(tmp_path / "pipe")
    stalled.file.put(encode(NOTE) * 5)
    header = len(trace.Description().to_json()) + 24
    stalled.read(header + 300 * len(encode(NOTE)))
    while stalled.file._put != stalled.file._taken:
        threading.Event().wait(0.01)
    stalled.stall()  # with it the first number is written
    stalled.file.put(encode(NOTE) * 2)
    assert stalled.close() == [5, 2]


def test_a_pipe_whose_reader_leaves_is_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = TraceFile(str(path), trace.Description()).open()
    os.close(reading)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            file.put(encode(NOTE))
            threading.Event().wait(0.1)
        file.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"trace {path}: Broken pipe: it ends here; the guest goes on"
    ]
